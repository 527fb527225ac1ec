"""unCLIP (DALL-E 2) for text_to_image.py: prior, decoder and enlarger, each with steps of its own.

Folders that make variations of pictures have no prior; they take an --image in its place.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import pipelines
from diffjax.pipelines import Plan, System, Unclip
from diffjax.pipelines.image_prompt import clip_pixels, image_embedding
from diffjax.pretrained import Components
from diffjax.training import make_mesh, replicated
from picture_models import read_rgb
from pretrained_guidance import guided_system, make_guidance
from saved_models import choose_scheduler, make_conditions, make_steps
from stages import OneProgram, Work, to_pictures
from text_to_image_settings import Args

# settings of other models
OF_OTHERS = ("mask", "strength", "chaos", "height", "width", "label", "control_image")


def unclip_work(args: Args, parts: Components, *, ratio: float | None, count: int) -> Work:
    """What is run with a folder of unCLIP.

    Args:
      parts: of the model.
      ratio: that a prompt's line asks for; it is refused.
      count: images of a batch.

    Raises:
      ValueError: a setting does not go with unCLIP.
    """
    _require_fitting(args, parts, ratio)
    decoder = guided_system(args, parts, lambda parts: pipelines.unclip(parts).decoder)
    stages = pipelines.unclip(parts)._replace(decoder=decoder)
    plans = make_plans(args, parts, decoder)
    conditions: dict[str, Any] = {"decoder": make_conditions(args, decoder, decoder.size, count)}
    if stages.prior is None:
        side = parts.models["image_encoder"].config.image_size
        picture = np.asarray(read_rgb(args.image or Path()), np.float32)[None] / 127.5 - 1.0
        conditions["pixels"] = np.repeat(clip_pixels(jnp.asarray(picture), side), count, axis=0)
    else:
        null = None if args.prior_scale == 1.0 else [None] * count
        told = {"height": 1, "width": 1, "emphasis": args.emphasis}
        conditions["prior"] = stages.prior.prepare([args.prompt] * count, null, **told)
    guidance = make_guidance(args, decoder, len(conditions["decoder"]))

    def whole(params, keys, conditions, mix, levels):
        steps = {name: plan._replace(levels=levels[name]) for name, plan in plans.items()}
        embedding = embed(args, parts, stages, params, keys, conditions, steps)
        given = params, keys, conditions["decoder"], embedding
        of_images = steps["decoder"], steps["enlarger"]
        images = pipelines.sample_images(stages, *given, of_images, guidance=guidance)
        return to_pictures(images)

    levels = {name: plan.levels for name, plan in plans.items()}
    levels = jax.device_put(levels, replicated(make_mesh()))
    program = OneProgram(whole, levels, sum(len(each.t) - 1 for each in levels.values()))
    return Work(program, parts.params, conditions, stages.enlarger.size)


def make_plans(args: Args, parts: Components, decoder: System) -> dict[str, Plan]:
    """The steps of each system, of which the decoder's are those of all other models."""
    scheduler = choose_scheduler(args, parts.schedulers["decoder_scheduler"])
    anew = dataclasses.replace(args, image=None)
    plans = {"decoder": make_steps(anew, scheduler, decoder, decoder.size)}
    named = {"prior": ("prior", args.prior_steps), "enlarger": ("super_res", args.enlarger_steps)}
    for name, (stored, count) in named.items():
        scheduler = parts.schedulers.get(f"{stored}_scheduler")
        if scheduler is not None:
            plans[name] = pipelines.make_plan(scheduler, count)
    return plans


def embed(
    args: Args,
    parts: Components,
    stages: Unclip,
    params: Any,
    keys: Any,
    conditions: Any,
    steps: dict[str, Plan],
) -> Any:
    """The embeddings that are drawn: the prior's for a prompt, or that of a picture."""
    if stages.prior is None:
        encoder = parts.models["image_encoder"]
        return image_embedding(encoder, params["image_encoder"], conditions["pixels"])
    several = len(conditions["prior"]) > 1
    guidance = partial(dj.classifier_free, guidance_scale=args.prior_scale) if several else None
    given = params, keys, conditions["prior"], steps["prior"]
    return pipelines.sample_embedding(stages.prior, *given, guidance=guidance)


def _require_fitting(args: Args, parts: Components, ratio: float | None) -> None:
    defaults = {each.name: each.default for each in dataclasses.fields(Args)}
    given = [name for name in OF_OTHERS if getattr(args, name) != defaults[name]]
    given += [] if ratio is None else ["ar"]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} does not go with {parts.name}")
    varies = "prior" not in parts.models
    if varies and args.image is None:
        raise ValueError(f"{args.model} makes variations of pictures; it needs an --image")
    if not varies and args.image is not None:
        raise ValueError(f"{args.model} makes pictures of prompts alone; --image needs variations")
