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

from diffjax.metrics.frechet import distance_to, moments
from diffjax.metrics.neighbours import duplicates, memorised
from diffjax.metrics.sets import Distance, frechet, mean_distance, neighbour_scores, share

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
    result = share("agreement", classifier(real).predict(generated) == labels)
    distance = distance_to_digits(real, num_halvings=num_halvings, seed=seed)
    result |= frechet(distance.features(generated), distance.halves)
    for end in ("", "_stderr"):
        result[f"frechet_ratio{end}"] = result[f"frechet_distance{end}"] / distance.floor
    result["frechet_floor"] = distance.floor
    result |= neighbour_scores(generated, real.levels, distance.parts, k)
    result |= share("memorised", memorised(generated, real.levels))
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


class DistanceToDigits(NamedTuple):
    """Fréchet distance to the real digits, in the components of this module.

    Attributes:
      features: levels [N, 64] in 0..16 -> the components [N, 40].
      parts: indices of the digits of each of several halves of the real ones.
      halves: (mean, covariance) -> the distance to each of those halves.
      of: levels [N, 64] in 0..16 -> the mean distance to those halves.
      floor: that of the other halves.
    """

    features: Callable[[np.ndarray], np.ndarray]
    parts: list[np.ndarray]
    halves: list[Distance]
    of: Callable[[np.ndarray], float]
    floor: float


def distance_to_digits(
    real: Digits | None = None, *, num_halvings: int = 20, seed: int = 0
) -> DistanceToDigits:
    """What `frechet_ratio` is the quotient of; arguments as in `evaluate_digits`."""
    real = real_digits() if real is None else real
    transform = whitened_components(real).transform
    features = transform(real.levels)
    parts, others = zip(*_halvings(len(features), num_halvings, seed))
    halves = [distance_to(*moments(features[part])) for part in parts]
    rests = [moments(features[other]) for other in others]
    floor = float(np.mean([distance(*rest) for distance, rest in zip(halves, rests)]))
    of = lambda levels: mean_distance(transform(levels), halves)
    return DistanceToDigits(transform, list(parts), halves, of, floor)


def round_to_levels(images: np.ndarray) -> np.ndarray:
    """Images [N, 8, 8, 1] in 0..255 as grey levels [N, 64] in 0..16, as the real ones have them."""
    return np.rint(np.reshape(images, (-1, 64)) * (16 / 255))
