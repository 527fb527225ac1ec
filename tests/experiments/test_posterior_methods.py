"""The methods for inverse problems against known posteriors."""

import jax
import numpy as np
import pytest

import diffjax as dj
from diffjax.core.posterior import condition
from posterior_methods import (
    METHODS,
    Settings,
    choose_method,
    compare,
    draw_exactly,
    draw_posterior,
    errors,
    known_problems,
)
from walks import Walk

PROBLEMS = known_problems()
# a squared error is a weighted sum of squared normals: at most sqrt(2) of its mean is one deviation
FOUR_DEVIATIONS = np.sqrt(1.0 + 4.0 * np.sqrt(2.0))


@pytest.mark.parametrize(
    ("name", "exact"),
    [("isotropic Gaussian", ["pigdm", "tmpd"]), ("Gaussian", ["mmps"])],
)
def test_what_is_exact_for_a_gaussian_errs_by_the_sampling_floor(name, exact):
    others = ["ddnm"] if name == "Gaussian" else []
    rows = {method: (method, {}) for method in [*exact, *others]}
    table = compare(PROBLEMS[name], rows, num_samples=1000, num_steps=60)
    floor = table.pop("exact draws")
    for method, found in table.items():
        within = np.asarray(found) < FOUR_DEVIATIONS * np.asarray(floor)
        # ddnm takes the noise of the measurement for data
        assert np.all(within) == (method in exact), (method, found, floor)


@pytest.mark.slow
def test_what_is_exact_stays_so_when_stretches_are_walked_again():
    rows = {"again": ("mmps", {"walk": Walk(jump_length=4, num_resamples=2)})}
    table = compare(PROBLEMS["Gaussian"], rows, num_samples=1000, num_steps=60)
    assert np.all(np.asarray(table["again"]) < FOUR_DEVIATIONS * np.asarray(table["exact draws"]))


def test_exact_draws_of_a_mixture_err_by_what_their_number_says():
    problem = PROBLEMS["mixture"]
    posterior = condition(problem.prior, problem.matrix, problem.y, problem.sigma_y**2)
    found = [
        errors(draw_exactly(jax.random.key(seed), posterior, 500), posterior).mean
        for seed in range(40)
    ]
    # the mean of the squared relative error of a mean is 1 / N
    squares = np.square(found)
    np.testing.assert_allclose(squares.mean(), 1 / 500, atol=4 * squares.std() / np.sqrt(40))


def test_a_method_that_needs_more_of_the_operator_is_refused():
    motion = dj.operators.blur(np.eye(3) / 3)
    with pytest.raises(ValueError, match=r"ddrm needs the singular values .* work dps, pigdm"):
        choose_method("ddrm", motion, linear=True)
    with pytest.raises(ValueError, match=r"mmps needs a linear operator.* there is dps"):
        choose_method("mmps", motion, linear=False)
    with pytest.raises(ValueError, match="Did you mean 'pigdm'"):
        choose_method("pgdm", motion, linear=True)
    assert choose_method("dps", motion, linear=False) is METHODS["dps"]


def test_particles_that_are_to_walk_up_are_refused():
    grey, levels = dj.operators.grey(), dj.linear()(dj.uniform(4))
    settings = Settings(0.1, walk=Walk(num_resamples=2))
    with pytest.raises(ValueError, match="--num-resamples does not go with twisted"):
        draw_posterior(
            jax.random.key(0), METHODS["twisted"], lambda _: None, grey,
            grey(np.ones((1, 2, 2, 3), np.float32)), levels, (2, 2, 3), settings,
        )  # fmt: skip
