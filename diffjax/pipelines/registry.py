"""Which builder makes a system of the parts of a folder."""

import difflib
from collections.abc import Callable

from diffjax.pipelines import diffusion_transformers, unconditional
from diffjax.pipelines.system import System
from diffjax.pretrained import Components, UnsupportedError

# class that saved a folder -> builder
SYSTEMS: dict[str, Callable[[Components], System]] = {
    "ConsistencyModelPipeline": unconditional.pixels,
    "DDIMPipeline": unconditional.pixels,
    "DDPMPipeline": unconditional.pixels,
    "DiTPipeline": diffusion_transformers.dit,
    "FluxPipeline": diffusion_transformers.flux,
    "LDMPipeline": unconditional.latents,
    "PixArtAlphaPipeline": diffusion_transformers.pixart,
    "StableDiffusion3Pipeline": diffusion_transformers.stable_diffusion_3,
}


def make_system(parts: Components) -> System:
    """The system that the parts of a folder form.

    Raises:
      UnsupportedError: there is none for the class that saved the folder.
    """
    if parts.name not in SYSTEMS:
        nearest = difflib.get_close_matches(parts.name, SYSTEMS, 1, cutoff=0.0)[0]
        raise UnsupportedError(
            f"there is no system for the class {parts.name!r}; the nearest name is {nearest!r}, "
            f"and all are: {', '.join(sorted(SYSTEMS))}"
        )
    return SYSTEMS[parts.name](parts)
