"""Images beside the features of a UNet: its input on the way down, its output on the way up.

    input   the image is halved with the features and joined into them at each resolution:
            "sum", "cat"   h = h + W image   or   [W image, h],    image halved without weights
            "residual"     h = scale (h + conv(h_before)),    from one resolution to the next
    output  each resolution adds its own image, conv(SiLU(norm(h))), to that of the coarser one

Source: score SDEs, arXiv:2011.13456, appendix H (progressive growing, "input skip", "output skip"
and "residual"), after StyleGAN2, arXiv:1912.04958, section 4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.layers import Conv, GroupNorm, enlarge, halve
from diffjax.networks.unet_config import UNetConfig

# averages pairs
BOX = (1.0, 1.0)


class InputPyramid(nnx.Module):
    """Joins the image into the halved features of one level.

    Args:
      fir: taps of the filter in front of the halving; None to average pairs.
    """

    def __init__(
        self, config: UNetConfig, level: int, fir: Sequence[float] | None, *, rngs: nnx.Rngs
    ):
        self.kind = config.progressive_input
        self.fir = BOX if fir is None else tuple(fir)
        self.residual_scale = config.residual_scale
        width, dims = config.block_out_channels[level], config.spatial_dims
        image = config.patch_channels(config.in_channels)
        if self.kind == "residual":
            above = config.block_out_channels[level - 1] if level else image
            self.conv = Conv(above, width, (3,) * dims, strides=2, padding="VALID", rngs=rngs)
        else:
            self.conv = Conv(image, width, (1,) * dims, rngs=rngs)

    def __call__(self, h: Array, image: Array) -> tuple[Array, Array]:
        """h: the halved features; image: not yet halved. Returns both at the resolution of h."""
        if self.kind == "residual":
            # padded once for the filter and the convolution together
            length = len(self.fir)
            smooth = operations.fir(image, self.fir, padding=((length + 1) // 2, length // 2))
            h = (h + self.conv(smooth)) * self.residual_scale
            return h, h
        image = halve(image, self.fir)
        joined = self.conv(image)
        h = h + joined if self.kind == "sum" else jnp.concatenate([joined, h], axis=-1)
        return h, image


class OutputPyramid(nnx.Module):
    """Adds the image of one level to the coarser ones, and enlarges the sum for the next level."""

    def __init__(
        self, config: UNetConfig, level: int, fir: Sequence[float] | None, *, rngs: nnx.Rngs
    ):
        width, dims = config.block_out_channels[level], config.spatial_dims
        image = config.patch_channels(config.out_channels)
        self.norm = GroupNorm(width, config.num_groups, eps=config.norm_eps)
        self.conv = Conv(width, image, (3,) * dims, zero=config.zero_init, rngs=rngs)
        self.fir = fir

    def __call__(self, h: Array, image: Array | None, size: Sequence[int]) -> Array:
        """h: [B, *spatial, C]; image: of the coarser levels; size: of the next level."""
        own = self.conv(jax.nn.silu(self.norm(h)))
        return enlarge(own if image is None else image + own, size, self.fir)
