"""Systems around diffusion transformers: DiT, PixArt, Stable Diffusion 3, Flux."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.networks.flux import grid_ids, pack, unpack
from diffjax.networks.functional import Params
from diffjax.pipelines.system import (
    Inputs,
    System,
    clock_options,
    first_half,
    kl_codec,
    lower_case,
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


def dit(parts: Components) -> System:
    """DiT: classes of ImageNet instead of prompts.

    `prepare(labels, negative=None)`: integers, one for each image; None among the negative ones is
    the null class.
    Source: arXiv:2212.09748.
    """
    config = parts.models["transformer"].config

    def prepare(
        labels: Sequence[int], negative: Sequence[int | None] | None = None, **sizes: int
    ) -> list[Inputs]:
        null = config.num_classes
        lists = [labels] if negative is None else [labels, negative]
        found = [[null if each is None else int(each) for each in some] for some in lists]
        for label in (label for some in found for label in some):
            if not 0 <= label <= null:
                raise ValueError(f"{label} is no class of 0 .. {null - 1}")
        return [{"labels": np.array(each, np.int32)} for each in found]

    condition = lambda params, inputs: inputs
    return _system(parts, config.sample_size, prepare=prepare, condition=condition)


def pixart(parts: Components, *, max_length: int = 120) -> System:
    """PixArt-alpha: the states of T5, seen by cross-attention.

    `prepare(prompts, negative=None, *, height, width, emphasis=False, max_length=max_length)`, in
    which prompts become lower case.
    Source: arXiv:2310.00426.

    Args:
      max_length: T5's tokens of a prompt.
    """
    config = parts.models["transformer"].config
    encode = encoder_states(parts, "text_encoder", "tokenizer", masked=True)

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        emphasis: bool = False,
        max_length: int = max_length,
    ) -> list[Inputs]:
        texts, count = lower_case(texts_of(prompts, negative)), len(prompts)
        inputs = tokenized(parts, "tokenizer", texts, length=max_length, emphasis=emphasis)
        sizes = {
            "resolution": np.full((count, 2), (height, width), np.float32),
            "aspect_ratio": np.full((count, 1), height / width, np.float32),
        }
        return [{**each, **(sizes if config.told_size else {})} for each in inputs]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        context, mask = encode(params, inputs)
        told = {name: inputs[name] for name in ("resolution", "aspect_ratio") if name in inputs}
        return {"context": context, "context_mask": mask, **told}

    return _system(parts, config.sample_size, prepare=prepare, condition=condition)


def pixart_sigma(parts: Components) -> System:
    """PixArt-Sigma: PixArt with longer prompts. Source: arXiv:2403.04692."""
    return pixart(parts, max_length=300)


def stable_diffusion_3(parts: Components) -> System:
    """Stable Diffusion 3: two CLIP encoders side by side, and T5.

        context = [clip 1 | clip 2 | 0] above [T5],    pooled = [clip 1 | clip 2]

    Where the folder has no T5, zeros are in its place: in training it is dropped so.

    `prepare(prompts, negative=None, *, height, width, emphasis=False, max_length=256)`, with the
    number of T5's tokens.
    Source: arXiv:2403.03206, section 4.
    """
    config, scheduler = parts.models["transformer"].config, parts.schedulers["scheduler"]
    first = clip_states(parts, "text_encoder", "tokenizer", states=penultimate)
    second = clip_states(parts, "text_encoder_2", "tokenizer_2", states=penultimate)
    has_t5 = "text_encoder_3" in parts.models
    third = encoder_states(parts, "text_encoder_3", "tokenizer_3", masked=False) if has_t5 else None

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        emphasis: bool = False,
        max_length: int = 256,
    ) -> list[Inputs]:
        texts = texts_of(prompts, negative)
        lengths = {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": max_length}
        there = [(name, length) for name, length in lengths.items() if name in parts.tokenizers]
        found = [
            tokenized(parts, name, texts, emphasis=emphasis, length=length)
            for name, length in there
        ]
        if third is None:
            absent = np.zeros((len(prompts), max_length), np.float32)
            found.append([{"no_t5": absent}] * len(texts))
        return [joined_inputs(parallel) for parallel in zip(*found)]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        states, pooled = zip(first(params, inputs), second(params, inputs))
        context = jnp.concatenate(states, axis=-1)
        missing = config.context_dim - context.shape[-1]
        context = jnp.pad(context, ((0, 0), (0, 0), (0, missing)))
        if third is None:
            last = jnp.zeros((*inputs["no_t5"].shape, config.context_dim), context.dtype)
        else:
            last = third(params, inputs)[0]
        context = jnp.concatenate([context, last], axis=1)
        return {"context": context, "pooled": jnp.concatenate(pooled, axis=-1)}

    system = _system(parts, config.sample_size, prepare=prepare, condition=condition)
    return system._replace(grid=clock_options(scheduler.config, system.latent_shape))


def flux(parts: Components) -> System:
    """Flux: T5's states, CLIP's pooled state, and for distilled models the guidance scale.

    `prepare(prompts, negative=None, *, height, width, embedded_guidance=3.5, emphasis=False,
    max_length=512)`, with the number of T5's tokens. The scale that the network is told needs no
    negative prompt; guidance by one works as everywhere.
    """
    distilled = parts.models["transformer"].config.guidance
    clip = clip_states(parts, "text_encoder", "tokenizer")
    t5 = encoder_states(parts, "text_encoder_2", "tokenizer_2", masked=False)

    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        embedded_guidance: float = 3.5,
        emphasis: bool = False,
        max_length: int = 512,
    ) -> list[Inputs]:
        texts = texts_of(prompts, negative)
        short = tokenized(parts, "tokenizer", texts, length=77)
        long = tokenized(parts, "tokenizer_2", texts, length=max_length, emphasis=emphasis)
        told = {"guidance": np.full(len(prompts), embedded_guidance, np.float32)}
        return [{**a, **b, **(told if distilled else {})} for a, b in zip(short, long)]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        told = {"guidance": inputs["guidance"]} if distilled else {}
        return {"context": t5(params, inputs)[0], "pooled": clip(params, inputs)[1], **told}

    system = _system(parts, 128, prepare=prepare, condition=condition)
    shift = clock_options(parts.schedulers["scheduler"].config, system.latent_shape)

    def grid(height: int, width: int, num_steps: int) -> dict[str, Any]:
        sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps)
        return {"sigmas": sigmas, **shift(height, width, num_steps)}

    return system._replace(apply=_on_packed(system.apply), grid=grid)


def _on_packed(apply: Callable[..., Array]) -> Callable[..., Array]:
    """Flux's transformer of tokens, squares of 2 x 2 latents, as a network of latents."""

    def on_latents(params: Params, x: Array, t: Array, *, context: Array, **told: Array) -> Array:
        height, width = x.shape[1:3]
        ids = {
            "image_ids": grid_ids(height // 2, width // 2),
            "text_ids": jnp.zeros((context.shape[1], 3)),
        }
        tokens = apply(params, pack(x), t / 1000.0, context=context, **ids, **told)
        return unpack(tokens, height, width)

    return on_latents


def _system(
    parts: Components,
    side: int,
    *,
    prepare: Callable[..., list[Inputs]],
    condition: Callable[[Params, Inputs], dict[str, Any]],
) -> System:
    """A system around a transformer of latents, which was trained on side x side of them."""
    model, scheduler = parts.models["transformer"], parts.schedulers["scheduler"]
    codec = kl_codec(parts)
    factor = 1024 // codec.latent_shape(1024, 1024)[0]

    def apply(params: Params, x: Array, t: Array, **told: Array) -> Array:
        output = model.network.apply(params["transformer"], x, t, **told)
        return output if output.shape == x.shape else first_half(output)

    return System(
        parameterization=scheduler.parameterization,
        learned_variance=False,
        prepare=prepare,
        condition=condition,
        apply=apply,
        **codec._asdict(),
        size=(side * factor, side * factor),
    )
