"""Texts and images as tokens for the attentions of a UNet, and as vectors beside the time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks import operations
from diffjax.networks.attention import Attention
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Conv, Linear, TimeEmbedding, sinusoidal_features
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock
from diffjax.networks.unet_context import HINT_CHANNELS, ContextConfig, at_level

EPS = 1e-5

# channels and strides of the convolutions that bring a hint to the size of the input
HINT_STAGES = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2), (HINT_CHANNELS, 1))


class ImageTokens(nnx.Module):
    """An embedding of an image as several tokens, followed by those of a text where there is one.

    Source: Kandinsky, arXiv:2310.03502, section 3; IP-Adapter, arXiv:2308.06721, section 3.2.1.
    """

    def __init__(
        self, image: int, features: int, *, count: int, text: int | None = None, rngs: nnx.Rngs
    ):
        self.image_embeds = Linear(image, count * features, rngs=rngs)
        self.norm = LayerNorm(features, eps=EPS) if text is None else None
        self.text_proj = None if text is None else Linear(text, features, rngs=rngs)
        self.count = count

    def __call__(self, image: Array, text: Array | None = None) -> Array:
        """image: [B, image]; text: [B, S, text] -> [B, count (+ S), features]."""
        tokens = self.image_embeds(image).reshape(len(image), self.count, -1)
        if self.text_proj is not None and text is not None:
            return jnp.concatenate([tokens, self.text_proj(text)], axis=1)
        return tokens if self.norm is None else self.norm(tokens)


class PooledText(nnx.Module):
    """The tokens of a text as one vector: what their mean, with a position, attends to.

    Source: Imagen, arXiv:2205.11487, section 2.3, with the pooling of CLIP, arXiv:2103.00020,
    section 2.4.
    """

    def __init__(self, features: int, out_features: int, *, heads: int, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(features, eps=EPS)
        self.pool = AttentionPooling(features, heads=heads, rngs=rngs)
        self.proj = Linear(features, out_features, rngs=rngs)
        self.norm2 = LayerNorm(out_features, eps=EPS)

    def __call__(self, tokens: Array) -> Array:
        """tokens: [B, S, features] -> [B, out_features]."""
        return self.norm2(self.proj(self.pool(self.norm1(tokens))))


class AttentionPooling(nnx.Module):
    """Attention of the mean of the tokens to itself and to them."""

    def __init__(self, features: int, *, heads: int, rngs: nnx.Rngs):
        small = lambda u: standard_normal(u) / features**0.5
        self.positional_embedding = parameter(rngs, (1, features), small)
        self.q_proj = Linear(features, features, rngs=rngs)
        self.k_proj = Linear(features, features, rngs=rngs)
        self.v_proj = Linear(features, features, rngs=rngs)
        self.heads = heads

    def __call__(self, tokens: Array) -> Array:
        mean = tokens.mean(1, keepdims=True) + self.positional_embedding[...].astype(tokens.dtype)
        tokens = jnp.concatenate([mean, tokens], axis=1)
        split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)
        q, k, v = self.q_proj(mean), self.k_proj(tokens), self.v_proj(tokens)
        return operations.attention(split(q), split(k), split(v)).reshape(len(mean), -1)


class ImageVector(nnx.Module):
    """An embedding of an image, and of a text where there is one, as a vector beside the time's.

        norm(W image)      or      W image + norm(V text)

    With a hint, the convolutions that bring it to the size of the latents.
    Source: Kandinsky, arXiv:2310.03502, section 3.
    """

    def __init__(
        self,
        image: int,
        features: int,
        *,
        text: int | None = None,
        hint: bool = False,
        rngs: nnx.Rngs,
    ):
        self.image_proj = Linear(image, features, rngs=rngs)
        self.image_norm = LayerNorm(features, eps=EPS) if text is None else None
        self.text_proj = None if text is None else Linear(text, features, rngs=rngs)
        self.text_norm = None if text is None else LayerNorm(features, eps=EPS)
        if hint:
            inputs = (3, *(channels for channels, _ in HINT_STAGES))
            self.input_hint_block = nnx.List(
                [
                    Conv(before, channels, (3, 3), strides=stride, padding=1, rngs=rngs)
                    for before, (channels, stride) in zip(inputs, HINT_STAGES)
                ]
            )

    def __call__(self, image: Array, text: Array | None = None) -> Array:
        """image: [B, image]; text: [B, text] -> [B, features]."""
        vector = self.image_proj(image)
        if self.text_proj is not None and self.text_norm is not None and text is not None:
            return vector + self.text_norm(self.text_proj(text))
        return vector if self.image_norm is None else self.image_norm(vector)

    def shrink(self, hint: Array) -> Array:
        """[B, 8 height, 8 width, 3] -> [B, height, width, 4]."""
        *convolutions, last = self.input_hint_block
        for conv in convolutions:
            hint = jax.nn.silu(conv(hint))
        return last(hint)


def context_projection(config: ContextConfig, rngs: nnx.Rngs) -> nnx.Module | None:
    """The module that makes the tokens, None where they are given."""
    given, features = config.projected_features or 0, config.width
    if config.projection == "text":
        return Linear(given, features, rngs=rngs)
    if config.projection == "image":
        return ImageTokens(given, features, count=32, rngs=rngs)
    if config.projection == "text_image":
        return ImageTokens(features, features, count=10, text=given, rngs=rngs)
    return None


def token_refiner(config: ContextConfig, rngs: nnx.Rngs) -> nnx.List:
    """The blocks that the tokens pass before the network attends to them."""
    width, heads = config.width, at_level(config.num_heads, 0)

    def block() -> TransformerBlock:
        attention = Attention(width, head_dim=width // heads, rngs=rngs)
        network = FeedForward(width, 4 * width, act="gelu", rngs=rngs)
        return TransformerBlock(lambda: LayerNorm(width, eps=EPS), attention, network)

    return nnx.List([block() for _ in range(config.refiner_depth)])


def added_embedding(config: ContextConfig, features: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """The module whose vector joins the embedding of the time, None where there is none."""
    given, width = config.projected_features or 0, config.width
    if config.added == "text":
        return PooledText(given or width, features, heads=config.added_heads, rngs=rngs)
    if config.added == "text_time":
        return TimeEmbedding(config.added_features or 0, features, rngs=rngs)
    if config.added == "text_image":
        return ImageVector(width, features, text=width, rngs=rngs)
    if config.added in ("image", "image_hint"):
        return ImageVector(given, features, hint=config.added == "image_hint", rngs=rngs)
    return None


def text_and_numbers(pooled: Array, numbers: Array, features: int, **waves) -> Array:
    """[B, P] and [B, N] -> [B, P + N features]: the text's embedding, then waves of each number.

    Source: SDXL, arXiv:2307.01952, section 2.2.

    Args:
      features: waves of each number.
      waves: options of `sinusoidal_features`.

    >>> text_and_numbers(jnp.ones((2, 5)), jnp.ones((2, 6)), 8).shape
    (2, 53)
    """
    embedded = sinusoidal_features(numbers.reshape(-1), features, **waves)
    return jnp.concatenate([pooled.astype(jnp.float32), embedded.reshape(len(pooled), -1)], axis=1)
