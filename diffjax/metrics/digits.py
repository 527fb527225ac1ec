"""How good generated handwritten digits are, against scikit-learn's 1,797 real ones.

Two views of an image: its 64 pixels on the original scale of grey levels 0..16, and the first 40
components of a principal component analysis of the real digits, whitened, so that each component
has mean 0 and variance 1 over the real set.

- agreement: share of images that a support vector classifier, trained on the real digits, puts
  into the class that was asked for. Cross-validated, it is right about 99 % of the real digits.
- frechet_ratio: Fréchet distance in the 40 components between the generated images and a random
  half of the real ones (898), over the distance between the two halves of the real set (898 and
  899), both averaged over the same random halvings. Halves on either side, because the estimate
  grows as samples shrink: for 1,000 fresh images of the real distribution the ratio is about
  (1/1000 + 1/898) / (1/898 + 1/899) = 0.95. It is comparable only between equal numbers of images.
- precision, recall, density, coverage: in pixels, with k = 5, against the same random halves.
  One half of the real set against the other reaches 0.96, 0.96, 1.02 and 0.97.
- memorised: share of images nearer, in pixels, to a real digit than the closest 1 % of the real
  digits are to each other.
- duplicates: images that equal an earlier one.

The generated images are first rounded to the 17 grey levels that the real ones have, as a writer of
such images would; else a distance between the two also measures how far an image is from being
one. A generator that was trained on all the real digits and repeats them beats every fresh sample
(0.44 and 0.98, 0.98, 1.06, 1.00): only the share memorised tells.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from diffjax.metrics.frechet import Moments, frechet_distance, moments
from diffjax.metrics.neighbours import (
    Scores,
    duplicates,
    kth_smallest,
    match,
    memorised,
    scores,
)
from diffjax.metrics.uncertainty import jackknife

COMPONENTS = 40


class Digits(NamedTuple):
    """The real digits: levels [N, 64] float64 in 0..16 and labels [N] int."""

    levels: np.ndarray
    labels: np.ndarray


def real_digits() -> Digits:
    """The 1,797 digits that scikit-learn carries, in its order."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    return Digits(np.asarray(levels), np.asarray(labels))


def classifier(real: Digits):
    """A support vector classifier of digits: `predict(levels [n, 64]) -> labels [n]`."""
    from sklearn.svm import SVC

    machine = SVC(gamma=0.001)  # pyright: ignore[reportArgumentType]
    return machine.fit(real.levels, real.labels)


def whitened_components(real: Digits):
    """The principal components of the real digits: `transform(levels [n, 64]) -> [n, 40]`."""
    from sklearn.decomposition import PCA

    return PCA(COMPONENTS, whiten=True, svd_solver="full").fit(real.levels)


def evaluate_digits(
    images: np.ndarray, labels: np.ndarray, *, k: int = 5, num_halvings: int = 20, seed: int = 0
) -> dict[str, float]:
    """Measure generated digits; what is measured stands at the top of this file.

    Args:
      images: [N, 8, 8, 1] or [N, 8, 8] uint8 in 0..255; 255 stands for grey level 16. At least
        100; the figures to compare with are for N = 1,000, a hundred a class.
      labels: [N] the class 0..9 that was asked for.
      k: the neighbour that precision, recall, density and coverage reach to, itself not counted.
      num_halvings: over how many random halvings of the real digits to average.
      seed: decides the halvings.

    Returns:
      agreement, frechet_ratio, frechet_distance (the numerator), frechet_floor (the denominator),
      precision, recall, density, coverage, memorised, duplicates, num_images. A name ending in
      `_stderr` holds the standard error that comes from the generated images: binomial for
      agreement and memorised, by jackknife for the others.
    """
    generated, labels = _checked(images, labels)
    real = real_digits()
    halves = _halvings(len(real.levels), num_halvings, seed)
    agreed = classifier(real).predict(generated) == labels
    result = _share("agreement", agreed)
    result |= _frechet(generated, real, halves)
    result |= _neighbours(generated, real, halves, k)
    result |= _share("memorised", memorised(generated, real.levels))
    result["duplicates"] = float(duplicates(generated))
    result["num_images"] = float(len(generated))
    return result


def _checked(images: np.ndarray, labels: np.ndarray) -> Digits:
    """The images in grey levels 0..16, flattened, and their labels, in the order of the labels."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape[1:] not in ((8, 8, 1), (8, 8)):
        raise ValueError(
            f"Images are {images.dtype} {images.shape}; expected uint8 [N, 8, 8, 1] in 0..255."
        )
    if len(images) < 100:
        raise ValueError(f"There are {len(images)} images; expected at least 100, better 1,000.")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Labels are {labels.dtype} {labels.shape}; expected integers [{len(images)}]."
        )
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"Labels are {labels.min()}..{labels.max()}; expected 0..9.")
    # by class, so that every group of the jackknife holds all of them
    order = np.argsort(labels, kind="stable")
    return Digits(round_to_levels(images)[order], labels[order])


def _halvings(size: int, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(size) for _ in range(count)]
    return [(order[: size // 2], order[size // 2 :]) for order in orders]


def _share(name: str, yes: np.ndarray) -> dict[str, float]:
    share = float(np.mean(yes))
    return {name: share, f"{name}_stderr": float(np.sqrt(share * (1 - share) / len(yes)))}


class DistanceToDigits(NamedTuple):
    """Fréchet distance to the real digits, in the components of this module.

    Attributes:
      of: levels [N, 64] in 0..16 -> the mean distance to random halves of the real digits.
      floor: that of the other halves.
    """

    of: Callable[[np.ndarray], float]
    floor: float


def distance_to_digits(*, num_halvings: int = 20, seed: int = 0) -> DistanceToDigits:
    """What `frechet_ratio` is the quotient of; arguments as in `evaluate_digits`."""
    real = real_digits()
    components = whitened_components(real)
    halves = _halvings(len(real.levels), num_halvings, seed)
    distance, floor = _to_halves(components.transform(real.levels), halves)
    return DistanceToDigits(lambda levels: distance(components.transform(levels)), floor)


def _to_halves(real_features: np.ndarray, halves) -> tuple[Callable[[np.ndarray], float], float]:
    """The mean Fréchet distance of features to one half of the real ones, and the other half's."""
    pairs = [(moments(real_features[one]), moments(real_features[two])) for one, two in halves]

    def distance(features: np.ndarray) -> float:
        given: Moments = moments(features)
        return float(np.mean([frechet_distance(*one, *given) for one, _ in pairs]))

    return distance, float(np.mean([frechet_distance(*one, *two) for one, two in pairs]))


def round_to_levels(images: np.ndarray) -> np.ndarray:
    """Images [N, 8, 8, 1] in 0..255 as grey levels [N, 64] in 0..16, as the real ones have them."""
    return np.rint(np.reshape(images, (-1, 64)) * (16 / 255))


def _frechet(generated: np.ndarray, real: Digits, halves) -> dict[str, float]:
    components = whitened_components(real)
    distance, floor = _to_halves(components.transform(real.levels), halves)
    features = components.transform(generated)
    value = distance(features)
    error = float(jackknife(lambda keep: distance(features[keep]), len(features)))
    return {
        "frechet_ratio": value / floor,
        "frechet_ratio_stderr": error / floor,
        "frechet_distance": value,
        "frechet_floor": floor,
    }


def _neighbours(generated: np.ndarray, real: Digits, halves, k: int) -> dict[str, float]:
    distances = cdist(real.levels, generated)
    among_generated = cdist(generated, generated)
    among_real = cdist(real.levels, real.levels)
    real_radii = [kth_smallest(among_real[np.ix_(one, one)], k) for one, _ in halves]

    def values(keep: np.ndarray) -> np.ndarray:
        generated_radii = kth_smallest(among_generated[np.ix_(keep, keep)], k)
        matches = [
            match(distances[np.ix_(one, keep)], own_radii, generated_radii)
            for (one, _), own_radii in zip(halves, real_radii)
        ]
        return np.mean([scores(each, k) for each in matches], axis=0)

    found = Scores(*map(float, values(np.arange(len(generated)))))
    errors = Scores(*map(float, jackknife(values, len(generated))))
    with_errors = {f"{name}_stderr": value for name, value in errors._asdict().items()}
    return found._asdict() | with_errors
