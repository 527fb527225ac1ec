"""Laws that every solver obeys. A new solver is a new row of the table.

Each row is compiled once, in float32: levels, number of steps, distribution, guidance scale and
the solver's own numbers are data. Orders of convergence are the matter of `test_exactness`.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import solvers
from diffjax.core import exact, grids, schedules
from diffjax.core.keys import fold_in_each, normal_each, sample_keys
from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import Solver, sample, trajectory
from diffjax.core.schedules import Schedule
from diffjax.core.sigma_grids import levels_at
from diffjax.solvers import Churn
from diffjax.transforms import classifier_free


class Row(NamedTuple):
    """What the battery has to know about a solver.

    Attributes:
      make: builds it; `schedule`, `num_steps` and `normal` are offered to it.
      order: of convergence to the probability-flow ODE; None for solvers that draw noise and for
        those that choose their steps.
      noisy: it draws noise.
      weak_order: of solvers that draw noise: of convergence of the moments to those of the exact
        marginals; None for those that do not get there by shorter steps.
      samples: a run of many steps draws from the distribution of the data.
      stirs: it changes x before it asks the network at the level of the step.
      inversion: it walks from the clean end to the noisy one.
      learned_variance: it wants a denoiser that chooses the variance as well.
      from_pure_noise: it can start where alpha = 0.
      differentiates: it takes the derivative of its schedule, which jumps at a table's steps.
      straight: what it holds over a step is constant for data that is a single point.
      settings: two values of each of its numbers that may be traced.
    """

    make: Callable[..., Solver]
    order: int | None = None
    noisy: bool = False
    weak_order: int | None = None
    samples: bool = False
    stirs: bool = False
    inversion: bool = False
    learned_variance: bool = False
    from_pure_noise: bool = True
    differentiates: bool = False
    straight: bool = True
    settings: dict[str, tuple[float, float]] = {}  # noqa: RUF012


def flowing(order: int, name: str | Callable[..., Solver], **more: Any) -> Row:
    """The row of a solver of the probability flow; named ones stand in `solvers.SOLVERS`."""
    return Row(solvers.SOLVERS[name] if isinstance(name, str) else name, order, **more)


def noisy(weak_order: int | None, name: str | Callable[..., Solver], **more: Any) -> Row:
    """The row of a solver that draws noise."""
    make = solvers.SOLVERS[name] if isinstance(name, str) else name
    row = Row(make, noisy=True, weak_order=weak_order, samples=weak_order is not None)
    return row._replace(**more)


def churned(builder, schedule, num_steps, normal, s_churn=2.0, s_tmin=0.0, s_tmax=50.0):
    churn = Churn(schedule, num_steps, s_churn, s_tmin, s_tmax)
    return builder(churn, normal=normal)


def corrected(snr=0.05, *, normal):
    """A weak corrector, whose bias is small."""
    corrector = solvers.langevin(snr, normal=normal)
    return solvers.predictor_corrector(solvers.reverse_diffusion(normal=normal), corrector)


ETA = {"eta": (0.3, 1.0)}
NOISE = {"eta": (0.3, 1.0), "s_noise": (1.0, 1.1)}
CHURN = {"s_churn": (8.0, 0.0), "s_tmin": (0.0, 0.5), "s_tmax": (2.0, 50.0)}

# the names of `solvers.SOLVERS`
NAMED = {
    "ddpm": noisy(1, "ddpm"),
    "ddim": flowing(1, "ddim"),
    "euler": flowing(1, "euler"),
    "euler_ancestral": noisy(1, "euler_ancestral", settings=NOISE),
    "heun": flowing(2, "heun"),
    "dpm2": flowing(2, "dpm2", from_pure_noise=False),
    "dpm2_ancestral": noisy(2, "dpm2_ancestral", from_pure_noise=False, settings=NOISE),
    "dpm_multistep": flowing(2, "dpm_multistep"),
    "dpm_singlestep": flowing(2, "dpm_singlestep"),
    "dpm_solver_2": flowing(2, "dpm_solver_2", from_pure_noise=False),
    "dpm_solver_3": flowing(3, "dpm_solver_3", from_pure_noise=False),
    "dpmpp_2s": flowing(2, "dpmpp_2s"),
    "dpmpp_2m": flowing(2, "dpmpp_2m"),
    "dpmpp_3m": flowing(3, "dpmpp_3m"),
    "dpmpp_2m_sde": noisy(2, "dpmpp_2m_sde"),
    "dpmpp_3m_sde": noisy(2, "dpmpp_3m_sde"),
    "dpm_sde": noisy(1, "dpm_sde", from_pure_noise=False, settings=NOISE),
    "dpm_adaptive": Row(
        solvers.dpm_adaptive,
        settings={"rtol": (0.05, 0.01), "atol": (0.0078, 0.001), "first_step": (0.05, 0.2)},
    ),
    "deis": flowing(3, "deis", from_pure_noise=False),
    "exponential_adams": flowing(4, "exponential_adams"),
    "unipc": flowing(3, "unipc"),
    "sa_solver": noisy(2, "sa_solver", settings={"tau": (0.5, 1.0)}),
    "lms": flowing(4, "lms", from_pure_noise=False),
    "plms": flowing(2, lambda: solvers.plms()),
    "pndm": flowing(2, "pndm"),
    "ipndm": flowing(2, "ipndm"),
    "lcm": noisy(
        None,
        "lcm",
        settings={"fresh": (0.5, 1.0), "floor": (0.0, 0.002), "s_noise": (1.0, 1.1)},
    ),
    "tcd": noisy(None, "tcd", settings=ETA),
    "euler_maruyama": noisy(1, "euler_maruyama", from_pure_noise=False, differentiates=True),
    "stochastic_heun": noisy(2, "stochastic_heun", from_pure_noise=False, differentiates=True),
    "reverse_diffusion": noisy(1, "reverse_diffusion"),
    "predictor_corrector": noisy(None, corrected, stirs=True, settings={"snr": (0.05, 0.16)}),
    "annealed_langevin": noisy(
        None,
        partial(solvers.annealed_langevin, step_size=0.1, num_inner=2),
        stirs=True,
        settings={"step_size": (0.1, 0.2)},
    ),
    "consistent_annealed": noisy(
        None,
        partial(solvers.consistent_annealed, eta=0.02),
        samples=True,
        settings={"eta": (1.0, 0.3)},
    ),
    "adaptive_ode": Row(
        solvers.adaptive_ode, settings={"rtol": (1e-4, 1e-3), "atol": (1e-4, 1e-3)}
    ),
}

SOLVERS = {
    **NAMED,
    "ddpm fixed_large": noisy(1, partial(solvers.ancestral, "fixed_large")),
    "ddpm learned_range": noisy(
        1, partial(solvers.ancestral, "learned_range"), learned_variance=True
    ),
    "ddim with noise": noisy(1, partial(solvers.ddim, eta=0.5), settings=ETA),
    "ddim inversion": flowing(1, solvers.ddim_inversion, inversion=True),
    "ddim inversion of v": flowing(1, partial(solvers.ddim_inversion, "v"), inversion=True),
    "euler churn": noisy(1, partial(churned, solvers.euler), stirs=True, settings=CHURN),
    "heun churn": noisy(2, partial(churned, solvers.heun), stirs=True, settings=CHURN),
    "heun of velocity": flowing(2, partial(solvers.heun, slope="velocity")),
    "dpm multistep 2": flowing(
        2, partial(solvers.dpm_multistep, predict="eps"), from_pure_noise=False
    ),
    "deis in log-SNR": flowing(3, lambda: solvers.deis(3), from_pure_noise=False),
    "sa_solver without noise": flowing(2, partial(solvers.sa_solver, tau=0.0)),
    "plms of v": flowing(1, lambda: solvers.plms(slope="v"), straight=False),
}

ADAPTIVE = [name for name, row in SOLVERS.items() if "rtol" in row.settings]
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.3], [0.7, 0.1]], [0.1, 0.2])
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
MAX_STEPS = 12
KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
X = jax.random.normal(jax.random.key(1), (8, 2))
TABLE = schedules.linear_betas(0.01, 0.4, num_steps=MAX_STEPS)
traces: list[str] = []
# these programs are large and their arrays small: without fusions XLA is done in half the time
quick_jit = partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False})

every_solver = pytest.mark.parametrize("name", SOLVERS)
walkers = pytest.mark.parametrize("name", [n for n, row in SOLVERS.items() if not row.inversion])


def accepts(row: Row, name: str) -> bool:
    return name in inspect.signature(row.make).parameters


def build(row: Row, schedule, num_steps=10, normal=normal_each, **settings) -> Solver:
    """The solver of a row, with what it wants of the arguments."""
    offered = {"schedule": schedule, "num_steps": num_steps, "normal": normal}
    wanted = {name: value for name, value in offered.items() if accepts(row, name)}
    return row.make(**wanted, **settings)


def as_wanted(row: Row, denoise):
    if not row.learned_variance:
        return denoise
    return lambda x, level: LearnedVariance(denoise(x, level), jnp.full_like(x, 0.3))


def denoiser_for(row: Row, distribution=PLANE):
    return as_wanted(row, exact.denoiser(distribution))


def schedule_for(row: Row) -> Schedule:
    """Both of its ends are singular if the solver can take it."""
    return schedules.zero_terminal_snr(TABLE) if row.from_pure_noise else TABLE


def levels_for(row: Row, grid, schedule=None) -> NoiseLevel:
    """The levels of a grid, in the solver's direction."""
    levels = (schedule or schedule_for(row))(grid)
    return jax.tree.map(lambda leaf: leaf[::-1], levels) if row.inversion else levels


@cache
def compiled(name):
    """One program for every grid up to MAX_STEPS, every mixture like PLANE and every number."""
    row = SOLVERS[name]

    @quick_jit
    def run(keys, x, distribution, levels, num_steps, settings, guidance_scale):
        traces.append(name)
        denoise = exact.denoiser(distribution)
        nothing = lambda x, level: 0.0 * x
        denoise = classifier_free(denoise, nothing, guidance_scale=guidance_scale)
        solver = build(row, schedule_for(row), num_steps, **settings)
        return sample(keys, x, as_wanted(row, denoise), solver, levels, num_steps=num_steps)

    return run


def arguments(
    name, levels, keys=KEYS, x=X, distribution=PLANE, number=0, guidance_scale=1.0
) -> tuple:
    """What the program of a solver is called with for a grid of up to MAX_STEPS."""
    num_steps = levels.t.shape[0] - 1
    levels = jax.tree.map(lambda leaf: np.pad(leaf, (0, MAX_STEPS - num_steps), "edge"), levels)
    if not accepts(SOLVERS[name], "schedule"):
        levels = levels._replace(t=levels.t.astype(np.float32))
    settings = {key: np.float32(pair[number]) for key, pair in SOLVERS[name].settings.items()}
    return keys, x, distribution, levels, num_steps, settings, guidance_scale


def run_padded(name, levels, *args, **kwargs):
    return compiled(name)(*arguments(name, levels, *args, **kwargs))


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

    @quick_jit
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


ONE_OF_EACH_STATE = pytest.mark.parametrize("name", ["heun", "dpmpp_3m", "dpmpp_2s", "unipc"])


@ONE_OF_EACH_STATE
def test_trajectory_in_a_loop_of_fixed_length_ends_at_the_sample_of_the_padded_loop(name):
    row, levels = SOLVERS[name], levels_for(SOLVERS[name], grids.trailing(5, MAX_STEPS))
    args = denoiser_for(row), build(row, schedule_for(row)), levels
    path = quick_jit(lambda x: trajectory(KEYS, x, *args))(X)
    np.testing.assert_allclose(path.x[-1], run_padded(name, levels), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(path.x[0], X)
    assert path.x0.shape == (5, *X.shape)


@ONE_OF_EACH_STATE
def test_steps_taken_one_by_one_compose_to_the_loop(name):
    row, levels = SOLVERS[name], levels_for(SOLVERS[name], grids.trailing(4, MAX_STEPS))
    denoise, solver = denoiser_for(row), build(row, schedule_for(row))
    step = quick_jit(lambda keys, x, state, *ends: solver.step(keys, x, state, denoise, *ends))
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

    @quick_jit
    def error(tolerance):
        solver = SOLVERS[name].make(schedule, rtol=tolerance, atol=tolerance)
        result = sample(KEYS, x, exact.denoiser(LINE), solver, levels)
        expected = exact.probability_flow(LINE, x, first, last)
        return jnp.sqrt(jnp.mean((result - expected) ** 2))

    tolerances = 10.0 ** -np.arange(2.0, 7.0)
    errors = [error(tolerance) for tolerance in tolerances]
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert abs(slope - 1.0) < 0.2, errors


def one_for_each_step() -> list[str]:
    """Names of rows with a fixed number of calls: of those that share their code the first."""
    first = {}
    for name, row in SOLVERS.items():
        if row.order or row.noisy:
            code = build(row, TABLE).step.__qualname__
            maker = row.make.func if isinstance(row.make, partial) else row.make
            first.setdefault(maker if code.startswith(("stateless", "windowed")) else code, name)
    return list(first.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*one_for_each_step(), *ADAPTIVE])
def test_gradient_through_sampling_is_that_of_finite_differences(x64, name):
    row, adaptive = SOLVERS[name], name in ADAPTIVE
    levels = levels_for(row, grids.trailing(4, MAX_STEPS), TABLE)
    # in derivatives the lengths of their steps are constant, in differences they change a little
    tight = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 1000} if adaptive else {}
    h, error = (1e-2, 1e-3) if adaptive else (1e-5, 1e-7)

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        # any smooth function will do, and a short one compiles sooner
        denoise = as_wanted(row, lambda x, level: jnp.tanh(expand(level.alpha, x) * x))
        return jnp.sum(jnp.sin(sample(KEYS, x, denoise, build(row, TABLE, **tight), levels)))

    start = jnp.asarray(X, jnp.float64)
    gradient = loss(start)[1]
    direction = jnp.cos(jnp.arange(16.0)).reshape(8, 2)
    upper, lower = (loss(start + step * direction)[0] for step in (h, -h))
    difference = (upper - lower) / (2.0 * h)
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6, atol=error)


@pytest.mark.slow
@ONE_OF_EACH_STATE
def test_gradient_with_respect_to_the_grid_is_that_of_finite_differences(x64, name):
    row, schedule = SOLVERS[name], schedules.linear()

    @jax.jit
    @jax.value_and_grad
    def loss(times):
        denoise = lambda x, level: jnp.tanh(level.alpha * x)
        return jnp.sum(jnp.sin(sample(KEYS, X, denoise, build(row, schedule), schedule(times))))

    times, direction = jnp.linspace(0.9, 0.0, 5), jnp.array([1.0, -2.0, 3.0, 1.0, 0.0])
    gradient = loss(times)[1]
    assert np.all(np.isfinite(gradient))
    upper, lower = (loss(times + h * direction)[0] for h in (1e-6, -1e-6))
    difference = (upper - lower) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6)


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
