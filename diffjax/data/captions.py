"""Mixtures of two captions of an image: a short one and a long, usually synthetic, one.

Descriptive captions teach a model to follow prompts; a few short ones keep it used to the prompts
that people write. Which caption is seen is decided anew each time an image comes up.

Source: Betker et al., Improving Image Generation with Better Captions (DALL-E 3), 2023, where 95 %
of the captions are synthetic.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.data.order import uniform_numbers

# the entries of an example that are texts
CAPTIONS = ("caption", "long_caption")
DALL_E_3 = 0.95

STREAM = (1 << 63) + 1  # of random words, which neither epochs nor flips reach


def mixed_captions(
    examples: Sequence[dict[str, Any]], long_captions: float, *, seed: int, positions: np.ndarray
) -> list[str]:
    """One caption of each example, the long one with a given probability.

    Args:
      examples: with "caption" and, unless the probability is 0, "long_caption".
      long_captions: the probability, `DALL_E_3` in that paper.
      seed: of the stream.
      positions: [b] places of the examples in the stream; with the seed they say both the image and
        the epoch, so that a stream that is resumed goes on with the same captions.

    >>> examples = [{"caption": "a cat", "long_caption": "a grey cat on a red chair"}] * 2
    >>> mixed_captions(examples, 1.0, seed=0, positions=np.arange(2))
    ['a grey cat on a red chair', 'a grey cat on a red chair']
    """
    if not long_captions:
        return [example["caption"] for example in examples]
    long = uniform_numbers(seed, STREAM, positions) < long_captions
    return [example[CAPTIONS[int(choice)]] for choice, example in zip(long, examples)]


def check_captions(example: dict[str, Any], long_captions: float) -> None:
    """Raise ValueError unless an example has the captions that a mixture needs."""
    if not 0.0 <= long_captions <= 1.0:
        raise ValueError(f"long_captions is {long_captions}; it is a probability, 0 to 1.")
    if "caption" not in example:
        raise ValueError("Captions are asked for, but the source has no captions.")
    if long_captions and "long_caption" not in example:
        raise ValueError(
            f"long_captions is {long_captions}, but the source has no long captions. A folder of "
            "images reads them from long_captions.jsonl."
        )


def all_captions(example: dict[str, Any], long_captions: float) -> list[str]:
    """The captions of an example that a mixture can show."""
    wanted = {"caption": long_captions < 1.0, "long_caption": long_captions > 0.0}
    return [example[name] for name in CAPTIONS if wanted[name]]
