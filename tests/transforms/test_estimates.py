"""Estimates under several conditions, one by one or in one call of the network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import make_denoiser, make_learned_variance_denoiser, v
from diffjax.transforms import apg, classifier_free, guide, in_one_call, one_by_one, rescaled
from diffjax.transforms.estimates import pair

LEVEL = NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))
X = jax.random.normal(jax.random.key(0), (3, 4))
EACH = NoiseLevel(*jnp.array([[0.2, 0.5, 0.7], [0.9, 0.6, 0.3], [0.4, 0.8, 0.9]]))
LABELS, NULL = {"labels": jnp.array([1, 2, 0])}, {"labels": jnp.full(3, 3)}


class Network:
    """Counts its calls; the output depends on the clock, the label and the features."""

    def __init__(self, outputs=1):
        self.calls, self.outputs = 0, outputs

    def apply(self, params, x, t, *, labels, features=0.0):
        self.calls += 1
        value = jnp.tanh(params * x + t[:, None] - 0.3 * labels[:, None] + features)
        return jnp.concatenate([value] * self.outputs, axis=-1)

    def make(self, **conditioning):
        return make_denoiser(self.apply, 0.7, v, **conditioning)


@pytest.mark.parametrize("level", [LEVEL, EACH])
def test_one_call_gives_what_a_call_for_each_condition_gives(level):
    network = Network()
    conditions = [{**LABELS, "features": 0.1 * X}, {**NULL, "features": 0.0 * X}]
    together = in_one_call(network.make, *conditions)(X, level)
    assert network.calls == 1
    apart = one_by_one(*(network.make(**each) for each in conditions))(X, level)
    assert network.calls == 3
    for a, b in zip(together, apart):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_learned_variances_are_cut_too():
    make = partial(make_learned_variance_denoiser, Network(outputs=2).apply, 0.7, v)
    estimates = in_one_call(make, LABELS, NULL)(X, LEVEL)
    for estimate, condition in zip(estimates, (LABELS, NULL)):
        expected = make(**condition)(X, LEVEL)
        np.testing.assert_allclose(estimate.x0, expected.x0, rtol=1e-6)
        np.testing.assert_allclose(estimate.fraction, expected.fraction, rtol=1e-6)


def test_a_nest_of_guidances_is_the_same_with_one_call_of_the_network():
    def nest(conditional, unconditional):
        guided = classifier_free(conditional, unconditional, guidance_scale=3.0)
        return rescaled(guided, conditional, amount=0.5)

    network = Network()
    expected = nest(network.make(**LABELS), network.make(**NULL))(X, LEVEL)
    network.calls = 0
    result = guide(in_one_call(network.make, LABELS, NULL), nest)(X, LEVEL)
    assert network.calls == 1
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_guidance_that_looks_elsewhere_is_refused():
    estimates = one_by_one(lambda x, level: x, lambda x, level: x)
    with pytest.raises(ValueError, match="another x or level"):
        guide(estimates, lambda a, b: lambda x, level: a(x + 1.0, level))(X, LEVEL)


@pytest.mark.parametrize(
    "other", [{}, {"labels": jnp.zeros(2)}, {"labels": jnp.zeros(3), "c": 1.0}]
)
def test_conditions_that_differ_in_shape_are_refused(other):
    with pytest.raises(ValueError, match="same entries and shapes"):
        in_one_call(Network().make, LABELS, other)


def test_solvers_that_guide_want_two_estimates():
    assert pair((X, 2.0 * X))[0] is X
    with pytest.raises(TypeError, match="takes the estimates of two conditions"):
        pair(X)
    with pytest.raises(ValueError, match="There are 3 estimates"):
        pair((X, X, X))


def test_guidance_of_the_first_of_many_takes_only_what_it_needs():
    estimates = one_by_one(*(lambda x, level, k=k: k * x for k in (1.0, 2.0, 5.0)))
    chosen = guide(estimates, lambda a, b, c: apg(c, a, guidance_scale=1.0))
    np.testing.assert_allclose(chosen(X, LEVEL), 5.0 * X, rtol=1e-6)
