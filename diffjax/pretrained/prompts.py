"""Emphasis in prompts: words that count more or less than others.

    (word:1.3)    weight 1.3
    (word)        weight 1.1;  ((word)) 1.21
    [word]        weight 1 / 1.1
    \\( \\) \\[ \\]   the characters themselves

A weight multiplies what the text encoder makes of the tokens of a word; afterwards all are scaled
so that their mean is what it was.
"""

import math
import re

import jax.numpy as jnp
from jax import Array

STRONGER = 1.1

_PART = re.compile(
    r"\\[()\[\]\\]"  # an escaped character
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|[()\[\]]"
    r"|[^\\()\[\]:]+|[\\:]"
)


def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt at its parentheses into texts and their weights.

    Parentheses that are not closed emphasise all that follows; ones that were not opened are text.

    >>> parse_emphasis("a (red:1.5) cat")
    [('a ', 1.0), ('red', 1.5), (' cat', 1.0)]
    >>> parse_emphasis(r"a \\(small\\) cat")
    [('a (small) cat', 1.0)]
    """
    parts: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []
    for found in _PART.finditer(prompt):
        text = found[0]
        if text in ("(", "["):
            opened.append((text, len(parts)))
        elif found["weight"] and opened and opened[-1][0] == "(":
            _scale(parts, opened.pop()[1], float(found["weight"]))
        elif text in (")", "]") and opened and opened[-1][0] + text in ("()", "[]"):
            kind, start = opened.pop()
            _scale(parts, start, STRONGER if kind == "(" else 1.0 / STRONGER)
        else:
            plain = text[1:] if len(text) == 2 and text[0] == "\\" else text
            parts.append((plain, 1.0))
    for kind, start in reversed(opened):
        _scale(parts, start, STRONGER if kind == "(" else 1.0 / STRONGER)
    return _joined(parts)


def emphasize(states: Array, weights: Array) -> Array:
    """Scale the states of tokens by weights, and all of them so that their mean stays.

        z <- w z,    then z <- z mean(z before) / mean(z after), the means over each sample

    Weights of 1 change nothing.

    Args:
      states: [B, L, D] from a text encoder.
      weights: [B, L].
    """
    weighted = states * weights[..., None].astype(states.dtype)
    before, after = (z.mean((1, 2), keepdims=True) for z in (states, weighted))
    # a mean of 0 has no ratio
    ratio = jnp.where(after != 0, before / jnp.where(after != 0, after, 1.0), 1.0)
    plain = (weights == 1.0).all(axis=1)[:, None, None]
    return jnp.where(plain, states, weighted * ratio)


def _scale(parts: list[tuple[str, float]], start: int, weight: float) -> None:
    parts[start:] = [(text, old * weight) for text, old in parts[start:]]


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one text."""
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and math.isclose(joined[-1][1], weight):
            joined[-1] = joined[-1][0] + text, weight
        else:
            joined.append((text, weight))
    return joined or [("", 1.0)]
