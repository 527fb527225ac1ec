"""A discriminator of patches: each of its outputs says how real one part of an image looks.

    convolutions of width 4 that halve the image, then two that do not; the last has one channel

Its norms are of groups of channels in one image, where the published network has batch norms: so an
image's verdict is the same whatever else is in its batch, and wherever that lies.

Source: Image-to-Image Translation with Conditional Adversarial Networks, arXiv:1611.07004,
appendix 6.1.2; the width and depth of VQGAN, arXiv:2012.09841.
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jax import Array

from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Conv, GroupNorm, require_divisible

WIDEST = 8  # times the first channels
SLOPE = 0.2  # of the activations, for negative numbers
STANDARD_DEVIATION = 0.02  # of the initial kernels
EPS = 1e-5


@dataclass(frozen=True)
class PatchDiscriminatorConfig:
    """The shape of a discriminator; the defaults, 2,765,633 parameters, are the published ones.

    Attributes:
      in_channels: of the images.
      channels: of the first convolution; each further one doubles them, up to 8 times as many.
      num_layers: convolutions that halve the image. With 3, an output sees 70 x 70 pixels.
      num_groups: of the norms.
      dtype: of the computation.
      param_dtype: of the parameters that `init` makes.
    """

    in_channels: int = 3
    channels: int = 64
    num_layers: int = 3
    num_groups: int = 32
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers}; it must be at least 1")
        require_divisible(2 * self.channels, self.num_groups, "2 channels", "num_groups")


def patch_discriminator(config: PatchDiscriminatorConfig) -> Functional:
    """The discriminator of a configuration as two pure functions.

        init(key) -> params
        apply(params, images) -> [B, h, w, 1] float32, h = H / 2^num_layers - 2

    >>> import jax.numpy as jnp
    >>> init, apply = patch_discriminator(PatchDiscriminatorConfig(channels=8, num_groups=4))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 32, 32, 3))).shape
    (2, 2, 2, 1)
    """
    return functional(
        lambda rngs: PatchDiscriminator(config, rngs=rngs), param_dtype=config.param_dtype
    )


class PatchDiscriminator(nnx.Module):
    """The module behind `patch_discriminator`; its call is documented there."""

    def __init__(self, config: PatchDiscriminatorConfig, *, rngs: nnx.Rngs):
        widths = [min(2**i, WIDEST) * config.channels for i in range(config.num_layers + 1)]
        self.config = config
        self.conv_in = _conv(config.in_channels, widths[0], strides=2, rngs=rngs)
        # the last of them keeps the size
        strides = [2] * (config.num_layers - 1) + [1]
        self.convs = nnx.List([
            _conv(below, width, strides=stride, bias=False, rngs=rngs)
            for below, width, stride in zip(widths, widths[1:], strides)
        ])  # fmt: skip
        self.norms = nnx.List(
            [GroupNorm(width, config.num_groups, eps=EPS) for width in widths[1:]]
        )
        self.conv_out = _conv(widths[-1], 1, strides=1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        smallest = 2**self.config.num_layers * 3
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"the images are {x.shape[1:3]}; {self.config.num_layers} layers need {smallest} "
                "pixels a side. Give the discriminator fewer layers"
            )
        h = jax.nn.leaky_relu(self.conv_in(x.astype(self.config.dtype)), SLOPE)
        for conv, norm in zip(self.convs, self.norms):
            h = jax.nn.leaky_relu(norm(conv(h)), SLOPE)
        return self.conv_out(h).astype("float32")


def _conv(inputs: int, outputs: int, *, strides: int, bias: bool = True, rngs: nnx.Rngs) -> Conv:
    """A convolution of width 4 with one zero around the image."""
    conv = Conv(inputs, outputs, (4, 4), strides=strides, padding=1, bias=bias, rngs=rngs)
    shape = (4, 4, inputs, outputs)
    conv.kernel = parameter(rngs, shape, lambda u: STANDARD_DEVIATION * standard_normal(u))
    return conv
