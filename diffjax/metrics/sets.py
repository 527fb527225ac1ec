"""A set of generated samples against a reference, by their features: all figures and their errors.

What each figure measures, its bias and the number of samples that it needs stand in
docs/metrics.md. Standard errors come from the generated samples alone, by the jackknife.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from diffjax.metrics.frechet import distance_to, moments
from diffjax.metrics.inception import inception_score
from diffjax.metrics.kernel import Kernel, cubic, discrepancy
from diffjax.metrics.neighbours import Scores, kth_smallest, match, memorised, scores
from diffjax.metrics.uncertainty import jackknife

# what compares all pairs takes at most so many samples of either set
MOST_PAIRED = 5000

# mean, covariance -> the distance to a reference
Distance = Callable[[np.ndarray, np.ndarray], float]


def compare_sets(
    generated: np.ndarray,
    reference: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    k: int = 5,
    kernel: Kernel = cubic,
    seed: int = 0,
) -> dict[str, float]:
    """Measure generated samples against a reference, by the features of both.

    Args:
      generated: [M, D] features, 20 or more, in any order.
      reference: [N, D], 20 or more; for `memorised` those of the training set.
      probabilities: [M, K], what a classifier gives the classes of each generated sample.
      k: the neighbour that precision, recall, density and coverage reach to, itself not counted.
      kernel: of the kernel distance.
      seed: decides which are compared pair by pair, where there are more than 5,000 of either.

    Returns:
      frechet_distance, of all; kernel_distance, precision, recall, density and coverage, of equal
      numbers of both, at most 5,000; memorised; inception_score where there are probabilities;
      num_samples, num_reference. A name ending in `_stderr` holds a standard error: binomial for
      memorised, by the jackknife for the others.

    Raises:
      ValueError: features of other shapes, too few or not finite.

    >>> x, y = np.random.default_rng(0).normal(size=(2, 100, 3))
    >>> round(compare_sets(x, y)["coverage"], 1)
    1.0
    """
    generated, reference = np.asarray(generated, np.float64), np.asarray(reference, np.float64)
    _check(generated, reference)
    rng = np.random.default_rng(seed)
    # in no order, so that every group of the jackknife is a fair part
    order = rng.permutation(len(generated))
    generated = generated[order]
    count = min(len(generated), len(reference), MOST_PAIRED)
    some, others = generated[:count], reference[rng.permutation(len(reference))[:count]]
    result = frechet(generated, [distance_to(*moments(reference))])
    result |= _kernel(some, others, kernel)
    result |= neighbour_scores(some, others, [np.arange(count)], k)
    result |= share("memorised", memorised(generated, reference))
    if probabilities is not None:
        chances = np.asarray(probabilities)[order]
        result |= _with_error(
            "inception_score", lambda keep: inception_score(chances[keep]), len(chances)
        )
    return result | {"num_samples": float(len(generated)), "num_reference": float(len(reference))}


def frechet(generated: np.ndarray, distances: Sequence[Distance]) -> dict[str, float]:
    """The Fréchet distance of features [M, D] to a reference, or the mean of those to several."""
    distance = lambda keep: mean_distance(generated[keep], distances)
    return _with_error("frechet_distance", distance, len(generated))


def mean_distance(features: np.ndarray, distances: Sequence[Distance]) -> float:
    """The mean of several distances of the moments of features [M, D]."""
    given = moments(features)
    return float(np.mean([distance(*given) for distance in distances]))


def neighbour_scores(
    generated: np.ndarray, reference: np.ndarray, parts: Sequence[np.ndarray], k: int
) -> dict[str, float]:
    """Precision, recall, density and coverage, the means over several parts of the reference.

    Args:
      generated: [M, D].
      reference: [N, D].
      parts: indices of the points of each part.
      k: which nearest neighbour the balls reach to.
    """
    distances = cdist(reference, generated)
    among_generated = cdist(generated, generated)
    among_reference = cdist(reference, reference)
    radii = [kth_smallest(among_reference[np.ix_(part, part)], k) for part in parts]

    def values(keep: np.ndarray) -> np.ndarray:
        generated_radii = kth_smallest(among_generated[np.ix_(keep, keep)], k)
        matches = [
            match(distances[np.ix_(part, keep)], own_radii, generated_radii)
            for part, own_radii in zip(parts, radii)
        ]
        return np.mean([scores(each, k) for each in matches], axis=0)

    found = Scores(*map(float, values(np.arange(len(generated)))))
    errors = Scores(*map(float, jackknife(values, len(generated))))
    return found._asdict() | {f"{name}_stderr": value for name, value in errors._asdict().items()}


def share(name: str, yes: np.ndarray) -> dict[str, float]:
    """The share of the samples [M] of which something is true, and its standard error."""
    value = float(np.mean(yes))
    return {name: value, f"{name}_stderr": float(np.sqrt(value * (1 - value) / len(yes)))}


def _kernel(generated: np.ndarray, reference: np.ndarray, kernel: Kernel) -> dict[str, float]:
    among_generated, among_reference = kernel(generated, generated), kernel(reference, reference)
    between = kernel(generated, reference)

    def distance(keep: np.ndarray) -> float:
        return discrepancy(among_generated[np.ix_(keep, keep)], among_reference, between[keep])

    return _with_error("kernel_distance", distance, len(generated))


def _with_error(name: str, statistic: Callable[[np.ndarray], float], size: int) -> dict[str, float]:
    value, error = statistic(np.arange(size)), jackknife(statistic, size)
    return {name: float(value), f"{name}_stderr": float(error)}


def _check(generated: np.ndarray, reference: np.ndarray) -> None:
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2 or len(features) < 20:
            raise ValueError(
                f"The {name} features have shape {features.shape}; expected [N, D] of 20 or more."
            )
        if not np.isfinite(features).all():
            raise ValueError(f"The {name} features are not all finite.")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"The generated features have {generated.shape[1]} numbers and those of the reference "
            f"{reference.shape[1]}; both must be of the same network or pixels."
        )
