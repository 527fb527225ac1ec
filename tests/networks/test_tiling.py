import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.latents import Posterior
from diffjax.networks.autoencoder_blocks import Autoencoder
from diffjax.networks.tiling import in_tiles

FACTOR = 2


def cells(x):
    return x.reshape(len(x), x.shape[1] // FACTOR, FACTOR, x.shape[2] // FACTOR, FACTOR, -1)


def encode(params, x):
    mean = params * cells(x).mean((2, 4))
    return Posterior(mean, -mean)


def decode(params, z):
    return params * jnp.repeat(jnp.repeat(z, FACTOR, axis=1), FACTOR, axis=2)


@pytest.fixture(scope="module")
def network():
    """Every latent is the mean of its pixels; no place sees another."""
    return Autoencoder(lambda key: 3.0, encode, decode)


@pytest.mark.parametrize("shape", [(2, 11, 5), (1, 2, 9)])
def test_where_places_do_not_see_each_other_tiles_give_the_whole(network, shape):
    tiled = in_tiles(network, FACTOR, tile=4, overlap=2)
    z = jax.random.normal(jax.random.key(0), (*shape, 3))
    np.testing.assert_allclose(tiled.decode(3.0, z), decode(3.0, z), rtol=1e-5, atol=1e-6)
    x = decode(1.0, z) + jax.random.normal(jax.random.key(1), (shape[0], *decode(1.0, z).shape[1:]))
    for found, expected in zip(tiled.encode(3.0, x), encode(3.0, x)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_of_one_tile_is_what_it_was():
    """Even where every place sees all others."""
    whole = lambda params, z: decode(params, z) + z.mean((1, 2), keepdims=True)
    tiled = in_tiles(Autoencoder(lambda key: 3.0, encode, whole), FACTOR, tile=8, overlap=2)
    z = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    np.testing.assert_allclose(tiled.decode(3.0, z), whole(3.0, z), rtol=1e-5, atol=1e-6)


def test_borders_of_tiles_are_blended(network):
    """Tiles that differ in level: the step between them is spread over the overlap."""
    leveled = lambda params, z: decode(params, z - z + z[:, :1, :1])
    tiled = in_tiles(Autoencoder(lambda key: 1.0, encode, leveled), FACTOR, tile=8, overlap=4)
    z = jnp.arange(20.0)[None, None, :, None] * jnp.ones((1, 4, 20, 1))
    row = np.asarray(tiled.decode(1.0, z))[0, 0, :, 0]
    assert np.ptp(row) == 12.0
    assert np.abs(np.diff(row)).max() <= 4.0 / 8 + 1e-5


def test_activations_are_those_of_one_tile(network):
    shapes = set()

    def seen(params, z):
        shapes.add(z.shape)
        return decode(params, z)

    tiled = in_tiles(network._replace(decode=seen), FACTOR, tile=4, overlap=1)
    jax.eval_shape(tiled.decode, 3.0, jnp.zeros((5, 100, 100, 3)))
    assert shapes == {(1, 4, 4, 3)}


@pytest.mark.parametrize("overlap", [0, 4])
def test_overlaps_that_leave_gaps_or_no_step_are_refused(network, overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap}"):
        in_tiles(network, FACTOR, tile=4, overlap=overlap)
