"""The text encoder of CLAP, which conditions AudioLDM.

A transformer in the manner of RoBERTa: norms behind the residuals, positions that count tokens
other than padding. The state at the first token stands for the text.

Source: Large-scale Contrastive Language-Audio Pretraining, arXiv:2211.06687; RoBERTa,
arXiv:1907.11692.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention, padding_bias
from diffjax.networks.clip import Encoding
from diffjax.networks.functional import Functional, functional
from diffjax.networks.layers import Embedding, Linear, require_divisible
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock


@dataclass(frozen=True)
class CLAPTextConfig:
    """The shape of a CLAP text encoder; the defaults are those of the published one.

    Attributes:
      vocab_size, token_types: numbers of tokens and of their types; only the first type is used.
      hidden_size, intermediate_size: features of a token, and inside the feed-forward networks.
      num_layers, num_heads: of the transformer.
      max_positions: rows of the table of positions; the first pad_token + 1 are for padding.
      pad_token: the token that fills up texts.
      act, projection_act: activations of the feed-forward networks and of the last projection.
      norm_eps: of the layer norms.
      projection_dim: features of the pooled state.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    vocab_size: int = 50265
    token_types: int = 1
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 514
    pad_token: int = 1
    act: str = "gelu"
    projection_act: str = "relu"
    norm_eps: float = 1e-12
    projection_dim: int = 512
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.hidden_size, self.num_heads, "hidden_size", "num_heads")


def clap_text(config: CLAPTextConfig) -> Functional:
    """The text encoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, tokens, *, mask=None) -> Encoding, with pooled [B, projection_dim]

    Arguments of apply:
      tokens: [B, L] integers below vocab_size; a text of more than max_positions - pad_token - 1
        tokens besides padding gives NaN.
      mask: [B, L], 0 where tokens must not be seen; None to see all.

    >>> import jax
    >>> config = CLAPTextConfig(vocab_size=99, hidden_size=32, num_heads=4, num_layers=1)
    >>> init, apply = clap_text(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.zeros((2, 20), int)).pooled.shape
    (2, 512)
    """
    return functional(lambda rngs: CLAPText(config, rngs=rngs), param_dtype=config.param_dtype)


class CLAPText(nnx.Module):
    """The module behind `clap_text`; its call is documented there."""

    def __init__(self, config: CLAPTextConfig, *, rngs: nnx.Rngs):
        width, out = config.hidden_size, config.projection_dim
        self.config = config
        self.word_embeddings = Embedding(config.vocab_size, width, rngs=rngs)
        self.token_type_embeddings = Embedding(config.token_types, width, rngs=rngs)
        self.position_embeddings = Embedding(config.max_positions, width, rngs=rngs)
        norm = lambda: LayerNorm(width, eps=config.norm_eps)
        self.embedding_norm = norm()
        self.layers = nnx.List(
            [
                TransformerBlock(
                    norm,
                    Attention(width, head_dim=width // config.num_heads, rngs=rngs),
                    FeedForward(width, config.intermediate_size, act=config.act, rngs=rngs),
                    post_norm=True,
                )
                for _ in range(config.num_layers)
            ]
        )
        self.pooler = Linear(width, width, rngs=rngs)
        self.text_projection = FeedForward(width, out, out, act=config.projection_act, rngs=rngs)

    def __call__(self, tokens: Array, *, mask: Array | None = None) -> Encoding:
        config = self.config
        if tokens.shape[1] > config.max_positions:
            raise ValueError(
                f"the texts have {tokens.shape[1]} tokens, the encoder takes {config.max_positions}"
            )
        counted = tokens != config.pad_token
        positions = jnp.cumsum(counted, axis=1) * counted + config.pad_token
        h = self.word_embeddings(tokens) + self.position_embeddings(positions)
        h = self.embedding_norm((h + self.token_type_embeddings(jnp.array(0))).astype(config.dtype))
        bias = None if mask is None else padding_bias(mask)
        hidden = [h]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], bias=bias))
        pooled = self.text_projection(jnp.tanh(self.pooler(hidden[-1][:, 0])))
        wide = [state.astype(jnp.float32) for state in hidden]
        return Encoding(wide[-1], pooled.astype(jnp.float32), tuple(wide))
