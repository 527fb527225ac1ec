"""The prior of unCLIP: a transformer that denoises an embedding of an image, given one of a text.

    tokens: text, [embedding of the text], [time], [noisy embedding], [query];
    the answer is read where the query was, or, without a query, where the noisy embeddings were

Source: Hierarchical Text-Conditional Image Generation with CLIP Latents, arXiv:2204.06125, section
2.2; Shap-E denoises the latents of a shape so, arXiv:2305.02463.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention
from diffjax.networks.functional import Functional, Params, functional
from diffjax.networks.initialization import filled, parameter, standard_normal
from diffjax.networks.layers import Linear, sinusoidal_features
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock

EPS = 1e-5
# the logits of tokens that a mask hides; a position of which all is hidden sees as without masks
HIDDEN = -10000.0


@dataclass(frozen=True)
class PriorConfig:
    """The shape of a prior; the defaults are those of Karlo's unCLIP.

    Attributes:
      num_layers, num_heads, head_dim: of the transformer.
      embedding_dim: of the noisy embeddings and of the text's tokens.
      num_embeddings: tokens of the text, or, where there is no text, noisy embeddings.
      additional_embeddings: tokens behind the text's that have positions, and are never hidden.
      time_act, time_dim: of the embedding of the time; time_dim None for num_heads x head_dim.
      norm_in: whether the tokens are normalised in front of the first block.
      cond_norm: whether the embedding that conditions is normalised first.
      cond_dim: of it; None for embedding_dim.
      text: whether tokens of a text are projected.
      query: whether a learned token is appended, at which the answer is read.
      out_dim: of the answer; None for embedding_dim.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    num_layers: int = 20
    num_heads: int = 32
    head_dim: int = 64
    embedding_dim: int = 768
    num_embeddings: int = 77
    additional_embeddings: int = 4
    time_act: str = "silu"
    time_dim: int | None = None
    norm_in: bool = False
    cond_norm: bool = False
    cond_dim: int | None = None
    text: bool = True
    query: bool = True
    out_dim: int | None = None
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.num_heads * self.head_dim


def karlo_prior(**changes) -> PriorConfig:
    """The prior of Karlo, an unCLIP with 1.0 billion parameters here."""
    return PriorConfig(**changes)


def prior(config: PriorConfig) -> Functional:
    """The network of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x, t, *, pooled, context=None, context_mask=None, keys=None) -> float32

    Arguments of apply:
      x: [B, embedding_dim] or [B, N, embedding_dim], noisy embeddings.
      t: [B] clock, integers or floats, as the 0 .. 999 of DDPM.
      pooled: [B, cond_dim] or [B, M, cond_dim], embeddings that condition.
      context: [B, num_embeddings, embedding_dim], tokens of the text.
      context_mask: [B, num_embeddings], 0 where tokens must not be seen. With a mask, no token
        sees a later one; without it all see all.
      keys: nothing here is random.

    Returns:
      [B, out_dim] with a query, [B, N, out_dim] without.

    >>> init, apply = prior(PriorConfig(num_layers=1, num_heads=2, head_dim=8, embedding_dim=6))
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> given = {"pooled": jnp.ones((2, 6)), "context": jnp.ones((2, 77, 6))}
    >>> jax.eval_shape(apply, params, jnp.ones((2, 6)), jnp.ones(2), **given).shape
    (2, 6)
    """
    return functional(lambda rngs: Prior(config, rngs=rngs), param_dtype=config.param_dtype)


def to_embedding(params: Params, x: Array) -> Array:
    """The embedding of an image that a denoised x stands for: x std + mean, as learned.

    Args:
      params: of the prior.
      x: [B, embedding_dim].
    """
    return x * params["clip_std"] + params["clip_mean"]


class Prior(nnx.Module):
    """The module behind `prior`; its call is documented there."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        features = config.features
        cond_dim, out_dim = config.cond_dim or config.embedding_dim, _out_dim(config)
        self.config = config
        self.time_embedding = FeedForward(
            features, config.time_dim or features, act=config.time_act, rngs=rngs
        )
        self.proj_in = Linear(config.embedding_dim, features, rngs=rngs)
        self.embedding_proj_norm = LayerNorm(cond_dim, eps=EPS) if config.cond_norm else None
        self.embedding_proj = Linear(cond_dim, features, rngs=rngs)
        self.encoder_hidden_states_proj = (
            Linear(config.embedding_dim, features, rngs=rngs) if config.text else None
        )
        positions = config.num_embeddings + config.additional_embeddings
        small = lambda u: 0.01 * standard_normal(u)
        self.positional_embedding = parameter(rngs, (1, positions, features), small)
        self.prd_embedding = parameter(rngs, (1, 1, features), small) if config.query else None
        self.transformer_blocks = nnx.List(
            [
                TransformerBlock(
                    lambda: LayerNorm(features, eps=EPS),
                    Attention(features, head_dim=config.head_dim, rngs=rngs),
                    FeedForward(features, 4 * features, act="gelu", rngs=rngs),
                )
                for _ in range(config.num_layers)
            ]
        )
        self.norm_in = LayerNorm(features, eps=EPS) if config.norm_in else None
        self.norm_out = LayerNorm(features, eps=EPS)
        self.proj_to_clip_embeddings = Linear(features, out_dim, rngs=rngs)
        # of `to_embedding`
        self.clip_mean = filled((1, out_dim), 0.0)
        self.clip_std = filled((1, out_dim), 1.0)

    def __call__(
        self,
        x: Array,
        t: Array,
        *,
        pooled: Array,
        context: Array | None = None,
        context_mask: Array | None = None,
        keys: Array | None = None,
    ) -> Array:
        config, dtype = self.config, self.config.dtype
        waves = sinusoidal_features(t, config.features, flip_sin_to_cos=True, freq_shift=0.0)
        time = self.time_embedding(waves).astype(dtype)[:, None]
        before = [*self._text(context), self._condition(pooled.astype(dtype)), time]
        noisy = self.proj_in(x.astype(dtype))
        noisy = noisy[:, None] if noisy.ndim == 2 else noisy
        after = []
        if self.prd_embedding is not None:
            query = self.prd_embedding[...].astype(dtype)
            after = [jnp.broadcast_to(query, (len(x), 1, config.features))]
        first = sum(tokens.shape[1] for tokens in before)
        h = jnp.concatenate([*before, noisy, *after], axis=1)
        h = h + self._positions(first, h.shape[1]).astype(dtype)
        bias = None if context_mask is None else self._bias(context_mask, h.shape[1])
        h = h if self.norm_in is None else self.norm_in(h)
        for block in self.transformer_blocks:
            run = lambda h, block=block: block(h, bias=bias)
            h = (jax.checkpoint(run) if config.remat else run)(h)
        h = self.norm_out(h[:, -1] if config.query else h[:, first:])
        return self.proj_to_clip_embeddings(h).astype(jnp.float32)

    def _text(self, context: Array | None) -> list[Array]:
        if (context is None) == self.config.text:
            raise ValueError(f"the prior takes {'a' if self.config.text else 'no'} text as context")
        if context is None or self.encoder_hidden_states_proj is None:
            return []
        return [self.encoder_hidden_states_proj(context.astype(self.config.dtype))]

    def _condition(self, pooled: Array) -> Array:
        if self.embedding_proj_norm is not None:
            pooled = self.embedding_proj_norm(pooled)
        pooled = self.embedding_proj(pooled)
        return pooled[:, None] if pooled.ndim == 2 else pooled

    def _positions(self, first: int, length: int) -> Array:
        """Learned for all tokens, or for the noisy embeddings alone and zero for the others."""
        positions = self.positional_embedding[...]
        if positions.shape[1] < length:
            after = int(self.config.query)
            positions = jnp.pad(positions, ((0, 0), (first, after), (0, 0)))
        if positions.shape[1] != length:
            raise ValueError(
                f"there are {length} tokens and {positions.shape[1]} positions; give as many "
                f"tokens as num_embeddings ({self.config.num_embeddings}) says"
            )
        return positions

    def _bias(self, mask: Array, length: int) -> Array:
        """Hide what the mask hides and what comes later, [B, 1, length, length]."""
        more = self.config.additional_embeddings
        hidden = jnp.pad(1.0 - mask.astype(jnp.float32), ((0, 0), (0, more)))
        later = 1.0 - jnp.tri(length)
        return HIDDEN * (hidden[:, None, None] + later)


def _out_dim(config: PriorConfig) -> int:
    return config.out_dim or config.embedding_dim
