"""unCLIP, the kind of DALL-E 2: text -> embedding of an image -> small image -> large image.

    prior       prompts -> embeddings, by a diffusion of embeddings
    decoder     embeddings and prompts -> small images
    enlarger    small images -> large ones

Each is a System, so that each has its own solver, grid and guidance:

    stages = unclip(parts)
    embedding = sample_embedding(stages.prior, params, keys, conditions, plan, ...)
    images = sample_images(stages, params, keys, conditions, embedding, plans, ...)

From the embedding of a picture (`image_embedding`) instead of the prior's, and under empty prompts,
the decoder makes variations of it.
Source: arXiv:2204.06125.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax.core.keys import fold_in_each
from diffjax.networks.functional import Params
from diffjax.networks.prior import to_embedding
from diffjax.pipelines.plan import Plan
from diffjax.pipelines.system import Codec, Inputs, System, pixel_codec, texts_of
from diffjax.pipelines.tasks import Guidance, txt2img
from diffjax.pipelines.texts import clip_states, tokenized
from diffjax.pretrained import Components

# the classes that save such folders; the second makes variations of pictures
UNCLIP = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")

# what the keys of a sample are folded with for each of its three walks
_PRIOR, _DECODER, _ENLARGER = 1, 2, 3


class Unclip(NamedTuple):
    """The three systems of unCLIP; folders that make variations of pictures have no prior."""

    prior: System | None
    decoder: System
    enlarger: System


def unclip(parts: Components) -> Unclip:
    """The three systems that the parts of a folder form."""
    prior = _prior(parts) if "prior" in parts.models else None
    return Unclip(prior, _decoder(parts), _enlarger(parts))


def sample_embedding(
    prior: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    plan: Plan,
    *,
    guidance: Guidance | None = None,
) -> Array:
    """Embeddings of images that prompts may have, [B, D].

    Args:
      prior: of `unclip`.
      params, keys, conditions, guidance: see `walk`.
      plan: the steps, of the folder's `prior_scheduler`.
    """
    own = fold_in_each(keys, _PRIOR)
    return txt2img(
        prior, params, own, conditions, **plan._asdict(), height=1, width=1, guidance=guidance
    )


def sample_images(
    stages: Unclip,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    embedding: Array,
    plans: tuple[Plan, Plan],
    *,
    guidance: Guidance | None = None,
) -> Array:
    """Images of embeddings and prompts, small ones first, then at the enlarger's size.

    Args:
      params, keys, conditions, guidance: of the decoder; see `walk`.
      embedding: [B, D], of `sample_embedding` or of pictures (`image_embedding`).
      plans: the steps of decoder and enlarger, of the folder's `decoder_scheduler` and
        `super_res_scheduler`.

    Returns:
      [B, H, W, 3] float32, about in [-1, 1].
    """
    (height, width), (large_height, large_width) = stages.decoder.size, stages.enlarger.size
    small = txt2img(
        stages.decoder,
        params,
        fold_in_each(keys, _DECODER),
        with_embedding(conditions, embedding),
        **plans[0]._asdict(),
        height=height,
        width=width,
        guidance=guidance,
    )
    return txt2img(
        stages.enlarger,
        params,
        fold_in_each(keys, _ENLARGER),
        enlarged(small, large_height, large_width),
        **plans[1]._asdict(),
        height=large_height,
        width=large_width,
    )


def with_embedding(conditions: Sequence[Inputs], embedding: Array) -> list[Inputs]:
    """What the decoder is told: the embedding with the prompts, and none with negative ones."""
    count = len(embedding)
    return [
        {**each, "image": embedding, "has_image": jnp.full(count, float(i == 0))}
        for i, each in enumerate(conditions)
    ]


def enlarged(images: Array, height: int, width: int) -> list[Inputs]:
    """What the enlarger is told: small images, [B, h, w, 3], at the size of the large ones."""
    shape = (len(images), height, width, images.shape[-1])
    return [{"channels": jax.image.resize(jnp.clip(images, -1.0, 1.0), shape, "cubic")}]


def _prior(parts: Components) -> System:
    model, scheduler = parts.models["prior"], parts.schedulers["prior_scheduler"]
    encode = clip_states(parts, "text_encoder", "tokenizer")
    features = model.config.embedding_dim

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        context, pooled = encode(params, inputs)
        return {"context": context, "pooled": pooled, "context_mask": inputs["tokenizer_mask"]}

    codec = Codec(
        encode=lambda params, keys, images, normal: images,
        features=lambda params, images: images,
        decode=lambda params, x: to_embedding(params["prior"], x),
        latent_shape=lambda height, width: (features,),  # pyright: ignore[reportArgumentType]
    )
    return System(
        parameterization=scheduler.parameterization,
        learned_variance=False,
        prepare=_prepare(parts),
        condition=condition,
        apply=lambda params, x, t, **told: model.network.apply(params["prior"], x, t, **told),
        **codec._asdict(),
        size=(1, 1),
    )


def _decoder(parts: Components) -> System:
    model, scheduler = parts.models["decoder"], parts.schedulers["decoder_scheduler"]
    projection, config = parts.models["text_proj"], model.config
    encode = clip_states(parts, "text_encoder", "tokenizer")

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        text, pooled = encode(params, inputs)
        told = projection.network.apply(
            params["text_proj"], inputs["image"], pooled, text, has_image=inputs["has_image"]
        )
        mask = jnp.asarray(inputs["tokenizer_mask"])
        mask = jnp.pad(mask, ((0, 0), (projection.config.num_tokens, 0)), constant_values=1)
        return {"context": told.context, "context_mask": mask, "labels": told.labels}

    return System(
        parameterization=scheduler.parameterization,
        learned_variance=scheduler.learned_variance,
        prepare=_prepare(parts),
        condition=condition,
        apply=lambda params, x, t, **told: model.network.apply(params["decoder"], x, t, **told),
        **pixel_codec(config.in_channels, 2 ** (len(config.block_out_channels) - 1))._asdict(),
        size=(config.sample_size, config.sample_size),
    )


def _enlarger(parts: Components) -> System:
    first, last = parts.models["super_res_first"], parts.models["super_res_last"]
    scheduler, config = parts.schedulers["super_res_scheduler"], first.config

    def apply(params: Params, x: Array, t: Array, *, channels: Array) -> Array:
        x = jnp.concatenate([x, channels], axis=-1)
        # the last step, to clean data, has a network of its own
        return lax.cond(
            (t == 0).all(),
            lambda: last.network.apply(params["super_res_last"], x, t),
            lambda: first.network.apply(params["super_res_first"], x, t),
        )

    def prepare(prompts: None = None, negative: None = None, **sizes: int) -> list[Inputs]:
        raise ValueError("the enlarger takes no prompts; give it enlarged(images, height, width)")

    codec = pixel_codec(config.out_channels, 2 ** (len(config.block_out_channels) - 1))
    return System(
        parameterization=scheduler.parameterization,
        learned_variance=scheduler.learned_variance,
        prepare=prepare,
        condition=lambda params, inputs: inputs,
        apply=apply,
        **codec._asdict(),
        size=(config.sample_size, config.sample_size),
    )


def _prepare(parts: Components):
    def prepare(
        prompts: Sequence[str],
        negative: Sequence[str | None] | None = None,
        *,
        height: int,
        width: int,
        emphasis: bool = False,
        **more: np.ndarray,
    ) -> list[Inputs]:
        texts = texts_of(prompts, negative)
        found = tokenized(parts, "tokenizer", texts, emphasis=emphasis)
        return [{**each, **more} for each in found]

    return prepare
