"""What the decoder of unCLIP is told: an embedding of an image, and a text.

    added   = W image + V pooled               joins the embedding of the time
    context = [tokens of the image | norm(U text)]

Source: Hierarchical Text-Conditional Image Generation with CLIP Latents, arXiv:2204.06125,
section 2.1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Linear
from diffjax.networks.normalization import LayerNorm

EPS = 1e-5


@dataclass(frozen=True)
class ImageAndTextConfig:
    """The shape of the projections; the defaults are those of Karlo.

    Attributes:
      embedding_dim: of the embeddings of images and texts, and of the states of the text.
      time_features: of the embedding of the time in the UNet.
      context_dim: of a token that the UNet attends to.
      num_tokens: that an embedding of an image becomes.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    embedding_dim: int = 768
    time_features: int = 1536
    context_dim: int = 1536
    num_tokens: int = 4
    dtype: str = "float32"
    param_dtype: str = "float32"


class Told(NamedTuple):
    """What the UNet of the decoder takes.

    Attributes:
      labels: [B, time_features], joins the embedding of the time.
      context: [B, num_tokens + L, context_dim].
    """

    labels: Array
    context: Array


def image_and_text(config: ImageAndTextConfig) -> Functional:
    """The projections of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, image, pooled, text, *, has_image) -> Told

    Arguments of apply:
      image: [B, embedding_dim], the embedding of an image.
      pooled: [B, embedding_dim], that of a text.
      text: [B, L, embedding_dim], the states of the text.
      has_image: [B], 0 where a learned embedding stands for no image.

    >>> import jax
    >>> shape = {"embedding_dim": 6, "time_features": 8, "context_dim": 5}
    >>> init, apply = image_and_text(ImageAndTextConfig(**shape))
    >>> params, one = jax.eval_shape(init, jax.random.key(0)), jnp.ones((2, 6))
    >>> text = jnp.ones((2, 7, 6))
    >>> jax.eval_shape(apply, params, one, one, text, has_image=jnp.ones(2)).context.shape
    (2, 11, 5)
    """
    return functional(lambda rngs: ImageAndText(config, rngs=rngs), param_dtype=config.param_dtype)


class ImageAndText(nnx.Module):
    """The module behind `image_and_text`; its call is documented there."""

    def __init__(self, config: ImageAndTextConfig, *, rngs: nnx.Rngs):
        given, width = config.embedding_dim, config.context_dim
        self.config = config
        self.no_image = parameter(rngs, (given,), standard_normal)
        self.pooled_proj = Linear(given, config.time_features, rngs=rngs)
        self.image_proj = Linear(given, config.time_features, rngs=rngs)
        self.tokens_proj = Linear(given, config.num_tokens * width, rngs=rngs)
        self.text_proj = Linear(given, width, rngs=rngs)
        self.text_norm = LayerNorm(width, eps=EPS)

    def __call__(self, image: Array, pooled: Array, text: Array, *, has_image: Array) -> Told:
        count = self.config.num_tokens
        image = jnp.where(has_image[:, None] > 0, image, self.no_image[...])
        image, pooled, text = (each.astype(self.config.dtype) for each in (image, pooled, text))
        labels = self.image_proj(image) + self.pooled_proj(pooled)
        # the tokens lie across the features, as in the published weights
        tokens = jnp.swapaxes(self.tokens_proj(image).reshape(len(image), -1, count), 1, 2)
        context = jnp.concatenate([tokens, self.text_norm(self.text_proj(text))], axis=1)
        return Told(labels.astype(jnp.float32), context.astype(jnp.float32))
