"""Measures of generated samples: features and statistics apart, statistics in float64."""

from diffjax.metrics.digits import evaluate_digits
from diffjax.metrics.frechet import Moments, frechet_distance, kernel_distance, moments
from diffjax.metrics.inception import inception_score
from diffjax.metrics.neighbours import Scores, duplicates, memorised, nearest, prdc, radii
from diffjax.metrics.uncertainty import jackknife

__all__ = [
    "Moments",
    "Scores",
    "duplicates",
    "evaluate_digits",
    "frechet_distance",
    "inception_score",
    "jackknife",
    "kernel_distance",
    "memorised",
    "moments",
    "nearest",
    "prdc",
    "radii",
]
