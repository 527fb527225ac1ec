import jax
import jax.numpy as jnp
import numpy as np

from diffjax.networks import functional
from diffjax.networks.embeddings import GaussianFourier, binary_waves


def test_random_fourier_features_have_the_gaussian_kernel():
    """E[features(s) . features(t)] / half = exp(-2 (pi scale (s - t))^2), for many frequencies."""
    half, scale = 4096, 0.5
    init, apply = functional(lambda rngs: GaussianFourier(half, scale, rngs=rngs))
    t = jnp.array([0.0, 0.1, 0.3, 1.0])
    features = apply(init(jax.random.key(0)), t)
    kernel = features @ features.T / half
    expected = np.exp(-2 * (np.pi * scale * (t[:, None] - t)) ** 2)
    # cosines have a variance of at most 1
    np.testing.assert_allclose(kernel, expected, atol=4 / half**0.5)


def test_random_frequencies_are_not_trained():
    init, apply = functional(lambda rngs: GaussianFourier(8, 16.0, rngs=rngs))
    gradient = jax.grad(lambda params: jnp.square(apply(params, jnp.ones(3))).sum())
    np.testing.assert_array_equal(gradient(init(jax.random.key(0)))["frequencies"], 0.0)


def test_waves_tell_the_grey_levels_of_an_image_apart():
    """Neighbouring ones of 256 lie opposite each other on the waves of n = 7."""
    levels = jnp.arange(256.0) / 127.5 - 1
    waves = binary_waves(levels[:, None].astype(jnp.bfloat16), (7, 8))
    assert waves.shape == (256, 5)
    assert waves.dtype == jnp.float32
    sine, cosine = binary_waves(levels[:, None], (7,))[:, 1:].T
    steps = sine[1:] * sine[:-1] + cosine[1:] * cosine[:-1]
    np.testing.assert_allclose(steps, np.cos(np.pi * 128 / 127.5), atol=1e-3)
