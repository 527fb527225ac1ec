"""Prompts on their way through text encoders."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from diffjax.networks.clip import Encoding
from diffjax.networks.functional import Params
from diffjax.pipelines.system import Inputs
from diffjax.pretrained import Components, Tokens, emphasize

_IDS, _WEIGHTS, _MASK = "_ids", "_weights", "_mask"


def tokenized(
    parts: Components,
    name: str,
    texts: Sequence[Sequence[str]],
    *,
    length: int | None = None,
    chunks: int | None = 1,
    emphasis: bool = False,
) -> list[Inputs]:
    """The inputs `NAME_ids`, `NAME_weights` and `NAME_mask` of several lists of texts.

    All lists get as many chunks as the longest of the texts needs.
    """
    flat = [text for each in texts for text in each]
    tokens = parts.tokenizers[name](flat, length=length, chunks=chunks, emphasis=emphasis)
    size = len(flat) // len(texts)
    return [_named(name, tokens, slice(i * size, (i + 1) * size)) for i in range(len(texts))]


def joined_inputs(parallel: Sequence[Inputs]) -> Inputs:
    """The inputs of several tokenizers for the same prompts, together."""
    return {name: each for inputs in parallel for name, each in inputs.items()}


def clip_states(
    parts: Components,
    encoder: str,
    tokenizer: str,
    *,
    states: Callable[[Encoding], Array] = lambda encoding: encoding.last,
    skip: int = 0,
) -> Callable[[Params, Inputs], tuple[Array, Array]]:
    """From inputs to the states of a CLIP text encoder, [B, L, D], and its pooled state, [B, P].

    Each chunk of a long prompt is encoded by itself; the pooled state is that of the first.

    Args:
      parts: hold the encoder.
      encoder, tokenizer: their names.
      states: which of the encoder's states.
      skip: how many of its last layers the encoder leaves out.
    """
    model = parts.models[encoder]
    most = model.config.max_positions

    def run(params: Params, inputs: Inputs) -> tuple[Array, Array]:
        ids = inputs[tokenizer + _IDS]
        chunks = ids.reshape(-1, min(most, ids.shape[1]))
        encoding = model.network.apply(params[encoder], chunks, skip=skip)
        hidden = states(encoding)
        hidden = hidden.reshape(*ids.shape, hidden.shape[-1])
        pooled = encoding.pooled.reshape(ids.shape[0], -1, encoding.pooled.shape[-1])[:, 0]
        return emphasize(hidden, inputs[tokenizer + _WEIGHTS]), pooled

    return run


def encoder_states(
    parts: Components, encoder: str, tokenizer: str, *, masked: bool
) -> Callable[[Params, Inputs], tuple[Array, Array]]:
    """From inputs to the states of T5 or the like, [B, L, D], and the mask of the text, [B, L].

    Args:
      masked: whether the encoder is kept from seeing what texts were filled up with.
    """
    network = parts.models[encoder].network

    def run(params: Params, inputs: Inputs) -> tuple[Array, Array]:
        mask = jnp.asarray(inputs[tokenizer + _MASK])
        hidden = network.apply(
            params[encoder], inputs[tokenizer + _IDS], mask=mask if masked else None
        )
        return emphasize(hidden, inputs[tokenizer + _WEIGHTS]), mask

    return run


def penultimate(encoding: Encoding, skip: int = 0) -> Array:
    """The states behind the last layer but one, not normalised; SDXL's and newer models'."""
    return encoding.hidden[-2 - skip]


def _named(name: str, tokens: Tokens, rows: slice) -> Inputs:
    return {
        name + _IDS: tokens.ids[rows],
        name + _MASK: tokens.mask[rows],
        name + _WEIGHTS: tokens.weights[rows],
    }
