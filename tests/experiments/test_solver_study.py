"""The solver study counts calls as they are made and measures distances from the exact flow."""

import numpy as np
import pytest

from diffjax import exact
from solver_study import (
    MIXTURE,
    Args,
    Point,
    as_table,
    error_at,
    mixture_problem,
    study,
)

pytestmark = pytest.mark.slow

ARGS = Args(num_samples=256)


@pytest.fixture(scope="module")
def problem():
    return mixture_problem(ARGS)


def test_targets_are_quantiles_of_the_mixture(problem):
    mean, covariance = exact.moments(MIXTURE)
    target = np.asarray(problem.target)
    assert np.all(np.diff(np.ravel(target)) > 0)
    np.testing.assert_allclose(target.mean(), mean[0], atol=2e-3)
    np.testing.assert_allclose(target.var(), covariance[0, 0], rtol=0.01)
    assert problem.distance(target) == 0.0
    # the mean distance of 256 draws to their quantiles is of the order of std / sqrt(256)
    assert 0.2 < problem.floor / np.sqrt(covariance[0, 0] / 256) < 2.0


def test_calls_are_counted_where_steps_make_several_and_the_last_makes_one(problem):
    points, samples = study(ARGS, problem, "heun", [8, 16, 32])
    assert not samples
    # two calls in each step but the last
    assert all(point.calls % 2 == 1 for point in points)
    # of second order between its ends
    assert points[-1].error < points[0].error / 4


def test_a_table_has_the_error_of_the_longest_run_within_each_budget():
    points = [Point(5, 0.5), Point(9, 0.2), Point(19, 0.1)]
    assert error_at(points, 10) == 0.2
    assert error_at(points, 40) is None
    table = as_table({"slow": points, "fast": [Point(10, 0.01)]}, [5, 10, 20]).splitlines()
    assert table[2].split("|")[1:4] == [" fast ", "  ", " 0.01 "]
    assert table[3].split("|")[1:5] == [" slow ", " 0.5 ", " 0.2 ", " 0.1 "]
