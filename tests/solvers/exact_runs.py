"""Runs of a solver over many schedules and grids at once, against closed forms.

One program is compiled for each solver. What differs between its runs is data: the levels, the
number of steps, the distribution and the noise. (Solvers that hold a schedule are compiled for one
of them, another one for each solver in turn; so is what the network predicts.) All is float64, so
that orders of convergence show.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from test_solvers import SOLVERS, Row, accepts, as_wanted, build

from diffjax.core import exact, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import (
    PARAMETERIZATIONS,
    Parameterization,
    estimate_eps,
    make_denoiser,
)
from diffjax.core.sampling import Solver, sample
from diffjax.core.schedules import Schedule, level_at, num_train_steps
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios, shifted

SCHEDULES = {name: make() for name, make in schedules.SCHEDULES.items()} | {
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear_betas())
}
# networks of these predictions are told a multiple of log(sigma / alpha), the others the time
TOLD_RATIO = {"ncsn": 1.0, "edm": 0.25}
RUN_UP = 11  # steps more in front of a grid, see `with_run_up`
CLEANEST, NOISIEST = 0.002, 100.0  # ratios sigma / alpha of grids that go to clean data


def with_run_up(grid: np.ndarray) -> np.ndarray:
    """Halve the first step again and again.

    A multistep solver starts with lower orders; in steps so short they cost nothing, and the order
    of the method itself shows.
    """
    first = grid[0] + (grid[1] - grid[0]) * 2.0 ** -np.arange(RUN_UP, 0, -1)
    return np.concatenate([grid[:1], first, grid[1:]])


def even(num_steps, noisy, clean):
    return np.linspace(noisy, clean, num_steps + 1)


def moved_to_noise(num_steps, noisy, clean):
    """Times shifted as large images want them, between the same ends."""
    ends = shifted(np.array([noisy, clean]), 1 / 1.5)
    return shifted(np.linspace(*ends, num_steps + 1), 1.5)


def even_logsnr(num_steps, noisy, clean):
    return exponential_ratios(num_steps + 1, clean, noisy)[:-1]


def karras(num_steps, noisy, clean):
    return karras_ratios(num_steps + 1, clean, noisy)[:-1]


TIME_GRIDS = {"even times": even, "shifted times": moved_to_noise}
RATIO_GRIDS = {"even logsnr": even_logsnr, "Karras": karras}
# two of the four grids with each schedule in turn
CASES = [
    (name, kind)
    for i, name in enumerate(SCHEDULES)
    for kind in (list(TIME_GRIDS)[i % 2], list(RATIO_GRIDS)[(i // 2) % 2])
]


def at_time(schedule: Schedule, times) -> NoiseLevel:
    """Levels at times in [0, 1], of a table too."""
    steps = num_train_steps(schedule)
    return schedule(jnp.asarray(times) if steps is None else jnp.asarray(times) * (steps - 1))


# every schedule at once, and always in one shape: what costs time is compiling
@jax.jit
def times_to_levels(times: dict[str, Array]) -> dict[str, NoiseLevel]:
    return {name: at_time(SCHEDULES[name], given) for name, given in times.items()}


@jax.jit
def ratios_to_levels(ratios: dict[str, Array]) -> dict[str, NoiseLevel]:
    return {name: level_at(SCHEDULES[name])(given) for name, given in ratios.items()}


@cache
def levels_of_runs(count: int, length: int) -> NoiseLevel:
    """Levels [len(CASES), length + 1] from t = 0.9 to t = 0.1, in `count` steps after a run-up."""
    ends = jax.device_get(times_to_levels(dict.fromkeys(SCHEDULES, np.array([0.9, 0.1]))))
    times, ratios = {}, {}
    for name, kind in CASES:
        if kind in TIME_GRIDS:
            times[name] = with_run_up(TIME_GRIDS[kind](count, 0.9, 0.1))
        else:
            noisy, clean = ends[name].sigma / ends[name].alpha
            ratios[name] = with_run_up(RATIO_GRIDS[kind](count, noisy, clean))
    times, ratios = (
        {name: np.pad(grid, (0, length + 1 - len(grid)), "edge") for name, grid in grids.items()}
        for grids in (times, ratios)
    )
    by_time, by_ratio = jax.device_get((times_to_levels(times), ratios_to_levels(ratios)))
    return stacked([(by_time if kind in TIME_GRIDS else by_ratio)[name] for name, kind in CASES])


@cache
def levels_to_clean(count: int, length: int, from_pure_noise: bool) -> NoiseLevel:
    """Levels [len(CASES), length + 1], even in log-SNR, from the noisiest to clean data."""
    starts = jax.device_get(times_to_levels(dict.fromkeys(SCHEDULES, np.array([1.0, 0.98]))))
    first, ratios = {}, {}
    for name, level in starts.items():
        i = int(level.sigma[0] > NOISIEST * level.alpha[0] and not from_pure_noise)
        first[name] = NoiseLevel(*(leaf[i : i + 1] for leaf in level))
        alpha, sigma = level.alpha[i], level.sigma[i]
        largest = NOISIEST if alpha == 0 else min(NOISIEST, sigma / alpha)
        ratios[name] = np.zeros(length + 1)
        ratios[name][: count + 1] = exponential_ratios(count, CLEANEST, largest)
    found = jax.device_get(ratios_to_levels(ratios))
    for name, level in found.items():
        found[name] = NoiseLevel(*(np.append(s, leaf[1:]) for s, leaf in zip(first[name], level)))
    return stacked([found[name] for name, _ in CASES])


def stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def at(levels: NoiseLevel, position: int) -> NoiseLevel:
    """One level of each grid: [C]."""
    return jax.tree.map(lambda leaf: leaf[:, position], levels)


def replaying(row: Row, schedule: Schedule | None, num_steps, noise: Array) -> Solver:
    """The solver of a row with given noise: draw k of step i is noise[:, i, k]."""

    def init(x):
        return jnp.zeros((), jnp.int32), build(row, schedule, num_steps).init(x)

    def step(keys, x, state, denoise, current, next_):
        i, inner = state
        draws = itertools.count()
        normal = lambda keys, shape, dtype: noise[:, i, next(draws)]
        solver = build(row, schedule, num_steps, normal)
        x, inner = solver.step(keys, x, inner, denoise, current, next_)
        return x, (i + 1, inner)

    return Solver(init, step)


def draws_of(row: Row) -> int:
    """How often a step of the row's solver draws."""
    drawn = []

    def normal(keys, shape, dtype):
        drawn.append(shape)
        return jnp.zeros((1, *shape), dtype)

    def step(x, level):
        solver = build(row, SCHEDULES["linear"], 1, normal)
        keys = sample_keys(jax.random.key(0), jnp.arange(1))
        denoise = as_wanted(row, lambda x, level: x)
        return solver.step(keys, x, solver.init(x), denoise, level, level)

    jax.eval_shape(step, jnp.ones((1, 1)), NoiseLevel(*jnp.ones(3)))
    return len(drawn)


def perfect_network(
    row: Parameterization,
    distribution: exact.Mixture,
    by_time: Callable[[Array], NoiseLevel],
    by_ratio: Callable[[Array], NoiseLevel],
) -> Callable[..., Array]:
    """`apply(params, x, t)` of a prediction without error, which is told the clock alone.

    `by_time` and `by_ratio` are all that it knows about the schedule.
    """
    factor = TOLD_RATIO.get(row.name)

    def apply(params, x, t):
        level = by_time(t[0]) if factor is None else by_ratio(jnp.exp(t[0] / factor))
        x = x / row.in_scale(level)
        x0 = exact.denoiser(distribution)(x, level)
        a, b = row.target(level)
        return a * x0 + b * estimate_eps(x, x0, level)

    return apply


def nearest(values: Array, value: Array, levels: NoiseLevel) -> NoiseLevel:
    i = jnp.argmin(jnp.abs(values - value))
    return jax.tree.map(lambda leaf: leaf[i], levels)


def prediction_for(name: str) -> Parameterization:
    """What the network of a solver predicts, in turn; where it starts from pure noise one of x0."""
    known = ["x0", "v", "velocity"] if SOLVERS[name].from_pure_noise else list(PARAMETERIZATIONS)
    return PARAMETERIZATIONS[known[list(SOLVERS).index(name) % len(known)]]


class Program(NamedTuple):
    """A compiled solver, and which of the CASES it can run: those of its schedule, or all."""

    run: Callable[..., Array]
    cases: np.ndarray


@cache
def program(name: str) -> Program:
    """A program that runs a solver on C grids at once.

    Its arguments: distribution, x [C, B, D], levels [C, M + 1], num_steps, noise
    [C, B, M, draws, D], keys [C, B]; it returns x at the ends.
    """
    row, prediction = SOLVERS[name], prediction_for(name)
    schedule, cases = None, np.arange(len(CASES))
    if accepts(row, "schedule"):
        holders = [name for name, row in SOLVERS.items() if accepts(row, "schedule")]
        chosen = list(SCHEDULES)[holders.index(name) % len(SCHEDULES)]
        schedule = SCHEDULES[chosen]
        cases = np.flatnonzero([case[0] == chosen for case in CASES])

    def run(distribution, x, levels, num_steps, noise, keys):
        # without a schedule, a solver can only ask at the levels of the run
        by_time = schedule or (lambda t: nearest(levels.t, t, levels))
        by_ratio = lambda ratio: nearest(levels.sigma / levels.alpha, ratio, levels)
        if schedule is not None:
            by_ratio = level_at(schedule)
        network = perfect_network(prediction, distribution, by_time, by_ratio)
        denoise = as_wanted(row, make_denoiser(network, None, prediction))
        solver = build(row, schedule, num_steps)
        if row.weak_order:
            solver = replaying(row, schedule, num_steps, noise)
        return sample(keys, x, denoise, solver, levels, num_steps=num_steps)

    return Program(jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None, 0, 0))), cases)
