"""The layer of an IP-Adapter that makes tokens of the embedding of an image.

    tokens = norm(W embedding),    several for each embedding

Source: IP-Adapter, arXiv:2308.06721, section 3.2.1.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from diffjax.networks.functional import Functional, Params, functional
from diffjax.networks.unet_conditioning import ImageTokens


@dataclass(frozen=True)
class ImageTokensConfig:
    """The shape of the layer that makes tokens of the embedding of an image.

    Attributes:
      embedding_features: of the embedding.
      features: of a token.
      count: of the tokens.
      dtype, param_dtype: of the computation and of the parameters.
    """

    embedding_features: int
    features: int
    count: int = 4
    dtype: str = "float32"
    param_dtype: str = "float32"


def image_tokens(config: ImageTokensConfig) -> Functional:
    """The layer as two pure functions; apply(params, embedding [B, D]) -> [B, count, features].

    >>> import jax
    >>> init, apply = image_tokens(ImageTokensConfig(embedding_features=8, features=6))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 8))).shape
    (2, 4, 6)
    """
    layer = functional(
        lambda rngs: ImageTokens(
            config.embedding_features, config.features, count=config.count, rngs=rngs
        ),
        param_dtype=config.param_dtype,
    )

    def apply(params: Params, embedding: Array) -> Array:
        return layer.apply(params, jnp.asarray(embedding, config.dtype))

    return Functional(layer.init, apply)
