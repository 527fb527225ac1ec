"""Measures of generated samples: features and statistics apart, statistics in float64."""

from diffjax.metrics.digits import evaluate_digits
from diffjax.metrics.frechet import Moments, frechet_distance, moments
from diffjax.metrics.inception import inception_score
from diffjax.metrics.kernel import cubic, gaussian, kernel_distance
from diffjax.metrics.neighbours import Scores, duplicates, memorised, prdc, radii
from diffjax.metrics.sets import compare_sets
from diffjax.metrics.uncertainty import jackknife

__all__ = [
    "Moments",
    "Scores",
    "compare_sets",
    "cubic",
    "duplicates",
    "evaluate_digits",
    "frechet_distance",
    "gaussian",
    "inception_score",
    "jackknife",
    "kernel_distance",
    "memorised",
    "moments",
    "prdc",
    "radii",
]
