"""Laws that relate the families of solvers to each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.sampling import sample
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios, level_at, levels_at, shifted
from diffjax.core.sigma_schedules import edm_sigmas, flow, variance_exploding
from diffjax.solvers import (
    ancestral,
    ddim,
    dpm_multistep,
    dpm_singlestep,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    unipc,
)

DENOISE = exact.denoiser(exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.1]))
KEY = jax.random.key(0)
X = jnp.linspace(-1.5, 1.5, 7)[:, None]
LEVELS = schedules.linear()(np.linspace(0.9, 0.1, 9).astype(np.float32))


def run(solver, levels=LEVELS, x=X):
    return jax.jit(lambda x: sample(KEY, x, DENOISE, solver, levels))(x)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (euler(), ddim()),
        (euler_ancestral(eta=0.7), ddim(0.7)),
        (dpm_multistep(1), ddim()),
        (dpm_multistep(1, predict="eps"), ddim()),
        (dpm_singlestep(1), ddim()),
        (dpm_multistep(1, stochastic=True), ancestral("fixed_small")),
        (lms(1), ddim()),
        (plms(1, start="one_call"), ddim()),
        (plms(1, slope="v", start="one_call"), ddim()),
        (unipc(1, correct=np.zeros(8, bool)), ddim()),
        (unipc(2, correct=np.zeros(8, bool)), dpm_multistep(2)),
        (unipc(3, correct=np.zeros(8, bool)), dpm_multistep(3)),
    ],
)
def test_solvers_that_are_the_same_method_agree(one, other):
    np.testing.assert_allclose(run(one), run(other), rtol=2e-5, atol=2e-5)


def test_plms_is_lms_where_the_ratios_are_evenly_spaced():
    levels = levels_at(schedules.linear(), np.linspace(3.0, 0.2, 9))
    one, other = run(plms(4, start="one_call"), levels), run(lms(4), levels)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "solver",
    [heun(), dpm_multistep(3), dpm_multistep(2, predict="eps"), dpm_singlestep(3), unipc(3)],
)
def test_scaling_x_and_the_schedule_changes_nothing(solver):
    ratios = exponential_ratios(8, 0.05, 5.0)
    exploding = levels_at(variance_exploding(), ratios)
    preserving = levels_at(schedules.linear(), ratios)
    straight = levels_at(flow(), ratios)
    expected = run(solver, exploding, X * 5.0)
    for levels in (preserving, straight):
        result = run(solver, levels, X * 5.0 * levels.alpha[0])
        np.testing.assert_allclose(result, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "solver",
    [dpm_multistep(3), unipc(3), lms(4), dpm_singlestep(3), dpm_multistep(2, predict="eps")],
)
def test_a_repeated_level_is_stepped_over(solver):
    twice = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, np.array([1, 1, 2, 1, 2, 1, 1, 1, 2])), LEVELS
    )
    result = run(solver, twice)
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result, run(solver), atol=0.15)


@pytest.mark.parametrize(
    "schedule",
    [schedules.cosine(), schedules.linear_betas(), flow(), variance_exploding(), edm_sigmas()],
)
def test_level_at_inverts_the_schedule(schedule):
    is_table = hasattr(schedule, "num_train_steps")
    times = jnp.array([100.0, 500.0, 900.0]) if is_table else jnp.array([0.1, 0.5, 0.9])
    level = schedule(times)
    found = level_at(schedule)(level.sigma / level.alpha)
    for computed, expected in zip(found, level):
        np.testing.assert_allclose(computed, expected, rtol=1e-4)
    end = level_at(schedule)(jnp.array(0.0))
    assert float(end.sigma) == pytest.approx(0.0, abs=1e-6)
    assert float(end.alpha) == pytest.approx(1.0, abs=1e-6)


def test_ratio_grids_have_their_ends_and_fall():
    for grid in (karras_ratios(10, 0.1, 20.0), exponential_ratios(10, 0.1, 20.0)):
        assert len(grid) == 11
        np.testing.assert_allclose(grid[[0, -2, -1]], [20.0, 0.1, 0.0], rtol=1e-12)
        assert np.all(np.diff(grid) < 0)


def test_shift_multiplies_the_ratio_of_the_flow_once():
    times = grids.uniform(5)[:-1].astype(np.float64)
    before, after = flow()(times * 0.9), flow()(shifted(times * 0.9, 3.0))
    ratio = after.sigma / after.alpha / (before.sigma / before.alpha)
    np.testing.assert_allclose(ratio, 3.0, rtol=1e-4)


@pytest.mark.parametrize("solver", [dpm_multistep(3), unipc(3), heun(), dpm_singlestep(3)])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_one_and_two_steps_between_both_singular_ends_are_finite(solver, num_steps):
    result = run(solver, flow()(grids.uniform(num_steps)))
    assert np.all(np.isfinite(result))
