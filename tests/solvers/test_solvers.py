"""Laws that every solver obeys. A new solver is a new row of the table."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.keys import fold_in_each, sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import Solver, pad_levels, sample, trajectory
from diffjax.core.sigma_schedules import flow
from diffjax.solvers.adams import lms
from diffjax.solvers.ancestral import ancestral
from diffjax.solvers.ddim import ddim, ddim_inversion
from diffjax.solvers.dpm import dpm_multistep, dpm_singlestep
from diffjax.solvers.euler import Churn, euler
from diffjax.solvers.heun import heun
from diffjax.solvers.midpoint import dpm2
from diffjax.solvers.unipc import unipc


class Row(NamedTuple):
    """What the battery has to know about a solver.

    Attributes:
      make: builds it.
      order: of convergence to the probability-flow ODE; None for solvers that draw noise.
      weak_order: of solvers that draw noise: of convergence of the moments to those of the exact
        marginals; None for those that do not get there by shorter steps with a denoiser alone.
      inversion: it walks from the clean end to the noisy one.
      learned_variance: it wants a denoiser that chooses the variance as well.
      from_pure_noise: it can start where alpha = 0.
      counts: numbers of steps at which its order shows.
    """

    make: Callable[[], Solver]
    order: int | None = None
    weak_order: int | None = 1
    inversion: bool = False
    learned_variance: bool = False
    from_pure_noise: bool = True
    counts: tuple[int, ...] = (32, 64, 128)


CHURN = Churn(flow(), num_steps=10, s_churn=2.0)

SOLVERS = {
    "ancestral fixed_small": Row(ancestral),
    "ancestral fixed_large": Row(partial(ancestral, "fixed_large")),
    "ancestral learned_range": Row(partial(ancestral, "learned_range"), learned_variance=True),
    "ddim": Row(ddim, order=1),
    "ddim eta=0.5": Row(partial(ddim, 0.5)),
    "ddim inversion": Row(ddim_inversion, order=1, inversion=True),
    "ddim inversion of v": Row(partial(ddim_inversion, "v"), order=1, inversion=True),
    "euler churn": Row(partial(euler, CHURN)),
    "heun": Row(heun, order=2),
    "heun of velocity": Row(partial(heun, slope="velocity"), order=2),
    "heun churn": Row(partial(heun, CHURN), weak_order=2),
    "dpm++ multistep 2": Row(partial(dpm_multistep, 2), order=2),
    "dpm++ multistep 3": Row(partial(dpm_multistep, 3), order=3, counts=(64, 128)),
    "dpm++ multistep 2 sde": Row(partial(dpm_multistep, 2, stochastic=True), weak_order=2),
    "dpm multistep 2": Row(
        partial(dpm_multistep, 2, predict="eps"),
        order=2,
        from_pure_noise=False,
        counts=(64, 128, 256),
    ),
    "unipc 2": Row(partial(unipc, 2), order=3, counts=(128, 256)),
    "lms 2": Row(partial(lms, 2), order=2, from_pure_noise=False, counts=(64, 128, 256)),
    "dpm2": Row(partial(dpm2, schedules.linear()), order=2, from_pure_noise=False),
    "dpm++ singlestep 2": Row(partial(dpm_singlestep, 2), order=2),
}

PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.3], [0.7, 0.1]], [0.1, 0.2])
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
MAX_STEPS = 12
traces: list[str] = []
KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
X = jax.random.normal(jax.random.key(1), (8, 2))

every_solver = pytest.mark.parametrize("name", SOLVERS)


def denoiser_for(row: Row, distribution=PLANE):
    return as_wanted(row, exact.denoiser(distribution))


def as_wanted(row: Row, denoise):
    if not row.learned_variance:
        return denoise
    return lambda x, level: LearnedVariance(denoise(x, level), jnp.full_like(x, 0.3))


def levels_for(row: Row, grid, schedule=None) -> NoiseLevel:
    """The levels of a grid, in the solver's direction; both ends are singular if it can take it."""
    table = schedules.linear_betas(0.01, 0.4, num_steps=MAX_STEPS)
    if row.from_pure_noise:
        table = schedules.zero_terminal_snr(table)
    levels = (schedule or table)(grid)
    return jax.tree.map(lambda leaf: leaf[::-1], levels) if row.inversion else levels


@cache
def compiled(name):
    """One program for every grid up to MAX_STEPS and for every mixture like PLANE."""
    row = SOLVERS[name]

    @jax.jit
    def run(keys, x, distribution, levels, num_steps):
        traces.append(name)
        denoise = denoiser_for(row, distribution)
        return sample(keys, x, denoise, row.make(), levels, num_steps=num_steps)

    return run


def run_padded(name, grid, keys=KEYS, x=X, distribution=PLANE):
    levels = levels_for(SOLVERS[name], grid)
    num_steps = levels.t.shape[0] - 1
    return compiled(name)(keys, x, distribution, pad_levels(levels, MAX_STEPS), num_steps)


@every_solver
def test_every_number_of_steps_with_every_spacing_is_finite_in_one_program(name):
    for spacing in grids.SPACINGS.values():
        for num_steps in range(1, MAX_STEPS + 1):
            x = run_padded(name, spacing(num_steps, MAX_STEPS))
            assert x.shape == X.shape
            assert x.dtype == jnp.float32
            assert np.all(np.isfinite(x)), (spacing.__name__, num_steps)
    assert traces.count(name) == 1


@every_solver
def test_trajectory_in_a_loop_of_fixed_length_ends_at_the_sample_of_the_padded_loop(name):
    row, grid = SOLVERS[name], grids.trailing(5, MAX_STEPS)
    args = denoiser_for(row), row.make(), levels_for(row, grid)
    path = jax.jit(lambda x: trajectory(KEYS, x, *args))(X)
    np.testing.assert_allclose(path.x[-1], run_padded(name, grid), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(path.x[0], X)
    assert path.x0.shape == (5, *X.shape)


@every_solver
def test_steps_outside_jit_compose_to_the_loop_from_any_step_on(name):
    row, grid = SOLVERS[name], grids.trailing(4, MAX_STEPS)
    levels, denoise, solver = levels_for(row, grid), denoiser_for(row), row.make()
    x, state = X, solver.init(X)
    for i in range(4):
        ends = (jax.tree.map(lambda leaf, at=at: leaf[at], levels) for at in (i, i + 1))
        x, state = solver.step(fold_in_each(KEYS, i), x, state, denoise, *ends)
    np.testing.assert_allclose(x, run_padded(name, grid), rtol=1e-4, atol=1e-5)


@every_solver
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(name):
    grid = grids.trailing(5, MAX_STEPS)
    moved = run_padded(name, grid, KEYS[::-1], X[::-1])
    np.testing.assert_array_equal(moved[::-1], run_padded(name, grid))


@every_solver
def test_only_stochastic_solvers_depend_on_the_key(name):
    grid = grids.trailing(5, MAX_STEPS)
    same = np.array_equal(run_padded(name, grid), run_padded(name, grid, KEYS[::-1]))
    assert same == (SOLVERS[name].order is not None)


@pytest.mark.parametrize("name", [name for name, row in SOLVERS.items() if not row.inversion])
def test_data_that_is_a_single_point_is_reached_exactly(name):
    point = exact.mixture([0.5, 0.5], [[0.3, -0.6]] * 2, [0.0, 0.0])
    for num_steps in (1, 5, MAX_STEPS):
        x = run_padded(name, grids.trailing(num_steps, MAX_STEPS), distribution=point)
        np.testing.assert_allclose(x, np.broadcast_to([0.3, -0.6], x.shape), atol=1e-6)


@every_solver
def test_gradient_through_sampling_is_that_of_finite_differences(x64, name):
    row = SOLVERS[name]
    table = schedules.linear_betas(0.01, 0.4, num_steps=MAX_STEPS)
    levels = levels_for(row, grids.trailing(4, MAX_STEPS), table)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(x, alpha, sigma):
        grid = NoiseLevel(levels.t, alpha, sigma)
        # any smooth function will do, and a short one compiles sooner
        denoise = as_wanted(row, lambda x, level: jnp.tanh(level.alpha * x))
        return jnp.sum(jnp.sin(sample(KEYS, x, denoise, row.make(), grid)))

    start = jnp.asarray(X, jnp.float64)
    _, (gradient, *level_gradients) = loss(start, levels.alpha, levels.sigma)
    assert np.all(np.isfinite(level_gradients))
    direction = jnp.cos(jnp.arange(16.0)).reshape(8, 2)
    shifted = (start + h * direction for h in (1e-5, -1e-5))
    upper, lower = (loss(x, levels.alpha, levels.sigma)[0] for x in shifted)
    difference = (upper - lower) / 2e-5
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, row in SOLVERS.items() if row.order])
def test_deterministic_solver_converges_to_the_probability_flow_with_its_order(x64, name):
    row, schedule = SOLVERS[name], schedules.linear()
    counts = row.counts
    start, end = (0.1, 0.9) if row.inversion else (0.9, 0.1)
    x = jnp.linspace(-1.8, 1.8, 8)[:, None]
    expected = jax.jit(exact.probability_flow)(LINE, x, schedule(start), schedule(end))

    @jax.jit
    def run(levels, num_steps):
        denoise = denoiser_for(row, LINE)
        return sample(KEYS, x, denoise, row.make(), levels, num_steps=num_steps)

    errors = []
    for n in counts:
        levels = pad_levels(schedule(jnp.linspace(start, end, n + 1)), counts[-1])
        errors.append(float(jnp.sqrt(jnp.mean((run(levels, n) - expected) ** 2))))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, row.order, atol=0.2, err_msg=f"errors {errors}")
