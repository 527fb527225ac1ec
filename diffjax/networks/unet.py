"""The UNet of DDPM and its descendants, one network for all of their variants.

    h = conv_in(x);  down blocks, each keeping its outputs;  a middle block;
    up blocks, each fed with the outputs kept at its resolution;  conv_out(SiLU(norm(h)))

Every residual block sees the time through an embedding of waves of the clock, to which the
embedding of the class label is added. Attribute names are those of the public checkpoints
(`down_blocks.0.resnets.1.conv1`), so that their weights can be read by name.

Source: DDPM, arXiv:2006.11239, appendix B; ADM, arXiv:2105.05233, section 3; NCSN++ and DDPM++,
arXiv:2011.13456, appendix H; VDM, arXiv:2107.00630, appendix C.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.embeddings import GaussianFourier, binary_waves, drop_labels
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import (
    Conv,
    Embedding,
    GroupNorm,
    TimeEmbedding,
    sinusoidal_features,
)
from diffjax.networks.unet_blocks import DownBlock, Keys, MidBlock, UpBlock
from diffjax.networks.unet_config import INSIDE, UNetConfig


def unet(config: UNetConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, labels=None, keys=None) -> [B, *spatial, out_channels] float32

    Arguments of apply:
      x: [B, *spatial, in_channels], usually in [-1, 1].
      t: [B] clock, integers or floats.
      labels: [B] integers in 0 .. num_classes - 1, or num_classes, the null label, in networks
        with cond_drop_prob > 0; any other gives NaN. With another class_embedding than "table",
        [B] numbers ("timestep") or [B, time_features] vectors ("identity").
      keys: [B] PRNG keys, one for each sample, in training only: they switch on dropout and the
        dropping of labels.

    >>> config = UNetConfig(block_out_channels=(8, 8), attention=(False, True), num_groups=4)
    >>> init, apply = unet(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 3)), jnp.ones(2)).shape
    (2, 8, 8, 3)
    """
    return functional(lambda rngs: UNet(config, rngs=rngs), param_dtype=config.param_dtype)


class UNet(nnx.Module):
    """The module behind `unet`; its call is documented there."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, window = config.block_out_channels, (3,) * config.spatial_dims
        features = config.time_embedding_features
        inputs = config.patch_channels(config.in_channels * (1 + 2 * len(config.input_waves)))
        width = config.first_channels
        self.conv_in = Conv(inputs, width, window, rngs=rngs)
        if config.time_embedding == "fourier":
            self.time_proj = GaussianFourier(width, config.fourier_scale, rngs=rngs)
            width = 2 * width
        elif config.num_times is not None:
            self.time_proj = Embedding(config.num_times, width, rngs=rngs)
        self.time_embedding = TimeEmbedding(width, features, rngs=rngs)
        if config.num_classes is not None:
            rows = config.num_classes + (config.cond_drop_prob > 0)
            self.class_embedding = Embedding(rows, features, rngs=rngs)
        elif config.class_embedding == "timestep":
            self.class_embedding = TimeEmbedding(width, features, rngs=rngs)
        levels = range(len(channels))
        self.down_blocks = nnx.List([DownBlock(config, level, rngs=rngs) for level in levels])
        if config.mid_block:
            self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([UpBlock(config, level, rngs=rngs) for level in reversed(levels)])
        groups = config.num_groups if config.end_groups is None else config.end_groups
        self.conv_norm_out = GroupNorm(channels[0], groups, eps=config.norm_eps)
        outputs = config.patch_channels(config.out_channels)
        self.conv_out = Conv(channels[0], outputs, window, zero=config.zero_init, rngs=rngs)

    def __call__(
        self, x: Array, t: Array, *, labels: Array | None = None, keys: Array | None = None
    ) -> Array:
        config = self.config
        _check_inputs(config, x, t, labels)
        label_keys, block_keys = self._split(keys)
        temb = self._embed(t, labels, label_keys).astype(config.dtype)
        x = 2.0 * x - 1.0 if config.center_input else x
        y = self._run(x, temb, block_keys).astype(jnp.float32)
        y = x + y if config.add_input else y
        return y / t.reshape(-1, *(1,) * config.spatial_dims, 1) if config.sigma_clock else y

    def _run(self, x: Array, temb: Array, keys: Keys) -> Array:
        """From images to images, in the dtype of the computation."""
        config = self.config
        image = self._to_patches(x)
        h = self.conv_in(self._to_patches(binary_waves(x, config.input_waves)))
        skips = [h]
        for block in self.down_blocks:
            h, kept, image = block(h, temb, keys, image)
            skips += kept
        if config.mid_block:
            h = self.mid_block(h, temb, keys)
        image = None
        for block in self.up_blocks:
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[1:-1] if skips else h.shape[1:-1]
            h, image = block(h, used, temb, keys, size, image)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        h = h if image is None else h + image
        return operations.depth_to_space(h, config.patch_size) if config.patch_size > 1 else h

    def _to_patches(self, x: Array) -> Array:
        x = x.astype(self.config.dtype)
        patch = self.config.patch_size
        return operations.space_to_depth(x, patch) if patch > 1 else x

    def _split(self, keys: Array | None) -> tuple[Array | None, Keys]:
        """Keys for dropping labels, and keys for each residual block in turn."""
        if keys is None:
            return None, itertools.repeat(None)
        # one draw for all: XLA on a CPU takes long to compile each
        parts = 1 + (self._count_residual_blocks() if self.config.dropout > 0 else 0)
        keys = jax.vmap(lambda key: jax.random.split(key, parts))(keys)
        each = (keys[:, part] for part in range(1, parts))
        return keys[:, 0], each if parts > 1 else itertools.repeat(None)

    def _count_residual_blocks(self) -> int:
        blocks = [*self.down_blocks, *self.up_blocks]
        count = sum(len(block.resnets) + (block.kind in INSIDE) for block in blocks)
        return count + (len(self.mid_block.resnets) if self.config.mid_block else 0)

    def _embed(self, t: Array, labels: Array | None, keys: Array | None) -> Array:
        """The activated embedding of time and label, in float32: every block uses it so."""
        config = self.config
        temb = self.time_embedding(self._waves(t))
        if labels is not None and config.class_embedding == "timestep":
            temb = temb + self.class_embedding(self._waves(labels))
        elif labels is not None and config.class_embedding == "identity":
            temb = temb + labels.astype(jnp.float32)
        elif labels is not None:
            if keys is not None and config.cond_drop_prob > 0:
                labels = drop_labels(
                    labels, keys, null=config.num_classes, prob=config.cond_drop_prob
                )
            temb = temb + self.class_embedding(labels).astype(jnp.float32)
        return activation(config.activation)(temb)

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


def _check_inputs(config: UNetConfig, x: Array, t: Array, labels: Array | None) -> None:
    if x.ndim != config.spatial_dims + 2 or x.shape[-1] != config.in_channels:
        axes = ", ".join(["height", "width", "depth"][: config.spatial_dims])
        raise ValueError(f"x is {x.shape}; the network takes [B, {axes}, {config.in_channels}]")
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t is {t.shape}; the network takes one clock for each of {len(x)} samples"
        )
    smallest = config.patch_size * 2 ** (len(config.block_out_channels) - 1)
    if min(x.shape[1:-1]) < smallest or any(n % config.patch_size for n in x.shape[1:-1]):
        raise ValueError(
            f"x is {x.shape}; its sides must be multiples of patch_size ({config.patch_size}) and "
            f"at least {smallest}, to be halved {len(config.block_out_channels) - 1} times"
        )
    if labels is not None and not config.takes_labels:
        raise ValueError("labels were given to a network without num_classes")
    if labels is None and config.takes_labels:
        raise ValueError(f"the network is class-conditional: give labels, {_labels_of(config)}")
    vectors = (config.time_embedding_features,) * (config.class_embedding == "identity")
    if labels is not None and labels.shape != (len(x), *vectors):
        raise ValueError(f"labels is {labels.shape}; the network takes {_labels_of(config)}")


def _labels_of(config: UNetConfig) -> str:
    """What the labels of a network are, in words."""
    if config.class_embedding == "identity":
        return f"[B, {config.time_embedding_features}] vectors"
    if config.class_embedding == "timestep":
        return "[B] numbers"
    null = f"; num_classes ({config.num_classes}) is the null label"
    return "[B] integers" + null * (config.cond_drop_prob > 0)
