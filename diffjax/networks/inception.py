"""Inception V3 as the evaluation of generated images uses it.

    features = the mean over all places of the last block, 2048 numbers     (FID, KID, PRDC)
    logits   = of the 1008 classes of its training, without their biases    (inception score)

The network is that of TensorFlow's file of 2015, on which all published figures rest: unlike later
versions its averages leave out what lies beyond the edge, and its last block takes a maximum.
Modules have the names of the torch versions of that file.

Source: Rethinking the Inception architecture, arXiv:1512.00567; FID: arXiv:1706.08500.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import filled
from diffjax.networks.layers import Conv, Linear

SIZE = 299  # pixels a side of the images that it was trained on
CLASSES = 1008


class InceptionOutput(NamedTuple):
    """What the network says of images.

    Attributes:
      features: [B, 2048].
      logits: [B, 1008].
    """

    features: Array
    logits: Array


class Unit(NamedTuple):
    """A convolution, a normalisation by stored moments, and a rectifier.

    Attributes:
      name: of its module.
      channels: that it makes.
      window: of the convolution.
      stride: 2 leaves out the edge, 1 keeps the size.
    """

    name: str
    channels: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1


# steps one behind another; the units of a step stand side by side
Branch = tuple[tuple[Unit, ...], ...]

WIDE, HIGH = (1, 7), (7, 1)


def _chain(name: str, *units: tuple) -> Branch:
    """A branch whose units are numbered, or have the name itself where it is a single one."""
    if len(units) == 1:
        return ((Unit(name, *units[0]),),)
    return tuple((Unit(f"{name}_{i}", *unit),) for i, unit in enumerate(units, start=1))


def _fork(name: str, *units: tuple) -> Branch:
    """A chain whose last unit is two, one wide and one high."""
    chain = _chain(name, *units, (384,))[:-1]
    last = f"{name}_{len(units) + 1}"
    return (*chain, (Unit(f"{last}a", 384, (1, 3)), Unit(f"{last}b", 384, (3, 1))))


def _small(pool: int) -> tuple[Branch, ...]:
    return (
        _chain("branch1x1", (64,)),
        _chain("branch5x5", (48,), (64, (5, 5))),
        _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        _chain("branch_pool", (pool,)),
    )


def _factored(width: int) -> tuple[Branch, ...]:
    return (
        _chain("branch1x1", (192,)),
        _chain("branch7x7", (width,), (width, WIDE), (192, HIGH)),
        _chain("branch7x7dbl", (width,), (width, HIGH), (width, WIDE), (width, HIGH), (192, WIDE)),
        _chain("branch_pool", (192,)),
    )


_FORKED = (
    _chain("branch1x1", (320,)),
    _fork("branch3x3", (384,)),
    _fork("branch3x3dbl", (448,), (384, (3, 3))),
    _chain("branch_pool", (192,)),
)

# in front of the blocks: units and what they do at the edge; None is a maximum that halves
STEM: tuple[tuple[Unit, str] | None, ...] = (
    (Unit("Conv2d_1a_3x3", 32, (3, 3), 2), "VALID"),
    (Unit("Conv2d_2a_3x3", 32, (3, 3)), "VALID"),
    (Unit("Conv2d_2b_3x3", 64, (3, 3)), "SAME"),
    None,
    (Unit("Conv2d_3b_1x1", 80), "SAME"),
    (Unit("Conv2d_4a_3x3", 192, (3, 3)), "VALID"),
    None,
)

# name: what is pooled for the last branch, the branches
BLOCKS: dict[str, tuple[str, tuple[Branch, ...]]] = {
    "Mixed_5b": ("mean", _small(32)),
    "Mixed_5c": ("mean", _small(64)),
    "Mixed_5d": ("mean", _small(64)),
    "Mixed_6a": (
        "halve",
        (
            _chain("branch3x3", (384, (3, 3), 2)),
            _chain("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2)),
        ),
    ),
    "Mixed_6b": ("mean", _factored(128)),
    "Mixed_6c": ("mean", _factored(160)),
    "Mixed_6d": ("mean", _factored(160)),
    "Mixed_6e": ("mean", _factored(192)),
    "Mixed_7a": (
        "halve",
        (
            _chain("branch3x3", (192,), (320, (3, 3), 2)),
            _chain("branch7x7x3", (192,), (192, WIDE), (192, HIGH), (192, (3, 3), 2)),
        ),
    ),
    "Mixed_7b": ("mean", _FORKED),
    "Mixed_7c": ("maximum", _FORKED),
}


def inception() -> Functional:
    """Inception V3 as two pure functions.

        init(key) -> params
        apply(params, images) -> InceptionOutput

    Arguments of apply:
      images: [B, H, W, 3] in [-1, 1]; of 299 pixels a side, as in its training, or 75 and more.

    >>> init, apply = inception()
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 299, 299, 3))).features.shape
    (2, 2048)
    """
    return functional(lambda rngs: Inception(rngs=rngs))


class Inception(nnx.Module):
    """The module behind `inception`; its call is documented there."""

    def __init__(self, *, rngs: nnx.Rngs):
        channels = 3
        for unit, padding in filter(None, STEM):
            setattr(self, unit.name, NormedConv(channels, unit, padding, rngs=rngs))
            channels = unit.channels
        for name, (pool, branches) in BLOCKS.items():
            block = Mixed(channels, pool, branches, rngs=rngs)
            setattr(self, name, block)
            channels = block.channels
        self.fc = Linear(channels, CLASSES, rngs=rngs)

    def __call__(self, images: Array) -> InceptionOutput:
        if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 75:
            raise ValueError(
                f"images have shape {images.shape}; Inception takes [B, H, W, 3] of 75 pixels or "
                f"more a side, and was trained on {SIZE}."
            )
        h = images.astype(jnp.float32)
        for step in STEM:
            h = maximum(h, 2) if step is None else getattr(self, step[0].name)(h)
        for name in BLOCKS:
            h = getattr(self, name)(h)
        features = jnp.mean(h, axis=(1, 2))
        # the published inception scores leave the bias out
        return InceptionOutput(features, features @ self.fc.kernel[...])


class Mixed(nnx.Module):
    """Branches side by side, the last of them behind a pooling."""

    def __init__(self, channels: int, pool: str, branches: Sequence[Branch], *, rngs: nnx.Rngs):
        self.pool, self.names = pool, tuple(_names(branch) for branch in branches)
        # a pooling that halves is a branch of its own
        self.channels = channels if pool == "halve" else 0
        for branch in branches:
            width = channels
            for step in branch:
                for unit in step:
                    padding = "SAME" if unit.stride == 1 else "VALID"
                    setattr(self, unit.name, NormedConv(width, unit, padding, rngs=rngs))
                width = sum(unit.channels for unit in step)
            self.channels += width

    def __call__(self, x: Array) -> Array:
        starts = [x] * len(self.names)
        if self.pool != "halve":
            starts[-1] = mean_of_neighbours(x) if self.pool == "mean" else maximum(x, 1)
        ends = [self._walk(names, start) for names, start in zip(self.names, starts)]
        if self.pool == "halve":
            ends.append(maximum(x, 2))
        return jnp.concatenate(ends, axis=-1)

    def _walk(self, names: Sequence[Sequence[str]], h: Array) -> Array:
        for step in names:
            h = jnp.concatenate([getattr(self, name)(h) for name in step], axis=-1)
        return h


class NormedConv(nnx.Module):
    """The module of a `Unit`."""

    def __init__(self, in_channels: int, unit: Unit, padding: str, *, rngs: nnx.Rngs):
        self.conv = Conv(
            in_channels, unit.channels, unit.window,
            strides=unit.stride, padding=0 if padding == "VALID" else "SAME", bias=False, rngs=rngs,
        )  # fmt: skip
        self.bn = StoredNorm(unit.channels)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.bn(self.conv(x)))


class StoredNorm(nnx.Module):
    """Batch normalisation by the moments of the training data."""

    def __init__(self, channels: int):
        self.running_mean, self.running_var = filled((channels,), 0.0), filled((channels,), 1.0)
        self.scale, self.bias = filled((channels,), 1.0), filled((channels,), 0.0)

    def __call__(self, x: Array) -> Array:
        factor = self.scale[...] * lax.rsqrt(self.running_var[...] + 1e-3)
        return (x - self.running_mean[...]) * factor + self.bias[...]


def maximum(x: Array, stride: int) -> Array:
    """The largest of 3x3 neighbours; within the edge where the stride is 2."""
    padding = "SAME" if stride == 1 else "VALID"
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def mean_of_neighbours(x: Array) -> Array:
    """The mean of 3x3 neighbours, of those that there are at the edge."""
    add = partial(
        lax.reduce_window, init_value=0.0, computation=lax.add,
        window_dimensions=(1, 3, 3, 1), window_strides=(1, 1, 1, 1), padding="SAME",
    )  # fmt: skip
    return add(x) / add(jnp.ones((1, *x.shape[1:3], 1)))


def _names(branch: Branch) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(unit.name for unit in step) for step in branch)
