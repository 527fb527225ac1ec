"""Grids of ratios: their ends, their order, and where their steps are short."""

from functools import partial

import numpy as np
import pytest

from diffjax.core.sigma_grids import (
    ALIGNED,
    aligned_ratios,
    beta_ratios,
    exponential_ratios,
    karras_ratios,
    shifted_ratios,
)

GRIDS = {
    "karras": karras_ratios,
    "exponential": exponential_ratios,
    "beta": beta_ratios,
    "shifted": shifted_ratios,
    **{name: partial(aligned_ratios, table=name) for name in ALIGNED},
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [2, 3, 10, 37])
def test_a_grid_falls_from_its_largest_ratio_over_its_smallest_to_clean_data(name, num_steps):
    grid = GRIDS[name](num_steps, 0.02, 50.0)
    assert len(grid) == num_steps + 1
    np.testing.assert_allclose(grid[[0, -2, -1]], [50.0, 0.02, 0.0], rtol=1e-9, atol=1e-12)
    assert np.all(np.diff(grid) < 0)


@pytest.mark.parametrize("name", GRIDS)
def test_one_step_leads_from_the_largest_ratio_to_clean_data(name):
    np.testing.assert_allclose(GRIDS[name](1, 0.02, 50.0), [50.0, 0.0], rtol=1e-9)


@pytest.mark.parametrize("name", ALIGNED)
def test_ten_steps_are_the_published_ones_and_more_of_them_hold_every_other(name):
    ten = aligned_ratios(10, table=name)
    np.testing.assert_allclose(ten[:-1], ALIGNED[name], rtol=1e-12)
    np.testing.assert_allclose(aligned_ratios(19, table=name)[:-1:2], ALIGNED[name], rtol=1e-12)


def test_a_shift_multiplies_ratios_whose_flow_times_are_even():
    grid = shifted_ratios(9, 0.1, 20.0, shift=4.0)[:-1] / 4.0
    np.testing.assert_allclose(np.diff(grid / (1.0 + grid), n=2), 0.0, atol=1e-12)


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="stable_diffusion, stable_diffusion_xl, stable_video"):
        aligned_ratios(5, table="sd3")
