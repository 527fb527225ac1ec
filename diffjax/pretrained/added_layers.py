"""Further layers for a UNet that was loaded, with weights that are stored apart."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from diffjax.networks.functional import flatten, unflatten
from diffjax.networks.unet import unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.pretrained.models import Model
from diffjax.pretrained.weights import to_params

Route = tuple[str, ...]


def with_layers(
    old: Model,
    config: UNetConfig,
    tensors: Mapping[str, Any],
    rename: Callable[[list[Route]], Callable[[str], str]],
) -> Model:
    """The UNet of a larger configuration: with the params that it has, and those of its new layers.

    Args:
      old: the UNet without these layers.
      config: with them.
      tensors: of the new layers, by their stored names.
      rename: from the new params' routes to a function from stored names to torch names.

    Raises:
      ValueError: lists the tensors that are missing, not expected or of another shape.
    """
    network = unet(config)
    shapes = flatten(jax.eval_shape(network.init, jax.random.key(0)))
    known = flatten(old.params)
    new = {route: leaf for route, leaf in shapes.items() if route not in known}
    added = flatten(to_params(tensors, unflatten(new), rename=rename(list(new))))
    return Model(config, network, unflatten({**known, **added}))
