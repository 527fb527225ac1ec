"""Laws that relate the families of solvers to each other, and what happens at the ends of grids."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import transforms
from diffjax.core import exact, grids, schedules
from diffjax.core.sampling import sample
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios, levels_at, shifted
from diffjax.core.sigma_schedules import flow, variance_exploding
from diffjax.solvers import (
    ancestral,
    ddim,
    deis,
    dpm_multistep,
    dpm_singlestep,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    predictor_corrector,
    unipc,
)

LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.1])
DENOISE = exact.denoiser(LINE)
DDIM = ddim()
KEY = jax.random.key(0)
X = jnp.linspace(-1.5, 1.5, 7)[:, None]
LEVELS = schedules.linear()(np.linspace(0.9, 0.1, 9).astype(np.float32))


def run(solver, levels=LEVELS, x=X):
    return run_compiled(solver, levels, x)


@partial(jax.jit, static_argnums=0)
def run_compiled(solver, levels, x):
    return sample(KEY, x, DENOISE, solver, levels)


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


STEADY = [dpm_multistep(3), unipc(3), lms(4), dpm_singlestep(3), dpm_multistep(2, predict="eps")]


@pytest.mark.parametrize("solver", STEADY)
def test_karras_grid_with_duplicate_steps_is_still_better_than_ddim(solver):
    """The trap: many Karras ratios, rounded to whole steps of a table, repeat at the clean end."""
    table = schedules.linear_betas(0.001, 0.2, num_steps=100)
    times = np.round(levels_at(table, karras_ratios(40, 0.03164, 20.0)[:-1]).t)
    assert np.sum(np.diff(times) == 0) == 3
    levels = table(times.astype(np.int32))
    ends = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, -1))
    expected = exact.probability_flow(LINE, X, *ends)
    error, of_ddim = (np.abs(run(each, levels) - expected).max() for each in (solver, DDIM))
    assert error < 0.5 * of_ddim


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("ratios", [[5.0, 2.0, 0.5, 0.01], [5.0, 0.01, 0.01, 0.01]])
def test_dpm_solver_plus_plus_ends_the_grid_with_the_estimate_of_x0(order, ratios):
    """The trap: at clean data lambda is infinite, and a step of higher order NaN or far away."""
    levels = levels_at(schedules.linear(), np.array([*ratios, 0.0]))
    before = run(dpm_multistep(order), jax.tree.map(lambda leaf: leaf[:-1], levels))
    last = jax.tree.map(lambda leaf: leaf[-2], levels)
    result = run(dpm_multistep(order), levels)
    np.testing.assert_allclose(result, DENOISE(before, last), rtol=1e-5, atol=1e-6)


def test_deis_in_time_goes_the_same_way_where_times_are_whole_numbers():
    """The trap: of whole numbers, places between two times are whole numbers too: the first."""
    table = schedules.cosine_betas()
    levels = table(grids.trailing(8, 1000))
    assert jnp.issubdtype(levels.t.dtype, jnp.integer)
    fractions = levels._replace(t=levels.t.astype(jnp.float32))
    whole, other = (run(deis(3, schedule=table), each) for each in (levels, fractions))
    np.testing.assert_allclose(whole, other, rtol=1e-5, atol=1e-6)


def test_shift_multiplies_the_ratio_of_the_flow_once():
    times = grids.uniform(5)[:-1].astype(np.float64)
    before, after = flow()(times * 0.9), flow()(shifted(times * 0.9, 3.0))
    ratio = after.sigma / after.alpha / (before.sigma / before.alpha)
    np.testing.assert_allclose(ratio, 3.0, rtol=1e-4)


def wrapped(solver):
    """What takes the steps of a solver at its levels, three times."""
    known = transforms.replace_known(solver, jnp.zeros_like(X), jnp.arange(7)[:, None] < 4)
    drawn = transforms.dps(known, lambda x: x, jnp.ones((1, 1)), step_size=0.01)
    return predictor_corrector(drawn)


# a walk that goes up at its fourth step
UP = jax.tree.map(lambda leaf: leaf[np.array([0, 1, 2, 3, 2, 3, 4, 5, 6])], LEVELS)


@pytest.mark.parametrize(
    ("wrap", "levels", "plans"), [(wrapped, LEVELS, True), (transforms.renoising, UP, False)]
)
def test_a_wrapped_solver_plans_where_its_steps_are_those_foreseen(wrap, levels, plans):
    """The trap: going up, a multistep solver forgets its memory, of which a plan knows nothing."""
    one, other = wrap(dpm_multistep(2)), wrap(dpm_multistep(2)._replace(plan=None))
    assert (one.plan is not None) == plans
    np.testing.assert_allclose(run(one, levels), run(other, levels), rtol=1e-5, atol=1e-6)
