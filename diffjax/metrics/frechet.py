"""The Fréchet distance of two sets of feature vectors, by their moments, in float64.

It fits a Gaussian to each set,

    d² = |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2))

The estimate is biased upwards. For n1 and n2 samples of one Gaussian, whose covariance has the
eigenvalues l_i, its expectation is not 0 but, to first order,

    (1/n1 + 1/n2) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)),

which for a covariance of 1 in D dimensions is (1/n1 + 1/n2) (D + D (D + 1) / 4): compare only
values that were computed from equal numbers of samples, and take many more of them than there are
dimensions.

Features are whatever the caller takes: Inception activations give FID.
"""

from collections.abc import Callable
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
    features = as_features(features)
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
    return distance_to(mean1, covariance1)(mean2, covariance2)


def distance_to(
    mean1: np.ndarray, covariance1: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """`frechet_distance` for several distances to one Gaussian, whose root is taken once.

    >>> distance_to(np.zeros(2), np.eye(2))(np.ones(2), 4 * np.eye(2))
    4.0
    """
    mean1, covariance1 = np.asarray(mean1, np.float64), np.asarray(covariance1, np.float64)
    shape = (mean1.size, mean1.size)
    root = symmetric_root(covariance1) if covariance1.shape == shape else None

    def distance(mean2: np.ndarray, covariance2: np.ndarray) -> float:
        mean2, covariance2 = np.asarray(mean2, np.float64), np.asarray(covariance2, np.float64)
        if root is None or mean2.shape != mean1.shape or covariance2.shape != shape:
            raise ValueError(
                f"Means {mean1.shape}, {mean2.shape} and covariances {covariance1.shape}, "
                f"{covariance2.shape} do not fit together; expected [D] and [D, D]."
            )
        overlap = np.sum(linalg.svdvals(root @ symmetric_root(covariance2)))
        spread = np.trace(covariance1 + covariance2) - 2 * overlap
        return float(max(np.sum((mean1 - mean2) ** 2) + spread, 0.0))

    return distance


def symmetric_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix [D, D]."""
    values, vectors = linalg.eigh(covariance)
    # An eigenvalue of 0 comes out as rounding, and its square root would be 8 digits larger.
    rounding = values.size * np.finfo(np.float64).eps * max(values[-1], 0)
    values = np.where(values > rounding, values, 0)
    return (vectors * np.sqrt(values)) @ vectors.T


def as_features(features: np.ndarray) -> np.ndarray:
    """Features [N, D] as float64, or a ValueError."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"Features have shape {features.shape}; expected [N, D].")
    return features
