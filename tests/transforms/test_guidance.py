"""Guidance by a second estimate: one battery over all of its forms, and the laws of each."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact
from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import PARAMETERIZATIONS, LearnedVariance, estimate_x0, v
from diffjax.transforms import (
    apg,
    autoguidance,
    cfg_zero_star,
    classifier_free,
    composed,
    guidance_interval,
    guide,
    one_by_one,
    ramp,
    rescaled,
)

# pure noise, in between, clean
LEVELS = NoiseLevel(*jnp.array([[1.0, 0.5, 0.0], [0.0, 0.6, 1.0], [1.0, 0.8, 0.0]]))
LEVEL = NoiseLevel(jnp.array(0.5), jnp.array(0.6), jnp.array(0.8))
X = jax.random.normal(jax.random.key(0), (3, 2))
CLASSES = exact.mixture([0.5, 0.5], [[1.0, 0.2], [-0.6, 0.4]], [0.2, 0.5])
CONDITIONAL = jax.jit(exact.denoiser(exact.gaussian([1.0, 0.2], 0.2)))
UNCONDITIONAL = jax.jit(exact.denoiser(CLASSES))


def rescale(conditional, unconditional, scale):
    guided = classifier_free(conditional, unconditional, guidance_scale=scale)
    return rescaled(guided, conditional, amount=0.7, parameterization=v)


def inside(conditional, unconditional, scale):
    guided = classifier_free(conditional, unconditional, guidance_scale=scale)
    return guidance_interval(guided, conditional, low=0.5, high=jnp.inf)


def together(conditional, unconditional, scale):
    nested = lambda a, b: rescale(a, b, scale)
    return guide(one_by_one(conditional, unconditional), nested)


def from_scale(guidance):
    return lambda a, b, scale: guidance(a, b, guidance_scale=scale)


GUIDANCE = {
    "classifier-free": from_scale(classifier_free),
    "autoguidance": from_scale(autoguidance),
    "composition": lambda a, b, scale: composed(b, [a], guidance_scales=[scale]),
    "away from": lambda a, b, scale: composed(a, [b], guidance_scales=[1.0 - scale]),
    "apg": from_scale(partial(apg, parallel=0.3, threshold=0.5)),
    "cfg-zero*": from_scale(cfg_zero_star),
    "rescaled": rescale,
    "interval": inside,
    "called together": together,
}
every_guidance = pytest.mark.parametrize("name", GUIDANCE)


# any functions will do that return x / alpha where x is clean; short ones compile soon
better = lambda x, level: (
    x / jnp.hypot(*grow(x, level)) + grow(x, level)[1] * jnp.array([1.0, -0.3])
)
weaker = lambda x, level: x * grow(x, level)[0] + 0.2 * grow(x, level)[1] * jnp.sin(3.0 * x)


def equal(scale):
    return jnp.full(3, scale, jnp.float32)


def grow(x, level):
    return expand(level.alpha, x), expand(level.sigma, x)


@cache
def compiled(name):
    """One program for every scale, with the gradients by x and by the scale.

    `difference` is 0 where both conditions shall be the same.
    """

    @jax.jit
    def run(x, scale, difference):
        def value(x, scale):
            conditional = lambda x, level: (
                weaker(x, level) + difference * (better(x, level) - weaker(x, level))
            )
            return GUIDANCE[name](conditional, weaker, scale)(x, LEVELS)

        return value(x, scale), jax.grad(lambda *args: value(*args).sum(), (0, 1))(x, scale)

    return run


@every_guidance
def test_scale_of_one_is_the_conditional_denoiser_at_every_level(name):
    result, _ = compiled(name)(X, equal(1.0), 1.0)
    np.testing.assert_allclose(result, better(X, LEVELS), rtol=1e-5, atol=1e-6)


@every_guidance
def test_equal_conditions_cancel_at_every_scale(name):
    result, _ = compiled(name)(X, equal(7.5), 0.0)
    np.testing.assert_allclose(result, weaker(X, LEVELS), rtol=1e-5, atol=1e-6)


@every_guidance
def test_values_and_gradients_are_finite_at_both_ends_and_scales_belong_to_samples(name):
    scale = jnp.array([2.0, 7.5, 0.0])
    for difference in (0.0, 1.0):
        result, gradients = compiled(name)(X, scale, difference)
        assert all(np.all(np.isfinite(each)) for each in (result, *gradients))
    for i in range(3):
        alone, _ = compiled(name)(X, equal(scale[i]), 1.0)
        np.testing.assert_array_equal(alone[i], result[i])


@every_guidance
def test_learned_variance_of_the_first_denoiser_passes(name):
    first, second = (weaker, better) if name == "composition" else (better, weaker)
    learn = lambda f, value: lambda x, level: LearnedVariance(f(x, level), jnp.full(3, value))
    learned = {first: learn(first, 0.3), second: learn(second, 0.6)}
    result = GUIDANCE[name](learned[better], learned[weaker], 2.0)(X, LEVELS)
    expected, _ = compiled(name)(X, equal(2.0), 1.0)
    np.testing.assert_allclose(result.x0, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.fraction, jnp.full(3, 0.3))


def guided(scale, conditional=CONDITIONAL, unconditional=UNCONDITIONAL):
    return classifier_free(conditional, unconditional, guidance_scale=scale)(X, LEVEL)


def test_scale_of_zero_is_unconditional_and_scales_extrapolate_linearly():
    np.testing.assert_array_equal(guided(0.0), UNCONDITIONAL(X, LEVEL))
    np.testing.assert_allclose(guided(3.0) - guided(2.0), guided(1.0) - guided(0.0), atol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_guidance_of_x0_is_guidance_of_every_prediction(name):
    row = PARAMETERIZATIONS[name]
    outputs = jax.random.normal(jax.random.key(1), (2, 3, 2))
    denoisers = [lambda x, level, f=f: estimate_x0(row, x, f, level) for f in outputs]
    mixed = outputs[0] + 2.5 * (outputs[1] - outputs[0])
    expected = estimate_x0(row, X, mixed, LEVEL)
    np.testing.assert_allclose(guided(2.5, denoisers[1], denoisers[0]), expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 3.0, lambda level: 3.0 * level.sigma])
def test_for_gaussians_of_one_covariance_guidance_moves_the_mean_at_every_level(scale):
    covariance = [[0.5, 0.2], [0.2, 0.3]]
    away, near = np.array([0.0, -0.5]), np.array([1.0, 0.3])
    guide_ = guided(scale, *(exact.denoiser(exact.gaussian(m, covariance)) for m in (near, away)))
    factor = scale(LEVEL) if callable(scale) else scale
    moved = exact.gaussian(away + factor * (near - away), covariance)
    np.testing.assert_allclose(guide_, exact.denoiser(moved)(X, LEVEL), atol=2e-6)


def test_at_little_noise_guidance_has_the_score_of_the_sharpened_density(x64):
    scale, x = 2.5, jnp.asarray(X, jnp.float64)
    parts = exact.gaussian([1.0, 0.2], 0.2), CLASSES

    @jax.jit
    def errors(sigmas):
        def error(sigma):
            level = NoiseLevel(sigma, jnp.ones(()), sigma)
            denoise = classifier_free(*map(exact.denoiser, parts), guidance_scale=scale)
            score = (denoise(x, level) - x) / sigma**2
            sharpened = [
                exact.score(part, x, level._replace(sigma=jnp.zeros(()))) for part in parts
            ]
            return jnp.max(jnp.abs(score - scale * sharpened[0] - (1 - scale) * sharpened[1]))

        return jax.vmap(error)(sigmas)

    first, second = errors(jnp.array([0.01, 0.005]))
    assert second < 1e-2
    np.testing.assert_allclose(first / second, 4.0, rtol=0.02)


def test_conditions_on_independent_coordinates_compose_to_both():
    prior, narrow = np.array([1.0, 1.0]), 0.1
    denoiser = lambda mean, variances: exact.denoiser(exact.gaussian(mean, variances))
    others = [denoiser([0.7, 0.0], [narrow, 1.0]), denoiser([0.0, -0.4], [1.0, narrow])]
    both = composed(denoiser([0.0, 0.0], prior), others, guidance_scales=[1.0, 1.0])
    expected = denoiser([0.7, -0.4], [narrow, narrow])(X, LEVEL)
    np.testing.assert_allclose(both(X, LEVEL), expected, atol=1e-6)


def test_pushing_away_from_two_is_the_sum_of_both_guidances():
    weak = exact.denoiser(exact.gaussian([0.0, 0.0], 2.0))
    push = composed(CONDITIONAL, [UNCONDITIONAL, weak], guidance_scales=[-2.0, -0.5])(X, LEVEL)
    first, second = guided(3.0), autoguidance(CONDITIONAL, weak, guidance_scale=1.5)(X, LEVEL)
    np.testing.assert_allclose(push, first + second - CONDITIONAL(X, LEVEL), atol=1e-6)
    with pytest.raises(ValueError, match="2 denoisers and 1 guidance_scales"):
        composed(CONDITIONAL, [UNCONDITIONAL, weak], guidance_scales=[1.0])


@pytest.mark.parametrize("level", [LEVELS, *(NoiseLevel(*leaves) for leaves in zip(*LEVELS))])
def test_interval_guides_inside_and_not_outside(level):
    five, one = lambda x, level: x + 5.0, lambda x, level: x + 1.0
    added = lambda low, high: guidance_interval(five, one, low=low, high=high)(X, level) - X
    angle = expand(jnp.arctan2(level.sigma, level.alpha), X)
    np.testing.assert_allclose(
        added(0.0, jnp.inf), jnp.where(angle > 0, 5.0, 1.0) + 0 * X, rtol=1e-6
    )
    middle = jnp.where((angle > 0.5) & (angle < 1.5), 5.0, 1.0)
    np.testing.assert_allclose(added(1.0, 2.0), middle + 0 * X, rtol=1e-6)
    for ratio in (0.0, 0.8 / 0.6, jnp.inf):
        np.testing.assert_allclose(added(ratio, ratio), 1.0, rtol=1e-6)


def test_an_interval_from_above_to_below_and_scales_for_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"low is 2\.0 and high 1\.0"):
        guidance_interval(CONDITIONAL, UNCONDITIONAL, low=2.0, high=1.0)
    with pytest.raises(ValueError, match="There are 2 values for the 3 samples"):
        guided(jnp.ones(2))


def test_ramp_is_linear_in_the_angle_of_the_level():
    angles = jnp.linspace(0.0, jnp.pi / 2, 5)
    scale = ramp(1.0, 5.0)(NoiseLevel(angles, 3.0 * jnp.cos(angles), 3.0 * jnp.sin(angles)))
    np.testing.assert_allclose(scale, [5.0, 4.0, 3.0, 2.0, 1.0], rtol=1e-6)
