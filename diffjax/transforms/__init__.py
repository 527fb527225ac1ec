"""Functions from a denoiser to a denoiser, and from a solver to a solver."""

from diffjax.transforms import operators
from diffjax.transforms.adversarial import pgd_attack
from diffjax.transforms.blur import blur_guidance
from diffjax.transforms.classifier import (
    class_log_prob,
    classifier_guidance,
    classifier_loss,
)
from diffjax.transforms.ddrm import ddnm_plus, ddrm
from diffjax.transforms.dps import dps
from diffjax.transforms.editing import (
    denoise_noisy,
    edit_by_inversion,
    estimate_noise_std,
    image_to_image,
    noisy_levels,
    tail,
)
from diffjax.transforms.estimates import guide, in_one_call, one_by_one
from diffjax.transforms.guidance import (
    autoguidance,
    classifier_free,
    composed,
    guidance_interval,
    ramp,
)
from diffjax.transforms.guidance_corrections import apg, cfg_zero_star, rescaled, zero_init
from diffjax.transforms.guided_solvers import apg_momentum, cfg_plus_plus
from diffjax.transforms.inpainting import repaint, replace_known
from diffjax.transforms.linear import check_operator, measure
from diffjax.transforms.particles import twisted
from diffjax.transforms.posterior_mean import ddnm, diffpir, mmps, pigdm, tmpd
from diffjax.transforms.resampling import renoising, resampling, revisited
from diffjax.transforms.thresholding import clip_denoised, dynamic_threshold
from diffjax.transforms.tiles import num_tiles, tiled
from diffjax.transforms.uncertainty import UncertaintyMap, uncertainty_map
from diffjax.transforms.universal import (
    backward_guidance,
    forward_guidance,
    match_statistics,
    patch_statistics,
)

__all__ = [
    "UncertaintyMap",
    "apg",
    "apg_momentum",
    "autoguidance",
    "backward_guidance",
    "blur_guidance",
    "cfg_plus_plus",
    "cfg_zero_star",
    "check_operator",
    "class_log_prob",
    "classifier_free",
    "classifier_guidance",
    "classifier_loss",
    "clip_denoised",
    "composed",
    "ddnm",
    "ddnm_plus",
    "ddrm",
    "denoise_noisy",
    "diffpir",
    "dps",
    "dynamic_threshold",
    "edit_by_inversion",
    "estimate_noise_std",
    "forward_guidance",
    "guidance_interval",
    "guide",
    "image_to_image",
    "in_one_call",
    "match_statistics",
    "measure",
    "mmps",
    "noisy_levels",
    "num_tiles",
    "one_by_one",
    "operators",
    "patch_statistics",
    "pgd_attack",
    "pigdm",
    "ramp",
    "renoising",
    "repaint",
    "replace_known",
    "resampling",
    "rescaled",
    "revisited",
    "tail",
    "tiled",
    "tmpd",
    "twisted",
    "uncertainty_map",
    "zero_init",
]
