"""How each of diffusers' scheduler classes is read: one row for each.

A row holds the class's defaults and functions of its settings. A setting that no user can change,
but in which classes of one family differ, stands among the defaults too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.core import parameterizations
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import Denoiser, Parameterization
from diffjax.core.sampling import Solver
from diffjax.core.schedules import Schedule
from diffjax.core.sigma_schedules import flow
from diffjax.pretrained import scheduler_grids as grids
from diffjax.pretrained import scheduler_predictions as predictions
from diffjax.pretrained import scheduler_solvers as solvers
from diffjax.pretrained import scheduler_tables as tables
from diffjax.transforms import clip_denoised

Config = Mapping[str, Any]


class Row(NamedTuple):
    """How one scheduler class is read: its defaults, and functions of the settings.

    `orders_by_step` says that the order of a step depends on its place in the grid.
    """

    defaults: Config
    solver: Callable[..., Solver]
    levels: Callable[..., NoiseLevel] = grids.integer_levels
    schedule: Callable[[Config], Schedule] = tables.table
    parameterization: Callable[[Config], Parameterization] = predictions.prediction_of
    limit: Callable[[Config], Callable[[Denoiser], Denoiser]] = solvers.limit_of
    initial_scale: Callable[[Config, NoiseLevel], Any] = lambda config, levels: 1.0
    orders_by_step: bool = False


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

_DDPM = Row({**_BETAS, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small"}, solvers.read_ddpm)
_DDIM = Row({**_BETAS, **_CLIP, **_THRESHOLD, "set_alpha_to_one": True}, solvers.read_ddim)

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
        initial_scale=solvers.ratio_scale,
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
    # for the shift that follows the size of an image
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
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
    return Row(
        defaults,
        solver,
        levels=grids.final_order_levels,
        schedule=tables.floored_table,
        orders_by_step=True,
    )


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
        orders_by_step="solver_order" in defaults,
        levels=grids.edm_levels,
        schedule=solvers.edm_schedule,
        parameterization=predictions.edm_prediction,
        initial_scale=lambda config, levels: math.hypot(config["sigma_max"], 1.0),
    )


_DISTILLED = {
    **_BETAS,
    **_CLIP,
    **_THRESHOLD,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "last_step": -1,
}

SCHEDULERS = {
    "LCMScheduler": Row(
        _DISTILLED, solvers.read_lcm, levels=grids.distilled_levels, limit=solvers.boundary
    ),
    # ends at the first step of the table, not at clean data
    "TCDScheduler": Row(
        {**_DISTILLED, "last_step": 0},
        solvers.read_tcd,
        levels=grids.distilled_levels,
        limit=solvers.no_limit,
    ),
    "CMStochasticIterativeScheduler": Row(
        {
            "num_train_timesteps": 40,
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "s_noise": 1.0,
            "rho": 7.0,
            "clip_denoised": True,
            "clock": lambda sigma: 250.0 * _log(sigma),
        },
        solvers.read_consistency,
        levels=grids.consistency_levels,
        schedule=solvers.edm_schedule,
        parameterization=predictions.consistency_prediction,
        limit=lambda config: clip_denoised if config["clip_denoised"] else solvers.no_limit(config),
        initial_scale=lambda config, levels: config["sigma_max"],
    ),
    "UnCLIPScheduler": Row(
        {
            **_BETAS,
            **_CLIP,
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "fixed_small_log",
        },
        solvers.read_ddpm,
        levels=grids.even_levels,
    ),
    "IPNDMScheduler": Row(
        {"num_train_timesteps": 1000, "trained_betas": None},
        solvers.read_ipndm,
        levels=grids.sine_levels,
        schedule=solvers.read_sine_schedule,
        parameterization=lambda config: parameterizations.v,
    ),
    "LMSDiscreteScheduler": _ratio_row(_RATIOS, solvers.read_lms),
    "KDPM2DiscreteScheduler": _ratio_row(_KDPM2, solvers.read_dpm2),
    "KDPM2AncestralDiscreteScheduler": _ratio_row(_KDPM2, solvers.read_dpm2_ancestral),
    "DPMSolverSDEScheduler": _ratio_row(
        {**_RATIOS, "beta_start": 0.00085, "beta_end": 0.012}, solvers.read_dpm_sde
    ),
    "PNDMScheduler": Row(
        {**_BETAS, "set_alpha_to_one": False, "skip_prk_steps": False},
        solvers.read_pndm,
        levels=solvers.pndm_levels,
    ),
    "FlowMatchEulerDiscreteScheduler": _flow_row(solvers.read_flow_euler),
    "FlowMatchHeunDiscreteScheduler": _flow_row(solvers.read_flow_heun),
    "EDMEulerScheduler": _edm_row(_EDM, solvers.read_edm_euler),
    "EDMDPMSolverMultistepScheduler": _edm_row(_EDM_DPM, solvers.read_dpm_multistep),
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
        solvers.read_dpm_multistep,
    ),
    "DPMSolverMultistepScheduler": _final_row(_DPM, solvers.read_dpm_multistep),
    "DPMSolverMultistepInverseScheduler": _final_row(
        {**_DPM, "final_sigmas_type": "sigma_max"}, solvers.read_dpm_multistep
    )._replace(levels=grids.inverse_final_order_levels),
    "DPMSolverSinglestepScheduler": _final_row(
        {**_DPM, "lower_order_final": False, "rounds_times": True}, solvers.read_dpm_singlestep
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
        solvers.read_unipc,
    ),
    "SASolverScheduler": _final_row(
        {
            **_FINAL,
            "algorithm_type": "data_prediction",
            "predictor_order": 2,
            "corrector_order": 2,
            "tau_func": None,
            "final_sigmas_type": "sigma_min",
            "repeats_last": True,
            "rounds_times": True,
        },
        solvers.read_sa,
    ),
    "DEISMultistepScheduler": _final_row(
        {
            **_FINAL,
            "algorithm_type": "deis",
            "solver_type": "logrho",
            "is_deis": True,
            "final_sigmas_type": "sigma_min",
            "repeats_last": True,
            "rounds_times": True,
        },
        solvers.read_dpm_multistep,
    ),
    "EulerDiscreteScheduler": _ratio_row(_EULER, solvers.read_euler),
    "EulerAncestralDiscreteScheduler": _ratio_row(
        {**_BETAS, "timestep_spacing": "linspace"}, solvers.read_euler_ancestral
    ),
    "HeunDiscreteScheduler": _ratio_row(
        {
            **_RATIOS,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "clip_sample_range": 1.0,
        },
        solvers.read_heun,
    ),
    "DDPMWuerstchenScheduler": Row(
        {"scaler": 1.0, "s": 0.008},
        solvers.read_wuerstchen,
        levels=grids.even_time_levels,
        schedule=solvers.clipped_cosine,
        parameterization=lambda config: parameterizations.eps,
    ),
    "ScoreSdeVeScheduler": Row(
        {
            "num_train_timesteps": 2000,
            "snr": 0.15,
            "sigma_min": 0.01,
            "sigma_max": 1348.0,
            "sampling_eps": 1e-5,
            "correct_steps": 1,
        },
        solvers.read_score_sde_ve,
        levels=grids.exploding_levels,
        schedule=solvers.exploding_schedule,
        parameterization=lambda config: parameterizations.score,
        initial_scale=lambda config, levels: config["sigma_max"],
    ),
    "ScoreSdeVpScheduler": Row(
        {"num_train_timesteps": 2000, "beta_min": 0.1, "beta_max": 20.0, "sampling_eps": 1e-3},
        solvers.read_score_sde_vp,
        levels=grids.rate_levels,
        schedule=solvers.rate_schedule,
        parameterization=lambda config: parameterizations.eps,
    ),
    "KarrasVeScheduler": Row(
        {
            "sigma_min": 0.02,
            "sigma_max": 100.0,
            "s_noise": 1.007,
            "s_churn": 80.0,
            "s_min": 0.05,
            "s_max": 50.0,
        },
        solvers.read_karras_ve,
        levels=grids.geometric_levels,
        schedule=solvers.exploding_schedule,
        parameterization=predictions.karras_ve_prediction,
        initial_scale=lambda config, levels: config["sigma_max"],
    ),
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": Row(
        {**_BETAS, **_CLIP, "set_alpha_to_one": True},
        solvers.read_ddim_inversion,
        levels=grids.inverse_integer_levels,
    ),
}
