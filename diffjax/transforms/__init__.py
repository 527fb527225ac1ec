"""Functions from a denoiser to a denoiser, and from a solver to a solver."""

from diffjax.transforms.guidance import classifier_free
from diffjax.transforms.thresholding import clip_denoised, dynamic_threshold

__all__ = ["classifier_free", "clip_denoised", "dynamic_threshold"]
