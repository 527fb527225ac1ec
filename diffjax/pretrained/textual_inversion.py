"""Words that were learned from pictures: textual-inversion embeddings.

    {"<toy>": [D] or [N, D]}          diffusers
    {"emb_params": [N, D]}            the web interface's form, named by its file
    {"clip_l": ..., "clip_g": ...}    the same for both encoders of SDXL

Source: An Image is Worth One Word, arXiv:2208.01618.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.networks.functional import Params
from diffjax.pretrained.components import Components
from diffjax.pretrained.tensor_files import read_tensor_file, write_tensor_file

# names in files that stand for no word -> the encoder and the tokenizer that they are for
_FORMS = {
    "emb_params": ("text_encoder", "tokenizer"),
    "clip_l": ("text_encoder", "tokenizer"),
    "clip_g": ("text_encoder_2", "tokenizer_2"),
}


def load_embedding(path: str | Path, parts: Components, *, token: str | None = None) -> Components:
    """The parts of a system that know the words of a file.

        parts = load_embedding("toy.safetensors", parts, token="<toy>")
        conditions = make_system(parts).prepare(["a <toy> on a beach"], height=512, width=512)

    Args:
      path: a safetensors file.
      parts: from `load_components`.
      token: the word; by default that of the file, or the file's name in angle brackets.

    Raises:
      ValueError: the vectors do not fit the text encoder, or the word is known already.
    """
    path = Path(path)
    for name, tensor in read_tensor_file(path).items():
        encoder, tokenizer = _FORMS.get(name, _FORMS["emb_params"])
        word = token or (f"<{path.stem}>" if name in _FORMS else name)
        parts = with_word(parts, encoder, tokenizer, word, np.asarray(tensor, np.float32))
    return parts


def save_embedding(path: str | Path, word: str, vectors: Mapping[str, Any]) -> None:
    """Write the vectors of a word in the form that `load_embedding` and diffusers read.

    Of one encoder they stand under the word itself; of the two of SDXL under clip_l and clip_g, so
    that the file's name should be the word.

    Args:
      path: a file NAME.safetensors, replaced if it is there.
      word: that stands for them in prompts.
      vectors: [N, D] by the names of the encoders, text_encoder and text_encoder_2.

    Raises:
      ValueError: an encoder of another name.
    """
    forms = {encoder: name for name, (encoder, _) in _FORMS.items()}
    if strange := sorted(vectors.keys() - forms.keys()):
        raise ValueError(f"vectors are for {strange[0]}; files are for {', '.join(forms)}")
    names = {"text_encoder": word} if set(vectors) == {"text_encoder"} else forms
    tensors = {names[encoder]: np.asarray(each, np.float32) for encoder, each in vectors.items()}
    write_tensor_file(path, tensors, tensors.__getitem__)


def with_word(
    parts: Components, encoder: str, tokenizer: str, word: str, vectors: np.ndarray
) -> Components:
    """The parts of a system to whose encoder a word is known, as so many new rows of its table.

    Args:
      parts: from `load_components`.
      encoder, tokenizer: the names of the parts that learn it.
      word: that stands for the vectors in prompts, in this order.
      vectors: [N, D] or [D].

    Raises:
      ValueError: the vectors do not fit the text encoder, or the word is known already.
    """
    if encoder not in parts.models or tokenizer not in parts.tokenizers:
        raise ValueError(f"the vectors are for {encoder}, which the system lacks")
    model = parts.models[encoder]
    if not isinstance(model.config, CLIPTextConfig):
        raise ValueError(f"{encoder} is no encoder of CLIP, whose words these files hold")
    table = model.params["token_embedding"]["embedding"]
    if vectors.ndim not in (1, 2):
        raise ValueError(f"{word} has the shape {vectors.shape}; vectors are [N, D] or [D]")
    vectors = vectors.reshape(-1, vectors.shape[-1])
    if vectors.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"{word} has vectors of {vectors.shape[-1]} features; {encoder} has {table.shape[-1]}. "
            "Was it learned for another model?"
        )
    ids = range(len(table), len(table) + len(vectors))
    grown = jnp.concatenate([table, jnp.asarray(vectors, table.dtype)])
    params: Params = {**model.params, "token_embedding": {"embedding": grown}}
    spoken = parts.tokenizers[tokenizer].with_token(word, list(ids))
    # where a text ends is named: the new tokens would be the largest, which old configs look for
    config = replace(model.config, vocab_size=len(grown), eos_token=spoken.end[-1])
    known = model._replace(config=config, network=clip_text(config), params=params)
    return parts._replace(
        models={**parts.models, encoder: known},
        tokenizers={**parts.tokenizers, tokenizer: spoken},
    )
