"""Diffusion models in JAX as pure functions.

A schedule says how much signal and noise there is at time t. A parameterization says what a
network's output means. A denoiser is a function from a noisy array and its noise level to an
estimate of the clean one. A solver moves an array from one noise level to the next by asking a
denoiser. `sample` is the one loop.

>>> import jax, jax.numpy as jnp
>>> import diffjax as dj
>>> schedule = dj.cosine()
>>> denoise = dj.exact.denoiser(dj.exact.gaussian(jnp.zeros(2), jnp.eye(2)))
>>> x = dj.initial_noise(jax.random.key(0), (4, 2), schedule(1.0))
>>> dj.sample(jax.random.key(1), x, denoise, dj.ddim(), schedule(dj.trailing(10))).shape
(4, 2)

`import diffjax` loads jax and the mathematics alone. Training, networks, data and pretrained
weights are loaded when one of their names is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffjax.core import exact, grids, levels, losses, parameterizations, posterior, schedules
from diffjax.core.continuous_bound import bound_loss, continuous_bound
from diffjax.core.grids import from_times, full, leading, linspace, quadratic, trailing, uniform
from diffjax.core.integrators import dormand_prince, runge_kutta
from diffjax.core.interpolation import slerp
from diffjax.core.keys import BatchKeys, batch_keys, sample_keys
from diffjax.core.learned_schedule import learned_bound_loss, learned_logsnr
from diffjax.core.levels import NoiseLevel, add_noise, logsnr, q_posterior, q_step
from diffjax.core.likelihood import (
    bits_per_dim,
    dequantize,
    exact_trace,
    hutchinson_trace,
    log_likelihood,
    logit_normal_places,
)
from diffjax.core.losses import diffusion_loss, hybrid_loss
from diffjax.core.parameterizations import (
    LearnedVariance,
    Parameterization,
    check_schedule,
    eps,
    estimate_eps,
    estimate_x0,
    make_denoiser,
    make_learned_variance_denoiser,
    score,
    target,
    v,
    velocity,
    x0,
)
from diffjax.core.probability_flow import follow_flow
from diffjax.core.sampling import (
    Solver,
    Trajectory,
    initial_noise,
    pad_levels,
    progress,
    sample,
    trajectory,
)
from diffjax.core.schedules import (
    cosine,
    cosine_betas,
    from_alphas_cumprod,
    from_betas,
    linear,
    linear_betas,
    scaled_linear,
    scaled_linear_betas,
    sigmoid,
    sigmoid_betas,
    zero_terminal_snr,
)
from diffjax.core.variational import variational_bound
from diffjax.solvers import (
    ancestral,
    ancestral_update,
    ddim,
    ddim_inversion,
    ddim_update,
    dpm2,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    unipc,
)
from diffjax.transforms import (
    apg,
    apg_momentum,
    autoguidance,
    backward_guidance,
    blur_guidance,
    cfg_plus_plus,
    cfg_zero_star,
    check_operator,
    class_log_prob,
    classifier_free,
    classifier_guidance,
    classifier_loss,
    clip_denoised,
    composed,
    ddnm,
    ddnm_plus,
    ddrm,
    denoise_noisy,
    diffpir,
    dps,
    dynamic_threshold,
    edit_by_inversion,
    estimate_noise_std,
    forward_guidance,
    guidance_interval,
    guide,
    image_to_image,
    in_one_call,
    match_statistics,
    measure,
    mmps,
    noisy_levels,
    num_tiles,
    one_by_one,
    operators,
    patch_statistics,
    pgd_attack,
    pigdm,
    ramp,
    renoising,
    repaint,
    replace_known,
    resampling,
    rescaled,
    tiled,
    tmpd,
    twisted,
    uncertainty_map,
    zero_init,
)

if TYPE_CHECKING:
    from diffjax.networks import UNetConfig, functional, unet
    from diffjax.training import TrainState, init_train_state, make_train_step

_LAZY = {
    "UNetConfig": "diffjax.networks",
    "functional": "diffjax.networks",
    "unet": "diffjax.networks",
    "TrainState": "diffjax.training",
    "init_train_state": "diffjax.training",
    "make_train_step": "diffjax.training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'diffjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "BatchKeys",
    "LearnedVariance",
    "NoiseLevel",
    "Parameterization",
    "Solver",
    "TrainState",
    "Trajectory",
    "UNetConfig",
    "add_noise",
    "ancestral",
    "ancestral_update",
    "apg",
    "apg_momentum",
    "autoguidance",
    "backward_guidance",
    "batch_keys",
    "bits_per_dim",
    "blur_guidance",
    "bound_loss",
    "cfg_plus_plus",
    "cfg_zero_star",
    "check_operator",
    "check_schedule",
    "class_log_prob",
    "classifier_free",
    "classifier_guidance",
    "classifier_loss",
    "clip_denoised",
    "composed",
    "continuous_bound",
    "cosine",
    "cosine_betas",
    "ddim",
    "ddim_inversion",
    "ddim_update",
    "ddnm",
    "ddnm_plus",
    "ddrm",
    "denoise_noisy",
    "dequantize",
    "diffpir",
    "diffusion_loss",
    "dormand_prince",
    "dpm2",
    "dpm_multistep",
    "dpm_sde",
    "dpm_singlestep",
    "dps",
    "dynamic_threshold",
    "edit_by_inversion",
    "eps",
    "estimate_eps",
    "estimate_noise_std",
    "estimate_x0",
    "euler",
    "euler_ancestral",
    "exact",
    "exact_trace",
    "follow_flow",
    "forward_guidance",
    "from_alphas_cumprod",
    "from_betas",
    "from_times",
    "full",
    "functional",
    "grids",
    "guidance_interval",
    "guide",
    "heun",
    "hutchinson_trace",
    "hybrid_loss",
    "image_to_image",
    "in_one_call",
    "init_train_state",
    "initial_noise",
    "leading",
    "learned_bound_loss",
    "learned_logsnr",
    "levels",
    "linear",
    "linear_betas",
    "linspace",
    "lms",
    "log_likelihood",
    "logit_normal_places",
    "logsnr",
    "losses",
    "make_denoiser",
    "make_learned_variance_denoiser",
    "make_train_step",
    "match_statistics",
    "measure",
    "mmps",
    "noisy_levels",
    "num_tiles",
    "one_by_one",
    "operators",
    "pad_levels",
    "parameterizations",
    "patch_statistics",
    "pgd_attack",
    "pigdm",
    "plms",
    "posterior",
    "progress",
    "q_posterior",
    "q_step",
    "quadratic",
    "ramp",
    "renoising",
    "repaint",
    "replace_known",
    "resampling",
    "rescaled",
    "runge_kutta",
    "sample",
    "sample_keys",
    "scaled_linear",
    "scaled_linear_betas",
    "schedules",
    "score",
    "sigmoid",
    "sigmoid_betas",
    "slerp",
    "target",
    "tiled",
    "tmpd",
    "trailing",
    "trajectory",
    "twisted",
    "uncertainty_map",
    "unet",
    "uniform",
    "unipc",
    "v",
    "variational_bound",
    "velocity",
    "x0",
    "zero_init",
    "zero_terminal_snr",
]
