"""Time grids, by the definitions of their spacings."""

import numpy as np
import pytest

from diffjax.core import grids


@pytest.mark.parametrize(
    ("grid", "times"),
    [
        # every third step, counted from the clean end
        (grids.leading(3, 10), [6, 3, 0, -1]),
        (grids.leading(3, 10, offset=1), [7, 4, 1, -1]),
        # 10, 6.67, 3.33 rounded, less one
        (grids.trailing(3, 10), [9, 6, 2, -1]),
        # 9, 4.5, 0: half to even
        (grids.linspace(3, 10), [9, 4, 0, -1]),
        # 9, 9 / 4, 0 rounded
        (grids.quadratic(3, 10), [9, 2, 0, -1]),
        # 9 (i / 7)^2 gives 0, 0, 1, 2, 3, 5, 7, 9: the first ones are raised to be distinct
        (grids.quadratic(8, 10), [9, 7, 5, 4, 3, 2, 1, 0, -1]),
        (grids.full(3), [2, 1, 0, -1]),
        (grids.from_times([7, 2], 10), [7, 2, -1]),
        (grids.from_times([7, 2, -1], 10), [7, 2, -1]),
        (grids.from_times([1.0, 0.5]), [1.0, 0.5, 0.0]),
        (grids.uniform(4, start=0.8, end=0.4), [0.8, 0.7, 0.6, 0.5, 0.4]),
        (grids.trailing(4), [1.0, 0.75, 0.5, 0.25, 0.0]),
        (grids.quadratic(2), [1.0, 0.25, 0.0]),
    ],
)
def test_grid_is_what_its_definition_says(grid, times):
    np.testing.assert_allclose(grid, times, rtol=1e-6)
    assert grid.dtype == (np.int32 if isinstance(times[0], int) else np.float32)


@pytest.mark.parametrize("spacing", grids.SPACINGS.values())
@pytest.mark.parametrize("num_train_steps", [1, 2, 37, 100])
def test_every_number_of_steps_gives_strictly_decreasing_steps_in_range(spacing, num_train_steps):
    for num_steps in range(1, num_train_steps + 1):
        grid = spacing(num_steps, num_train_steps)
        assert grid.shape == (num_steps + 1,)
        assert np.all(np.diff(grid) < 0)
        assert grid[0] <= num_train_steps - 1
        assert grid[-1] == -1
        assert grid[-2] >= 0


@pytest.mark.parametrize("spacing", grids.SPACINGS.values())
def test_as_many_steps_as_trained_is_the_full_chain(spacing):
    np.testing.assert_array_equal(spacing(50, 50), grids.full(50))


@pytest.mark.parametrize("spacing", [grids.trailing, grids.linspace, grids.quadratic])
def test_spacings_but_leading_start_at_the_noisiest_step(spacing):
    assert all(spacing(n, 1000)[0] == 999 for n in (2, 13, 30, 75, 999))


def test_fractions_of_a_tables_steps_are_kept():
    times = grids.from_times([9.0, 4.5, 0.25], 10, fractions=True)
    np.testing.assert_array_equal(times, np.array([9.0, 4.5, 0.25, -1.0], np.float32))
    assert grids.from_times([9, 4], 10, fractions=True).dtype == np.int32


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: grids.trailing(0, 10), ValueError, "num_steps is 0"),
        (lambda: grids.trailing(-1), ValueError, "trailing: num_steps is -1"),
        (lambda: grids.linspace(11, 10), ValueError, "trained with 10 steps"),
        (lambda: grids.trailing(2.5, 10), TypeError, "num_steps is 2.5; .* an integer"),
        (lambda: grids.leading(10, 10, offset=1), ValueError, "offset 1"),
        (lambda: grids.leading(5, 10, offset=-1), ValueError, "offset -1"),
        (lambda: grids.uniform(4, start=0.2, end=0.4), ValueError, "0.2 to 0.4"),
        (lambda: grids.from_times([], 10), ValueError, "shape"),
        (lambda: grids.from_times(["a"], 10), ValueError, "needed are numbers"),
        (lambda: grids.from_times([0.5, np.nan]), ValueError, "decrease strictly"),
        (lambda: grids.from_times([3, 3], 10), ValueError, "decrease strictly"),
        (lambda: grids.from_times([10, 3], 10), ValueError, "decrease strictly"),
        (lambda: grids.from_times([0.5, 0.2], 10), TypeError, "integer steps"),
    ],
)
def test_errors_say_what_is_needed(make, error, words):
    with pytest.raises(error, match=words):
        make()
