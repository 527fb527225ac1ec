"""The maximum mean discrepancy of two sets of feature vectors, in float64.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),    x, x' and y, y' independent

The diagonal terms of either set are left out, which makes the estimate unbiased: the expectation
for two samples of one distribution is 0, however small they are, and single values may be negative.

    cubic        k(x, y) = (x·y / D + 1)³             KID, with the features of Inception
    gaussian     k(x, y) = exp(-|x - y|² / (2 std²))  CMMD, with unit embeddings of CLIP, std = 10
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from diffjax.metrics.frechet import as_features

# [N, D], [M, D] -> [N, M]
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of KID. Source: arXiv:1801.01401, section 4."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(std: float = 10.0) -> Kernel:
    """The kernel of CMMD. Source: Rethinking FID, arXiv:2401.09603, section 4.

    >>> gaussian(1.0)(np.zeros((1, 2)), np.ones((1, 2))).round(3)
    array([[0.368]])
    """
    return lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2.0 * std**2))


def kernel_distance(
    features1: np.ndarray, features2: np.ndarray, *, kernel: Kernel = cubic
) -> float:
    """The unbiased squared maximum mean discrepancy, by default under the cubic kernel, the "KID".

    It may be negative: the expectation for two samples of the same distribution is zero. Memory
    grows as N·M; for large sets average it over random subsets of 1,000, as the paper does.

    Source: Bińkowski et al., "Demystifying MMD GANs", arXiv:1801.01401, section 4.

    Args:
      features1: [N, D], N at least 2.
      features2: [M, D], M at least 2.
      kernel: `cubic`, `gaussian(std)` or another.

    Raises:
      ValueError: other shapes, or too few of either.
    """
    x, y = as_features(features1), as_features(features2)
    if x.shape[1] != y.shape[1] or len(x) < 2 or len(y) < 2:
        raise ValueError(
            f"Features have shapes {x.shape} and {y.shape}; expected [N, D] and [M, D] with N, M "
            "of 2 or more."
        )
    return discrepancy(kernel(x, x), kernel(y, y), kernel(x, y))


def discrepancy(within1: np.ndarray, within2: np.ndarray, between: np.ndarray) -> float:
    """The squared discrepancy from the kernel's values [N, N], [M, M] and [N, M]."""
    return _off_diagonal(within1) + _off_diagonal(within2) - 2 * float(between.mean())


def _off_diagonal(values: np.ndarray) -> float:
    return float((values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)))
