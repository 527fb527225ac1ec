"""Tuned grids: better than every one made by hand, by gradients through the sampling run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.inverse import levels_at
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios
from diffjax.solvers import ddim
from diffjax.training.time_grid import reference_loss, tune_times

NUM_STEPS = 10
SCHEDULE = schedules.linear()
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.01, 0.02])
NOISE = jax.random.normal(jax.random.key(0), (2, 256, 1))


def made_by_hand():
    """The usual grids of ten steps from t = 1 to clean data."""
    found = {"uniform": grids.uniform(NUM_STEPS), "quadratic": grids.quadratic(NUM_STEPS)}
    last = float(SCHEDULE(1.0).sigma / SCHEDULE(1.0).alpha)
    for smallest in (0.01, 0.03, 0.1):
        for name, ratios in (("karras", karras_ratios), ("log-snr", exponential_ratios)):
            times = levels_at(SCHEDULE, ratios(NUM_STEPS, smallest, last)).t
            found[f"{name} {smallest}"] = np.asarray(times)
    return found


def test_a_tuned_grid_beats_every_one_made_by_hand_on_fresh_noise():
    ends = SCHEDULE(jnp.asarray(1.0)), SCHEDULE(jnp.asarray(0.0))
    known = jax.jit(lambda x: exact.probability_flow(LINE, x, *ends))
    target = jnp.stack([known(x) for x in NOISE])
    loss = reference_loss(exact.denoiser, ddim(), SCHEDULE, segments=3)
    mixture = jax.tree.map(jnp.asarray, LINE)
    seen = []
    tuned = tune_times(
        grids.quadratic(NUM_STEPS), loss, (NOISE[0], target[0], mixture),
        num_iterations=60, learning_rate=0.1, on_iteration=lambda i, value: seen.append(value),
    )  # fmt: skip
    assert tuned.times.shape == (NUM_STEPS + 1,)
    assert (tuned.times[0], tuned.times[-1]) == (1.0, 0.0)
    assert np.all(np.diff(tuned.times) < 0)
    np.testing.assert_array_equal(np.array(seen, np.float32), tuned.losses)

    fresh = jax.jit(lambda times: loss(times, NOISE[1], target[1], mixture))
    by_hand = {name: float(fresh(times)) for name, times in made_by_hand().items()}
    assert float(fresh(tuned.times)) < 0.8 * min(by_hand.values()), by_hand


def test_the_best_grid_is_returned_not_the_last():
    wild = tune_times(
        np.array([1.0, 0.5, 0.0]), lambda t: jnp.abs(t[1] - 0.5), num_iterations=3,
        learning_rate=5.0,
    )  # fmt: skip
    np.testing.assert_allclose(wild.times, [1.0, 0.5, 0.0])
    assert wild.losses[0] == wild.losses.min()


@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 1.0], [[1.0]]])
def test_grids_that_are_none_are_refused(times):
    with pytest.raises(ValueError, match="strictly decreasing"):
        tune_times(np.array(times), lambda t: t[1])
