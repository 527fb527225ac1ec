"""From a checkpoint's scheduler to the steps of one run."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.sampling import Solver
from diffjax.pretrained import Scheduler
from diffjax.transforms import tail


class Plan(NamedTuple):
    """The steps of a run.

    Attributes:
      solver: how to step.
      levels: where to, noise first.
      initial_scale: factor of unit noise at the first level.
    """

    solver: Solver
    levels: NoiseLevel
    initial_scale: Array | float


def make_plan(
    scheduler: Scheduler,
    num_steps: int | None,
    *,
    strength: float = 1.0,
    part: tuple[float, float] = (0.0, 1.0),
    grid: dict[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """The steps that a scheduler's configuration asks for, or a part of them.

    Args:
      scheduler: from `read_scheduler` or a folder.
      num_steps: of the whole way from noise to data.
      strength: share of the steps that are walked, the last ones, as for images that are to be
        changed; see `tail`.
      part: which part of the time is walked, from noise (0) to data (1): (0, 0.8) for a base model
        whose result a refiner takes over with (0.8, 1).
      grid: further options of `scheduler.levels`, such as those of `System.grid`.
      **options: of `scheduler.solver`, such as eta.

    >>> from diffjax.pretrained import read_scheduler
    >>> scheduler = read_scheduler({"_class_name": "DDIMScheduler"})
    >>> make_plan(scheduler, 4, strength=0.5).levels.t.tolist()
    [250, 0, -1]
    >>> make_plan(scheduler, 4, part=(0.0, 0.5)).levels.t.tolist()
    [750, 500, 250]
    """
    levels = scheduler.levels(num_steps, **(grid or {}))
    length = len(levels.t) - 1
    first = length - (len(tail(levels, strength).t) - 1)
    last = length
    if part != (0.0, 1.0):
        begin, last = _cut(np.asarray(levels.t), part, scheduler)
        first = max(first, begin)
    if first >= last:
        raise ValueError(f"no step of {length} is left by strength {strength} and part {part}")
    begin = {"begin": first} if first else {}
    solver = scheduler.solver(levels, **begin, **options)
    chosen = jax.tree.map(lambda leaf: leaf[first : last + 1], levels)
    return Plan(solver, chosen, scheduler.initial_scale(levels))


def time_at(scheduler: Scheduler, share: float) -> float:
    """The network's time behind a share of the way from noise (0) to data (1).

    Raises:
      ValueError: the scheduler counts no time steps.
    """
    total = scheduler.config.get("num_train_timesteps")
    if total is None:
        raise ValueError(f"{scheduler.name} counts no time steps that a part could be taken of")
    return round(total - share * total)


def _cut(times: np.ndarray, part: tuple[float, float], scheduler: Scheduler) -> tuple[int, int]:
    """How many steps start before each end of a part of the time."""
    start, stop = part
    if not 0.0 <= start < stop <= 1.0:
        raise ValueError(f"part is {part}; needed is 0 <= start < stop <= 1")
    before = lambda share: int((times[:-1] >= time_at(scheduler, share)).sum())
    return before(start), len(times) - 1 if stop == 1.0 else before(stop)
