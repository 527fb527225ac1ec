"""The UNet of DDPM and its descendants, one network for all of their variants.

    h = conv_in(x);  down blocks, each keeping its outputs;  a middle block;
    up blocks, each fed with the outputs kept at its resolution;  conv_out(SiLU(norm(h)))

Every residual block sees the time through an embedding of its sinusoidal features, to which the
embedding of the class label is added. Attribute names are those of the public checkpoints
(`down_blocks.0.resnets.1.conv1`), so that their weights can be read by name.

Source: DDPM, arXiv:2006.11239, appendix B; ADM, arXiv:2105.05233, section 3.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Conv, Embedding, GroupNorm, TimeEmbedding, sinusoidal_features
from diffjax.networks.unet_blocks import DownBlock, Keys, MidBlock, UpBlock
from diffjax.networks.unet_config import UNetConfig


def unet(config: UNetConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, labels=None, keys=None) -> [B, *spatial, out_channels] float32

    Arguments of apply:
      x: [B, *spatial, in_channels], usually in [-1, 1].
      t: [B] clock, integers or floats.
      labels: [B] integers in 0 .. num_classes - 1, or num_classes, the null label, in networks
        with cond_drop_prob > 0. Any other label gives NaN.
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
        channels, dims = config.block_out_channels, config.spatial_dims
        patch = config.patch_size**dims
        window = (3,) * dims
        features = config.time_embedding_features
        self.conv_in = Conv(config.in_channels * patch, channels[0], window, rngs=rngs)
        self.time_embedding = TimeEmbedding(channels[0], features, rngs=rngs)
        if config.num_classes is not None:
            rows = config.num_classes + (config.cond_drop_prob > 0)
            self.class_embedding = Embedding(rows, features, rngs=rngs)
        levels = range(len(channels))
        self.down_blocks = nnx.List([DownBlock(config, level, rngs=rngs) for level in levels])
        if config.mid_block:
            self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([UpBlock(config, level, rngs=rngs) for level in reversed(levels)])
        self.conv_norm_out = GroupNorm(channels[0], config.num_groups, eps=config.norm_eps)
        out_channels = config.out_channels * patch
        self.conv_out = Conv(channels[0], out_channels, window, zero=config.zero_init, rngs=rngs)

    def __call__(
        self, x: Array, t: Array, *, labels: Array | None = None, keys: Array | None = None
    ) -> Array:
        config = self.config
        _check_inputs(config, x, t, labels)
        label_keys, block_keys = self._split(keys)
        temb = self._embed(t, labels, label_keys).astype(config.dtype)
        x = (2.0 * x - 1.0 if config.center_input else x).astype(config.dtype)
        if config.patch_size > 1:
            x = operations.space_to_depth(x, config.patch_size)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h, kept = block(h, temb, block_keys)
            skips += kept
        if config.mid_block:
            h = self.mid_block(h, temb, block_keys)
        for block in self.up_blocks:
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[1:-1] if skips else h.shape[1:-1]
            h = block(h, used, temb, block_keys, size)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        if config.patch_size > 1:
            h = operations.depth_to_space(h, config.patch_size)
        return h.astype(jnp.float32)

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
        count = sum(len(block.resnets) + (block.kind == "resnet") for block in blocks)
        return count + (len(self.mid_block.resnets) if self.config.mid_block else 0)

    def _embed(self, t: Array, labels: Array | None, keys: Array | None) -> Array:
        """SiLU of the embedding of time and label, in float32: every block uses it so."""
        config = self.config
        features = sinusoidal_features(
            t * config.time_scale,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        temb = self.time_embedding(features)
        if labels is not None:
            if keys is not None and config.cond_drop_prob > 0:
                labels = drop_labels(
                    labels, keys, null=config.num_classes, prob=config.cond_drop_prob
                )
            temb = temb + self.class_embedding(labels).astype(jnp.float32)
        return jax.nn.silu(temb)


def drop_labels(labels: Array, keys: Array, *, null: int | None, prob: float) -> Array:
    """Replace each label by the null label with a probability, from the key of its sample.

    Source: Classifier-Free Diffusion Guidance, arXiv:2207.12598, Algorithm 1.
    """
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, prob))(keys)
    return labels if null is None else jnp.where(drop, null, labels)


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
    if config.num_classes is None and labels is not None:
        raise ValueError("labels were given to a network without num_classes")
    if config.num_classes is not None and labels is None:
        null = f"; num_classes ({config.num_classes}) is the null label" * (
            config.cond_drop_prob > 0
        )
        raise ValueError(f"the network is class-conditional: give labels, [B] integers{null}")
