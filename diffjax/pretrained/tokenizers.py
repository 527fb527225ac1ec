"""The tokenizers of text encoders: from prompts to integers.

A folder of a tokenizer holds one of

    tokenizer.json               everything, as newer files have it
    vocab.json, merges.txt       byte pairs, as CLIP's published files have it
    spiece.model                 a sentencepiece model, as T5's have it

and notes beside it: tokenizer_config.json, special_tokens_map.json.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.pretrained.folders import read_json
from diffjax.pretrained.prompts import parse_emphasis
from diffjax.pretrained.sentencepiece import read_pieces
from diffjax.pretrained.weights import UnsupportedError

# what CLIP takes for one word: https://github.com/openai/CLIP, simple_tokenizer.py
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_CLIP_MARKS = "<|startoftext|>", "<|endoftext|>"
_T5_MARKS = "<pad>", "</s>", "<unk>"


class Tokens(NamedTuple):
    """Prompts as integers.

    Attributes:
      ids: [B, L] int32.
      mask: [B, L] int32, 0 where a prompt was filled up.
      weights: [B, L] float32, the emphasis of each token, 1 for most.
    """

    ids: np.ndarray
    mask: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Tokenizer:
    """Prompts to integers.

    Attributes:
      encode: text -> ids, without those at its ends.
      decode: ids -> text.
      start, end: ids that every text is put between; start may be empty.
      pad: id that short texts are filled up with.
      max_length: ids of the longest text, its ends included; None where the files name none.
      extra: tokens that were added, and the ids that stand for each.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    max_length: int | None = None
    extra: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        length: int | None = None,
        chunks: int | None = 1,
        emphasis: bool = False,
    ) -> Tokens:
        """Tokens of prompts, filled up to the same length.

        Args:
          prompts: B texts.
          length: of each chunk, its ends included; by default max_length.
          chunks: how many chunks, each between ends of its own, a prompt may fill; all prompts get
            as many as the longest needs. None for any number. What does not fit is cut, and a
            warning shows it.
          emphasis: whether parentheses give weights; see `parse_emphasis`.

        Returns:
          Tokens [B, K length] for K chunks.
        """
        length = length or self.max_length
        if length is None:
            raise ValueError("the tokenizer's files name no max length; give length")
        if isinstance(prompts, str):
            raise TypeError("prompts is one text; give a list of them")
        room = length - len(self.start) - len(self.end)
        texts = [self._weighted(prompt, emphasis) for prompt in prompts]
        most = max([1, *(-(-len(text) // room) for text in texts)])
        count = most if chunks is None else min(most, chunks)
        rows = [self._row(text, length, count) for text in texts]
        ids, mask, weights = (np.array(each) for each in zip(*rows))
        return Tokens(ids.astype(np.int32), mask.astype(np.int32), weights.astype(np.float32))

    def with_token(self, token: str, ids: Sequence[int]) -> "Tokenizer":
        """A tokenizer to which a word stands for the given ids, as of a textual inversion."""
        if not token or any(known == token for known, _ in self.extra):
            raise ValueError(f"the token {token!r} is empty or known already")
        return replace(self, extra=(*self.extra, (token, tuple(ids))))

    def _ids(self, text: str) -> list[int]:
        """Ids of a text in which added tokens may occur."""
        for token, ids in self.extra:
            before, found, after = text.partition(token)
            if found:
                return [*self._ids(before), *ids, *self._ids(after)]
        return list(self.encode(text))

    def _weighted(self, prompt: str, emphasis: bool) -> list[tuple[int, float]]:
        parts = parse_emphasis(prompt) if emphasis else [(prompt, 1.0)]
        return [(token, weight) for text, weight in parts for token in self._ids(text)]

    def _row(self, text: list[tuple[int, float]], length: int, count: int) -> tuple[list, ...]:
        """The ids, mask and weights of one prompt in `count` chunks."""
        room = length - len(self.start) - len(self.end)
        if len(text) > count * room:
            cut = self.decode([token for token, _ in text[count * room :]])
            warnings.warn(
                f"a prompt has {len(text)} tokens, {count * room} are read; left out is: {cut!r}",
                stacklevel=4,
            )
        ids: list[int] = []
        mask: list[int] = []
        weights: list[float] = []
        for first in range(0, count * room, room):
            chunk = text[: count * room][first : first + room]
            words = [*self.start, *(token for token, _ in chunk), *self.end]
            fill = length - len(words)
            ids += [*words, *[self.pad] * fill]
            mask += [*[1] * len(words), *[0] * fill]
            ends = len(self.start), len(self.end) + fill
            weights += [*[1.0] * ends[0], *(weight for _, weight in chunk), *[1.0] * ends[1]]
        return ids, mask, weights


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer of a folder.

    Raises:
      FileNotFoundError: the folder holds no tokenizer.
      ValueError: its files are damaged.
    """
    folder = Path(folder)
    notes = {
        **_read_notes(folder / "special_tokens_map.json"),
        **_read_notes(folder / "tokenizer_config.json"),
    }
    pad = notes.get("pad_token")
    pad = (pad.get("content") if isinstance(pad, dict) else pad) or "<pad>"
    engine = _engine(folder, pad)
    engine.no_truncation()
    engine.no_padding()
    # what an empty text becomes: the ends of all texts
    ends = engine.encode("").ids
    if not ends:
        raise UnsupportedError(f"the tokenizer in {folder} puts no end behind a text")
    length = notes.get("model_max_length")
    return Tokenizer(
        encode=lambda text: engine.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: _decode(engine, ids),
        start=tuple(ends[:-1]),
        end=(ends[-1],),
        pad=ends[-1] if engine.token_to_id(pad) is None else engine.token_to_id(pad),
        # files without a limit name a number without meaning
        max_length=int(length) if isinstance(length, int | float) and length < 1e6 else None,
    )


def _decode(engine: Any, ids: Sequence[int]) -> str:
    text = engine.decode(list(ids), skip_special_tokens=False)
    # byte pairs keep their marks of the ends of words
    return text.replace("</w>", " ").strip()


def _engine(folder: Path, pad: str) -> Any:
    """The tokenizer of the library `tokenizers` that the files describe."""
    import tokenizers

    if (folder / "tokenizer.json").is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # the library raises bare exceptions
        except Exception as error:
            raise ValueError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _clip(tokenizers, folder, pad)
    if (folder / "spiece.model").is_file():
        return _t5(tokenizers, folder / "spiece.model")
    raise FileNotFoundError(
        f"{folder} holds no tokenizer; needed is tokenizer.json, vocab.json with merges.txt, or "
        "spiece.model"
    )


def _clip(tokenizers: Any, folder: Path, pad: str) -> Any:
    """Lower case, words, byte pairs: the tokenizer of CLIP."""
    vocabulary = _read_notes(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    missing = [mark for mark in _CLIP_MARKS if mark not in vocabulary]
    if missing or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{folder}: vocab.json and merges.txt are not CLIP's; missing {missing}")
    start, end = _CLIP_MARKS
    try:
        model = tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end
        )
    except Exception as error:
        raise ValueError(f"{folder}: merges.txt does not fit vocab.json: {error}") from error
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    words = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True
    )
    as_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, as_bytes])
    engine.decoder = tokenizers.decoders.ByteLevel()
    # a token that fills up, such as the "!" of SDXL, is never a part of a word
    engine.add_special_tokens([*_CLIP_MARKS, *([pad] if pad in vocabulary else [])])
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(mark, vocabulary[mark]) for mark in _CLIP_MARKS],
    )
    return engine


def _t5(tokenizers: Any, path: Path) -> Any:
    """The most probable pieces: the tokenizer of T5."""
    pieces = read_pieces(path)
    model = tokenizers.models.Unigram(
        pieces.vocabulary, unk_id=pieces.unknown, byte_fallback=pieces.byte_fallback
    )
    engine = tokenizers.Tokenizer(model)
    if pieces.characters:
        engine.normalizer = tokenizers.normalizers.Precompiled(pieces.characters)
    split = tokenizers.pre_tokenizers
    engine.pre_tokenizer = split.Sequence([split.WhitespaceSplit(), split.Metaspace()])
    engine.decoder = tokenizers.decoders.Metaspace()
    known = [mark for mark in _T5_MARKS if engine.token_to_id(mark) is not None]
    if "</s>" not in known:
        raise ValueError(f"{path} has no piece </s>, with which T5 ends its texts")
    engine.add_special_tokens(known)
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", engine.token_to_id("</s>"))]
    )
    return engine


def _read_notes(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
