"""The pieces of a sentencepiece model (spiece.model), read without the library that wrote it.

The file is a protocol buffer: a sequence of fields, each a key and a value,

    key    = number << 3 | kind, as a varint: seven bits a byte, the last one below 128
    value  = kind 0: a varint;  1: 8 bytes;  2: a varint and as many bytes;  5: 4 bytes

Of its messages these fields are needed: pieces (1: text 1, score 2, type 3), trainer (2: unknown
id 40, byte fallback 35), normalizer (3: precompiled table of characters 2).
Source: sentencepiece_model.proto of https://github.com/google/sentencepiece.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_UNKNOWN = 2  # type of the piece that stands for what the model does not know


class Pieces(NamedTuple):
    """What a sentencepiece model knows.

    Attributes:
      vocabulary: (text, logarithm of its probability), in the order of the ids.
      unknown: id of what is not in the vocabulary.
      byte_fallback: whether unknown characters are spelled in bytes.
      characters: the table by which text is normalised; empty for none.
    """

    vocabulary: list[tuple[str, float]]
    unknown: int
    byte_fallback: bool
    characters: bytes


def read_pieces(path: str | Path) -> Pieces:
    """Read a sentencepiece model of the unigram kind.

    Raises:
      ValueError: the file is damaged, or of another kind.
    """
    path = Path(path)
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        trainer = dict(_fields(next((v for n, v in fields if n == 2), b"")))
        normalizer = dict(_fields(next((v for n, v in fields if n == 3), b"")))
        vocabulary = [
            (piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]) for piece in pieces
        ]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is not a sentencepiece model: {error!r}") from error
    if not vocabulary or trainer.get(3, 1) != 1:
        raise ValueError(f"{path} holds no unigram model; other kinds are not read")
    unknown = next((i for i, piece in enumerate(pieces) if piece.get(3) == _UNKNOWN), 0)
    return Pieces(
        vocabulary,
        trainer.get(40, unknown),
        bool(trainer.get(35, 0)),
        normalizer.get(2, b""),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers and values of a message's fields."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(message, position)
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind)
            if length is None:
                length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is longer than the file")
            value, position = message[position : position + length], position + length
        else:
            raise ValueError(f"a field has the unknown kind {kind}")
        yield number, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
