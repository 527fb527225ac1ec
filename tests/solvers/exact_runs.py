"""Runs of a solver over many schedules and grids at once, against closed forms.

One program is compiled for each solver. What differs between its runs is data: the levels, the
number of steps, the distribution, the noise, what the network predicts, and, of a few schedules,
the one that the solver holds. All is float64, so that orders of convergence show.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from solver_table import SOLVERS, Row, accepts, as_wanted, build

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
from diffjax.core.schedules import Schedule, level_at, num_train_steps, time_of
from diffjax.core.sigma_grids import exponential_ratios, karras_ratios, shifted

SCHEDULES = {name: make() for name, make in schedules.SCHEDULES.items()} | {
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear_betas())
}
NOISY_END, CLEAN_END = 0.8, 0.2  # interior times between which orders are measured
RUN_UP = 11  # steps more in front of a grid, see `with_run_up`
COUNTS = (300, 600)  # numbers of steps, multiples of the lengths of all blocks
# on some grids orders show in shorter steps only: 2.26 of SA-Solver between the two above
FINE_COUNTS = (480, 960)
MOMENT_COUNTS = (600, 1200)
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
GRIDS = TIME_GRIDS | RATIO_GRIDS
# two of the four grids with each schedule, and in the other turn the other two
TURNS = [
    [
        (name, kind)
        for i, name in enumerate(SCHEDULES)
        for kind in (list(TIME_GRIDS)[(i + turn) % 2], list(RATIO_GRIDS)[(i // 2 + turn) % 2])
    ]
    for turn in range(2)
]
# the schedules of the cases of a turn, C of them
CASES = [name for name, _ in TURNS[0]]


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
def levels_of_runs(count: int, length: int, turn: int = 0) -> NoiseLevel:
    """Levels [len(CASES), length + 1] between interior times, in `count` steps after a run-up."""
    cases = TURNS[turn]
    times_of_ends = np.array([NOISY_END, CLEAN_END])
    ends = jax.device_get(times_to_levels(dict.fromkeys(SCHEDULES, times_of_ends)))
    times, ratios = {}, {}
    for name, kind in cases:
        if kind in TIME_GRIDS:
            times[name] = with_run_up(TIME_GRIDS[kind](count, NOISY_END, CLEAN_END))
        else:
            noisy, clean = ends[name].sigma / ends[name].alpha
            ratios[name] = with_run_up(RATIO_GRIDS[kind](count, noisy, clean))
    times, ratios = (
        {name: np.pad(grid, (0, length + 1 - len(grid)), "edge") for name, grid in grids.items()}
        for grids in (times, ratios)
    )
    by_time, by_ratio = jax.device_get((times_to_levels(times), ratios_to_levels(ratios)))
    return stacked([(by_time if kind in TIME_GRIDS else by_ratio)[name] for name, kind in cases])


@cache
def levels_to_clean(
    count: int, length: int, from_pure_noise: bool, kind: str = "even logsnr"
) -> NoiseLevel:
    """Levels [len(CASES), length + 1] of a grid from the noisiest level to clean data."""
    noisiest = np.array([1.0, 0.98])
    starts = jax.device_get(times_to_levels(dict.fromkeys(SCHEDULES, noisiest)))
    times, ratios = ({name: np.zeros(length + 1) for name in SCHEDULES} for _ in range(2))
    first, inner = {}, np.arange(length + 1) < count
    for name, level in starts.items():
        i = int(level.sigma[0] > NOISIEST * level.alpha[0] and not from_pure_noise)
        first[name] = NoiseLevel(*(leaf[i] for leaf in level))
        if kind in TIME_GRIDS:
            times[name][inner] = TIME_GRIDS[kind](count, noisiest[i], 0.0)[:-1]
        else:
            alpha, sigma = first[name].alpha, first[name].sigma
            largest = NOISIEST if alpha == 0 else min(NOISIEST, sigma / alpha)
            ratios[name][inner] = RATIO_GRIDS[kind](count - 1, largest, CLEANEST)
    by_time, by_ratio = jax.device_get((times_to_levels(times), ratios_to_levels(ratios)))
    found = {}
    for name, clean in by_ratio.items():
        # the ratio 0 is clean data, which not every schedule reaches in time
        leaves = zip(by_time[name], clean) if kind in TIME_GRIDS else zip(clean, clean)
        found[name] = NoiseLevel(*(np.where(inner, a, b) for a, b in leaves))
        for leaf, start in zip(found[name], first[name]):
            leaf[0] = start
    return stacked([found[name] for name in CASES])


def stacked(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def at(levels: NoiseLevel, position: int) -> NoiseLevel:
    """One level of each grid: [C]."""
    return jax.tree.map(lambda leaf: leaf[:, position], levels)


@dataclass(frozen=True)
class OneOf:
    """A few schedules of which a number, which may be traced, picks one."""

    number: Array
    schedules: tuple[Schedule, ...]

    def _pick(self, function) -> Any:
        found = [function(schedule) for schedule in self.schedules]
        return jax.tree.map(lambda *leaves: lax.select_n(self.number, *leaves), *found)

    def __call__(self, t):
        return self._pick(lambda schedule: schedule(t))

    def at_ratio(self, ratio):
        return self._pick(lambda schedule: level_at(schedule)(ratio))

    def time_of(self, level):
        return self._pick(lambda schedule: time_of(schedule, level))


PREDICTIONS = tuple(PARAMETERIZATIONS.values())


def prediction_of(number: Array) -> Parameterization:
    """The row of PREDICTIONS with this number, which may be traced."""

    def pick(column):
        def value(level):
            found = [getattr(row, column)(level) for row in PREDICTIONS]
            return jax.tree.map(lambda *leaves: lax.select_n(number, *leaves), *found)

        return value

    return Parameterization("any", *(pick(column) for column in Parameterization._fields[1:]))


HOLDERS = [name for name, row in SOLVERS.items() if accepts(row, "schedule")]


def held_by(name: str, every: bool = False) -> list[str]:
    """The schedules that a solver holds in turn, none where it holds none.

    They are another few for each solver, or, which takes long to compile, every one.
    """
    if name not in HOLDERS:
        return []
    first, names = HOLDERS.index(name), list(SCHEDULES)
    if SOLVERS[name].differentiates:
        names = [each for each in names if num_train_steps(SCHEDULES[each]) is None]
    return names if every else [names[(first + step) % len(names)] for step in (0, 5, 11)]


def cases_of(name: str, every: bool = False) -> np.ndarray:
    """Which of the CASES a solver can run: those of the schedules that it holds, or all."""
    held = held_by(name, every)
    return np.flatnonzero([not held or schedule in held for schedule in CASES])


def numbers_of(
    name: str,
    cases: np.ndarray,
    *,
    every: bool = False,
    shift: int = 0,
    pure_noise: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers [C] of schedules and predictions that a solver meets in its cases, in turn.

    With another shift every case has another prediction. Networks of a solver that holds a schedule
    are told the time; from pure noise, those are asked that know x0 there.
    """
    held = held_by(name, every)
    schedules_ = [held.index(CASES[case]) if held else 0 for case in cases]
    known = ["x0", "v", "velocity"] if pure_noise else list(PARAMETERIZATIONS)
    told_time = [row for row in known if not held or row not in ("ncsn", "edm")]
    turn = [told_time[(case + shift) % len(told_time)] for case in cases]
    predictions = [list(PARAMETERIZATIONS).index(row) for row in turn]
    return np.array(schedules_, np.int32), np.array(predictions, np.int32)


def replaying(row: Row, schedule: Schedule | None, num_steps, noise: Array) -> Solver:
    """The solver of a row with given noise: draw k of step i is noise[:, i, k].

    It stands still after `num_steps` steps, so that a loop of fixed length, which has derivatives,
    can serve every number of them.
    """

    def init(x):
        return jnp.zeros((), jnp.int32), build(row, schedule, num_steps).init(x)

    def step(keys, x, state, denoise, current, next_):
        i, inner = state
        draws = itertools.count()
        normal = lambda keys, shape, dtype: noise[:, i, next(draws)]
        solver = build(row, schedule, num_steps, normal)
        x, inner = lax.cond(
            i < num_steps,
            lambda: solver.step(keys, x, inner, denoise, current, next_),
            lambda: (x, inner),
        )
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
    row: Parameterization, distribution: exact.Mixture, find: Callable[[Array], NoiseLevel]
) -> Callable[..., Array]:
    """`apply(params, x, t)` of a prediction without error; `find` knows the level of a clock t."""

    def apply(params, x, t):
        level = find(t[0])
        x = x / row.in_scale(level)
        x0 = exact.denoiser(distribution)(x, level)
        a, b = row.target(level)
        return a * x0 + b * estimate_eps(x, x0, level)

    return apply


class Setting(NamedTuple):
    """What a run is given besides x and noise; each leaf may have an axis [C] in front.

    Attributes:
      levels: [M + 1] the grid.
      schedule: number of the held schedule.
      prediction: number of what the network predicts.
    """

    levels: NoiseLevel
    schedule: Array
    prediction: Array


def run(name: str, every: bool, distribution, x, setting: Setting, num_steps, noise, keys) -> Array:
    """Where the solver of a row takes x [B, D]; noise [B, M, draws, D] is for those that replay."""
    row, levels, schedule = SOLVERS[name], setting.levels, None
    prediction = prediction_of(setting.prediction)
    if name in HOLDERS:
        held = tuple(SCHEDULES[each] for each in held_by(name, every))
        find = schedule = OneOf(setting.schedule, held)
    else:
        # without a schedule, a solver can only ask at the levels of the run
        clocks = prediction.clock(levels)
        find = lambda t: jax.tree.map(lambda leaf: leaf[jnp.argmin(jnp.abs(clocks - t))], levels)
    network = perfect_network(prediction, distribution, find)
    denoise = as_wanted(row, make_denoiser(network, None, prediction))
    if not row.weak_order:
        solver = build(row, schedule, num_steps)
        return sample(keys, x, denoise, solver, levels, num_steps=num_steps)
    return sample(keys, x, denoise, replaying(row, schedule, num_steps, noise), levels)


@cache
def program(name: str, every: bool = False) -> Callable[..., Array]:
    """`run` of a solver for C grids at once.

    Its arguments: distribution, x [C, B, D], setting, num_steps, noise [C, B, M, draws, D],
    keys [C, B]; it returns x at the ends.
    """
    return jax.jit(jax.vmap(partial(run, name, every), in_axes=(None, 0, 0, None, 0, 0)))


@cache
def moments_program(name: str, every: bool = False) -> Callable[..., tuple[Array, Array]]:
    """Mean and variance [C, D] at the ends of C grids, for Gaussian data without correlations.

    All is affine then: x at the end = mean + sum of c z over start and noises z, and the variance
    is the sum of c^2, which one derivative finds. Its arguments: distribution, mean and scale of
    the start [C, D], setting, num_steps.
    """
    row = SOLVERS[name]

    def moments(distribution, mean, scale, setting, num_steps):
        def end(start, noise):
            x = (mean + scale * start)[None]
            keys = sample_keys(jax.random.key(0), jnp.arange(1))
            result = run(name, every, distribution, x, setting, num_steps, noise[None], keys)[0]
            return jnp.sum(result), result

        length = setting.levels.t.shape[0] - 1
        z = jnp.zeros_like(mean), jnp.zeros((length, draws_of(row), *mean.shape))
        (from_start, from_noise), result = jax.grad(end, (0, 1), has_aux=True)(*z)
        return result, from_start**2 + jnp.sum(from_noise**2, axis=(0, 1))

    return jax.jit(jax.vmap(moments, in_axes=(None, 0, 0, 0, None)))
