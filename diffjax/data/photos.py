"""Patches of the two photographs that come with scikit-learn: real pictures without a download.

A palace in China (class 0) and a flower (class 1), 427 x 640 each. The right fifth of both is kept
for the split `test`; no test patch shows a pixel of a training patch. Patch i of a split is a
function of i alone.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diffjax.data.order import uniform_numbers

SIDE = 32
SPLITS = {"train": 20_000, "test": 2_000}
TRAIN_WIDTH = 512  # of the 640 columns


@dataclass(frozen=True)
class Photos:
    """The source that `photos` makes; cuts a patch on access."""

    split: str
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, 3

    @property
    def num_classes(self) -> int:
        return 2

    def __len__(self) -> int:
        return SPLITS[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; the split {self.split} has {len(self)} patches.")
        label = index % 2
        picture = _pictures()[label]
        columns = slice(None, TRAIN_WIDTH) if self.split == "train" else slice(TRAIN_WIDTH, None)
        part = picture[:, columns]
        stream = tuple(SPLITS).index(self.split)
        numbers = uniform_numbers(0, stream, np.array([2 * index, 2 * index + 1]))
        room = np.array(part.shape[:2]) - self.size + 1
        top, left = (numbers * room).astype(int)
        return {"image": part[top : top + self.size, left : left + self.size], "label": label}


def photos(split: str = "train", *, size: int = SIDE) -> Photos:
    """Patches of scikit-learn's two photographs; the class says which one.

    Args:
      split: `train`, 20,000 patches of their left parts, or `test`, 2,000 of the rest.
      size: pixels a side, 1 to 128.

    Raises:
      ValueError: no such split or size.

    >>> photos().shape, photos("test")[3]["label"]
    ((32, 32, 3), 1)
    """
    if split not in SPLITS:
        raise ValueError(f"photos has no split {split!r}; it has {', '.join(SPLITS)}.")
    if not 1 <= size <= 128:
        raise ValueError(f"size is {size}; patches of the photographs have 1 to 128 pixels a side.")
    return Photos(split, size)


@lru_cache
def _pictures() -> np.ndarray:
    """Both photographs, [2, 427, 640, 3] uint8."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)
