"""Which builder makes a system of the parts of a folder."""

import difflib
from collections.abc import Callable
from typing import Any

from diffjax.pipelines import (
    diffusion_transformers,
    sounds,
    stable_diffusion,
    unconditional,
    variations,
    videos,
)
from diffjax.pipelines.system import System
from diffjax.pipelines.unclip import UNCLIP
from diffjax.pretrained import Components, UnsupportedError

# class that saved a folder -> builder
SYSTEMS: dict[str, Callable[..., System]] = {
    "AnimateDiffPipeline": videos.text_to_video,
    "AudioLDMPipeline": sounds.audioldm,
    "ConsistencyModelPipeline": unconditional.pixels,
    "DDIMPipeline": unconditional.pixels,
    "DDPMPipeline": unconditional.pixels,
    "DanceDiffusionPipeline": sounds.dance_diffusion,
    "DiTPipeline": diffusion_transformers.dit,
    "FluxImg2ImgPipeline": diffusion_transformers.flux,
    "FluxInpaintPipeline": diffusion_transformers.flux,
    "FluxPipeline": diffusion_transformers.flux,
    "IFPipeline": stable_diffusion.deep_floyd,
    "IFSuperResolutionPipeline": stable_diffusion.deep_floyd,
    "LDMPipeline": unconditional.latents,
    "LDMTextToImagePipeline": stable_diffusion.latent_diffusion,
    "LatentConsistencyModelPipeline": stable_diffusion.stable_diffusion,
    "PixArtAlphaPipeline": diffusion_transformers.pixart,
    "PixArtSigmaPipeline": diffusion_transformers.pixart_sigma,
    "StableDiffusion3Img2ImgPipeline": diffusion_transformers.stable_diffusion_3,
    "StableDiffusion3InpaintPipeline": diffusion_transformers.stable_diffusion_3,
    "StableDiffusion3PAGPipeline": diffusion_transformers.stable_diffusion_3,
    "StableDiffusion3Pipeline": diffusion_transformers.stable_diffusion_3,
    "StableDiffusionAdapterPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionControlNetImg2ImgPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionControlNetInpaintPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionControlNetPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionImageVariationPipeline": variations.image_variation,
    "StableDiffusionImg2ImgPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionInpaintPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionInstructPix2PixPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionPAGPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionPipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionUpscalePipeline": stable_diffusion.stable_diffusion,
    "StableDiffusionXLAdapterPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLControlNetImg2ImgPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLControlNetInpaintPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLControlNetPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLImg2ImgPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLInpaintPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLPAGPipeline": stable_diffusion.stable_diffusion_xl,
    "StableDiffusionXLPipeline": stable_diffusion.stable_diffusion_xl,
    "TextToVideoSDPipeline": videos.text_to_video,
}


def make_system(parts: Components, **options: Any) -> System:
    """The system that the parts of a folder form.

    Args:
      parts: from `load_components`.
      **options: of the builder, such as `skip` for the layers of CLIP that are left out.

    Raises:
      UnsupportedError: there is none for the class that saved the folder, or more than one.
    """
    if parts.name in UNCLIP:
        raise UnsupportedError(f"{parts.name} is no single system; unclip(parts) makes its three")
    if parts.name not in SYSTEMS:
        nearest = difflib.get_close_matches(parts.name, SYSTEMS, 1, cutoff=0.0)[0]
        raise UnsupportedError(
            f"there is no system for the class {parts.name!r}; the nearest name is {nearest!r}, "
            f"and all are: {', '.join(sorted(SYSTEMS))}"
        )
    return SYSTEMS[parts.name](parts, **options)
