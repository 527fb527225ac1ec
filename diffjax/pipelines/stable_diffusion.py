"""Stable Diffusion 1 and 2 and what descends from them, and SDXL with its refiner.

Extra channels that a network takes beside the latents (a mask, a picture) are the entry
`channels` of its inputs; see `diffjax.pipelines.pictures`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.networks.functional import Params
from diffjax.pipelines.system import (
    Codec,
    Inputs,
    System,
    kl_codec,
    lower_case,
    pixel_codec,
    texts_of,
)
from diffjax.pipelines.texts import (
    clip_states,
    encoder_states,
    joined_inputs,
    penultimate,
    tokenized,
)
from diffjax.pretrained import Components

Size = tuple[int, int]


def stable_diffusion(parts: Components, *, skip: int = 0) -> System:
    """Stable Diffusion 1 and 2: a UNet on latents that attends to the states of CLIP.

    `prepare(prompts, negative=None, *, height, width, emphasis=False, chunks=1,
    embedded_guidance=8.5, **more)`: chunks is how many times CLIP's 77 tokens a prompt may have,
    None for any number; the guidance is that which distilled networks (LCM) are told; more are
    further inputs [B, ...], such as `labels`.
    Source: Latent Diffusion, arXiv:2112.10752, section 3.3.

    Args:
      parts: of the folder.
      skip: how many of the last layers of CLIP are left out.
    """
    encode = clip_states(parts, "text_encoder", "tokenizer", skip=skip)
    told_guidance = parts.models["unet"].config.context.time_cond_features is not None

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        emphasis: bool = False,
        chunks: int | None = 1,
        embedded_guidance: float = 8.5,
        **more: Any,
    ) -> list[Inputs]:
        texts = texts_of(prompts, negative)
        found = tokenized(parts, "tokenizer", texts, chunks=chunks, emphasis=emphasis)
        if told_guidance:
            more["guidance"] = np.full(len(prompts), embedded_guidance, np.float32)
        return [{**each, **more} for each in found]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        told = passed_on(inputs)
        if told_guidance:
            features = parts.models["unet"].config.context.time_cond_features
            told["time_cond"] = guidance_waves(inputs["guidance"], features)
        return {"context": encode(params, inputs)[0], **told}

    return unet_system(parts, kl_codec(parts), prepare=prepare, condition=condition)


def stable_diffusion_xl(parts: Components, *, skip: int = 0) -> System:
    """SDXL, SSD-1B and their kind, and the refiner: two CLIP encoders, and sizes.

        context = [clip 1 | clip 2],    pooled = that of the second

    `prepare(prompts, negative=None, *, height, width, prompts_2=None, negative_2=None,
    original_size=None, crop=(0, 0), target_size=None, negative_sizes=None, aesthetic_score=6.0,
    negative_aesthetic_score=2.5, emphasis=False, chunks=1)`: what the second encoder reads is by
    default what the first does; sizes (height, width) are by default those of the image, and
    `negative_sizes` (original_size, crop, target_size) those of the prompt. A negative prompt of
    None is zeros instead of states where the folder says so.
    Source: arXiv:2307.01952, section 2.

    Args:
      parts: of the folder; a refiner has the second encoder alone.
      skip: how many of the last layers are left out, besides the last.
    """
    states = partial(penultimate, skip=skip)
    ends = [end for end in ("", "_2") if f"text_encoder{end}" in parts.models]
    encoders = [
        clip_states(parts, f"text_encoder{end}", f"tokenizer{end}", states=states) for end in ends
    ]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        hidden, pooled = zip(*(encode(params, inputs) for encode in encoders))
        context, kept = _side_by_side(hidden), inputs["kept"][:, None]
        return {
            "context": context * kept[..., None],
            "pooled": pooled[-1] * kept,
            "time_ids": inputs["time_ids"],
            **passed_on(inputs),
        }

    prepare = partial(_prepare_xl, parts, ends)
    return unet_system(parts, kl_codec(parts), prepare=prepare, condition=condition)


def _prepare_xl(
    parts: Components,
    ends: Sequence[str],
    prompts: Sequence[str],
    negative: Sequence[str | None] | None = None,
    *,
    prompts_2: Sequence[str] | None = None,
    negative_2: Sequence[str | None] | None = None,
    emphasis: bool = False,
    chunks: int | None = 1,
    **sizes: Any,
) -> list[Inputs]:
    """`prepare` of `stable_diffusion_xl`, for encoders whose names have these ends."""
    texts = texts_of(prompts, negative), texts_of(prompts_2 or prompts, negative_2 or negative)
    tokens = [
        tokenized(parts, f"tokenizer{end}", some, chunks=chunks, emphasis=emphasis)
        for end, some in zip(ends, texts[-len(ends) :])
    ]
    zeros = bool(parts.settings.get("force_zeros_for_empty_prompt"))
    kept = [
        [True] * len(prompts),
        [text is not None or not zeros for text in negative or ()],
    ]
    time_ids = _told_sizes(bool(parts.settings.get("requires_aesthetics_score")), **sizes)
    return [
        {
            **joined_inputs(parallel),
            "time_ids": np.tile(time_ids[i], (len(prompts), 1)),
            "kept": np.array(kept[i], np.float32),
        }
        for i, parallel in enumerate(zip(*tokens))
    ]


def _told_sizes(
    scored: bool,
    *,
    height: int,
    width: int,
    original_size: Size | None = None,
    crop: Size = (0, 0),
    target_size: Size | None = None,
    negative_sizes: tuple[Size, Size, Size] | None = None,
    aesthetic_score: float = 6.0,
    negative_aesthetic_score: float = 2.5,
) -> tuple[np.ndarray, np.ndarray]:
    """What SDXL, or its refiner (scored), is told of sizes, with the prompt and with the other."""
    sizes = original_size or (height, width), crop, target_size or (height, width)
    scores = (aesthetic_score, negative_aesthetic_score) if scored else (None, None)
    return _numbers(*sizes, scores[0]), _numbers(*(negative_sizes or sizes), scores[1])


def deep_floyd(parts: Components) -> System:
    """DeepFloyd IF: pixels, the states of T5, a learned variance; alone or as super-resolution.

    `prepare(prompts, negative=None, *, height, width, emphasis=False, max_length=77, **more)`, in
    which prompts become lower case.
    Source: Imagen, arXiv:2205.11487.
    """
    config = parts.models["unet"].config
    # of a learned variance there are twice the channels
    channels = config.out_channels // (2 if parts.schedulers["scheduler"].learned_variance else 1)
    codec = pixel_codec(channels, 2 ** (len(config.block_out_channels) - 1))
    return _reading_states(parts, codec, "text_encoder", masked=True, lowered=True)


def latent_diffusion(parts: Components) -> System:
    """The first latent diffusion of texts, with a text encoder of its own (LDMBert).

    `prepare` as of `deep_floyd`. Source: arXiv:2112.10752, section 4.3.1.
    """
    return _reading_states(parts, kl_codec(parts, "vqvae"), "bert", masked=False)


def _reading_states(
    parts: Components, codec: Codec, encoder: str, *, masked: bool, lowered: bool = False
) -> System:
    """A UNet that attends to the states of a text encoder whose tokens all see each other."""
    encode = encoder_states(parts, encoder, "tokenizer", masked=masked)

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        emphasis: bool = False,
        max_length: int = 77,
        **more: Any,
    ) -> list[Inputs]:
        texts = texts_of(prompts, negative)
        texts = lower_case(texts) if lowered else texts
        found = tokenized(parts, "tokenizer", texts, length=max_length, emphasis=emphasis)
        return [{**each, **more} for each in found]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        return {"context": encode(params, inputs)[0], **passed_on(inputs)}

    return unet_system(parts, codec, prepare=prepare, condition=condition)


def unet_system(
    parts: Components,
    codec: Codec,
    *,
    prepare: Callable[..., list[Inputs]],
    condition: Callable[[Params, Inputs], dict[str, Any]],
) -> System:
    """A system around a conditional UNet, which may take channels beside x."""
    model, scheduler = parts.models["unet"], parts.schedulers["scheduler"]
    side = model.config.sample_size
    rows, columns = (side, side) if isinstance(side, int) else side or (64, 64)
    factor = 1024 // codec.latent_shape(1024, 1024)[0]

    def apply(
        params: Params, x: Array, t: Array, *, channels: Array | None = None, **told: Any
    ) -> Array:
        x = x if channels is None else jnp.concatenate([x, channels.astype(x.dtype)], axis=-1)
        return model.network.apply(params["unet"], x, t, **told)

    return System(
        parameterization=scheduler.parameterization,
        learned_variance=scheduler.learned_variance,
        prepare=prepare,
        condition=condition,
        apply=apply,
        **codec._asdict(),
        size=(rows * factor, columns * factor),
    )


def passed_on(inputs: Inputs) -> dict[str, Any]:
    """Inputs that the network takes as they are."""
    return {name: inputs[name] for name in ("channels", "labels") if name in inputs}


def guidance_waves(guidance: Array, features: int) -> Array:
    """The guidance scale as waves, [B, features], for networks that it was distilled into.

    [sin(a f), cos(a f)] with a = 1000 (guidance - 1) and frequencies f from 1 to 1 / 10000.
    Source: Guided distillation, arXiv:2210.03142, in the form of Latent Consistency Models.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
    angles = 1000.0 * (guidance[:, None] - 1.0) * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, features % 2)))


def _numbers(original: Size, crop: Size, target: Size, score: float | None) -> np.ndarray:
    """What SDXL is told of sizes, and its refiner of beauty in the place of the last."""
    end = target if score is None else (score,)
    return np.array([*original, *crop, *end], np.float32)


def _side_by_side(states: Sequence[Array]) -> Array:
    """States of several encoders, filled up with zeros to the longest of them."""
    longest = max(state.shape[1] for state in states)
    filled = [jnp.pad(s, ((0, 0), (0, longest - s.shape[1]), (0, 0))) for s in states]
    return jnp.concatenate(filled, axis=-1)
