"""The text encoder of the first latent diffusion model that drew from prompts.

A transformer whose tokens all see each other, trained together with the diffusion model, and with
heads that need not make up the features of a token.

Source: Latent Diffusion, arXiv:2112.10752, section 4.3.1 and table 15.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention, padding_bias
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Embedding
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock

EPS = 1e-5


@dataclass(frozen=True)
class LDMBertConfig:
    """The shape of the encoder; the defaults are those of the published one.

    Attributes:
      vocab_size: number of tokens.
      features, hidden: of a token, and inside the feed-forward networks.
      num_layers, num_heads, head_dim: of the transformer.
      max_positions: the longest text.
      act: activation of the feed-forward networks.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    vocab_size: int = 30522
    features: int = 1280
    hidden: int = 5120
    num_layers: int = 32
    num_heads: int = 8
    head_dim: int = 64
    max_positions: int = 77
    act: str = "gelu"
    dtype: str = "float32"
    param_dtype: str = "float32"


def ldmbert(config: LDMBertConfig) -> Functional:
    """The text encoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, tokens, *, mask=None) -> states [B, L, features] float32, normalised

    Arguments of apply:
      tokens: [B, L] integers below vocab_size, L at most max_positions.
      mask: [B, L], 0 where tokens must not be seen; None to see all, as its diffusion model does.

    >>> import jax
    >>> config = LDMBertConfig(vocab_size=99, features=32, hidden=40, num_layers=1)
    >>> init, apply = ldmbert(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.zeros((2, 77), int)).shape
    (2, 77, 32)
    """
    return functional(lambda rngs: LDMBert(config, rngs=rngs), param_dtype=config.param_dtype)


class LDMBert(nnx.Module):
    """The module behind `ldmbert`; its call is documented there."""

    def __init__(self, config: LDMBertConfig, *, rngs: nnx.Rngs):
        width = config.features
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, width, rngs=rngs)
        self.embed_positions = Embedding(config.max_positions, width, rngs=rngs)
        attention = lambda: Attention(
            width, head_dim=config.head_dim, heads=config.num_heads, bias=False, rngs=rngs
        )
        feed_forward = lambda: FeedForward(width, config.hidden, act=config.act, rngs=rngs)
        norm = lambda: LayerNorm(width, eps=EPS)
        self.layers = nnx.List(
            [TransformerBlock(norm, attention(), feed_forward()) for _ in range(config.num_layers)]
        )
        self.layer_norm = norm()

    def __call__(self, tokens: Array, *, mask: Array | None = None) -> Array:
        config, length = self.config, tokens.shape[1]
        if length > config.max_positions:
            raise ValueError(
                f"the texts have {length} tokens, the encoder takes {config.max_positions}"
            )
        h = self.embed_tokens(tokens) + self.embed_positions(jnp.arange(length))
        h = h.astype(config.dtype)
        bias = None if mask is None else padding_bias(mask)
        for layer in self.layers:
            h = layer(h, bias=bias)
        return self.layer_norm(h).astype(jnp.float32)
