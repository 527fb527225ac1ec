"""DDIM between its two limits, and its inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.keys import sample_keys
from diffjax.core.sampling import pad_levels, sample
from diffjax.solvers.ancestral import ancestral
from diffjax.solvers.ddim import ddim, ddim_inversion, ddim_update

TABLE = schedules.linear_betas()
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.3], [0.7, 0.1]], [0.05, 0.1])
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
KEYS = sample_keys(jax.random.key(0), jnp.arange(4))
X = jax.random.normal(jax.random.key(1), (4, 2))


@jax.jit
def run_ddim(x, eta, levels):
    return sample(KEYS, x, exact.denoiser(PLANE), ddim(eta), levels)


@pytest.mark.parametrize("spacing", [grids.trailing, grids.leading, grids.quadratic])
def test_ddim_with_eta_one_is_ancestral_ddpm(spacing):
    levels = TABLE(spacing(7, 1000))
    run = jax.jit(lambda x: sample(KEYS, x, exact.denoiser(PLANE), ancestral(), levels))
    np.testing.assert_allclose(run_ddim(X, 1.0, levels), run(X), rtol=1e-4, atol=1e-5)


def test_traced_eta_of_zero_is_the_deterministic_sampler():
    levels = TABLE(grids.trailing(7, 1000))
    run = jax.jit(lambda x: sample(KEYS, x, exact.denoiser(PLANE), ddim(), levels))
    np.testing.assert_allclose(run_ddim(X, 0.0, levels), run(X), rtol=1e-5, atol=1e-6)


def test_gradient_with_respect_to_eta_is_finite_at_both_limits():
    levels = schedules.zero_terminal_snr(TABLE)(grids.trailing(7, 1000))
    gradient = jax.jit(jax.grad(lambda eta: jnp.sum(run_ddim(X, eta, levels) ** 2)))
    assert np.isfinite(gradient(0.0))
    assert np.isfinite(gradient(0.5))
    assert np.isfinite(gradient(1.0))


def test_given_eps_is_used_instead_of_what_x0_leaves_of_x():
    current, next_ = TABLE(500), TABLE(250)
    x0, eps = jnp.full((1, 2), 0.2), jnp.full((1, 2), -0.7)
    moved = ddim_update(X[:1], x0, None, current, next_, eps=eps)
    np.testing.assert_allclose(moved, next_.alpha * x0 + next_.sigma * eps, rtol=1e-6)


def test_limit_acts_on_x0_and_not_on_eps():
    current, next_ = TABLE(500), TABLE(250)
    estimate = jnp.full((4, 2), 3.0)
    limit = lambda x0: jnp.clip(x0, -1.0, 1.0)
    moved, _ = ddim(limit=limit).step(KEYS, X, (), lambda x, level: estimate, current, next_)
    eps = (X - current.alpha * 3.0) / current.sigma
    np.testing.assert_allclose(moved, next_.alpha * 1.0 + next_.sigma * eps, rtol=1e-5)


@pytest.mark.parametrize("held", ["eps", "v"])
def test_inversion_then_reconstruction_returns_with_an_error_of_first_order(x64, held):
    schedule, counts = schedules.linear(), (32, 64, 128)
    # where the data are: between the modes the flow separates what inversion confuses
    x = jnp.array([-1.4, -1.0, -0.7, 0.4, 0.6, 0.8, 1.1, 1.4])[:, None]
    key = jax.random.key(0)

    @jax.jit
    def round_trip(upwards, num_steps):
        denoise = exact.denoiser(LINE)
        noisy = sample(key, x, denoise, ddim_inversion(held), upwards, num_steps=num_steps)
        # the padded part of the reversed grid comes first: roll it to the end
        padding = counts[-1] - num_steps
        downwards = jax.tree.map(lambda leaf: jnp.roll(leaf[::-1], -padding), upwards)
        return sample(key, noisy, denoise, ddim(), downwards, num_steps=num_steps)

    errors = []
    for n in counts:
        upwards = pad_levels(schedule(jnp.linspace(0.1, 0.9, n + 1)), counts[-1])
        errors.append(float(jnp.sqrt(jnp.mean((round_trip(upwards, n) - x) ** 2))))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 1.0, atol=0.2, err_msg=f"errors {errors}")


def test_errors_name_the_argument():
    for eta in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"eta is {eta}; it must be in \[0, 1\]"):
            ddim(eta)
    with pytest.raises(ValueError, match="'eps' or 'v'"):
        ddim_inversion("x0")
