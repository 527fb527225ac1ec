"""The networks of IP-Adapters that make tokens of an image.

Of the embedding of an image:

    tokens = norm(W embedding),    several for each embedding

of that of a face (FaceID), through a hidden layer:

    tokens = norm(W2 GELU(W1 embedding))

Of all states of the image encoder, which the tokens resample (IP-Adapter Plus): each block is

    z = z + Attention(norm(z), [norm(x), norm(z)]);    z = z + W2 GELU(W1 norm(z))

from learned z, and tokens = norm(W_out z).
Sources: IP-Adapter, arXiv:2308.06721, section 3.2.1; Flamingo, arXiv:2204.14198, section 2.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention
from diffjax.networks.functional import Functional, Params, functional
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Linear
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward
from diffjax.networks.unet_conditioning import ImageTokens

EPS = 1e-5


@dataclass(frozen=True)
class ImageTokensConfig:
    """The shape of the layer that makes tokens of the embedding of an image.

    Attributes:
      embedding_features: of the embedding.
      features: of a token.
      count: of the tokens.
      hidden: of the layer between, for embeddings of faces; None for none.
      dtype, param_dtype: of the computation and of the parameters.
    """

    embedding_features: int
    features: int
    count: int = 4
    hidden: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"


@dataclass(frozen=True)
class ResamplerConfig:
    """The shape of the network that makes tokens of all states of an image encoder.

    Attributes:
      state_features: of a state.
      features: of a token.
      count: of the tokens.
      width: of the blocks.
      depth: how many blocks.
      heads, head_dim: of their attention.
      hidden: of their feed-forward networks.
      dtype, param_dtype: of the computation and of the parameters.
    """

    state_features: int = 1280
    features: int = 768
    count: int = 16
    width: int = 768
    depth: int = 4
    heads: int = 12
    head_dim: int = 64
    hidden: int = 3072
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
    if config.hidden is not None:
        return _in_dtype(config, lambda rngs: FaceTokens(config, config.hidden or 0, rngs=rngs))
    make = lambda rngs: ImageTokens(
        config.embedding_features, config.features, count=config.count, rngs=rngs
    )
    return _in_dtype(config, make)


def resampler(config: ResamplerConfig) -> Functional:
    """The network as two pure functions; apply(params, states [B, S, D]) -> [B, count, features].

    >>> import jax
    >>> config = ResamplerConfig(state_features=8, features=6, count=3, width=4, heads=2)
    >>> init, apply = resampler(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.ones((2, 5, 8))).shape
    (2, 3, 6)
    """
    return _in_dtype(config, lambda rngs: Resampler(config, rngs=rngs))


def _in_dtype(
    config: ImageTokensConfig | ResamplerConfig, make: Callable[[nnx.Rngs], Any]
) -> Functional:
    network = functional(make, param_dtype=config.param_dtype)

    def apply(params: Params, seen: Array) -> Array:
        return network.apply(params, jnp.asarray(seen, config.dtype))

    return Functional(network.init, apply)


class FaceTokens(nnx.Module):
    """Tokens of the embedding of a face.

    Source: IP-Adapter-FaceID, Tencent AI Lab 2023.
    """

    def __init__(self, config: ImageTokensConfig, hidden: int, *, rngs: nnx.Rngs):
        outputs = config.count * config.features
        self.ff = FeedForward(config.embedding_features, hidden, outputs, act="gelu", rngs=rngs)
        self.norm = LayerNorm(config.features, eps=EPS)
        self.count = config.count

    def __call__(self, embedding: Array) -> Array:
        return self.norm(self.ff(embedding).reshape(len(embedding), self.count, -1))


class Resampler(nnx.Module):
    """The module behind `resampler`; its call is documented there."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        width = config.width
        law = lambda u: standard_normal(u) / width**0.5
        self.latents = parameter(rngs, (1, config.count, width), law)
        self.proj_in = Linear(config.state_features, width, rngs=rngs)
        self.layers = nnx.List([ResamplerBlock(config, rngs=rngs) for _ in range(config.depth)])
        self.proj_out = Linear(width, config.features, rngs=rngs)
        self.norm_out = LayerNorm(config.features, eps=EPS)

    def __call__(self, states: Array) -> Array:
        x = self.proj_in(states)
        z = jnp.broadcast_to(self.latents[...], (len(x), *self.latents.shape[1:])).astype(x.dtype)
        for layer in self.layers:
            z = layer(x, z)
        return self.norm_out(self.proj_out(z))


class ResamplerBlock(nnx.Module):
    """What latents z find in states x and in each other, and a feed-forward network."""

    def __init__(self, config: ResamplerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.norm1, self.norm2 = LayerNorm(width, eps=EPS), LayerNorm(width, eps=EPS)
        self.attn = Attention(
            width,
            head_dim=config.head_dim,
            heads=config.heads,
            context_features=width,
            bias=False,
            out_bias=False,
            rngs=rngs,
        )
        self.ff_norm = LayerNorm(width, eps=EPS)
        self.ff = FeedForward(width, config.hidden, act="gelu", bias=False, rngs=rngs)

    def __call__(self, x: Array, z: Array) -> Array:
        """x: [B, S, width], z: [B, count, width] -> [B, count, width]."""
        own = self.norm2(z)
        z = z + self.attn(own, jnp.concatenate([self.norm1(x), own], axis=1))
        return z + self.ff(self.ff_norm(z))
