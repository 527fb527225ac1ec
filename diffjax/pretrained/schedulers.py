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
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.core import parameterizations
from diffjax.core.keys import normal_each
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, LearnedVariance, Parameterization
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.core.sigma_schedules import edm_sigmas, flow
from diffjax.pretrained import scheduler_grids as grids
from diffjax.pretrained import scheduler_tables as tables
from diffjax.pretrained.weights import UnsupportedError
from diffjax.solvers import (
    ancestral,
    block_orders,
    ddim,
    ddim_inversion,
    dpm2,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    euler,
    euler_ancestral,
    heun,
    lms,
    lower_final_orders,
    plms,
    renoise,
    unipc,
)
from diffjax.solvers.euler import Churn
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


def _limited(
    solver: Solver, limit: Callable[[Denoiser], Denoiser], *, keep_variance: bool = False
) -> Solver:
    """The solver, asking a denoiser whose estimates are limited; a learned variance is dropped."""

    def step(keys, x, state, denoise, current, next_):
        def estimate(x, level):
            limited = limit(denoise)(x, level)
            if isinstance(limited, LearnedVariance) and not keep_variance:
                return limited.x0
            return limited

        return solver.step(keys, x, state, estimate, current, next_)

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
    return _limited(ancestral(names[name], **options), limit, keep_variance=True)


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


def _churn(config, levels, s_churn=0.0, **options) -> Churn | None:
    if not s_churn:
        return None
    return Churn(tables.floored_table(config), len(levels.t) - 1, s_churn, **options)


def _euler(config, limit, levels, *, normal=normal_each, **options):
    return _limited(euler(_churn(config, levels, **options), normal=normal), limit)


def _euler_ancestral(config, limit, levels, **options):
    return _limited(euler_ancestral(**options), limit)


def _heun(config, limit, levels):
    return _limited(heun(), limit)


def _flow_euler(config, limit, levels, **options):
    return renoise(**options) if config["stochastic_sampling"] else euler(**options)


def _flow_heun(config, limit, levels):
    return heun(slope="velocity")


def _edm_euler(config, limit, levels, *, normal=normal_each, s_churn=0.0, **options):
    churn = None
    if s_churn:
        schedule, num_steps = _edm_schedule(config), len(levels.t) - 1
        churn = Churn(schedule, num_steps, s_churn, **options)
    return euler(churn, normal=normal)


def _edm_schedule(config):
    rho = config["rho"]
    return edm_sigmas(config["sigma_min"], config["sigma_max"], rho)


def _edm_prediction(config) -> Parameterization:
    """EDM's preconditioning; "v_prediction" is the same with the sign of the network turned."""
    row = parameterizations.edm(config["sigma_data"])
    clock = config["clock"]
    row = row._replace(clock=lambda level: clock(level.sigma / level.alpha))
    if config["prediction_type"] == "epsilon":
        return row
    if config["prediction_type"] != "v_prediction":
        raise UnsupportedError(
            f"prediction_type is {config['prediction_type']!r}; supported: epsilon, v_prediction."
        )
    return row._replace(
        target=lambda level: tuple(-c for c in row.target(level)),
        estimate=lambda level: (row.estimate(level)[0], -row.estimate(level)[1]),
    )


def _dpm_options(config, levels):
    """Arguments of the solver that the DPM family's settings share, and the orders of the steps."""
    algorithm, order = config["algorithm_type"], config["solver_order"]
    num_steps = len(levels.t) - 1
    if algorithm not in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"):
        raise UnsupportedError(f"algorithm_type is {algorithm!r}; it is not supported.")
    options = {
        "predict": "x0" if algorithm.endswith("++") else "eps",
        "stochastic": algorithm.startswith("sde"),
        "rule": "exact" if config["solver_type"] in ("heun", "logrho") else "midpoint",
    }
    orders = np.full(num_steps, order)
    if config["lower_order_final"] and num_steps < 15:
        orders = lower_final_orders(num_steps, order)
    if config.get("euler_at_final") or config["final_sigmas_type"] == "zero":
        orders[-1] = 1
    return options, orders


def _dpm_multistep(config, limit, levels, **more):
    options, orders = _dpm_options(config, levels)
    solver = dpm_multistep(config["solver_order"], orders=orders, **{**options, **more})
    return _limited(solver, limit)


def _dpm_singlestep(config, limit, levels, **more):
    order, num_steps = config["solver_order"], len(levels.t) - 1
    options, _ = _dpm_options(config, levels)
    # diffusers lowers the order, whatever the config says, where the blocks do not fit
    lower = config["lower_order_final"] or num_steps % order != 0
    orders = block_orders(num_steps, order, lower_final=lower)
    if config["final_sigmas_type"] == "zero":
        orders[-1] = 1
    return _limited(dpm_singlestep(order, orders=orders, **options, **more), limit)


def _unipc(config, limit, levels):
    if config["solver_p"] is not None:
        raise UnsupportedError("UniPCMultistepScheduler: another predictor (solver_p) is not read.")
    order, num_steps = config["solver_order"], len(levels.t) - 1
    orders = np.full(num_steps, order)
    if config["lower_order_final"]:
        orders = lower_final_orders(num_steps, order)
    correct = ~np.isin(np.arange(num_steps), config["disable_corrector"])
    solver = unipc(
        order,
        predict="x0" if config["predict_x0"] else "eps",
        variant="bh1" if config["solver_type"] == "bh1" else "bh2",
        orders=orders,
        correct=correct,
    )
    return _limited(solver, limit)


def _lms(config, limit, levels, *, order=4):
    return _limited(lms(order), limit)


def _dpm2(config, limit, levels):
    return _limited(dpm2(tables.floored_table(config)), limit)


def _dpm2_ancestral(config, limit, levels, **options):
    return _limited(dpm2(tables.floored_table(config), eta=1.0, **options), limit)


def _dpm_sde(config, limit, levels, **options):
    return _limited(dpm_sde(tables.floored_table(config), **options), limit)


def _pndm(config, limit, levels):
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise UnsupportedError("PNDMScheduler is supported for epsilon and v_prediction.")
    return plms(
        slope="v" if config["prediction_type"] == "v_prediction" else "eps",
        start="two_calls" if config["skip_prk_steps"] else "runge_kutta",
        schedule=tables.table(config),
    )


def _pndm_levels(config, schedule, num_steps=None):
    if not config["skip_prk_steps"] and num_steps < 4:
        raise ValueError(
            f"num_steps is {num_steps}; PNDM with Runge-Kutta steps needs at least 4. "
            "Set skip_prk_steps."
        )
    return grids.integer_levels(config, schedule, num_steps)


def _ratio_scale(config, levels):
    """The family's first noise: unit variance for "leading", that of the noise alone otherwise."""
    return 1.0 if config["timestep_spacing"] == "leading" else levels.sigma[0]


class Row(NamedTuple):
    """How one scheduler class is read: its defaults, and functions of the settings."""

    defaults: Config
    solver: Callable[..., Solver]
    levels: Callable[..., NoiseLevel] = grids.integer_levels
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

_RATIOS = {
    **_BETAS,
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_KDPM2 = {**_RATIOS, "beta_start": 0.00085, "beta_end": 0.012, "rounds_times": True}
_EULER = {
    **_RATIOS,
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
}


def _ratio_row(defaults: Config, solver: Callable[..., Solver]) -> Row:
    return Row(
        defaults,
        solver,
        levels=grids.ratio_levels,
        schedule=tables.floored_table,
        initial_scale=_ratio_scale,
    )


_FINAL = {
    **_BETAS,
    **_THRESHOLD,
    "timestep_spacing": "linspace",
    "solver_order": 2,
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    # rules of the class, not settings
    "flow_sigmas_from_one": False,
    "repeats_last": False,
    "rounds_times": False,
}
_DPM = {
    **_FINAL,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "use_lu_lambdas": False,
}
_FLOW = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}
_EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
    "clock": lambda sigma: 0.25 * _log(sigma),
}
_EDM_DPM = {
    **_EDM,
    **_THRESHOLD,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
}


def _log(value):
    return np.log(value) if isinstance(value, np.ndarray) else jnp.log(value)


def _arctan(value):
    return np.arctan(value) if isinstance(value, np.ndarray) else jnp.arctan(value)


def _final_row(defaults: Config, solver: Callable[..., Solver]) -> Row:
    return Row(defaults, solver, levels=grids.final_order_levels, schedule=tables.floored_table)


def _flow_row(solver: Callable[..., Solver]) -> Row:
    return Row(
        _FLOW,
        solver,
        levels=grids.flow_levels,
        schedule=lambda config: flow(clock=config["num_train_timesteps"]),
        parameterization=lambda config: parameterizations.velocity,
    )


def _edm_row(defaults: Config, solver: Callable[..., Solver]) -> Row:
    return Row(
        defaults,
        solver,
        levels=grids.edm_levels,
        schedule=_edm_schedule,
        parameterization=_edm_prediction,
        initial_scale=lambda config, levels: math.hypot(config["sigma_max"], 1.0),
    )


SCHEDULERS = {
    "LMSDiscreteScheduler": _ratio_row(_RATIOS, _lms),
    "KDPM2DiscreteScheduler": _ratio_row(_KDPM2, _dpm2),
    "KDPM2AncestralDiscreteScheduler": _ratio_row(_KDPM2, _dpm2_ancestral),
    "DPMSolverSDEScheduler": _ratio_row(
        {**_RATIOS, "beta_start": 0.00085, "beta_end": 0.012}, _dpm_sde
    ),
    "PNDMScheduler": Row(
        {**_BETAS, "set_alpha_to_one": False, "skip_prk_steps": False},
        _pndm,
        levels=_pndm_levels,
    ),
    "FlowMatchEulerDiscreteScheduler": _flow_row(_flow_euler),
    "FlowMatchHeunDiscreteScheduler": _flow_row(_flow_heun),
    "EDMEulerScheduler": _edm_row(_EDM, _edm_euler),
    "EDMDPMSolverMultistepScheduler": _edm_row(_EDM_DPM, _dpm_multistep),
    "CosineDPMSolverMultistepScheduler": _edm_row(
        {
            **_EDM_DPM,
            "sigma_min": 0.3,
            "sigma_max": 500.0,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
            "prediction_type": "v_prediction",
            "algorithm_type": "sde-dpmsolver++",
            "clock": lambda sigma: 2.0 / math.pi * _arctan(sigma),
        },
        _dpm_multistep,
    ),
    "DPMSolverMultistepScheduler": _final_row(_DPM, _dpm_multistep),
    "DPMSolverSinglestepScheduler": _final_row(
        {**_DPM, "lower_order_final": False, "rounds_times": True}, _dpm_singlestep
    ),
    "UniPCMultistepScheduler": _final_row(
        {
            **_FINAL,
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": (),
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
            "repeats_last": True,
            "rounds_times": True,
            "flow_sigmas_from_one": True,
        },
        _unipc,
    ),
    "DEISMultistepScheduler": _final_row(
        {
            **_FINAL,
            "algorithm_type": "deis",
            "solver_type": "logrho",
            "final_sigmas_type": "sigma_min",
            "repeats_last": True,
            "rounds_times": True,
        },
        _dpm_multistep,
    ),
    "EulerDiscreteScheduler": _ratio_row(_EULER, _euler),
    "EulerAncestralDiscreteScheduler": _ratio_row(
        {**_BETAS, "timestep_spacing": "linspace"}, _euler_ancestral
    ),
    "HeunDiscreteScheduler": _ratio_row(
        {
            **_RATIOS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "clip_sample_range": 1.0,
        },
        _heun,
    ),
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": Row(
        {**_BETAS, **_CLIP, "set_alpha_to_one": True},
        _ddim_inversion,
        levels=grids.inverse_integer_levels,
    ),
}
