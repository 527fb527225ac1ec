"""The half of a UNet on the way down, and all that it is told: the start of every UNet here."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.attention import padding_bias
from diffjax.networks.embeddings import GaussianFourier, binary_waves, drop_labels
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Conv, Embedding, Linear, TimeEmbedding, sinusoidal_features
from diffjax.networks.unet_blocks import NOTHING, DownBlock, Keys, MidBlock, Told
from diffjax.networks.unet_conditioning import (
    ImageVector,
    added_embedding,
    context_projection,
    text_and_numbers,
    token_refiner,
)
from diffjax.networks.unet_config import INSIDE, UNetConfig
from diffjax.networks.unet_frames import TemporalTransformer

# the logits of tokens that a mask hides; a context of which all is hidden is seen as it is
HIDDEN = -10000.0


class Encoder(nnx.Module):
    """From an image and a clock to features of the coarsest level; no network by itself."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        window = (config.end_windows[0],) * config.spatial_dims
        inputs = config.patch_channels(config.in_channels * (1 + 2 * len(config.input_waves)))
        self.conv_in = Conv(inputs, config.first_channels, window, rngs=rngs)
        if config.positions:
            patches = [side // config.patch_size for side in config.sides]
            self.positions = parameter(rngs, (*patches, config.first_channels), standard_normal)
        if config.frames is not None and config.frames.first_head_dim is not None:
            self.transformer_in = TemporalTransformer(
                config.first_channels,
                num_heads=8,
                head_dim=config.frames.first_head_dim,
                depth=1,
                num_groups=config.num_groups,
                zero=config.zero_init,
                rngs=rngs,
            )
        self._add_embeddings(config, rngs)
        levels = range(len(config.block_out_channels))
        self.down_blocks = nnx.List([DownBlock(config, level, rngs=rngs) for level in levels])
        if config.mid_block:
            self.mid_block = MidBlock(config, rngs=rngs)

    def _add_embeddings(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        width, features = config.first_channels, config.time_embedding_features
        act, context = config.outer_activation, config.context
        if config.time_embedding == "fourier":
            flip, scale = config.flip_sin_to_cos, config.fourier_scale
            self.time_proj = GaussianFourier(width, scale, flip_sin_to_cos=flip, rngs=rngs)
            width = 2 * width
        elif config.num_times is not None:
            self.time_proj = Embedding(config.num_times, width, rngs=rngs)
        cond = None if context is None else context.time_cond_features
        self.time_embedding = TimeEmbedding(width, features, act=act, cond_features=cond, rngs=rngs)
        if config.num_classes is not None:
            rows = config.num_classes + (config.cond_drop_prob > 0)
            self.class_embedding = Embedding(rows, features, rngs=rngs)
        elif config.class_embedding == "timestep":
            self.class_embedding = TimeEmbedding(width, features, act=act, rngs=rngs)
        elif config.class_features is not None:
            kind = TimeEmbedding if config.class_embedding == "projection" else Linear
            self.class_embedding = kind(config.class_features, features, rngs=rngs)
        self.encoder_hid_proj = None if context is None else context_projection(context, rngs)
        self.token_refiner = nnx.List([]) if context is None else token_refiner(context, rngs)
        self.add_embedding = None if context is None else added_embedding(context, features, rngs)

    def encode(
        self,
        x: Array,
        temb: Array,
        keys: Keys,
        told: Told = NOTHING,
        *,
        joined: Array | None = None,
        features: Sequence[Array] = (),
    ) -> tuple[Array, list[Array]]:
        """Features of the coarsest level behind the middle block, and all outputs for the way up.

        Args:
          joined: added behind the first convolution.
          features: added to the outputs of the levels, then of the middle block.
        """
        h, skips = self.descend(x, temb, keys, told, joined=joined, features=features)
        if self.config.mid_block:
            h = self.mid_block(h, temb, keys, told)
        for feature in features[len(self.down_blocks) :]:
            h = h + feature
        return h, skips

    def descend(
        self,
        x: Array,
        temb: Array,
        keys: Keys,
        told: Told = NOTHING,
        *,
        joined: Array | None = None,
        features: Sequence[Array] = (),
    ) -> tuple[Array, list[Array]]:
        """Like `encode`, but in front of the middle block."""
        image = self._to_patches(x)
        h = self.conv_in(self._to_patches(binary_waves(x, self.config.input_waves)))
        if self.config.positions:
            h = h + self.positions[...].astype(h.dtype)
        h = h if joined is None else h + joined
        if self.config.frames is not None and self.config.frames.first_head_dim is not None:
            h = self.transformer_in(h, told.frames)
        skips = [h]
        for level, block in enumerate(self.down_blocks):
            feature = features[level] if level < len(features) else None
            h, kept, image = block(h, temb, keys, told, image, feature)
            skips += kept
        return h, skips

    def prepare(self, x: Array, given: Mapping[str, Array]) -> tuple[Array, Told]:
        """The input of the first convolution, and what the attentions see."""
        dtype = self.config.dtype
        x = 2.0 * x - 1.0 if self.config.center_input else x
        if isinstance(self.add_embedding, ImageVector) and "hint" in given:
            hint = self.add_embedding.shrink(given["hint"].astype(dtype))
            x = jnp.concatenate([x, hint.astype(x.dtype)], axis=-1)
        tokens = given.get("context")
        tokens = None if tokens is None else tokens.astype(dtype)
        project, context = self.encoder_hid_proj, self.config.context
        if project is not None and context is not None:
            image = given.get("image_embedding")
            inputs = [] if image is None or context.projection == "text" else [image.astype(dtype)]
            tokens = project(*inputs, *([] if tokens is None else [tokens]))
        mask = given.get("context_mask")
        bias = None if mask is None else padding_bias(mask, HIDDEN)
        for block in self.token_refiner if tokens is not None else ():
            tokens = block(tokens, bias=bias)
        return x, Told(tokens, bias)

    def embed(
        self,
        t: Array,
        labels: Array | None,
        keys: Array | None,
        given: Mapping[str, Array],
    ) -> Array:
        """The embedding of time, label and what is added, as every block uses it, in float32."""
        config = self.config
        temb = self.time_embedding(self._waves(t), given.get("time_cond"))
        if labels is not None:
            label = self._embed_labels(labels, keys)
            temb = jnp.concatenate([temb, label], -1) if config.class_concat else temb + label
        added = self._embed_added(given)
        temb = temb if added is None else temb + added
        return temb if config.plain_time else activation(config.activation)(temb)

    def _embed_labels(self, labels: Array, keys: Array | None) -> Array:
        config = self.config
        if config.class_embedding == "timestep":
            return self.class_embedding(self._waves(labels))
        if config.class_embedding == "identity":
            return labels.astype(jnp.float32)
        if config.class_features is not None:
            return self.class_embedding(labels.astype(jnp.float32))
        if keys is not None and config.cond_drop_prob > 0:
            labels = drop_labels(labels, keys, null=config.num_classes, prob=config.cond_drop_prob)
        return self.class_embedding(labels).astype(jnp.float32)

    def _embed_added(self, given: Mapping[str, Array]) -> Array | None:
        """What joins the embedding of the time, if anything."""
        add, context = self.add_embedding, self.config.context
        if add is None or context is None:
            return None
        wide = {name: array.astype(jnp.float32) for name, array in given.items()}
        if context.added == "text":
            return add(wide["context"])
        if context.time_id_features is not None:
            waves = {
                "flip_sin_to_cos": self.config.flip_sin_to_cos,
                "freq_shift": self.config.freq_shift,
            }
            told = wide["pooled"], wide["time_ids"], context.time_id_features
            return add(text_and_numbers(*told, **waves))
        if context.added == "text_image":
            return add(wide["image_embedding"], wide["pooled"])
        return add(wide["image_embedding"])

    def _waves(self, t: Array) -> Array:
        """What the embedding of the time is computed from, [B, features] float32."""
        config = self.config
        t = t * config.time_scale
        t = jnp.log(t) if config.sigma_clock else t
        if config.time_embedding == "fourier":
            return self.time_proj(t)
        if config.time_embedding == "learned":
            return self.time_proj(jnp.round(t).astype(jnp.int32)).astype(jnp.float32)
        return sinusoidal_features(
            t,
            config.first_channels,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )

    def _to_patches(self, x: Array) -> Array:
        x = x.astype(self.config.dtype)
        patch = self.config.patch_size
        return operations.space_to_depth(x, patch) if patch > 1 else x


def split_keys(keys: Array | None, blocks: Sequence[Any], dropout: float) -> tuple[Any, Keys]:
    """Keys for dropping labels, and keys for each residual block in turn."""
    if keys is None:
        return None, itertools.repeat(None)
    count = sum(len(block.resnets) + (getattr(block, "kind", None) in INSIDE) for block in blocks)
    # one draw for all: XLA on a CPU takes long to compile each
    parts = 1 + (count if dropout > 0 else 0)
    keys = jax.vmap(lambda key: jax.random.split(key, parts))(keys)
    each = (keys[:, part] for part in range(1, parts))
    return keys[:, 0], each if parts > 1 else itertools.repeat(None)


def check_inputs(
    config: UNetConfig, x: Array, t: Array, labels: Array | None, given: Mapping[str, Any]
) -> dict[str, Array]:
    """Raise if the arguments of a UNet do not fit it; returns those of `given` that are there."""
    sides, of_frames = x.shape[-1 - config.spatial_dims : -1], config.frames is not None
    if x.ndim != config.spatial_dims + 2 + of_frames or x.shape[-1] != config.given_channels:
        names = ["frames"] * of_frames + ["height", "width", "depth"][: config.spatial_dims]
        axes = ", ".join(names)
        raise ValueError(f"x is {x.shape}; the network takes [B, {axes}, {config.given_channels}]")
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t is {t.shape}; the network takes one clock for each of {len(x)} samples"
        )
    smallest = config.patch_size * 2 ** (len(config.block_out_channels) - 1)
    if min(sides) < smallest or any(n % config.patch_size for n in sides):
        raise ValueError(
            f"x is {x.shape}; its sides must be multiples of patch_size ({config.patch_size}) and "
            f"at least {smallest}, to be halved {len(config.block_out_channels) - 1} times"
        )
    if config.positions and sides != config.sides:
        raise ValueError(f"x is {x.shape}; with positions the sides are {config.sides} alone")
    _check_labels(config, len(x), labels)
    there = {name: array for name, array in given.items() if array is not None}
    takes, may_take = _arrays(config)
    missing = sorted(set(takes) - there.keys())
    unexpected = sorted(there.keys() - {*takes, *may_take})
    if missing or unexpected:
        raise ValueError(
            f"the network takes {', '.join((*takes, *may_take)) or 'no conditioning'}; missing: "
            f"{', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )
    return there


def _arrays(config: UNetConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the arrays that the network must be given, and of those that it can do without."""
    context = config.context
    if context is None:
        return (), ()
    if context.features != config.block_out_channels:
        return context.takes, context.may_take
    # without a context as wide as each level, the attentions to it see x again (AudioLDM)
    return tuple(set(context.takes) - {"context"}), ("context", *context.may_take)


def _check_labels(config: UNetConfig, batch: int, labels: Array | None) -> None:
    if labels is not None and not config.takes_labels:
        raise ValueError("labels were given to a network without num_classes")
    if labels is None and config.takes_labels:
        raise ValueError(f"the network is class-conditional: give labels, {_labels_of(config)}")
    vectors = ()
    if config.class_embedding == "identity":
        vectors = (config.time_embedding_features,)
    elif config.class_features is not None:
        vectors = (config.class_features,)
    if labels is None:
        return
    whole = not vectors and config.class_embedding != "timestep"
    dtype = jnp.result_type(labels)
    if jnp.shape(labels) != (batch, *vectors) or (whole and not jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(
            f"labels is {dtype}{list(jnp.shape(labels))}; the network takes {_labels_of(config)}"
        )


def _labels_of(config: UNetConfig) -> str:
    """What the labels of a network are, in words."""
    if config.class_embedding == "identity":
        return f"[B, {config.time_embedding_features}] vectors"
    if config.class_features is not None:
        return f"[B, {config.class_features}] vectors"
    if config.class_embedding == "timestep":
        return "[B] numbers"
    null = f"; num_classes ({config.num_classes}) is the null label"
    return "[B] integers" + null * (config.cond_drop_prob > 0)
