"""What a configuration means: its schedule, prediction, solver and levels."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

import diffjax as dj
from choices import (
    PREDICTIONS,
    RATIOS,
    SCHEDULES,
    SPACINGS,
    build,
    choose,
    read_choice,
)
from config import Config, DiffusionConfig
from diffjax import schedules
from diffjax.core.learned_schedule import LearnedLogsnr
from diffjax.core.levels import ratio_of
from diffjax.core.likelihood import cleanest_level, noisiest_level
from diffjax.core.schedules import Schedule, num_train_steps
from diffjax.solvers import SOLVERS
from guidances import Guidance, check_interval, read_guidance
from walks import ONCE, Walk


def make_schedule(config: DiffusionConfig, params: Any = None) -> Schedule:
    """The forward process of a configuration.

    Args:
      config: its part on diffusion.
      params: of a run (`runs.make_network`), for a schedule that is learned; without them it is
        the one from which learning starts.
    """
    schedule: Any = named_schedule(config)
    if config.zero_terminal_snr:
        schedule = dj.zero_terminal_snr(schedule)
    if params is not None and isinstance(schedule, LearnedLogsnr):
        schedule = schedule.with_params(params["schedule"])
    return schedule if config.shift == 1.0 else schedules.shifted(schedule, config.shift)


def named_schedule(config: DiffusionConfig) -> Schedule:
    """The schedule that a configuration names; shift and zero terminal SNR are not in it."""
    return build("schedule", config.schedule, SCHEDULES, num_steps=config.num_train_steps)


def make_parameterization(config: DiffusionConfig) -> dj.Parameterization:
    """What the network of a configuration predicts."""
    return build("prediction", config.prediction, PREDICTIONS)


@dataclass(frozen=True)
class SampleOptions:
    """How to sample from a trained network.

    Attributes:
      solver: a name of `diffjax.solvers.SOLVERS`, with arguments if need be: "ddim(eta=1.0)".
      num_steps: steps; None for the whole chain with ddpm, 50 otherwise.
      eta: share of noise, for solvers that have one; None for their default.
      guidance: a name of `guidances.GUIDANCES`, with arguments if need be.
      guidance_scale: 1 is off.
      guidance_interval: where to guide, low < sigma / alpha <= high; None for everywhere.
      weights: of the conditions that are composed, see `compositions`; None for a single one.
      classifier_scale: of the guidance by a classifier, if there is one.
      loss: MODULE:FUNCTION, a loss on x0 to guide by; None for none.
      loss_strength: of its gradient through the network; 0 is off.
      loss_step_size: of ten steps down the loss from each estimate itself; 0 is off.
      clip: clip the estimates of x0 to [-1, 1].
      spacing: of the levels, a name of `diffjax.grids.SPACINGS` or of `choices.RATIOS`.
      times: the time grid itself, noise first, in the place of num_steps and spacing.
      walk: over the grid.
      candidates: images drawn for each one that is kept, the likeliest for its condition.
    """

    solver: str = "ddim"
    num_steps: int | None = None
    eta: float | None = None
    guidance: str = "classifier_free"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    weights: tuple[float, ...] | None = None
    classifier_scale: float = 1.0
    loss: str | None = None
    loss_strength: float = 1.0
    loss_step_size: float = 0.0
    clip: bool = True
    spacing: str = "trailing"
    times: tuple[float, ...] | None = None
    walk: Walk = ONCE
    candidates: int = 1

    def __post_init__(self):
        for name in ("guidance_scale", "classifier_scale", "loss_strength", "loss_step_size"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite.")
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; at least 1.")
        check_interval(self.guidance_interval)

    @property
    def ancestral(self) -> bool:
        """Whether the solver is DDPM's."""
        return read_choice("solver", self.solver)[0] == "ddpm"

    def read_guidance(self) -> Guidance | None:
        """The guidance that the options name; None where it is off."""
        return read_guidance(self.guidance, self.guidance_scale, self.guidance_interval)


def sampling_defaults(config: Config, **changes: Any) -> SampleOptions:
    """How a configuration says to sample, but for the changes that are not None.

    Steps and grid belong to the configuration's solver; another one has its own number of steps.
    """
    defaults = dataclasses.asdict(config.sampling)
    del defaults["previews"]
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("solver", defaults["solver"]) != defaults["solver"]:
        defaults["num_steps"] = None
    return SampleOptions(**{**defaults, **given})


def make_solver(options: SampleOptions, schedule: Schedule, learned_variance: bool) -> dj.Solver:
    """The solver that the options name."""
    settings: dict[str, Any] = {"schedule": schedule}
    if learned_variance and options.ancestral:
        settings["variance"] = "learned_range"
    if options.eta is not None:
        name, _ = read_choice("solver", options.solver)
        accepted = inspect.signature(choose("solver", name, SOLVERS)).parameters
        if "eta" not in accepted:
            raise ValueError(f"--eta is {options.eta}, but the solver {name} has none.")
        settings["eta"] = options.eta
    solver = build("solver", options.solver, SOLVERS, **settings)
    return options.walk.solver(guided_solver(solver, options))


def guided_solver(solver: dj.Solver, options: SampleOptions) -> dj.Solver:
    """The solver under the guidance of the options, where that is one of solvers."""
    guidance = options.read_guidance()
    if guidance is None or guidance.solver is None:
        return solver
    return guidance.solver(solver, guidance_scale=options.guidance_scale)


def count_steps(options: SampleOptions, schedule: Schedule) -> int:
    """The number of steps that the options ask for."""
    if options.times is not None:
        return len(make_times(options, schedule)) - 1
    most = num_train_steps(schedule) or 1000
    default = most if options.ancestral else min(50, most)
    return default if options.num_steps is None else options.num_steps


def count_visits(options: SampleOptions, schedule: Schedule) -> int:
    """The steps taken for an image, with those that are walked again and those of candidates."""
    return options.candidates * options.walk.count(count_steps(options, schedule))


def make_times(options: SampleOptions, schedule: Schedule) -> np.ndarray:
    """The time grid that the options ask for."""
    steps = num_train_steps(schedule)
    if options.times is not None:
        return dj.from_times(options.times, steps, fractions=True)
    num_steps = count_steps(options, schedule)
    settings = {} if steps is None else {"num_train_steps": steps}
    return build("spacing", options.spacing, SPACINGS, num_steps=num_steps, **settings)


def make_levels(options: SampleOptions, schedule: Schedule) -> dj.NoiseLevel:
    """The levels that sampling visits, one after the other: the grid, stretches of it again."""
    return options.walk.levels(make_grid(options, schedule))


def make_grid(options: SampleOptions, schedule: Schedule) -> dj.NoiseLevel:
    """The levels of the grid that the options ask for, from noise to clean data.

    A grid of ratios sigma / alpha reaches over all of the schedule unless its arguments say where
    to begin and end. Where a schedule in continuous time ends with a trace of noise, the last step
    leads from the level before to clean data.
    """
    name, given = read_choice("spacing", options.spacing)
    choose("spacing", name, {**SPACINGS, **RATIOS})
    if options.times is not None or name in SPACINGS:
        levels = schedule(jnp.asarray(make_times(options, schedule)))
        clean = schedules.level_at(schedule)(jnp.zeros(()))
        return jax.tree.map(
            lambda leaf, end: leaf.at[-1].set(end.astype(leaf.dtype)), levels, clean
        )
    ends = {} if {"smallest", "largest"} <= set(given) else ratio_ends(options.spacing, schedule)
    num_steps = count_steps(options, schedule)
    ratios = build("spacing", options.spacing, RATIOS, num_steps=num_steps, **ends)
    return schedules.levels_at(schedule, ratios)


def ratio_ends(spacing: str, schedule: Schedule) -> dict[str, float]:
    """The smallest and the largest sigma / alpha of a schedule, for a grid that fills it."""
    name, given = read_choice("spacing", spacing)
    cleanest, noisiest = cleanest_level(schedule), noisiest_level(schedule)
    if isinstance(cleanest.sigma, Tracer):
        raise ValueError(
            f"spacing {spacing!r} does not know the ends of a learned schedule; say both, as in "
            f"{name}(smallest=0.002, largest=100)."
        )
    largest = float(ratio_of(noisiest))
    if not np.isfinite(largest) and "largest" not in given:
        raise ValueError(
            f"spacing {spacing!r} would begin at pure noise; say where to begin, as in "
            f"{name}(largest=100)."
        )
    return {"smallest": float(ratio_of(cleanest)), "largest": largest}


def to_uint8(images: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as bytes, 0..255."""
    return np.asarray(jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5)).astype(np.uint8)
