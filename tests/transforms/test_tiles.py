"""Canvases of overlapping tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import exact, grids, schedules
from diffjax.core.levels import NoiseLevel, expand
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import sample
from diffjax.solvers import ddim
from diffjax.transforms import num_tiles, tiled
from diffjax.transforms.tiles import tile_starts

LEVEL = NoiseLevel(*jnp.array([0.5, 0.6, 0.8]))
EACH = NoiseLevel(*jnp.array([[0.2, 0.5], [0.9, 0.6], [0.4, 0.8]]))
X = jax.random.normal(jax.random.key(0), (2, 9, 6, 3))


def pixelwise(x, level):
    return expand(level.alpha, x) * jnp.sin(x)


@pytest.mark.parametrize("level", [LEVEL, EACH])
@pytest.mark.parametrize("stride", [None, (1, 3), (4, 4)])
def test_a_denoiser_of_independent_pixels_is_the_same_on_the_canvas(stride, level):
    canvas = jax.jit(tiled(pixelwise, (4, 4), stride=stride))
    np.testing.assert_allclose(canvas(X, level), pixelwise(X, level), rtol=1e-5, atol=1e-6)


def test_a_canvas_of_one_tile_is_the_tile():
    reverse = lambda x, level: x[:, ::-1, ::-1]
    np.testing.assert_array_equal(tiled(reverse, (9, 6))(X, LEVEL), X[:, ::-1, ::-1])


def test_estimates_are_averaged_where_tiles_overlap_and_follow_one_another_in_the_batch():
    count = num_tiles((9, 6), (4, 4), (3, 2))
    starts = tile_starts((9, 6), (4, 4), (3, 2))
    values = jnp.arange(2.0 * count)
    denoise = lambda x, level: jnp.zeros_like(x) + expand(values, x)
    result = tiled(denoise, (4, 4), stride=(3, 2))(X, LEVEL)
    total, number = np.zeros(X.shape), np.zeros(X.shape)
    value = iter(np.asarray(values))
    for b in range(2):
        for top in starts[0]:
            for left in starts[1]:
                total[b, top : top + 4, left : left + 4] += next(value)
                number[b, top : top + 4, left : left + 4] += 1
    np.testing.assert_allclose(result, total / number, rtol=1e-6)


@pytest.mark.parametrize("shape", [(10,), (6, 5, 4)])
def test_any_number_of_axes(shape):
    x = jax.random.normal(jax.random.key(1), (2, *shape, 1))
    result = tiled(pixelwise, tuple(side // 2 for side in shape))(x, LEVEL)
    np.testing.assert_allclose(result, pixelwise(x, LEVEL), rtol=1e-5, atol=1e-6)


def test_learned_variances_are_averaged_too():
    learned = lambda x, level: LearnedVariance(pixelwise(x, level), 0.1 * x)
    result = tiled(learned, (4, 4))(X, LEVEL)
    np.testing.assert_allclose(result.fraction, 0.1 * X, rtol=1e-5, atol=1e-6)


def test_neighbours_on_a_canvas_agree_where_a_tile_alone_would_make_them_agree():
    """Rows of two pixels that are equal in the data: a canvas of overlapping ones is constant."""
    twins = exact.denoiser(exact.mixture([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.01, 0.01]))
    levels = schedules.cosine()(grids.trailing(30))
    canvas = tiled(lambda x, level: twins(x, level), (2,), stride=(1,))
    noise = jax.random.normal(jax.random.key(3), (64, 3, 1))
    rows = jax.jit(lambda x: sample(jax.random.key(0), x, canvas, ddim(eta=1.0), levels))(noise)
    signs = np.sign(np.asarray(rows)[..., 0])
    agree = np.mean(np.all(signs == signs[:, :1], axis=1))
    assert agree > 0.7  # 0.25 by chance
    assert 0.2 < np.mean(signs[:, 0] > 0) < 0.8


@pytest.mark.parametrize(
    ("tile", "stride"), [((10, 4), None), ((4, 4), (5, 4)), ((4, 4), (0, 1)), ((4,), None)]
)
def test_tiles_that_do_not_cover_the_canvas_are_refused(tile, stride):
    with pytest.raises(ValueError, match=r"do not cover a canvas of \(9, 6\)|differ in their axes"):
        tiled(pixelwise, tile, stride=stride)(X, LEVEL)
