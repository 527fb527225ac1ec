"""Precision, recall, density and coverage, copies and duplicates: what nearest neighbours tell.

Around every point of a set lies a ball that reaches to the point's k-th nearest neighbour in the
same set, itself not counted. The union of the balls stands for the support of the distribution:

    precision = share of generated points inside some ball of the real set
    recall    = share of real points inside some ball of the generated set
    density   = mean number of real balls that a generated point lies in, over k
    coverage  = share of real balls that hold a generated point

Source: Kynkäänniemi et al., "Improved precision and recall metric", arXiv:1904.06991, eq. 1-2;
Naeem et al., "Reliable fidelity and diversity metrics", arXiv:2002.09797, eq. 3-4.

None of them is 1 for a perfect generator. With n real and m generated points of one distribution
the expected coverage is 1 - n(n-1)...(n-k+1) / ((n+m-1)...(n+m-k)), about 1 - (n / (n + m))^k, and
all of them depend on n and m: compare at equal numbers.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

BLOCK = 1024  # rows of the distance matrix that are in memory at once


class Scores(NamedTuple):
    """The four scores of a generated set."""

    precision: float
    recall: float
    density: float
    coverage: float


class Matches(NamedTuple):
    """Who lies in whose ball.

    Attributes:
      hits: [M] how many balls of real points each generated point lies in.
      recalled: [N] whether a real point lies in a ball of a generated one.
      covered: [N] whether the ball of a real point holds a generated one.
    """

    hits: np.ndarray
    recalled: np.ndarray
    covered: np.ndarray


def prdc(real: np.ndarray, generated: np.ndarray, *, k: int = 5) -> Scores:
    """Precision, recall, density and coverage of generated against real feature vectors.

    Args:
      real: [N, D], more than k of them.
      generated: [M, D], more than k of them.
      k: which nearest neighbour the balls reach to.

    Raises:
      ValueError: vectors of different lengths, or no more than k of either.

    >>> points = np.arange(20.0)[:, None]
    >>> prdc(points, points, k=2)
    Scores(precision=1.0, recall=1.0, density=1.5, coverage=1.0)
    """
    real, generated = _points(real), _points(generated)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"Real {real.shape} and generated {generated.shape} differ in length.")
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    parts = [
        match(cdist(real[rows], generated), real_radii[rows], generated_radii)
        for rows in _blocks(len(real))
    ]
    hits = sum(part.hits for part in parts)
    recalled = np.concatenate([part.recalled for part in parts])
    covered = np.concatenate([part.covered for part in parts])
    return scores(Matches(np.asarray(hits), recalled, covered), k)


def match(distances: np.ndarray, real_radii: np.ndarray, generated_radii: np.ndarray) -> Matches:
    """Find who lies in whose ball.

    Args:
      distances: [N, M] from each real to each generated point.
      real_radii: [N] radius of the ball around each real point.
      generated_radii: [M] radius of the ball around each generated point.
    """
    in_real_ball = distances <= real_radii[:, None]
    in_generated_ball = distances <= generated_radii
    return Matches(
        hits=in_real_ball.sum(axis=0),
        recalled=np.asarray(in_generated_ball.any(axis=1)),
        covered=np.asarray(in_real_ball.any(axis=1)),
    )


def scores(matches: Matches, k: int) -> Scores:
    """The four scores of the matches found with balls that reach to the k-th neighbour."""
    return Scores(
        float(np.mean(matches.hits > 0)),
        float(np.mean(matches.recalled)),
        float(np.mean(matches.hits) / k),
        float(np.mean(matches.covered)),
    )


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """The distance from each of the points [N, D] to its k-th nearest other one: [N].

    Raises:
      ValueError: k is not in 1 .. N - 1.
    """
    points = _points(points)
    if not 1 <= k < len(points):
        raise ValueError(f"k is {k}; with {len(points)} points expected 1 to {len(points) - 1}.")
    blocks = _blocks(len(points))
    return np.concatenate([kth_smallest(cdist(points[rows], points), k) for rows in blocks])


def kth_smallest(distances: np.ndarray, k: int) -> np.ndarray:
    """The radii [n] in distances [n, N] whose rows also hold the point's distance 0 to itself."""
    return np.partition(distances, k, axis=1)[:, k]


def memorised(generated: np.ndarray, training: np.ndarray, *, share: float = 0.01) -> np.ndarray:
    """Which generated points are nearer to a training point than those usually are to each other.

    Memorised is what lies nearer to its nearest training point than the given share of the
    training points, those with the closest neighbours, lie to theirs. So fresh data of the same
    distribution are memorised at about that share.

    Args:
      generated: [M, D].
      training: [N, D].
      share: the quantile of the training set's own nearest distances, in 0..1.

    Returns:
      [M] bool.

    Raises:
      ValueError: vectors of different lengths, or fewer than two of the training set.
    """
    from sklearn.neighbors import NearestNeighbors

    generated, training = _points(generated), _points(training)
    # by matrix products, an order faster than one distance at a time: sets may be whole data sets
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(training)
    pairs = (generated, search.kneighbors(generated)), (training, search.kneighbors())
    # these round: a copy is at no distance
    to_training, to_each_other = (
        np.linalg.norm(points - training[found[:, 0]], axis=1) for points, (_, found) in pairs
    )
    return to_training < np.quantile(to_each_other, share)


def duplicates(images: np.ndarray) -> int:
    """How many images [N, ...] are equal to an earlier one.

    >>> duplicates(np.array([[1, 2], [3, 4], [1, 2], [1, 2]]))
    2
    """
    flat = np.asarray(images).reshape(len(images), -1)
    return len(flat) - len(np.unique(flat, axis=0))


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]


def _points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"Points have shape {points.shape}; expected [N, D] with N at least 1.")
    return points
