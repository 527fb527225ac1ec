"""Every formulation of the convolution agrees with XLA's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from random_arrays import arrays, assert_close

from diffjax.networks import convolution, operations

winograd_1d = functools.partial(convolution.winograd, dims=1)
winograd_2d = functools.partial(convolution.winograd, dims=2)

# formulation, spatial size, window, Cin, Cout, strides, padding
CASES = {
    "pointwise": (convolution.pointwise, (5, 4), (1, 1), 6, 7, 1, 0),
    "whole image": (convolution.whole_image, (2, 2), (3, 3), 5, 7, 1, 1),
    "whole odd image": (convolution.whole_image, (1, 2), (3, 3), 5, 7, 1, 1),
    "whole line": (convolution.whole_image, (2,), (3,), 5, 7, 1, 1),
    "whole volume": (convolution.whole_image, (2, 1, 2), (3, 3, 3), 2, 3, 1, 1),
    "winograd line": (winograd_1d, (6,), (3,), 5, 7, 1, 1),
    "winograd odd line": (winograd_1d, (7,), (3,), 5, 7, 1, 1),
    "winograd rows": (winograd_1d, (4, 6), (3, 3), 5, 7, 1, 1),
    "winograd odd rows": (winograd_1d, (5, 7), (3, 3), 5, 7, 1, 1),
    "winograd rows of a volume": (winograd_1d, (3, 4, 5), (3, 3, 3), 3, 4, 1, 1),
    "winograd planes": (winograd_2d, (4, 6), (3, 3), 5, 7, 1, 1),
    "winograd odd planes": (winograd_2d, (5, 7), (3, 3), 5, 7, 1, 1),
    "winograd planes of a volume": (winograd_2d, (3, 4, 5), (3, 3, 3), 3, 4, 1, 1),
    "patches": (convolution.patches, (6, 7), (3, 3), 3, 8, 1, 1),
    "patches, 1x1": (convolution.patches, (5, 4), (1, 1), 6, 7, 2, 1),
    "patches, high side": (convolution.patches, (8, 8), (3, 3), 4, 5, 2, ((0, 1), (0, 1))),
    "patches, both sides": (convolution.patches, (7, 8), (3, 3), 4, 5, 2, 1),
    "patches, SAME": (convolution.patches, (7, 8), (3, 3), 4, 5, 2, "SAME"),
    "patches, VALID": (convolution.patches, (7, 8), (3, 3), 4, 5, 1, "VALID"),
    "patches, causal": (convolution.patches, (9,), (3,), 4, 5, 1, ((2, 0),)),
    "patches, unequal": (convolution.patches, (7, 9), (4, 2), 5, 6, (2, 3), ((1, 2), (0, 1))),
    "patches of a volume": (convolution.patches, (3, 2, 4), (2, 3, 1), 4, 4, 1, "SAME"),
    "scattered": (convolution.scattered, (6, 7), (3, 3), 8, 3, 1, 1),
    "scattered, even": (convolution.scattered, (6, 7), (4, 2), 8, 3, 1, ((1, 2), (0, 1))),
    "scattered, VALID": (convolution.scattered, (6, 7), (5, 3), 8, 3, 1, "VALID"),
    "scattered line": (convolution.scattered, (9,), (3,), 8, 3, 1, ((2, 0),)),
    "native": (convolution.native, (6, 7), (3, 3), 3, 8, 2, 1),
    "native line": (convolution.native, (6,), (3,), 3, 8, 1, "SAME"),
    "native volume": (convolution.native, (4, 3, 5), (3, 3, 3), 3, 8, 1, "VALID"),
}

# the same formulations, where `conv` chooses them: image, kernel, strides, padding
CHOICES = {
    "pointwise": ((4, 8, 8, 96), (1, 1, 96, 48), 1, "SAME"),
    "whole_image": ((128, 2, 2, 96), (3, 3, 96, 96), 1, 1),
    "winograd 1": ((128, 4, 4, 48), (3, 3, 48, 48), 1, "SAME"),
    "winograd 2": ((1, 32, 32, 16), (3, 3, 16, 16), 1, "SAME"),
    "patches": ((2, 8, 8, 3), (3, 3, 3, 32), 1, "SAME"),
    "scattered": ((2, 8, 8, 32), (3, 3, 32, 3), 1, "SAME"),
}
# where the tiles of Winograd do not fit or do not pay
PATCHES = {
    "few positions": ((4, 4, 4, 256), (3, 3, 256, 256), 1, 1),
    "few channels": ((8, 32, 32, 8), (3, 3, 8, 8), 1, 1),
    "stride": ((4, 32, 32, 128), (3, 3, 128, 128), 2, ((0, 1), (0, 1))),
    "padding": ((4, 32, 32, 128), (3, 3, 128, 128), 1, "VALID"),
    "window": ((4, 32, 32, 128), (3, 5, 128, 128), 1, "SAME"),
}


def chosen(image, kernel, strides, padding, platform="cpu"):
    """The name of the formulation that `conv` takes."""
    strides = (strides,) * (len(image) - 2)
    sides = convolution._sides(padding, image[1:-1], kernel[:-2], strides)
    choice = convolution._formulation(image, kernel, strides, sides, platform)
    if isinstance(choice, functools.partial):
        return f"{choice.func.__name__} {choice.keywords['dims']}"
    return choice.__name__


def xla(x, kernel, strides, padding):
    """XLA's convolution, called directly."""
    dims = x.ndim - 2
    strides = (strides,) * dims if isinstance(strides, int) else strides
    padding = [(padding, padding)] * dims if isinstance(padding, int) else padding
    axes = "DHW"[3 - dims :]
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
    )


def both(name):
    """A formulation and XLA's convolution as functions of (x, kernel), and such inputs."""
    formulation, size, window, inputs, outputs, strides, padding = CASES[name]
    x, kernel = arrays((2, *size, inputs), (*window, inputs, outputs))
    each = (strides,) * len(size) if isinstance(strides, int) else strides
    sides = convolution._sides(padding, size, window, each)
    ours = lambda x, kernel: formulation(x, kernel, each, sides)
    return ours, lambda x, kernel: xla(x, kernel, strides, padding), x, kernel


def derivatives(function, x, kernel):
    """Value, reverse-mode gradients and forward-mode derivative along fixed directions."""
    value, pull = jax.vjp(function, x, kernel)
    (cotangent,) = arrays(value.shape, seed=1)
    tangents = tuple(arrays(x.shape, kernel.shape, seed=2))
    return value, *pull(cotangent), jax.jvp(function, (x, kernel), tangents)[1]


@pytest.mark.parametrize("name", CASES)
def test_every_formulation_and_its_derivatives_are_those_of_xla(name):
    ours, theirs, x, kernel = both(name)
    compare = jax.jit(lambda x, kernel: [derivatives(f, x, kernel) for f in (ours, theirs)])
    assert_close(*compare(x, kernel))


@pytest.mark.parametrize("name", CHOICES)
def test_conv_computes_the_convolution_of_xla_however_it_chooses(name):
    image, window, strides, padding = CHOICES[name]
    assert chosen(image, window, strides, padding) == name
    x, kernel = arrays(image, window)
    assert_close(
        operations.conv(x, kernel, strides=strides, padding=padding),
        xla(x, kernel, strides, padding),
    )


@pytest.mark.parametrize("case", PATCHES.values(), ids=PATCHES)
def test_patches_serve_where_nothing_better_fits(case):
    assert chosen(*case) == "patches"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_use_the_convolution_of_xla(platform):
    assert {chosen(*case, platform) for case in CHOICES.values()} == {"native"}


def test_an_image_too_large_to_be_copied_uses_the_convolution_of_xla():
    assert chosen((8, 1024, 1024, 3), (5, 5, 3, 8), 1, "SAME") == "native"


NESTED = ["pointwise", "whole image", "winograd odd rows", "winograd odd planes", "patches",
          "scattered"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NESTED)
def test_second_derivatives_are_those_of_xla(name):
    ours, theirs, x, kernel = both(name)
    energy = lambda f: lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel) / 10))
    along = tuple(arrays(x.shape, kernel.shape, seed=3))

    def second(f):
        gradient = jax.grad(energy(f), argnums=(0, 1))
        forward = jax.jvp(gradient, (x, kernel), along)[1]
        reverse = jax.grad(lambda x: jnp.vdot(gradient(x, kernel)[0], along[0]))(x)
        return forward, reverse

    assert_close(*jax.jit(lambda: [second(f) for f in (ours, theirs)])())


@pytest.mark.slow
@pytest.mark.parametrize("name", NESTED)
def test_vmap_over_images_and_over_kernels_is_a_loop(name):
    ours, theirs, x, kernel = both(name)
    images = jax.vmap(lambda x: ours(x[None], kernel)[0])(x)
    assert_close(images, theirs(x, kernel))
    kernels = jnp.stack([kernel, 2.0 - kernel])
    pairs = jax.vmap(ours)(jnp.stack([x, x + 1]), kernels)
    assert_close(pairs, jnp.stack([theirs(x, kernels[0]), theirs(x + 1, kernels[1])]))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_half_precision_rounds_once(name):
    image, window, strides, padding = CHOICES[name]
    x, kernel = (a.astype(jnp.bfloat16) for a in arrays(image, window))

    @jax.jit
    def with_gradients(x, kernel):
        ours = functools.partial(operations.conv, strides=strides, padding=padding)
        y, pull = jax.vjp(ours, x, kernel)
        return y, *pull(jnp.ones_like(y))

    rounded = with_gradients(x, kernel)
    assert {a.dtype for a in rounded} == {jnp.dtype("bfloat16")}
    exact = with_gradients(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert_close([a.astype(jnp.float32) for a in rounded], exact, tolerance=2.0**-8)


def test_conv_adds_the_bias():
    x, kernel, bias = arrays((2, 4, 4, 3), (3, 3, 3, 5), (5,))
    with_bias = operations.conv(x, kernel, bias)
    assert_close(with_bias, operations.conv(x, kernel) + bias)


def test_convolution_gradients_do_not_need_xlas_convolution():
    """Inside loops XLA:CPU runs that tens of times slower."""
    for image, window, strides, padding in [*CHOICES.values(), *PATCHES.values()]:
        square = lambda x, kernel, s=strides, p=padding: (
            operations.conv(x, kernel, strides=s, padding=p) ** 2
        ).sum()
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, window)]
        program = str(jax.make_jaxpr(jax.grad(square, (0, 1)))(*shapes))
        assert "dot_general" in program
        assert "conv_general_dilated" not in program


@pytest.mark.parametrize(
    ("x", "kernel", "padding", "message"),
    [
        ((2, 4, 4, 3), (3, 3, 4, 5), "SAME", "equal Cin"),
        ((2, 4, 4, 3), (3, 3, 5), "SAME", "as many window as spatial axes"),
        ((2, 4, 4, 3), (3, 3, 3, 5), "FULL", "'SAME', 'VALID'"),
        ((2, 4, 4, 3), (3, 3, 3, 5), ((1, 1),), "1 pairs for 2 spatial axes"),
    ],
)
def test_conv_refuses_what_does_not_fit(x, kernel, padding, message):
    with pytest.raises(ValueError, match=message):
        operations.conv(jnp.ones(x), jnp.ones(kernel), padding=padding)
