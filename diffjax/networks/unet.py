"""The UNet of DDPM and its descendants, one network for all of their variants.

    h = conv_in(x);  down blocks, each keeping its outputs;  a middle block;
    up blocks, each fed with the outputs kept at its resolution;  conv_out(SiLU(norm(h)))

Every residual block sees the time through an embedding of waves of the clock, to which the
embeddings of a class label, a text or an image are added. Attentions see the positions of a level,
and the tokens of a context. Attribute names are those of the public checkpoints
(`down_blocks.0.resnets.1.conv1`), so that their weights can be read by name.

Source: DDPM, arXiv:2006.11239, appendix B; ADM, arXiv:2105.05233, section 3; NCSN++ and DDPM++,
arXiv:2011.13456, appendix H; VDM, arXiv:2107.00630, appendix C; latent diffusion, arXiv:2112.10752;
SDXL, arXiv:2307.01952; GLIDE, arXiv:2112.10741.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.activations import activation
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Conv, GroupNorm
from diffjax.networks.unet_blocks import Keys, Told, UpBlock
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_encoder import Encoder, check_inputs, split_keys

Residuals = tuple[Sequence[Array], Array]


def unet(config: UNetConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, labels=None, keys=None, residuals=None, features=(), **given)
            -> [B, *spatial, out_channels] float32

    Arguments of apply:
      x: [B, *spatial, in_channels], usually in [-1, 1]; [B, F, *spatial, in_channels] of networks
        that mix frames.
      t: [B] clock, integers or floats.
      labels: [B] integers in 0 .. num_classes - 1, or num_classes, the null label, in networks
        with cond_drop_prob > 0; any other gives NaN. With another class_embedding than "table",
        [B] numbers ("timestep") or vectors: [B, time_features] ("identity") or [B, class_features].
      keys: [B] PRNG keys, one for each sample, in training only: they switch on dropout and the
        dropping of labels.
      residuals: the outputs of a `controlnet`, added to those of the way down.
      features: the outputs of a `t2i_adapter`, added to those of the levels.

    Further arguments of networks with a context, those that its configuration asks for:
      context, context_mask: [B, S, features] tokens, and [B, S], 0 where they must not be seen.
      pooled: [B, P], the embedding of a text as one vector.
      time_ids: [B, N] numbers beside it, as the sizes of SDXL.
      image_embedding: [B, D].
      hint: [B, 8 height, 8 width, 3].
      time_cond: [B, time_cond_features], which may be left out.

    >>> config = UNetConfig(block_out_channels=(8, 8), attention=(False, True), num_groups=4)
    >>> init, apply = unet(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 3)), jnp.ones(2)).shape
    (2, 8, 8, 3)
    """
    return functional(lambda rngs: UNet(config, rngs=rngs), param_dtype=config.param_dtype)


def unet_attention_map(config: UNetConfig) -> Functional:
    """Where the middle of a UNet looks: its parameters, and the attention that each place receives.

        init(key) -> params, those of `unet(config)`
        apply(params, x, t, *, labels=None, **given) -> [B, *coarse spatial] float32, 1 on average

    for self-attention guidance (`diffjax.blur_guidance`). In one compiled function with the network
    itself the way down is computed once.

    Raises:
      ValueError: there is no attention in the middle, or one over the frames of a video.

    >>> config = UNetConfig(block_out_channels=(8, 8), attention=(False, True), num_groups=4)
    >>> init, apply = unet_attention_map(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 3)), jnp.ones(2)).shape
    (2, 4, 4)
    """
    if not (config.mid_block and config.mid_attention) or config.frames is not None:
        raise ValueError(
            "The map is that of the attention in the middle block of a network of images; this one "
            f"has mid_block {config.mid_block}, mid_attention {config.mid_attention} and frames "
            f"{config.frames}."
        )
    make = lambda rngs: UNet(config, rngs=rngs)
    return functional(make, param_dtype=config.param_dtype, call=UNet.attention_map)


class UNet(Encoder):
    """The module behind `unet`; its call is documented there."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        channels, window = config.block_out_channels, (config.end_windows[1],) * config.spatial_dims
        levels = reversed(range(len(channels)))
        self.up_blocks = nnx.List([UpBlock(config, level, rngs=rngs) for level in levels])
        groups = config.num_groups if config.end_groups is None else config.end_groups
        self.conv_norm_out = GroupNorm(channels[0], groups, eps=config.norm_eps)
        outputs = config.patch_channels(config.out_channels)
        self.conv_out = Conv(channels[0], outputs, window, zero=config.zero_init, rngs=rngs)

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        labels: Array | None = None,
        keys: Array | None = None,
        residuals: Residuals | None = None,
        features: Sequence[Array] = (),
        **given: Array | None,
    ) -> Array:
        config = self.config
        there = check_inputs(config, x, t, labels, given)
        blocks = [*self.down_blocks, *([self.mid_block] if config.mid_block else [])]
        label_keys, block_keys = split_keys(keys, [*blocks, *self.up_blocks], config.dropout)
        temb = self.embed(t, labels, label_keys, there).astype(config.dtype)
        x, told = self.prepare(x, there)
        images = x
        if config.frames is not None:
            images, temb, told = _frame_by_frame(x, temb, told)
            block_keys = (_of_frames(each, x.shape[1]) for each in block_keys)
        features = [feature.astype(config.dtype) for feature in features]
        h, skips = self.encode(images, temb, block_keys, told, features=features)
        if residuals is not None:
            h, skips = _joined(h, skips, residuals)
        y = self._decode(h, skips, temb, block_keys, told).astype(jnp.float32)
        y = y.reshape(*x.shape[:-1], -1)
        y = x + y if config.add_input else y
        return y / t.reshape(-1, *(1,) * (y.ndim - 1)) if config.sigma_clock else y

    def attention_map(
        self, x: Array, t: Array, *, labels: Array | None = None, **given: Array | None
    ) -> Array:
        """The attention that each place receives in the middle; see `unet_attention_map`."""
        there = check_inputs(self.config, x, t, labels, given)
        temb = self.embed(t, labels, None, there).astype(self.config.dtype)
        x, told = self.prepare(x, there)
        h, _ = self.descend(x, temb, itertools.repeat(None), told)
        return self.mid_block.attention_map(h, temb)

    def _decode(self, h: Array, skips: list[Array], temb: Array, keys: Keys, told: Told) -> Array:
        """The way up, to an image in the dtype of the computation."""
        config, image = self.config, None
        for block in self.up_blocks:
            count = len(block.resnets)
            used, skips = skips[-count:], skips[:-count]
            size = skips[-1].shape[1:-1] if skips else h.shape[1:-1]
            h, image = block(h, used, temb, keys, size, told, image)
        h = self.conv_out(activation(config.outer_activation)(self.conv_norm_out(h)))
        h = h if image is None else h + image
        return operations.depth_to_space(h, config.patch_size) if config.patch_size > 1 else h


def _joined(h: Array, skips: list[Array], residuals: Residuals) -> tuple[Array, list[Array]]:
    """The outputs of the way down with those of a ControlNet added."""
    kept, middle = residuals
    shapes, given = [skip.shape for skip in (*skips, h)], [each.shape for each in (*kept, middle)]
    # a ControlNet may give one number for each channel
    fit = [
        len(g) == len(s) and all(m in (1, n) for m, n in zip(g, s)) for s, g in zip(shapes, given)
    ]
    if len(kept) != len(skips) or not all(fit):
        raise ValueError(f"residuals are {given}; the network takes {shapes}")
    added = [skip + each.astype(skip.dtype) for skip, each in zip(skips, kept)]
    return h + middle.astype(h.dtype), added


def _frame_by_frame(x: Array, temb: Array, told: Told) -> tuple[Array, Array, Told]:
    """Fold the frames [B, F, H, W, C] into the batch, and repeat what all of them are told."""
    count = x.shape[1]
    repeat = lambda array: None if array is None else jnp.repeat(array, count, axis=0)
    folded = x.reshape(-1, *x.shape[2:])
    return (
        folded,
        jnp.repeat(temb, count, axis=0),
        Told(repeat(told.context), repeat(told.bias), count),
    )


def _of_frames(keys: Array | None, count: int) -> Array | None:
    """A key for each frame, from one for each video."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
