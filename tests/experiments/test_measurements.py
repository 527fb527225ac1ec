"""The measurements of inverse problems: linear where they say so, refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from choices import build
from measurements import PROBLEMS, magnitude

GREY, COMPLEX, COLOUR = (8, 8, 1), (8, 8, 2), (8, 8, 3)
LINEAR = [
    ("masking", COLOUR), ("blur", COLOUR), ("motion", GREY), ("downsampling", COLOUR),
    ("grey", COLOUR), ("fourier", GREY), ("fourier", COMPLEX), ("radon", GREY), ("heat", GREY),
]  # fmt: skip


def measurement(text, shape, seed=0):
    return build("problem", text, PROBLEMS, shape=shape, seed=seed)


@pytest.mark.parametrize(("name", "shape"), LINEAR)
def test_a_linear_measurement_has_an_adjoint_and_can_be_shown(name, shape):
    problem = measurement(name, shape)
    assert problem.linear
    dj.check_operator(problem.operator, (1, *shape))
    look = jax.eval_shape(lambda x: problem.show(problem.operator(x)), jnp.ones((3, *shape)))
    assert look.shape[0] == 3
    assert look.shape[-1] == (1 if shape == COMPLEX else shape[-1])


def test_saturation_is_not_linear():
    problem = measurement("saturation(gain=2)", GREY)
    assert not problem.linear
    with pytest.raises(ValueError, match="not linear"):
        dj.check_operator(problem.operator, (1, *GREY))


def test_as_many_lines_are_measured_as_asked_for_those_of_low_frequency_always():
    for seed in range(3):
        text = "fourier(share=0.25, centre=0.125)"
        operator = measurement(text, (16, 32, 2), seed).operator
        lines = np.broadcast_to(operator.singular_values, (16, 32, 1))[0, :, 0] > 0
        assert lines.sum() == 8
        assert np.all(lines[[0, 1, 2, -1, -2]])


def test_all_frequencies_and_all_pixels_show_the_picture_itself():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *COMPLEX)), jnp.float32)
    problem = measurement("fourier(share=1.0)", COMPLEX)
    np.testing.assert_allclose(problem.show(problem.operator(x)), magnitude(x), atol=1e-5)
    np.testing.assert_array_equal(measurement("masking(share=1.0)", COMPLEX).operator(x), x)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("masked", GREY, "problem 'masked' is not one of masking, blur.*Did you mean 'masking'"),
        ("blur(sigma=2)", GREY, "problem blur has no argument 'sigma'"),
        ("masking(share=2)", GREY, "masking is given the share 2"),
        ("grey", GREY, "grey needs colour pictures; these have 1 channels"),
        ("fourier", COLOUR, "fourier measures real .* these have 3"),
        ("motion(length=4)", GREY, "must be odd"),
        ("downsampling(factor=3)", GREY, "multiples of the factor 3"),
    ],
)
def test_what_does_not_fit_is_refused(text, shape, message):
    with pytest.raises(ValueError, match=message):
        measurement(text, shape)
