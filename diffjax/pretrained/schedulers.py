"""diffusers' scheduler configs as a schedule, a parameterization, a grid of levels and a solver.

A diffusers scheduler holds four things at once. Read by `read_scheduler` they come apart:

    scheduler = read_scheduler(folder)
    levels = scheduler.levels(50)
    solver = scheduler.solver(levels)
    denoise = make_denoiser(apply, params, scheduler.parameterization)
    images = sample(key, scheduler.initial_scale(levels) * noise, denoise, solver, levels)

The numbers are those that diffusers computes, except where it departs from its own sources; the
project's list of differences names every such case.

Samples here are always x = alpha x0 + sigma eps. Schedulers of the k-diffusion family hold
x / alpha instead and undo that in `scale_model_input`; their networks see the same numbers.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, Parameterization
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.pretrained.architecture import MISFITS
from diffjax.pretrained.folders import read_json
from diffjax.pretrained.scheduler_rows import SCHEDULERS, Row
from diffjax.pretrained.weights import UnsupportedError

Config = Mapping[str, Any]

SCHEDULER_FILE = "scheduler_config.json"


class Scheduler(NamedTuple):
    """What a scheduler config stands for.

    Attributes:
      name: the scheduler's class.
      config: its settings, defaults included.
      saved: the settings as they were read, for `read_scheduler(saved, class_name=...)`.
      schedule: what the network was trained on.
      parameterization: what the network predicts.
      learned_variance: whether it predicts the reverse variance too; then the denoiser comes from
        `make_learned_variance_denoiser`.
      levels: (num_steps, **options) -> the grid of levels. Some schedulers take lists instead of
        `num_steps`: `timesteps`, `sigmas`.
      solver: (levels, **options) -> the solver for that grid, with the options of the scheduler's
        step (`eta`, `s_churn`, ...), and `normal` where it draws noise. Where the config asks for
        it, the solver limits the estimates of x0. A run on `levels[begin:]` of a longer grid, as
        for image to image, takes the solver of the whole grid with the option `begin`.
      limit: denoiser -> denoiser, what the config does with the estimate of x0: clipping,
        thresholding, the boundary condition of consistency models. The solver applies it.
      initial_scale: levels -> factor of unit noise that makes the first x.
    """

    name: str
    config: Config
    saved: Config
    schedule: Schedule
    parameterization: Parameterization
    learned_variance: bool
    levels: Callable[..., NoiseLevel]
    solver: Callable[..., Solver]
    limit: Callable[[Denoiser], Denoiser]
    initial_scale: Callable[[NoiseLevel], Array | float]


def read_scheduler(source: str | Path | Config, *, class_name: str | None = None) -> Scheduler:
    """Read a scheduler config.

    Args:
      source: scheduler_config.json, the folder that holds it, or its content.
      class_name: read the config as another scheduler's than the one that saved it; settings that
        it holds only because they were the saving class's defaults are then left out, if it says
        which they are.

    Raises:
      UnsupportedError: for a class, or an option of one, that there is no solver for.
      ValueError: the settings do not fit the class.

    >>> scheduler = read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False})
    >>> scheduler.levels(4).t.tolist()
    [750, 500, 250, 0, -1]
    """
    saved = _load(source)
    name = _known_class(class_name or saved.get("_class_name"))
    row = SCHEDULERS[name]
    config = _settings(row, saved, as_saved=name == saved.get("_class_name"))
    try:
        schedule, limit = row.schedule(config), row.limit(config)
        parameterization = row.parameterization(config)
    except MISFITS as error:
        raise ValueError(f"The scheduler config does not fit {name}: {error}") from error

    def levels(num_steps: int | None = None, **options: Any) -> NoiseLevel:
        if num_steps is None and not {"timesteps", "sigmas"} & set(options):
            raise ValueError(f"{name}: num_steps, or a list of timesteps or sigmas, is needed.")
        return row.levels(config, schedule, num_steps, **options)

    def solver(levels: NoiseLevel, *, begin: int = 0, **options: Any) -> Solver:
        if row.orders_by_step:
            options["begin"] = begin
        return row.solver(config, limit, levels, **options)

    return Scheduler(
        name=name,
        config=config,
        saved=saved,
        schedule=schedule,
        parameterization=parameterization,
        learned_variance=config.get("variance_type") == "learned_range",
        levels=levels,
        solver=solver,
        limit=limit,
        initial_scale=lambda levels: row.initial_scale(config, levels),
    )


def _known_class(name: Any) -> str:
    """The name itself, if there is a solver for the class."""
    if not isinstance(name, str):
        raise UnsupportedError(
            "The scheduler config names no class (_class_name); give class_name."
        )
    if name not in SCHEDULERS:
        nearest = difflib.get_close_matches(name, SCHEDULERS, n=1, cutoff=0.0)
        raise UnsupportedError(
            f"There is no solver for the scheduler class {name!r}; the nearest name is "
            f"{nearest[0]!r}, and all are: {', '.join(sorted(SCHEDULERS))}."
        )
    return name


def _settings(row: Row, saved: Config, *, as_saved: bool) -> dict[str, Any]:
    """The settings of a class, its defaults included; as_saved: the class is the one that saved."""
    ignored = () if as_saved else saved.get("_use_default_values", ())
    given = {k: v for k, v in saved.items() if k in row.defaults and k not in ignored}
    for name, value in given.items():
        _require_kind(name, value, row.defaults[name])
    return {**row.defaults, **given}


def _require_kind(name: str, value: Any, default: Any) -> None:
    """A value must be of the kind of the class's own, where that tells one."""
    kinds = (str, "a text") if isinstance(default, str) else (int | float, "a number")
    told = isinstance(default, str | int | float) and value is not None
    if told and not isinstance(value, kinds[0]):
        what = f"{name} is {value!r}; it must be {kinds[1]}, such as {default!r}"
        raise ValueError(f"The scheduler config: {what}")


def _load(source: str | Path | Config) -> Config:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    path = path / SCHEDULER_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder of a scheduler holds it")
    return read_json(path)
