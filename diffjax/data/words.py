"""A tokenizer of whole words, trained on captions, and prompts as arrays.

    [start] two small red circles [end] [pad] [pad] ...

A word that is in no caption has no token: a model can know nothing of it, and to leave it out
would draw something else than was asked for. So it is an error, as is a prompt that is too long.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAD, START, END, UNKNOWN = MARKS = ("[pad]", "[start]", "[end]", "[unknown]")


def train_words(captions: Iterable[str]) -> Any:
    """Train a tokenizer of the library `tokenizers` on captions: every word becomes a token.

    Case, punctuation and spaces do not matter. The marks [pad], [start], [end] and [unknown] are
    the tokens 0 to 3; every text is put between [start] and [end].

    >>> tokenizer = train_words(["a red circle", "a blue square"])
    >>> tokenizer.encode("A red square").tokens
    ['[start]', 'a', 'red', 'square', '[end]']
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    # words alone: what stands between them is dropped
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    trainer = trainers.WordLevelTrainer(special_tokens=list(MARKS), show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    return tokenizer


def read_words(path: Path) -> Any:
    """Read a tokenizer that was written by its method `save`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: was the text encoder of this run trained?")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{path} is not a tokenizer: {error}") from error


def encode_words(
    tokenizer: Any, texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts as rows of equal length.

    Args:
      tokenizer: from `train_words`.
      texts: B texts; an empty one is [start] [end].
      length: of the rows, [start] and [end] included.

    Returns:
      tokens [B, length] int32, and mask [B, length] float32, 0 behind [end].

    Raises:
      ValueError: a text is longer, or has a word that the tokenizer does not know; the message has
        the nearest one that it knows.

    >>> encode_words(train_words(["a red circle"]), ["red"], 5)[1].tolist()
    [[1.0, 1.0, 1.0, 0.0, 0.0]]
    """
    tokens = np.zeros((len(texts), length), np.int32)
    mask = np.zeros((len(texts), length), np.float32)
    for row, text in enumerate(texts):
        encoding = tokenizer.encode(text)
        if UNKNOWN in encoding.tokens:
            _refuse(tokenizer, text, encoding)
        if len(encoding.ids) > length:
            raise ValueError(
                f"the prompt {text!r} has {len(encoding.ids) - 2} words; this model reads at most "
                f"{length - 2}."
            )
        tokens[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1.0
    return tokens, mask


def _refuse(tokenizer: Any, text: str, encoding: Any) -> None:
    """Raise an error about the first unknown word of a text."""
    start, end = encoding.offsets[encoding.tokens.index(UNKNOWN)]
    known = sorted(set(tokenizer.get_vocab()) - set(MARKS))
    near = difflib.get_close_matches(text[start:end].lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"the prompt {text!r} has the word {text[start:end]!r}, which this model was not trained "
        f"on.{hint} It knows: {', '.join(known)}."
    )
