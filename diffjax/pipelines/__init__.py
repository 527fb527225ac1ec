"""From a folder of a whole system to images: short pure functions of its parts."""

from diffjax.pipelines.pictures import (
    control_times,
    steered,
    with_control,
    with_hole,
    with_original,
    with_small,
)
from diffjax.pipelines.plan import Plan, make_plan
from diffjax.pipelines.refiner import handover, refined, with_refiner
from diffjax.pipelines.registry import SYSTEMS, make_system
from diffjax.pipelines.system import Inputs, System, with_tiles
from diffjax.pipelines.tasks import (
    conditioning,
    denoiser,
    encode,
    img2img,
    inpaint,
    start_noise,
    txt2img,
    walk,
)
from diffjax.pipelines.unclip import (
    UNCLIP,
    Unclip,
    enlarged,
    sample_embedding,
    sample_images,
    unclip,
    with_embedding,
)
from diffjax.pipelines.weaker import (
    attentive,
    beside,
    guided_within,
    perturbed_attention,
    showing_attention,
    without_attention_maps,
)

__all__ = [
    "SYSTEMS",
    "UNCLIP",
    "Inputs",
    "Plan",
    "System",
    "Unclip",
    "attentive",
    "beside",
    "conditioning",
    "control_times",
    "denoiser",
    "encode",
    "enlarged",
    "guided_within",
    "handover",
    "img2img",
    "inpaint",
    "make_plan",
    "make_system",
    "perturbed_attention",
    "refined",
    "sample_embedding",
    "sample_images",
    "showing_attention",
    "start_noise",
    "steered",
    "txt2img",
    "unclip",
    "walk",
    "with_control",
    "with_embedding",
    "with_hole",
    "with_original",
    "with_refiner",
    "with_small",
    "with_tiles",
    "without_attention_maps",
]
