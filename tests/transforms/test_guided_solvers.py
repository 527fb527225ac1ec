"""CFG++ and APG with momentum, on top of solvers of every kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import grids, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.sampling import sample
from diffjax.solvers import ancestral, ddim, ddim_update, dpm_multistep, heun
from diffjax.transforms import (
    apg,
    apg_momentum,
    cfg_plus_plus,
    classifier_free,
    guide,
    one_by_one,
)

SOLVERS = {
    "ddpm": ancestral(),
    "heun": heun(),
    "dpm++": dpm_multistep(2),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def gaussian(mean, variance):
    """The denoiser of N(mean, variance I), short enough to compile soon."""

    def denoise(x, level):
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    return denoise


CONDITIONAL, UNCONDITIONAL = gaussian(jnp.array([1.0, 0.2]), 0.2), gaussian(jnp.zeros(2), 1.0)
BOTH = one_by_one(CONDITIONAL, UNCONDITIONAL)
LEVELS = schedules.cosine()(grids.trailing(5))
CURRENT, NEXT = (NoiseLevel(*(leaf[i] for leaf in LEVELS)) for i in (2, 3))
X = jax.random.normal(jax.random.key(0), (4, 2))
KEYS = sample_keys(jax.random.key(1), jnp.arange(4))


def walk(solver_at, denoise_at, *scales):
    """Samples at each scale, from one program; solver and denoiser are functions of the scale."""
    run = jax.jit(lambda s: sample(KEYS, X, denoise_at(s), solver_at(s), LEVELS))
    return [run(scale) for scale in scales]


@every_solver
def test_cfg_plus_plus_at_zero_is_unconditional_and_changes_with_its_scale(name):
    solver = SOLVERS[name]
    [unconditional] = walk(lambda s: solver, lambda s: UNCONDITIONAL, 0.0)
    guided = lambda s: cfg_plus_plus(solver, guidance_scale=s)
    samples = walk(guided, lambda s: BOTH, 0.0, 0.5, 1.0)
    np.testing.assert_allclose(samples[0], unconditional, atol=1e-6)
    distances = [np.linalg.norm(x - jnp.array([1.0, 0.2])) for x in samples]
    assert distances[2] < distances[1] < distances[0]


def step(solver, denoise):
    return solver.step(KEYS, X, solver.init(X), denoise, CURRENT, NEXT)[0]


def test_cfg_plus_plus_of_ddim_renoises_with_the_unconditional_noise():
    result = step(cfg_plus_plus(ddim(), guidance_scale=0.6), BOTH)
    base = UNCONDITIONAL(X, CURRENT)
    guided = classifier_free(CONDITIONAL, UNCONDITIONAL, guidance_scale=0.6)(X, CURRENT)
    noise = estimate_eps(X, base, CURRENT)
    expected = ddim_update(X, guided, None, CURRENT, NEXT, eps=noise)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_cfg_plus_plus_is_classifier_free_guidance_with_a_falling_scale():
    scale = 0.6 * NEXT.alpha / (NEXT.alpha - NEXT.sigma * CURRENT.alpha / CURRENT.sigma)
    denoise = classifier_free(CONDITIONAL, UNCONDITIONAL, guidance_scale=scale)
    result = step(cfg_plus_plus(ddim(), guidance_scale=0.6), BOTH)
    np.testing.assert_allclose(result, step(ddim(), denoise), atol=1e-6)


@every_solver
def test_apg_with_momentum_is_apg_without_and_off_where_nothing_is_to_be_added(name):
    solver = SOLVERS[name]

    def with_memory(settings):
        scale, momentum, _ = settings
        return apg_momentum(solver, guidance_scale=scale, momentum=momentum, threshold=0.8)

    def estimates(settings):
        """At a difference of 0 both are unconditional."""
        unconditional = UNCONDITIONAL
        lean = lambda x, level: CONDITIONAL(x, level) - unconditional(x, level)
        conditional = lambda x, level: unconditional(x, level) + settings[2] * lean(x, level)
        return one_by_one(conditional, unconditional)

    def plain(settings):
        return guide(estimates(settings), partial(apg, guidance_scale=settings[0], threshold=0.8))

    remembered = walk(with_memory, estimates, (3.0, 0.0, 1.0), (1.0, -0.5, 1.0), (3.0, -0.5, 0.0))
    # without a push, the same as with none
    expected = walk(lambda _: solver, plain, (3.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 0.0, 0.0))
    np.testing.assert_allclose(remembered, expected, rtol=1e-5, atol=1e-6)


def test_momentum_sums_a_constant_difference_as_a_geometric_series():
    """A scale of 1 + 2 (1 + m + m^2 + ...), as far as the steps go, without momentum."""
    momentum = -0.5
    estimates = one_by_one(lambda x, level: 0.3 * x + 0.1, lambda x, level: 0.3 * x)
    powers = momentum ** jnp.arange(5.0)
    scales = 1.0 + 2.0 * jnp.cumsum(powers)
    of_level = lambda level: jnp.sum(jnp.where(LEVELS.t[:-1] == level.t, scales, 0.0))
    solver = apg_momentum(ddim(), guidance_scale=3.0, momentum=momentum, parallel=1.0)
    remembered = sample(KEYS, X, estimates, solver, LEVELS)
    expected = guide(estimates, partial(classifier_free, guidance_scale=of_level))
    np.testing.assert_allclose(remembered, sample(KEYS, X, expected, ddim(), LEVELS), rtol=1e-5)
