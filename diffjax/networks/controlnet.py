"""ControlNet: a copy of a UNet's way down that sees a picture, and tells the UNet what it saw.

    h = conv_in(x) + embedding(condition);   residual_i = W_i (output i of the way down)

The residuals, the last of them from the middle block, are added to the outputs of the UNet's own
way down and middle. All W start at zero, so that training begins with the UNet as it was.

Source: Adding Conditional Control to Text-to-Image Diffusion Models, arXiv:2302.05543, section 3.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.functional import (
    Functional,
    Params,
    flatten,
    functional,
    require_matching,
    unflatten,
)
from diffjax.networks.layers import Conv
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_encoder import Encoder, check_inputs, split_keys
from diffjax.networks.unet_latent_presets import sd1_unet, sdxl_unet

# what a UNet does not have
_OWN = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")


@dataclass(frozen=True)
class ControlNetConfig:
    """The shape of a ControlNet.

    Attributes:
      encoder: of the UNet that it steers, of which the way up and the dtypes are ignored.
      condition_channels: of the picture.
      condition_widths: of the convolutions that bring it to the size of the latents; each but the
        first halves it.
      bgr: the picture's channels are taken in reverse.
      pooled: each residual is one number for every channel, its mean over the positions.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    encoder: UNetConfig
    condition_channels: int = 3
    condition_widths: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False
    pooled: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"


def sd1_controlnet(**changes) -> ControlNetConfig:
    """ControlNets of Stable Diffusion 1, 361 million parameters (arXiv:2302.05543, section 3.2)."""
    return ControlNetConfig(**{"encoder": sd1_unet(), **changes})


def sdxl_controlnet(**changes) -> ControlNetConfig:
    """ControlNets of SDXL, 1.25 billion parameters."""
    return ControlNetConfig(**{"encoder": sdxl_unet(), **changes})


def controlnet(config: ControlNetConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, condition, scale=1.0, guess=False, labels=None, keys=None, **given)
            -> (residuals of the way down, residual of the middle)

    The result is the argument `residuals` of the UNet; those of several ControlNets are added up.

    Arguments of apply:
      x, t, labels, keys, given: as of `unet`.
      condition: [B, height, width, condition_channels] in [0, 1], 2^(len(condition_widths) - 1)
        times as large as x.
      scale: factor on the residuals.
      guess: let the factors grow from 0.1 at the finest to 1 at the coarsest, for networks that are
        told no text; without effect on pooled residuals.

    >>> from diffjax.networks.unet_context import ContextConfig
    >>> shape = {"block_out_channels": (8, 8), "num_groups": 4, "in_channels": 4}
    >>> context = ContextConfig(features=6, num_heads=2)
    >>> encoder = UNetConfig(**shape, attention=("transformer", False), context=context)
    >>> init, apply = controlnet(ControlNetConfig(encoder, condition_widths=(4, 8)))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> told = {"context": jnp.ones((1, 7, 6)), "condition": jnp.ones((1, 16, 16, 3))}
    >>> kept, middle = jax.eval_shape(apply, params, jnp.ones((1, 8, 8, 4)), jnp.ones(1), **told)
    >>> len(kept), middle.shape
    (6, (1, 4, 4, 8))
    """
    return functional(lambda rngs: ControlNet(config, rngs=rngs), param_dtype=config.param_dtype)


def controlnet_from_unet(key: Array, config: ControlNetConfig, unet_params: Params) -> Params:
    """Params of a ControlNet with which training begins: the way down of a UNet, zeros behind it.

    Args:
      key: of what the UNet does not have, the embedding of the picture.
      config: its encoder is that of the UNet.
      unet_params: of the UNet.

    Raises:
      ValueError: the UNet is not of that shape.
    """
    flat = flatten(controlnet(config).init(key))
    given = flatten(unet_params)
    wanted = {route: leaf.shape for route, leaf in flat.items() if route[0] not in _OWN}
    there = {route: given[route] for route in wanted if route in given}
    require_matching(there, wanted)
    return unflatten({**flat, **there})


class ControlNet(Encoder):
    """The module behind `controlnet`; its call is documented there."""

    def __init__(self, config: ControlNetConfig, *, rngs: nnx.Rngs):
        encoder = dataclasses.replace(
            config.encoder, dtype=config.dtype, param_dtype=config.param_dtype
        )
        super().__init__(encoder, rngs=rngs)
        self.control = config
        self.controlnet_cond_embedding = Condition(config, encoder.first_channels, rngs=rngs)
        zero = lambda channels: Conv(channels, channels, (1, 1), zero=True, rngs=rngs)
        widths = [encoder.first_channels]
        for channels, block in zip(encoder.block_out_channels, self.down_blocks):
            widths += [channels] * (len(block.resnets) + (block.kind is not None))
        self.controlnet_down_blocks = nnx.List([zero(channels) for channels in widths])
        self.controlnet_mid_block = zero(encoder.block_out_channels[-1])

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        condition: Array,
        scale: float | Array = 1.0,
        guess: bool = False,
        labels: Array | None = None,
        keys: Array | None = None,
        **given: Array | None,
    ) -> tuple[list[Array], Array]:
        config = self.config
        there = check_inputs(config, x, t, labels, given)
        _check_condition(self.control, x, condition)
        condition = condition[..., ::-1] if self.control.bgr else condition
        blocks = [*self.down_blocks, *([self.mid_block] if config.mid_block else [])]
        label_keys, block_keys = split_keys(keys, blocks, config.dropout)
        temb = self.embed(t, labels, label_keys, there).astype(config.dtype)
        x, told = self.prepare(x, there)
        joined = self.controlnet_cond_embedding(condition.astype(config.dtype))
        h, skips = self.encode(x, temb, block_keys, told, joined=joined)
        *kept, middle = self._scaled(
            [zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips)]
            + [self.controlnet_mid_block(h)],
            scale,
            guess,
        )
        return kept, middle

    def _scaled(self, residuals: list[Array], scale: float | Array, guess: bool) -> list[Array]:
        if self.control.pooled:
            return [r.mean((1, 2), keepdims=True) * scale for r in residuals]
        factors = jnp.logspace(-1, 0, len(residuals)) if guess else jnp.ones(len(residuals))
        return [r * (factor * scale).astype(r.dtype) for r, factor in zip(residuals, factors)]


class Condition(nnx.Module):
    """Convolutions that bring a picture to the size and the channels of the first features."""

    def __init__(self, config: ControlNetConfig, channels: int, *, rngs: nnx.Rngs):
        widths = config.condition_widths
        conv = lambda inputs, outputs, **options: Conv(
            inputs, outputs, (3, 3), padding=1, **options, rngs=rngs
        )
        self.conv_in = conv(config.condition_channels, widths[0])
        pairs = [
            (conv(before, before), conv(before, after, strides=2))
            for before, after in itertools.pairwise(widths)
        ]
        self.blocks = nnx.List([each for pair in pairs for each in pair])
        self.conv_out = conv(widths[-1], channels, zero=True)

    def __call__(self, picture: Array) -> Array:
        h = jax.nn.silu(self.conv_in(picture))
        for conv in self.blocks:
            h = jax.nn.silu(conv(h))
        return self.conv_out(h)


def _check_condition(config: ControlNetConfig, x: Array, condition: Array) -> None:
    factor = 2 ** (len(config.condition_widths) - 1)
    expected = (len(x), *(factor * n for n in x.shape[1:-1]), config.condition_channels)
    if condition.shape != expected:
        raise ValueError(f"condition is {condition.shape}; for x {x.shape} it must be {expected}")
