"""Distances between two sets of feature vectors by their moments, in float64.

The Fréchet distance fits a Gaussian to each set,

    d² = |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)),

the kernel distance needs no such assumption: it is the squared maximum mean discrepancy

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x·y / d + 1)³,

with the diagonal terms left out, which makes the estimate unbiased. The estimate of the Fréchet
distance is biased upwards, by about tr(C) (1/n1 + 1/n2) times a number of order one: compare only
values that were computed from equal numbers of samples.

Features are whatever the caller takes: Inception activations give FID and KID.
"""

from typing import NamedTuple

import numpy as np
from scipy import linalg


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] of a set of feature vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Mean and unbiased covariance of features [N, D], N at least 2.

    Raises:
      ValueError: another shape, or too few of them.

    >>> moments(np.array([[0.0, 0.0], [2.0, 2.0]])).covariance
    array([[2., 2.],
           [2., 2.]])
    """
    features = _features(features)
    if len(features) < 2:
        raise ValueError(f"There is {len(features)} feature vector; a covariance needs 2 or more.")
    return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(
    mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray
) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians, the "FID" of their features.

        d² = |m1 - m2|² + tr C1 + tr C2 - 2 Σ_i s_i,   s = singular values of C1^(1/2) C2^(1/2)

    with symmetric square roots. The s_i are the square roots of the eigenvalues of C1 C2; taken
    this way they are real and exact to rounding also where the covariances are singular, which
    the square root of the product itself is not.

    Source: Heusel et al., "GANs trained by a two time-scale update rule", arXiv:1706.08500, eq. 6;
    Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982.

    Args:
      mean1, mean2: [D].
      covariance1, covariance2: [D, D] symmetric, positive semi-definite; may be singular.

    Raises:
      ValueError: shapes that do not fit together.

    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
    4.0
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    covariance1 = np.asarray(covariance1, np.float64)
    covariance2 = np.asarray(covariance2, np.float64)
    size = mean1.size
    if mean2.shape != mean1.shape or not (covariance1.shape == covariance2.shape == (size, size)):
        raise ValueError(
            f"Means {mean1.shape}, {mean2.shape} and covariances {covariance1.shape}, "
            f"{covariance2.shape} do not fit together; expected [D] and [D, D]."
        )
    roots = symmetric_root(covariance1) @ symmetric_root(covariance2)
    overlap = np.sum(linalg.svdvals(roots))
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(covariance1 + covariance2) - 2 * overlap
    return float(max(distance, 0.0))


def symmetric_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix [D, D]."""
    values, vectors = linalg.eigh(covariance)
    # An eigenvalue of 0 comes out as rounding, and its square root would be 8 digits larger.
    rounding = values.size * np.finfo(np.float64).eps * max(values[-1], 0)
    values = np.where(values > rounding, values, 0)
    return (vectors * np.sqrt(values)) @ vectors.T


def kernel_distance(features1: np.ndarray, features2: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy under the cubic kernel, the "KID".

    It may be negative: the expectation for two samples of the same distribution is zero. Memory
    grows as N·M; for large sets average it over random subsets of 1,000, as the paper does.

    Source: Bińkowski et al., "Demystifying MMD GANs", arXiv:1801.01401, section 4.

    Args:
      features1: [N, D], N at least 2.
      features2: [M, D], M at least 2.

    Raises:
      ValueError: other shapes, or too few of either.
    """
    x, y = _features(features1), _features(features2)
    if x.shape[1] != y.shape[1] or len(x) < 2 or len(y) < 2:
        raise ValueError(
            f"Features have shapes {x.shape} and {y.shape}; expected [N, D] and [M, D] with N, M "
            "of 2 or more."
        )
    return _mean_off_diagonal(x) + _mean_off_diagonal(y) - 2 * float(_kernel(x, y).mean())


def _mean_off_diagonal(x: np.ndarray) -> float:
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _features(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"Features have shape {features.shape}; expected [N, D].")
    return features
