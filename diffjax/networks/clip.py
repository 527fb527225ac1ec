"""The text and image encoders of CLIP, which condition latent diffusion models.

    h = embeddings + positions;  transformer blocks;  norm;  the state at one position, projected

Text: tokens see only those before them, and the state at the end-of-text token stands for the whole
text. Images: patches behind a class token, whose state stands for the image.

Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020,
section 2.4; OpenCLIP's larger ones: arXiv:2212.07143.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffjax.networks.attention import Attention, causal_bias, padding_bias
from diffjax.networks.functional import Functional, functional
from diffjax.networks.initialization import parameter, standard_normal
from diffjax.networks.layers import Conv, Embedding, Linear, require_divisible
from diffjax.networks.normalization import LayerNorm
from diffjax.networks.transformer import FeedForward, TransformerBlock


@dataclass(frozen=True)
class CLIPTextConfig:
    """The shape of a CLIP text encoder; the defaults are those of ViT-L/14.

    Attributes:
      vocab_size: number of tokens.
      hidden_size, intermediate_size: features of a token, and inside the feed-forward networks.
      num_layers, num_heads: of the transformer.
      max_positions: the longest text.
      act: activation of the feed-forward networks.
      norm_eps: of the layer norms.
      eos_token: its first position in a text is that of the pooled state. 2 means the position of
        the largest token instead: OpenAI's files say 2, which is not their end-of-text token.
      projection_dim: features of the pooled state; None to leave it unprojected.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 77
    act: str = "quick_gelu"
    norm_eps: float = 1e-5
    eos_token: int = 49407
    projection_dim: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.hidden_size, self.num_heads, "hidden_size", "num_heads")


def clip_vit_l14_text(**changes) -> CLIPTextConfig:
    """The text encoder of CLIP ViT-L/14 and of Stable Diffusion 1, 123,060,480 parameters."""
    return CLIPTextConfig(**changes)


def openclip_vit_h14_text(**changes) -> CLIPTextConfig:
    """The text encoder of OpenCLIP ViT-H/14, of which Stable Diffusion 2 keeps 23 layers."""
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24, "num_heads": 16}
    return CLIPTextConfig(**{**wide, "act": "gelu", **changes})


def openclip_vit_bigg14_text(**changes) -> CLIPTextConfig:
    """The text encoder of OpenCLIP ViT-bigG/14, the second of SDXL, 694,659,840 parameters."""
    wide = {"hidden_size": 1280, "intermediate_size": 5120, "num_layers": 32, "num_heads": 20}
    return CLIPTextConfig(**{**wide, "act": "gelu", "projection_dim": 1280, **changes})


@dataclass(frozen=True)
class CLIPVisionConfig:
    """The shape of a CLIP image encoder; the defaults are those of ViT-L/14.

    Attributes:
      hidden_size, intermediate_size, num_layers, num_heads, act, norm_eps: as in CLIPTextConfig.
      in_channels: of the images.
      image_size, patch_size: sides of the images and of the patches.
      projection_dim: features of the pooled state; None to leave it unprojected.
      dtype, param_dtype: of the computation and of the parameters that `init` makes.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    in_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    act: str = "quick_gelu"
    norm_eps: float = 1e-5
    projection_dim: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        require_divisible(self.hidden_size, self.num_heads, "hidden_size", "num_heads")


def clip_vit_l14_vision(**changes) -> CLIPVisionConfig:
    """The image encoder of CLIP ViT-L/14, 303,179,776 parameters without its projection."""
    return CLIPVisionConfig(**changes)


class Encoding(NamedTuple):
    """What an encoder makes of a text or an image; all float32.

    Attributes:
      last: [B, L, hidden_size], the states behind the last layer; of texts, normalised.
      pooled: [B, hidden_size] or [B, projection_dim], one vector for the whole.
      hidden: the states in front of the first layer and behind each layer, never normalised.
    """

    last: Array
    pooled: Array
    hidden: tuple[Array, ...]


def clip_text(config: CLIPTextConfig) -> Functional:
    """The text encoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, tokens, *, mask=None, skip=0) -> Encoding

    Arguments of apply:
      tokens: [B, L] integers below vocab_size, L at most max_positions; any other gives NaN.
      mask: [B, L], 0 where tokens must not be seen; None to see all, as diffusion models do.
      skip: how many of the last layers `last` leaves out, a Python integer.

    >>> import jax
    >>> config = CLIPTextConfig(vocab_size=99, hidden_size=32, num_heads=4, num_layers=2)
    >>> init, apply = clip_text(config)
    >>> params = jax.eval_shape(init, jax.random.key(0))
    >>> jax.eval_shape(apply, params, jnp.zeros((2, 77), int)).last.shape
    (2, 77, 32)
    """
    return functional(lambda rngs: CLIPText(config, rngs=rngs), param_dtype=config.param_dtype)


def clip_vision(config: CLIPVisionConfig) -> Functional:
    """The image encoder of a configuration as two pure functions, `init` and `apply`.

        init(key) -> params
        apply(params, x) -> Encoding

    Arguments of apply:
      x: [B, image_size, image_size, in_channels], normalised as CLIP's images are.
    """
    return functional(lambda rngs: CLIPVision(config, rngs=rngs), param_dtype=config.param_dtype)


class CLIPText(nnx.Module):
    """The module behind `clip_text`; its call is documented there."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        self.token_embedding = Embedding(config.vocab_size, width, rngs=rngs)
        self.position_embedding = Embedding(config.max_positions, width, rngs=rngs)
        self.layers = _layers(config, rngs)
        self.final_layer_norm = LayerNorm(width, eps=config.norm_eps)
        self.text_projection = _projection(config, rngs)

    def __call__(self, tokens: Array, *, mask: Array | None = None, skip: int = 0) -> Encoding:
        config, length = self.config, tokens.shape[1]
        if length > config.max_positions:
            raise ValueError(
                f"the texts have {length} tokens, the encoder takes {config.max_positions}; cut "
                "them, or encode them in parts"
            )
        h = self.token_embedding(tokens) + self.position_embedding(jnp.arange(length))
        bias = causal_bias(length) + (0.0 if mask is None else padding_bias(mask))
        hidden = _run(self.layers, h.astype(config.dtype), bias)
        last = self.final_layer_norm(hidden[-1])
        if config.eos_token == 2:
            end = jnp.argmax(tokens, axis=1)
        else:
            end = jnp.argmax(tokens == config.eos_token, axis=1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        if skip:
            last = self.final_layer_norm(hidden[-1 - skip])
        return _encoding(last, pooled, hidden)


class CLIPVision(nnx.Module):
    """The module behind `clip_vision`; its call is documented there."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = parameter(rngs, (width,), standard_normal)
        self.patch_embedding = Conv(
            config.in_channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            bias=False,
            rngs=rngs,
        )
        positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = Embedding(positions, width, rngs=rngs)
        self.pre_norm = LayerNorm(width, eps=config.norm_eps)
        self.layers = _layers(config, rngs)
        self.post_norm = LayerNorm(width, eps=config.norm_eps)
        self.visual_projection = _projection(config, rngs)

    def __call__(self, x: Array) -> Encoding:
        config = self.config
        shape = (config.image_size, config.image_size, config.in_channels)
        if x.shape[1:] != shape:
            raise ValueError(f"x is {x.shape}; the encoder takes images {shape}, resize them")
        patches = self.patch_embedding(x.astype(config.dtype))
        patches = patches.reshape(x.shape[0], -1, config.hidden_size)
        first = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, config.hidden_size))
        h = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        h = h + self.position_embedding(jnp.arange(h.shape[1])).astype(h.dtype)
        hidden = _run(self.layers, self.pre_norm(h), None)
        pooled = self.post_norm(hidden[-1][:, 0])
        if self.visual_projection is not None:
            pooled = self.visual_projection(pooled)
        return _encoding(hidden[-1], pooled, hidden)


def _layers(config: CLIPTextConfig | CLIPVisionConfig, rngs: nnx.Rngs) -> nnx.List:
    width = config.hidden_size
    return nnx.List(
        [
            TransformerBlock(
                lambda: LayerNorm(width, eps=config.norm_eps),
                Attention(width, head_dim=width // config.num_heads, rngs=rngs),
                FeedForward(width, config.intermediate_size, act=config.act, rngs=rngs),
            )
            for _ in range(config.num_layers)
        ]
    )


def _projection(config: CLIPTextConfig | CLIPVisionConfig, rngs: nnx.Rngs) -> Linear | None:
    if config.projection_dim is None:
        return None
    return Linear(config.hidden_size, config.projection_dim, bias=False, rngs=rngs)


def _run(layers: nnx.List, h: Array, bias: Array | None) -> tuple[Array, ...]:
    """The states in front of the first layer and behind each."""
    hidden = [h]
    for layer in layers:
        hidden.append(layer(hidden[-1], bias=bias))
    return tuple(hidden)


def _encoding(last: Array, pooled: Array, hidden: tuple[Array, ...]) -> Encoding:
    wide = lambda state: state.astype(jnp.float32)
    return Encoding(wide(last), wide(pooled), tuple(map(wide, hidden)))
