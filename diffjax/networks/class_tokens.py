"""A label as the one token of a context: a UNet attends to its class as it would to a text.

Source: Latent Diffusion, arXiv:2112.10752, section 3.3 and appendix E.1, for ImageNet.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from diffjax.core.keys import fold_in_each
from diffjax.networks.embeddings import drop_labels
from diffjax.networks.functional import Functional, Params, functional
from diffjax.networks.layers import Embedding
from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig

_DROP = 1000  # folded into a sample's key; the network splits it


def class_tokens(config: UNetConfig, make: Callable[[UNetConfig], Functional] = unet) -> Functional:
    """A network with a context that is told a label instead, as two pure functions.

        init(key) -> {"unet": ..., "class_token": ...}
        apply(params, x, t, *, labels, keys=None) -> what the network makes of them

    Args:
      config: with a context and num_classes. The label goes into the context alone; with
        cond_drop_prob it is the null label, num_classes, now and then in training.
      make: the network of a configuration without labels.

    Raises:
      ValueError: the configuration has no context or no classes.

    >>> import jax.numpy as jnp
    >>> from diffjax.networks.unet_context import ContextConfig
    >>> config = UNetConfig(block_out_channels=(8, 8), attention=("transformer", False),
    ...     mid_attention=False, num_groups=4, num_classes=10,
    ...     context=ContextConfig(features=4, num_heads=1))
    >>> init, apply = class_tokens(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> given = {"labels": jnp.ones(2, int)}
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8, 8, 3)), jnp.ones(2), **given).shape
    (2, 8, 8, 3)
    """
    context, classes, prob = config.context, config.num_classes, config.cond_drop_prob
    if context is None or classes is None:
        raise ValueError(
            f"context is {context} and num_classes is {classes}; a class that is a token needs both"
        )
    network = make(dataclasses.replace(config, num_classes=None, cond_drop_prob=0.0))
    rows = classes + (prob > 0)
    table = functional(
        lambda rngs: Embedding(rows, context.width, rngs=rngs), param_dtype=config.param_dtype
    )

    def init(key: Array) -> Params:
        own, its = jax.random.split(key)
        return {"unet": network.init(own), "class_token": table.init(its)}

    def apply(
        params: Params,
        x: Array,
        t: Array,
        *,
        labels: Array,
        keys: Array | None = None,
        **given: Any,
    ) -> Array:
        if keys is not None and prob > 0:
            labels = drop_labels(labels, fold_in_each(keys, _DROP), null=classes, prob=prob)
        token = table.apply(params["class_token"], labels)[:, None]
        return network.apply(params["unet"], x, t, context=token, keys=keys, **given)

    return Functional(init, apply)
