"""The UNet of DDPM and its descendants, one network for all of their variants.

    h = conv_in(x);  down blocks, each keeping its outputs;  a middle block;
    up blocks, each fed with the outputs kept at its resolution;  conv_out(SiLU(norm(h)))

Every residual block sees the time through an embedding of its sinusoidal features, to which the
embedding of the class label is added. Attribute names are those of the public checkpoints
(`down_blocks.0.resnets.1.conv1`), so that their weights can be read by name.

Source: DDPM, arXiv:2006.11239, appendix B; ADM, arXiv:2105.05233, section 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import (
    Conv,
    Downsample,
    Embedding,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    branch,
    halve,
    require_divisible,
    sinusoidal_features,
)


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet; the defaults are DDPM's network for CIFAR-10 without dropout.

    Levels are counted from the finest; each but the last halves the resolution.

    Attributes:
      sample_size: side of the images that the network was made for, or one for each axis; a note
        for samplers, the network itself takes every size that it can halve often enough.
      in_channels, out_channels: of the images; 2 x in_channels come out with a learned variance.
      block_out_channels: channels of each level.
      layers_per_block: residual blocks of a level on the way down; one more on the way up.
      attention: for each level, whether self-attention follows its residual blocks.
      up_attention: the same on the way up; None to mirror `attention`.
      mid_block, mid_attention: whether there is a middle block, and attention in it.
      head_dim: channels of an attention head; None for a single head.
      num_groups: of every GroupNorm.
      mid_attention_groups: of the middle attention's GroupNorm; None as num_groups, 0 for none.
      norm_eps: added to the variance in every GroupNorm.
      scale_shift: the time scales and shifts the second norm's output instead of being added
        in front of it.
      downsample, upsample: "conv", "resnet" (inside a residual block) or "plain" (average pairs,
        repeat the nearest element), one for all levels or one for each.
      downsample_padding: 0 pads the convolution of "conv" by one element at the high side, 1 at
        both sides.
      dropout: probability in every residual block, in training.
      time_features: size of the time embedding; None for 4 x block_out_channels[0].
      time_scale: the clock t is multiplied by it; 1000 for a clock in [0, 1].
      flip_sin_to_cos, freq_shift: of the sinusoidal features, see `sinusoidal_features`.
      num_classes: number of labels; None for a network without labels.
      cond_drop_prob: probability of the null label, num_classes, in training. If positive, the
        label table has a row for it.
      patch_size: side of the blocks of pixels that are moved into the channels before the first
        convolution and back after the last; 2 quarters the work.
      center_input: map inputs from [0, 1] to [-1, 1] first.
      spatial_dims: 1, 2 or 3 spatial axes.
      zero_init: start the residual branches and the output at zero.
      dtype: of the computation, "float32" or "bfloat16"; params, time embedding, normalisation
        statistics, softmax and the output are float32 all the same.
      param_dtype: of the parameters that `init` makes.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    sample_size: int | tuple[int, ...] | None = 32
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 256)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, False, False)
    up_attention: tuple[bool, ...] | None = None
    mid_block: bool = True
    mid_attention: bool = True
    head_dim: int | None = None
    num_groups: int = 32
    mid_attention_groups: int | None = None
    norm_eps: float = 1e-6
    scale_shift: bool = False
    downsample: str | tuple[str, ...] = "conv"
    upsample: str | tuple[str, ...] = "conv"
    downsample_padding: int = 0
    dropout: float = 0.0
    time_features: int | None = None
    time_scale: float = 1.0
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    num_classes: int | None = None
    cond_drop_prob: float = 0.0
    patch_size: int = 1
    center_input: bool = False
    spatial_dims: int = 2
    zero_init: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        _check_levels(self)
        _check_ranges(self)


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


def ddpm_cifar10(**changes) -> UNetConfig:
    """DDPM's network for 32x32 images, 35,746,307 parameters (arXiv:2006.11239, appendix B).

    >>> ddpm_cifar10(num_classes=10).dropout
    0.1
    """
    return UNetConfig(**{"dropout": 0.1, **changes})


def ddpm_celeba64(**changes) -> UNetConfig:
    """DDPM's network for 64x64 faces: one more halving than for CIFAR-10, attention at 16x16.

    Source: DDIM, arXiv:2010.02502, appendix D.1, which trained DDPM's architecture on CelebA.

    >>> ddpm_celeba64().block_out_channels
    (128, 256, 256, 256, 512)
    """
    faces = {
        "sample_size": 64,
        "block_out_channels": (128, 256, 256, 256, 512),
        "attention": (False, False, True, False, False),
        "dropout": 0.1,
    }
    return UNetConfig(**{**faces, **changes})


class UNet(nnx.Module):
    """The module behind `unet`; its call is documented there."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, dims = config.block_out_channels, config.spatial_dims
        patch = config.patch_size**dims
        window = (3,) * dims
        features = _time_features(config)
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
        temb = self._embed(t, labels, keys).astype(config.dtype)
        x = (2.0 * x - 1.0 if config.center_input else x).astype(config.dtype)
        if config.patch_size > 1:
            x = operations.space_to_depth(x, config.patch_size)
        h = self.conv_in(x)
        skips = [h]
        for index, block in enumerate(self.down_blocks):
            h, kept = block(h, temb, branch(keys, 1 + index))
            skips += kept
        if config.mid_block:
            h = self.mid_block(h, temb, branch(keys, 100))
        for index, block in enumerate(self.up_blocks):
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[1:-1] if skips else h.shape[1:-1]
            h = block(h, used, temb, branch(keys, 200 + index), size)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        if config.patch_size > 1:
            h = operations.depth_to_space(h, config.patch_size)
        return h.astype(jnp.float32)

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
                labels = drop_labels(labels, branch(keys, 0), config)
            temb = temb + self.class_embedding(labels).astype(jnp.float32)
        return jax.nn.silu(temb)


def drop_labels(labels: Array, keys: Array | None, config: UNetConfig) -> Array:
    """Replace each label by the null label, num_classes, with probability cond_drop_prob.

    Source: Classifier-Free Diffusion Guidance, arXiv:2207.12598, Algorithm 1.
    """
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, config.cond_drop_prob))(keys)
    return jnp.where(drop, config.num_classes, labels)


class DownBlock(nnx.Module):
    """The residual blocks of one level on the way down, with attention, and the halving."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        inputs = [channels[max(level - 1, 0)]] + [channels[level]] * (config.layers_per_block - 1)
        attention = config.attention[level]
        self.resnets = _residual_blocks(config, inputs, channels[level], rngs)
        self.attentions = _attentions(config, len(inputs) * attention, channels[level], rngs)
        self.kind = _of_level(config.downsample, level) if level + 1 < len(channels) else None
        self.downsamplers = nnx.List(self._downsamplers(config, channels[level], rngs))
        self.remat = config.remat

    def _downsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            dims, padding = config.spatial_dims, config.downsample_padding
            return [Downsample(channels, dims=dims, padding=padding, rngs=rngs)]
        if self.kind == "resnet":
            return [_residual_block(config, channels, channels, rngs, resize="down")]
        return []

    def __call__(self, h: Array, temb: Array, keys: Array | None) -> tuple[Array, list[Array]]:
        kept = []
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if self.attentions else None
            h = _layer(resnet, attention, self.remat)(h, temb, branch(keys, index))
            kept.append(h)
        if self.kind is None:
            return h, kept
        if self.kind == "conv":
            h = self.downsamplers[0](h)
        elif self.kind == "resnet":
            h = _layer(self.downsamplers[0], None, self.remat)(h, temb, branch(keys, 99))
        else:
            h = halve(h)
        return h, [*kept, h]


class MidBlock(nnx.Module):
    """A residual block, attention, and another residual block at the coarsest level."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        groups = config.mid_attention_groups
        groups = config.num_groups if groups is None else groups
        self.resnets = _residual_blocks(config, [channels, channels], channels, rngs)
        self.attentions = _attentions(config, int(config.mid_attention), channels, rngs, groups)
        self.remat = config.remat

    def __call__(self, h: Array, temb: Array, keys: Array | None) -> Array:
        attention = self.attentions[0] if self.attentions else None
        h = _layer(self.resnets[0], attention, self.remat)(h, temb, branch(keys, 0))
        return _layer(self.resnets[1], None, self.remat)(h, temb, branch(keys, 1))


class UpBlock(nnx.Module):
    """The residual blocks of one level on the way up, each joined with a kept output."""

    def __init__(self, config: UNetConfig, level: int, *, rngs: nnx.Rngs):
        channels = config.block_out_channels
        width = channels[level]
        below, above = channels[min(level + 1, len(channels) - 1)], channels[max(level - 1, 0)]
        skips = [width] * config.layers_per_block + [above]
        hidden = [below] + [width] * config.layers_per_block
        inputs = [h + skip for h, skip in zip(hidden, skips)]
        up_attention = config.attention if config.up_attention is None else config.up_attention
        attention = up_attention[level]
        self.resnets = _residual_blocks(config, inputs, width, rngs)
        self.attentions = _attentions(config, len(inputs) * attention, width, rngs)
        self.kind = _of_level(config.upsample, level) if level > 0 else None
        self.upsamplers = nnx.List(self._upsamplers(config, width, rngs))
        self.remat = config.remat

    def _upsamplers(self, config: UNetConfig, channels: int, rngs: nnx.Rngs) -> list:
        if self.kind == "conv":
            return [Upsample(channels, dims=config.spatial_dims, rngs=rngs)]
        if self.kind == "resnet":
            return [_residual_block(config, channels, channels, rngs, resize="up")]
        return []

    def __call__(
        self,
        h: Array,
        skips: Sequence[Array],
        temb: Array,
        keys: Array | None,
        size: Sequence[int],
    ) -> Array:
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if self.attentions else None
            h = jnp.concatenate([h, skips[-1 - index]], axis=-1)
            h = _layer(resnet, attention, self.remat)(h, temb, branch(keys, index))
        if self.kind is None:
            return h
        if self.kind == "conv":
            return self.upsamplers[0](h, size)
        if self.kind == "resnet":
            layer = _layer(self.upsamplers[0], None, self.remat, size)
            return layer(h, temb, branch(keys, 99))
        return operations.upsample_nearest(h, size)


def _layer(
    resnet: ResidualBlock, attention: SelfAttention | None, remat: bool, size: Sequence[int] = ()
) -> Callable[[Array, Array, Array | None], Array]:
    """A residual block and the attention behind it, rematerialised as one if asked."""

    def run(h: Array, temb: Array, keys: Array | None) -> Array:
        h = resnet(h, temb, keys, size)
        return h if attention is None else attention(h)

    return jax.checkpoint(run) if remat else run


def _residual_block(
    config: UNetConfig, inputs: int, outputs: int, rngs: nnx.Rngs, resize: str | None = None
) -> ResidualBlock:
    return ResidualBlock(
        inputs,
        outputs,
        _time_features(config),
        dims=config.spatial_dims,
        num_groups=config.num_groups,
        eps=config.norm_eps,
        dropout=config.dropout,
        scale_shift=config.scale_shift,
        resize=resize,
        zero=config.zero_init,
        rngs=rngs,
    )


def _residual_blocks(
    config: UNetConfig, inputs: Sequence[int], outputs: int, rngs: nnx.Rngs
) -> nnx.List:
    return nnx.List([_residual_block(config, channels, outputs, rngs) for channels in inputs])


def _attentions(
    config: UNetConfig, count: int, channels: int, rngs: nnx.Rngs, num_groups: int | None = None
) -> nnx.List:
    """`count` self-attentions; num_groups None takes the config's."""
    make = lambda: SelfAttention(
        channels,
        head_dim=config.head_dim,
        num_groups=config.num_groups if num_groups is None else num_groups,
        eps=config.norm_eps,
        zero=config.zero_init,
        rngs=rngs,
    )
    return nnx.List([make() for _ in range(count)])


def _time_features(config: UNetConfig) -> int:
    return config.time_features or 4 * config.block_out_channels[0]


def _of_level(kind: str | tuple[str, ...], level: int) -> str:
    return kind if isinstance(kind, str) else kind[level]


def _check_levels(config: UNetConfig) -> None:
    levels = len(config.block_out_channels)
    if levels == 0:
        raise ValueError("block_out_channels is empty; give the channels of at least one level")
    for name in ("attention", "up_attention", "downsample", "upsample"):
        value = getattr(config, name)
        if isinstance(value, tuple | list) and len(value) != levels:
            raise ValueError(
                f"{name} has {len(value)} entries for the {levels} levels of block_out_channels"
            )
    for name in ("downsample", "upsample"):
        value = getattr(config, name)
        for kind in (value,) if isinstance(value, str) else value:
            if kind not in ("conv", "resnet", "plain"):
                raise ValueError(f"{name} is {kind!r}; it must be 'conv', 'resnet' or 'plain'")
    for channels in config.block_out_channels:
        require_divisible(channels, config.num_groups, "block_out_channels", "num_groups")
    head_dim, up_attention = config.head_dim, config.up_attention or config.attention
    for channels, down, up in zip(config.block_out_channels, config.attention, up_attention):
        if head_dim is not None and (down or up):
            require_divisible(channels, head_dim, "block_out_channels with attention", "head_dim")


def _check_ranges(config: UNetConfig) -> None:
    for name in ("in_channels", "out_channels", "layers_per_block", "patch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("dropout", "cond_drop_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be in [0, 1)")
    for name in ("dtype", "param_dtype"):
        if str(getattr(config, name)) not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; "
                "it must be 'float32', 'bfloat16' or 'float16'"
            )
    if config.spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims is {config.spatial_dims}; it must be 1, 2 or 3")
    if config.downsample_padding not in (0, 1):
        raise ValueError(f"downsample_padding is {config.downsample_padding}; it must be 0 or 1")
    if config.num_classes is None and config.cond_drop_prob > 0:
        raise ValueError("cond_drop_prob drops labels; give num_classes as well")
    if config.block_out_channels[0] // 2 <= config.freq_shift:
        raise ValueError(
            f"block_out_channels[0] is {config.block_out_channels[0]}; sinusoidal features with "
            f"freq_shift {config.freq_shift} need more than {2 * config.freq_shift:g} channels"
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
    if config.num_classes is None and labels is not None:
        raise ValueError("labels were given to a network without num_classes")
    if config.num_classes is not None and labels is None:
        null = f"; num_classes ({config.num_classes}) is the null label" * (
            config.cond_drop_prob > 0
        )
        raise ValueError(f"the network is class-conditional: give labels, [B] integers{null}")
