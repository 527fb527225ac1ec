"""Measurement operators: adjoints, singular values, and what each of them measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import linear_call
from scipy import ndimage, signal

from diffjax.transforms import operators
from diffjax.transforms.linear import adjoint, check_operator, conjugate_gradients, measure, ridge
from diffjax.transforms.spectral import Spectral, matrix_of

RNG = np.random.default_rng(0)
PICTURE = np.float32(RNG.normal(size=(2, 8, 6, 3)))
KEEP = RNG.random((8, 6, 1)) < 0.5
KERNEL = RNG.normal(size=(3, 5))  # not separable, not symmetric

# operator, shape of a batch
OPERATORS = {
    "mask": (operators.mask(KEEP), (2, 8, 6, 3)),
    "blur": (operators.blur(KERNEL), (2, 8, 6, 3)),
    "separable blur": (operators.separable_blur(KERNEL[0], (8, 6)), (2, 8, 6, 3)),
    "area": (operators.downsample((8, 6), 2), (2, 8, 6, 3)),
    "cubic": (operators.downsample((8, 6), 2, method="cubic"), (2, 8, 6, 3)),
    "grey": (operators.grey(), (2, 8, 6, 3)),
    "fourier": (operators.fourier(KEEP[..., 0]), (2, 8, 6, 2)),
    "radon": (operators.radon([0.0, 30.0, 90.0, 145.0]), (2, 6, 6, 2)),
    "heat": (operators.heat((8, 6), 0.7), (2, 8, 6, 3)),
    "tall": (operators.separable([RNG.normal(size=(9, 4))]), (2, 4)),
    "decomposed": (operators.decompose(operators.blur(KERNEL), (4, 3, 1)), (2, 4, 3, 1)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_and_fit_their_adjoints(name):
    operator, shape = OPERATORS[name]
    check_operator(operator, shape)


@pytest.mark.parametrize(
    "name", [name for name in OPERATORS if isinstance(OPERATORS[name][0], Spectral)]
)
def test_singular_value_decompositions_hold(name):
    operator, shape = OPERATORS[name]
    s = operator.singular_values

    @jax.jit
    def both_sides(x):
        turned, y = operator.rotate(x), operator(x)
        back = operator.rotate_back(s * operator.coefficients(y))
        return {
            "V V^T = 1": (operator.rotate_back(turned), x),
            "V is orthonormal": (jnp.sum(turned**2), jnp.sum(x**2)),
            "U^T A = s V^T": (operator.coefficients(y), s * turned),
            "A^T = V s U^T": (adjoint(operator, x)(y), back),
        }

    for law, sides in both_sides(np.float32(RNG.normal(size=shape))).items():
        np.testing.assert_allclose(*sides, rtol=1e-4, atol=1e-5, err_msg=law)


def test_masks_keep_what_they_say():
    np.testing.assert_array_equal(operators.mask(KEEP)(PICTURE), np.where(KEEP, PICTURE, 0.0))


@pytest.mark.parametrize(
    ("boundary", "mode"), [("reflect", "symm"), ("wrap", "wrap"), ("constant", "fill")]
)
def test_blur_is_convolution(boundary, mode):
    result = operators.blur(KERNEL, boundary=boundary)(PICTURE)
    for channel in range(3):
        expected = signal.convolve2d(PICTURE[0, ..., channel], KERNEL, mode="same", boundary=mode)
        np.testing.assert_allclose(result[0, ..., channel], expected, atol=1e-5)


@pytest.mark.parametrize("boundary", ["reflect", "wrap", "constant"])
def test_separable_blur_is_blur_by_the_outer_product(boundary):
    kernel = KERNEL[0]
    both = operators.blur(np.outer(kernel, kernel), boundary=boundary)(PICTURE)
    separable = operators.separable_blur(kernel, (8, 6), boundary=boundary)(PICTURE)
    np.testing.assert_allclose(separable, both, atol=2e-5)


def test_area_scaling_is_the_mean_of_blocks_and_cubic_keeps_ramps():
    small = operators.downsample((8, 6), 2)(PICTURE)
    np.testing.assert_allclose(small, PICTURE.reshape(2, 4, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)
    ramp = np.float32(np.arange(24.0))[None, :, None, None] * np.ones((1, 1, 24, 1), np.float32)
    result = operators.downsample((24, 24), 2, method="cubic")(ramp)[0, 3:-3, 3:-3, 0]
    np.testing.assert_allclose(
        result, ramp.reshape(12, 2, 12, 2).mean((1, 3))[3:-3, 3:-3], atol=1e-4
    )


def test_grey_is_the_weighted_mean_of_colours():
    expected = PICTURE @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(operators.grey()(PICTURE)[..., 0], expected, atol=1e-6)


def test_fourier_measures_the_unitary_transform_where_it_is_told():
    x = PICTURE[..., :2]
    expected = KEEP[..., 0] * np.fft.fft2(x[..., 0] + 1j * x[..., 1], norm="ortho")
    result = operators.fourier(KEEP[..., 0])(x)
    np.testing.assert_allclose(result[..., 0] + 1j * result[..., 1], expected, atol=1e-5)


def test_projections_of_a_disc_are_its_chords_at_every_angle():
    grid = (np.arange(64) - 31.5) / 32
    inside = np.hypot(*np.meshgrid(grid, grid)) < 0.7
    sinogram = operators.radon([0.0, 17.0, 45.0, 90.0])(jnp.float32(inside)[None, ..., None])
    chords = 2.0 * np.sqrt(np.maximum(0.49 - grid**2, 0.0))
    # the edge of the disc is known to one pixel
    assert np.max(np.abs(sinogram[0, ..., 0] - chords)[:, np.abs(grid) < 0.6]) < 2.0 / 32


def test_projections_along_the_axes_are_sums():
    x = PICTURE[:, :6, :, :1]
    sinogram = operators.radon([0.0, 90.0])(x)
    np.testing.assert_allclose(sinogram[:, 0, :, 0], x[..., 0].sum(1) / 3, atol=1e-5)
    np.testing.assert_allclose(sinogram[:, 1, ::-1, 0], x[..., 0].sum(2) / 3, atol=1e-5)


def test_heat_adds_up_over_time_keeps_the_mean_and_spreads_like_a_gaussian():
    spread = lambda time: operators.heat((32, 32), time)
    x = np.float32(RNG.normal(size=(1, 32, 32, 1)))
    np.testing.assert_allclose(spread(2.0)(spread(1.0)(x)), spread(3.0)(x), atol=1e-5)
    np.testing.assert_allclose(spread(3.0)(x).mean(), x.mean(), atol=1e-6)
    # both are exact for pictures without the finest detail, on which lattices differ
    smooth = ndimage.gaussian_filter(x[0, ..., 0], 2.0)
    expected = ndimage.gaussian_filter(smooth, np.sqrt(2 * 3.0))
    np.testing.assert_allclose(spread(3.0)(smooth[None, ..., None])[0, ..., 0], expected, atol=1e-3)


def test_the_matrix_of_an_operator_is_its_action_on_flat_arrays():
    matrix = matrix_of(operators.grey(), (2, 2, 3))
    x = RNG.normal(size=(2, 2, 3))
    np.testing.assert_allclose(matrix @ x.ravel(), np.ravel(x @ [0.299, 0.587, 0.114]), atol=1e-6)


def test_conjugate_gradients_solve_systems_of_any_conditioning_beside_each_other(x64):
    scales = np.array([1.0, 1e2, 1e4])
    factors = RNG.normal(size=(3, 6, 6)) * np.geomspace(1.0, 0.1, 6)
    systems = scales[:, None, None] * (factors @ factors.mT)
    b = RNG.normal(size=(3, 6))
    apply = lambda u: jnp.einsum("bij,bj->bi", systems, u)
    result = conjugate_gradients(apply, b, max_iterations=60, tolerance=1e-12)
    np.testing.assert_allclose(result, np.linalg.solve(systems, b[..., None])[..., 0], rtol=1e-6)


def test_a_system_is_not_solved_in_no_steps():
    with pytest.raises(ValueError, match="max_iterations is 0"):
        conjugate_gradients(lambda u: u, jnp.ones((1, 2)), max_iterations=0)


def test_least_squares_of_least_norm_ignore_what_no_data_explains():
    matrix = np.float32(RNG.normal(size=(4, 2)) @ RNG.normal(size=(2, 5)))
    operator = lambda x: x @ matrix.T
    y, x0 = np.float32(RNG.normal(size=(3, 4))), jnp.zeros((3, 5))
    expected = y @ np.linalg.pinv(matrix, rcond=1e-5).T
    np.testing.assert_allclose(ridge(operator, y, x0), expected, atol=1e-4)
    spectral = operators.decompose(operator, (5,))
    np.testing.assert_allclose(ridge(spectral, y, x0), expected, atol=1e-4)


def test_measurements_have_the_noise_that_is_asked_for():
    x0, noises = jnp.ones((3, 40_000)), jnp.array([0.0, 0.5, 2.0])
    y = measure(jax.random.key(0), lambda x: 2.0 * x, x0, sigma_y=noises)
    np.testing.assert_array_equal(y[0], 2.0)
    spread = np.std(y - 2.0, axis=1)
    np.testing.assert_allclose(spread, noises, rtol=4 / np.sqrt(2 * 40_000), atol=1e-7)


def test_an_adjoint_that_does_not_fit_and_a_function_that_is_not_linear_are_refused():
    def with_adjoint(scale):
        return lambda x: linear_call(lambda _, x: 2.0 * x, lambda _, y: scale * y, (), x)

    check_operator(with_adjoint(2.0), (1, 4))
    with pytest.raises(ValueError, match="adjoint does not fit the operator"):
        check_operator(with_adjoint(1.0), (1, 4))
    with pytest.raises(ValueError, match="not linear: at a random point it differs by a share of"):
        check_operator(lambda x: x + 1.0, (1, 4))
    # one that measures nothing is linear
    check_operator(operators.mask(np.zeros(4)), (1, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: operators.mask([0.5, 1.0]), "no other values: it holds 0.5 to 1"),
        (lambda: operators.blur(np.ones((2, 3))), r"kernel has shape \(2, 3\); blur needs"),
        (lambda: operators.blur(KERNEL, boundary="edge"), "boundary is 'edge'; it must be one of"),
        (lambda: operators.separable_blur(KERNEL, (8, 8)), r"kernel has shape \(3, 5\)"),
        (lambda: operators.downsample((8, 7), 2), r"\(8, 7\); .* multiples of the factor 2"),
        (lambda: operators.downsample((8, 8), 2, method="box"), "method is 'box'"),
        (lambda: operators.downsample((8, 8), 0), "multiples of the factor 0"),
        (lambda: operators.mask(KEEP)(PICTURE[:, :4]), r"mask of shape \(8, 6, 1\) does not fit"),
        (lambda: operators.mask(np.ones((9, 2, 8, 6, 3)))(PICTURE), r"not fit .* \(2, 8, 6, 3\)"),
        (lambda: operators.blur(KERNEL)(PICTURE[0]), r"blur needs pictures \[B, H, W, C\]"),
        (lambda: operators.radon([0.0])(PICTURE[0, 0, 0]), "radon needs square pictures"),
        (lambda: operators.heat((8, 6), -1.0), r"time is -1\.0"),
        (lambda: operators.gaussian_kernel(0.0), r"std is 0\.0"),
        (lambda: operators.decompose(jnp.tanh, (3,)), "not linear: at a random point"),
        (lambda: operators.decompose(lambda x: x + 1.0, (3,)), "The operator is not linear"),
        (lambda: operators.fourier(np.ones(4))(PICTURE), r"keep has shape \(4,\)"),
        (lambda: operators.fourier(np.ones((8, 6)))(PICTURE), r"fourier needs \[B, 8, 6, 2\]"),
        (lambda: operators.radon(30.0), r"angles has shape \(\); radon needs \[A\]"),
        (lambda: operators.radon([]), r"angles has shape \(0,\); radon needs \[A\], one or more"),
        (lambda: operators.radon([0.0])(PICTURE), "radon needs square pictures"),
        (lambda: operators.heat((8, 8), 1.0)(PICTURE), "size 6; the operator was made for 8"),
        (lambda: operators.grey()(PICTURE[0]), "does not fit an operator of 3 matrices"),
        (lambda: operators.separable([np.ones(3)]), r"shape \(3,\); separable needs \[m, n\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
