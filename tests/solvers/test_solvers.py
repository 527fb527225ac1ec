"""Laws that every solver obeys, row by row of `solver_table`.

Orders of convergence are the matter of `test_exactness`, derivatives of `test_solver_gradients`.
"""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_table import (
    ADAPTIVE,
    KEYS,
    LINE,
    MAX_STEPS,
    NAMED,
    PLANE,
    SOLVERS,
    TABLE,
    Row,
    X,
    accepts,
    arguments,
    build,
    compiled,
    denoiser_for,
    levels_for,
    run_padded,
    schedule_for,
    traces,
)

from diffjax import solvers
from diffjax.core import exact, grids, schedules
from diffjax.core.keys import fold_in_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver, sample, trajectory
from diffjax.core.sigma_grids import levels_at

every_solver = pytest.mark.parametrize("name", SOLVERS)
walkers = pytest.mark.parametrize("name", [n for n, row in SOLVERS.items() if not row.inversion])


@cache
def spaced(from_pure_noise: bool, inversion: bool) -> list[NoiseLevel]:
    """The levels of every number of steps with every spacing."""
    row = Row(solvers.ddim, from_pure_noise=from_pure_noise, inversion=inversion)
    counts = range(1, MAX_STEPS + 1)
    found = [spacing(count, MAX_STEPS) for spacing in grids.SPACINGS.values() for count in counts]
    # in one shape, so that there is one program
    padded = np.stack([np.pad(grid, (0, MAX_STEPS + 1 - len(grid)), "edge") for grid in found])
    levels = jax.device_get(jax.jit(lambda grid: schedule_for(row)(grid))(padded))
    ends = [
        np.s_[i, len(grid) - 1 :: -1] if inversion else np.s_[i, : len(grid)]
        for i, grid in enumerate(found)
    ]
    return [jax.tree.map(lambda leaf, end=end: leaf[end], levels) for end in ends]


FEW = (1, 2, 5)


@cache
def end_to_end(from_pure_noise: bool) -> dict[tuple[str, int], NoiseLevel]:
    """Few steps, from the noisiest level that a solver can start from to clean data."""
    # even in log-SNR; infinity gives the ratio 0
    ramp = np.concatenate([[*np.linspace(0.0, 1.0, count), np.inf] for count in FEW])

    @jax.jit
    def all_levels():
        found = {}
        for name, make in schedules.SCHEDULES.items():
            schedule = make()
            steps = schedules.num_train_steps(schedule)
            first = schedule(jnp.asarray(1.0 if steps is None else steps - 1))
            largest = jnp.minimum(first.sigma / jnp.maximum(first.alpha, 1e-9), 50.0)
            found[name] = first, levels_at(schedule, largest * (0.01 / largest) ** ramp)
        return found

    grids_of = {}
    for name, (first, levels) in jax.device_get(all_levels()).items():
        for part in np.split(np.arange(len(ramp)), np.cumsum(np.array(FEW[:-1]) + 1)):
            inside = NoiseLevel(*(leaf[part].copy() for leaf in levels))
            if from_pure_noise:
                for leaf, value in zip(inside, first):
                    leaf[0] = value
            grids_of[name, len(part) - 1] = inside
    return grids_of


@every_solver
def test_one_program_serves_every_grid_and_number_and_all_is_finite(name):
    row = SOLVERS[name]
    for i, levels in enumerate(spaced(row.from_pure_noise, row.inversion)):
        x = run_padded(name, levels, number=i % 2, guidance_scale=1.0 + i % 3)
        assert x.shape == X.shape
        assert x.dtype == jnp.float32
        assert np.all(np.isfinite(x)), (i, levels.t)
    assert traces.count(name) == 1


@walkers
def test_few_steps_from_end_to_end_are_finite_and_one_step_is_the_estimate(name):
    row = SOLVERS[name]
    if accepts(row, "schedule"):
        return  # its own schedule is that of the test above
    for (schedule, num_steps), levels in end_to_end(row.from_pure_noise).items():
        first = jax.tree.map(lambda leaf: leaf[0], levels)
        x = np.hypot(first.alpha, first.sigma) * X
        result = run_padded(name, levels, x=x)
        assert np.all(np.isfinite(result)), (schedule, num_steps)
        if num_steps == 1 and not row.stirs:
            estimate = exact.denoiser(PLANE)(x, first)
            np.testing.assert_allclose(result, estimate, atol=1e-4, err_msg=schedule)


@every_solver
def test_pure_noise_is_refused_by_solvers_that_divide_by_alpha(name):
    row, levels = SOLVERS[name], schedules.flow()(np.array([1.0, 0.5, 0.0], np.float32))
    solver = build(row, TABLE)
    assert solver.from_pure_noise == row.from_pure_noise
    for walk in (sample, trajectory):
        if not row.from_pure_noise:
            with pytest.raises(ValueError, match="from which this solver cannot step"):
                walk(KEYS, X, denoiser_for(row), solver, levels)


ONE_OF_EACH_STATE = pytest.mark.parametrize("name", ["heun", "dpmpp_3m", "dpmpp_2s", "unipc"])


@ONE_OF_EACH_STATE
def test_trajectory_in_a_loop_of_fixed_length_ends_at_the_sample_of_the_padded_loop(name):
    row, levels = SOLVERS[name], levels_for(SOLVERS[name], grids.trailing(5, MAX_STEPS))
    args = denoiser_for(row), build(row, schedule_for(row)), levels
    path = jax.jit(lambda x: trajectory(KEYS, x, *args))(X)
    np.testing.assert_allclose(path.x[-1], run_padded(name, levels), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(path.x[0], X)
    assert path.x0.shape == (5, *X.shape)


@ONE_OF_EACH_STATE
def test_steps_taken_one_by_one_compose_to_the_loop(name):
    row, levels = SOLVERS[name], levels_for(SOLVERS[name], grids.trailing(4, MAX_STEPS))
    denoise, solver = denoiser_for(row), build(row, schedule_for(row))
    step = jax.jit(lambda keys, x, state, *ends: solver.step(keys, x, state, denoise, *ends))
    x, state = X, solver.init(X)
    for i in range(4):
        ends = (jax.tree.map(lambda leaf, at=at: leaf[at], levels) for at in (i, i + 1))
        x, state = step(fold_in_each(KEYS, i), x, state, *ends)
    np.testing.assert_allclose(x, run_padded(name, levels), rtol=1e-4, atol=1e-5)


@every_solver
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(name):
    levels = levels_for(SOLVERS[name], grids.trailing(5, MAX_STEPS))
    moved = run_padded(name, levels, KEYS[::-1], X[::-1])
    np.testing.assert_array_equal(moved[::-1], run_padded(name, levels))


@pytest.mark.slow
@every_solver
def test_vmap_over_grids_is_a_loop_over_them(name):
    spacings = grids.trailing, grids.linspace
    args = [arguments(name, levels_for(SOLVERS[name], each(5, MAX_STEPS))) for each in spacings]
    levels = jax.tree.map(lambda *leaves: np.stack(leaves), *(each[3] for each in args))
    run = jax.vmap(compiled(name), in_axes=(None, None, None, 0, None, None, None))
    together = run(*args[0][:3], levels, *args[0][4:])
    # what chooses its steps is exact to its tolerance
    close = 1e-3 if name in ADAPTIVE else 1e-5
    for x, each in zip(together, args):
        np.testing.assert_allclose(x, compiled(name)(*each), rtol=1e-4, atol=close)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ADAPTIVE])
def test_without_jit_a_solver_goes_the_same_way(name):
    row, levels = SOLVERS[name], levels_for(SOLVERS[name], grids.trailing(2, MAX_STEPS))
    settings = {key: np.float32(pair[0]) for key, pair in row.settings.items()}
    solver = build(row, schedule_for(row), 2, **settings)
    with jax.disable_jit():
        x = sample(KEYS[:2], X[:2], denoiser_for(row), solver, levels)
    np.testing.assert_allclose(x, run_padded(name, levels)[:2], rtol=1e-4, atol=1e-5)


@every_solver
def test_only_stochastic_solvers_depend_on_the_key(name):
    levels = levels_for(SOLVERS[name], grids.trailing(5, MAX_STEPS))
    same = np.array_equal(run_padded(name, levels), run_padded(name, levels, KEYS[::-1]))
    assert same != SOLVERS[name].noisy


@pytest.mark.parametrize(
    "name", [name for name, row in SOLVERS.items() if row.straight and not row.inversion]
)
def test_data_that_is_a_single_point_is_reached_exactly(name):
    point = exact.mixture([0.5, 0.5], [[0.3, -0.6]] * 2, [0.0, 0.0])
    for num_steps in (1, 5, MAX_STEPS):
        levels = levels_for(SOLVERS[name], grids.trailing(num_steps, MAX_STEPS))
        x = run_padded(name, levels, distribution=point)
        np.testing.assert_allclose(x, np.broadcast_to([0.3, -0.6], x.shape), atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE)
def test_error_of_solvers_that_choose_their_steps_is_in_proportion_to_their_tolerance(x64, name):
    schedule, x = schedules.flow(), jnp.linspace(-1.8, 1.8, 8)[:, None]
    levels = schedule(jnp.array([0.8, 0.2]))
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in (0, 1))

    @jax.jit
    def error(tolerance):
        solver = SOLVERS[name].make(schedule, rtol=tolerance, atol=tolerance)
        result = sample(KEYS, x, exact.denoiser(LINE), solver, levels)
        expected = exact.probability_flow(LINE, x, first, last)
        return jnp.sqrt(jnp.mean((result - expected) ** 2))

    tolerances = 10.0 ** -np.arange(2.0, 7.0)
    errors = [error(tolerance) for tolerance in tolerances]
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert abs(slope - 1.0) < 0.2, errors


def test_every_solver_that_has_a_name_is_a_row():
    tested = [row.make for row in NAMED.values()]
    missing = [
        name for name, make in solvers.SOLVERS.items() if name not in NAMED and make not in tested
    ]
    assert not missing, f"the table has no row for {missing}"


def test_every_builder_of_the_package_makes_a_row():
    makers = [*solvers.SOLVERS.values(), *(row.make for row in SOLVERS.values())]
    known = {make.func if isinstance(make, partial) else make for make in makers}
    builders = [make for make in vars(solvers).values() if inspect.isfunction(make)]
    missing = [
        make.__name__
        for make in builders
        if inspect.signature(make).return_annotation is Solver and make not in known
    ]
    assert not missing, f"the table has no row for {missing}"
