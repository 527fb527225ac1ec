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
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array

from diffjax.core import parameterizations
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, Parameterization
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.pretrained import scheduler_tables as tables
from diffjax.pretrained.weights import UnsupportedError
from diffjax.solvers import ancestral, ddim, ddim_inversion
from diffjax.transforms import clip_denoised, dynamic_threshold

Config = Mapping[str, Any]


class Scheduler(NamedTuple):
    """What a scheduler config stands for.

    Attributes:
      name: the scheduler's class.
      config: its settings, defaults included.
      schedule: what the network was trained on.
      parameterization: what the network predicts.
      learned_variance: whether it predicts the reverse variance too; then the denoiser comes from
        `make_learned_variance_denoiser`.
      levels: (num_steps, **options) -> the grid of levels. Some schedulers take lists instead of
        `num_steps`: `timesteps`, `sigmas`.
      solver: (levels, **options) -> the solver for that grid, with the options of the scheduler's
        step (`eta`, `s_churn`, ...), and `normal` where it draws noise. Where the config asks for
        it, the solver limits the estimates of x0.
      limit: x0 -> x0, the clipping or thresholding that the config asks for.
      initial_scale: levels -> factor of unit noise that makes the first x.
    """

    name: str
    config: Config
    schedule: Schedule
    parameterization: Parameterization
    learned_variance: bool
    levels: Callable[..., NoiseLevel]
    solver: Callable[..., Solver]
    limit: Callable[[Array], Array]
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

    >>> scheduler = read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False})
    >>> scheduler.levels(4).t.tolist()
    [750, 500, 250, 0, -1]
    """
    saved = _load(source)
    name = class_name or saved.get("_class_name")
    if name not in SCHEDULERS:
        nearest = difflib.get_close_matches(str(name), SCHEDULERS, n=1, cutoff=0.0)
        raise UnsupportedError(
            f"There is no solver for the scheduler class {name!r}; the nearest name is "
            f"{nearest[0]!r}, and all are: {', '.join(sorted(SCHEDULERS))}."
        )
    row = SCHEDULERS[name]
    ignored = set()
    if name != saved.get("_class_name"):
        ignored = set(saved.get("_use_default_values", ()))
    given = {key: value for key, value in saved.items() if key in row.defaults}
    config = {**row.defaults, **{k: v for k, v in given.items() if k not in ignored}}
    schedule = row.schedule(config)
    limit = _limit(config)
    return Scheduler(
        name=name,
        config=config,
        schedule=schedule,
        parameterization=row.parameterization(config),
        learned_variance=config.get("variance_type") == "learned_range",
        levels=lambda num_steps=None, **options: row.levels(config, schedule, num_steps, **options),
        solver=lambda levels, **options: row.solver(config, limit, levels, **options),
        limit=lambda x0: limit(_identity)(x0, None),
        initial_scale=lambda levels: row.initial_scale(config, levels),
    )


def _load(source: str | Path | Config) -> Config:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    path = path / "scheduler_config.json" if path.is_dir() else path
    return json.loads(path.read_text())


def _identity(x: Array, level: NoiseLevel | None) -> Array:
    return x


def _prediction(config: Config) -> Parameterization:
    name = config["prediction_type"]
    rows = {
        "epsilon": parameterizations.eps,
        "sample": parameterizations.x0,
        "v_prediction": parameterizations.v,
        "flow_prediction": parameterizations.velocity,
    }
    if name not in rows:
        raise UnsupportedError(f"prediction_type is {name!r}; supported: {', '.join(rows)}.")
    return rows[name]


def _limit(config: Config) -> Callable[[Denoiser], Denoiser]:
    """The transform of denoisers that the config asks for; the identity if it asks for none."""
    if config.get("thresholding"):
        quantile, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return lambda denoise: dynamic_threshold(denoise, quantile, max_value=most)
    if config.get("clip_sample"):
        most = config["clip_sample_range"]
        return lambda denoise: clip_denoised(denoise, -most, most)
    return lambda denoise: denoise


def _limited(solver: Solver, limit: Callable[[Denoiser], Denoiser]) -> Solver:
    """The solver, asking a denoiser whose estimates are limited."""

    def step(keys, x, state, denoise, current, next_):
        return solver.step(keys, x, state, limit(denoise), current, next_)

    return Solver(solver.init, step)


def _ddpm(config, limit, levels, **options):
    names = {
        "fixed_small": "fixed_small",
        "fixed_small_log": "fixed_small",
        "fixed_large": "fixed_large",
        "learned_range": "learned_range",
    }
    name = config["variance_type"]
    if name not in names:
        raise UnsupportedError(f"variance_type is {name!r}; supported: {', '.join(names)}.")
    return _limited(ancestral(names[name], **options), limit)


def _ddim(config, limit, levels, *, eta=0.0, use_clipped_model_output=False, **options):
    if use_clipped_model_output:
        return _limited(ddim(eta, **options), limit)
    return ddim(eta, limit=lambda x0: limit(_identity)(x0, None), **options)


def _ddim_inversion(config, limit, levels):
    if config["prediction_type"] == "sample" or config["clip_sample"]:
        raise UnsupportedError(
            "DDIMInverseScheduler is supported for epsilon and v_prediction without clip_sample: "
            "clipping cannot be inverted, and x0 says nothing of the noise at the clean end."
        )
    return ddim_inversion("v" if config["prediction_type"] == "v_prediction" else "eps")


class Row(NamedTuple):
    """How one scheduler class is read: its defaults, and functions of the settings."""

    defaults: Config
    solver: Callable[..., Solver]
    levels: Callable[..., NoiseLevel] = tables.integer_levels
    schedule: Callable[[Config], Schedule] = tables.table
    parameterization: Callable[[Config], Parameterization] = _prediction
    initial_scale: Callable[[Config, NoiseLevel], Any] = lambda config, levels: 1.0


_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}

_DDPM = Row({**_BETAS, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small"}, _ddpm)
_DDIM = Row({**_BETAS, **_CLIP, **_THRESHOLD, "set_alpha_to_one": True}, _ddim)

SCHEDULERS = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": Row(
        {**_BETAS, **_CLIP, "set_alpha_to_one": True},
        _ddim_inversion,
        levels=tables.inverse_integer_levels,
    ),
}
