"""The encoder of T5, which conditions Imagen, DeepFloyd IF, PixArt, Stable Diffusion 3 and Flux.

A transformer that sees all of the text, with three differences from CLIP's: RMS norms, attention
without the factor 1 / sqrt(head_dim), and no positions but a learned bias of the logits for each
head and distance of two tokens, shared by all layers.

Source: Exploring the Limits of Transfer Learning, arXiv:1910.10683, section 2.1; version 1.1 with
gated feed-forward networks: arXiv:2002.05202.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention, padding_bias
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Embedding
from diffjax.networks.normalization import RMSNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock

# what T5's configurations call a gated feed-forward network, and its activation
_GATED = "gated-"
_GATED_GELU = "gated-gelu"


@dataclass(frozen=True)
class T5Config:
    """The shape of a T5 encoder; the defaults are those of T5 v1.1 XXL.

    Attributes:
      vocab_size: number of tokens.
      features, hidden: of a token, and inside the feed-forward networks.
      num_layers, num_heads, head_dim: of the transformer.
      num_buckets, max_distance: kinds of distances, and the one from which on all are alike.
      feed_forward: an activation, or "gated-" and an activation; "gated-gelu" has the tanh's GELU.
      norm_eps: of the RMS norms.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    vocab_size: int = 32128
    features: int = 4096
    hidden: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    feed_forward: str = "gated-gelu"
    norm_eps: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"


def t5_xxl(**changes) -> T5Config:
    """The encoder of T5 v1.1 XXL, 4,762,310,656 parameters."""
    return T5Config(**changes)


def t5_encoder(config: T5Config) -> Functional:
    """The encoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, tokens, *, mask=None) -> [B, L, features] float32

    Arguments of apply:
      tokens: [B, L] integers below vocab_size, any L.
      mask: [B, L], 0 where tokens must not be seen; None to see all.

    >>> import jax
    >>> config = T5Config(vocab_size=99, features=32, hidden=48, num_layers=1, num_heads=4)
    >>> init, apply = t5_encoder(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.zeros((2, 20), int)).shape
    (2, 20, 32)
    """
    return functional(lambda rngs: T5Encoder(config, rngs=rngs), param_dtype=config.param_dtype)


class T5Encoder(nnx.Module):
    """The module behind `t5_encoder`; its call is documented there."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.shared = Embedding(config.vocab_size, config.features, rngs=rngs)
        self.relative_attention_bias = Embedding(config.num_buckets, config.num_heads, rngs=rngs)
        self.block = nnx.List([_block(config, rngs) for _ in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.features, eps=config.norm_eps)

    def __call__(self, tokens: Array, *, mask: Array | None = None) -> Array:
        bias = self._distance_bias(tokens.shape[1])
        if mask is not None:
            bias = bias + padding_bias(mask)
        h = self.shared(tokens).astype(self.config.dtype)
        for block in self.block:
            h = block(h, bias=bias)
        return self.final_layer_norm(h).astype(jnp.float32)

    def _distance_bias(self, length: int) -> Array:
        """[1, heads, length, length] float32: for each query and key, that of their distance."""
        distances = np.arange(1 - length, length)
        buckets = distance_buckets(
            distances, num_buckets=self.config.num_buckets, max_distance=self.config.max_distance
        )
        of_distance = self.relative_attention_bias(jnp.asarray(buckets)).astype(jnp.float32)
        places = jnp.arange(length)
        index = places[None, :] - places[:, None] + length - 1
        return jnp.moveaxis(of_distance[index], -1, 0)[None]


def distance_buckets(distances: np.ndarray, *, num_buckets: int, max_distance: int) -> np.ndarray:
    """The kind of each distance, key minus query.

    Half of the kinds are for keys behind the query. Of each half, the first half are the distances
    themselves and the second grows geometrically, up to max_distance; farther ones are the last.
    Source: arXiv:1910.10683, section 2.1.

    >>> distance_buckets(np.array([-3, 0, 3, 500]), num_buckets=32, max_distance=128).tolist()
    [3, 0, 19, 31]
    """
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distances)
    # float32 throughout, as the weights were trained: rounding decides at the edges of the kinds
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    growth = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int64), half - 1)
    return np.where(size < exact, size, far) + np.where(distances > 0, half, 0)


def _block(config: T5Config, rngs: nnx.Rngs) -> TransformerBlock:
    gated = config.feed_forward.startswith(_GATED)
    act = config.feed_forward.removeprefix(_GATED)
    attention = Attention(
        config.features,
        heads=config.num_heads,
        head_dim=config.head_dim,
        bias=False,
        out_bias=False,
        scale=1.0,
        rngs=rngs,
    )
    feed_forward = FeedForward(
        config.features,
        config.hidden,
        act="gelu_new" if config.feed_forward == _GATED_GELU else act,
        gate=gated,
        bias=False,
        rngs=rngs,
    )
    norm = lambda: RMSNorm(config.features, eps=config.norm_eps)
    return TransformerBlock(norm, attention, feed_forward)
