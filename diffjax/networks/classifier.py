"""Classifiers of noisy images: the way down of a UNet, and a vote of what it ends with.

Trained on x at every level and told the clock, such a network is what classifier guidance leans on
(`diffjax.classifier_guidance`); at clock 0 alone it is an ordinary classifier.

Source: ADM, arXiv:2105.05233, section 4.1, with an average in the place of attention pooling.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.activations import activation
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import GroupNorm, Linear
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_encoder import Encoder, check_inputs, split_keys


def classifier(config: UNetConfig) -> Functional:
    """A classifier with the encoder of a UNet, as two pure functions.

        init(key) -> params
        apply(params, x, t, *, keys=None) -> [B, num_classes] float32 logits

    Arguments of apply:
      x: [B, *spatial, in_channels], noisy.
      t: [B] clock.
      keys: [B] PRNG keys, in training only: they switch on dropout.

    Args:
      config: of the UNet; num_classes is what the logits are of. The network itself is not told
        a label.

    Raises:
      ValueError: the configuration has no classes.

    >>> import jax
    >>> config = UNetConfig(
    ...     block_out_channels=(8, 8), attention=(False, False), num_groups=4, num_classes=10
    ... )
    >>> init, apply = classifier(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 3)), jnp.ones(2)).shape
    (2, 10)
    """
    if config.num_classes is None:
        raise ValueError("num_classes is None; a classifier needs their number.")
    count = config.num_classes
    blind = dataclasses.replace(config, num_classes=None, cond_drop_prob=0.0)
    return functional(
        lambda rngs: Classifier(blind, count, rngs=rngs), param_dtype=config.param_dtype
    )


class Classifier(Encoder):
    """The module behind `classifier`; its call is documented there."""

    def __init__(self, config: UNetConfig, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        channels = config.block_out_channels[-1]
        self.norm_out = GroupNorm(channels, config.num_groups, eps=config.norm_eps)
        self.out = Linear(channels, num_classes, rngs=rngs)

    def __call__(self, x: Array, t: Array, *, keys: Array | None = None) -> Array:
        config = self.config
        check_inputs(config, x, t, None, {})
        blocks = [*self.down_blocks, *([self.mid_block] if config.mid_block else [])]
        _, block_keys = split_keys(keys, blocks, config.dropout)
        temb = self.embed(t, None, None, {}).astype(config.dtype)
        x, told = self.prepare(x, {})
        h, _ = self.encode(x, temb, block_keys, told)
        h = activation(config.outer_activation)(self.norm_out(h)).astype(jnp.float32)
        return self.out(jnp.mean(h, axis=tuple(range(1, h.ndim - 1))))
