"""The array operations agree with XLA's convolution and with formulas written out in NumPy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


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


def assert_close(ours, expected, tolerance=2e-5):
    """Close relative to the largest element: sums of many terms round in another order."""
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        scale = max(float(np.abs(theirs).max()), 1e-6)
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=tolerance)


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


def group_norm_formula(x, scale, bias, num_groups, eps):
    """In float64, group by group."""
    x = np.asarray(x, np.float64)
    y = np.empty_like(x)
    width = x.shape[-1] // num_groups
    for sample, group in itertools.product(range(len(x)), range(num_groups)):
        part = np.s_[sample, ..., group * width : (group + 1) * width]
        y[part] = (x[part] - x[part].mean()) / np.sqrt(x[part].var() + eps)
    return y * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)


@pytest.mark.parametrize("spatial", [(), (6,), (4, 5), (2, 3, 4)], ids=len)
@pytest.mark.parametrize("num_groups", [1, 4, 12])
def test_group_norm_is_the_formula(spatial, num_groups):
    x, scale, bias = arrays((3, *spatial, 12), (12,), (12,))
    ours = operations.group_norm(3 * x + 2, scale, bias, num_groups=num_groups, eps=1e-5)
    exact = group_norm_formula(3 * x + 2, scale, bias, num_groups, 1e-5)
    np.testing.assert_allclose(ours, exact, atol=2e-5)


def test_group_norm_survives_a_mean_far_from_zero():
    (x,) = arrays((2, 8, 8, 8))
    x = x + 1000.0
    ones, zeros = jnp.ones(8), jnp.zeros(8)
    ours = operations.group_norm(x, ones, zeros, num_groups=2, eps=1e-6)
    # float32 holds numbers near 1000 to 6e-5, so that y cannot be more exact than a few of that
    exact = group_norm_formula(x, ones, zeros, 2, 1e-6)
    np.testing.assert_allclose(ours, exact, atol=1e-3)


def test_group_norm_has_the_derivatives_of_the_formula():
    x, scale, bias = arrays((2, 3, 4, 8), (8,), (8,))

    def direct(x, scale, bias):
        groups = x.reshape(2, 12, 4, 2)
        mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
        return ((groups - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias

    ours = functools.partial(operations.group_norm, num_groups=4, eps=1e-5)
    (weight,) = arrays(x.shape, seed=1)
    gradient = lambda f: jax.grad(lambda *args: jnp.vdot(weight, f(*args)), argnums=(0, 1, 2))
    assert_close(
        *jax.jit(lambda *args: [gradient(f)(*args) for f in (ours, direct)])(x, scale, bias)
    )


def test_group_norm_of_half_precision_has_float32_statistics():
    x = (100 + arrays((1, 64, 64, 4))[0]).astype(jnp.bfloat16)
    y = operations.group_norm(x, jnp.ones(4), jnp.zeros(4), num_groups=1, eps=1e-5)
    assert y.dtype == jnp.bfloat16
    exact = group_norm_formula(x.astype(jnp.float32), np.ones(4), np.zeros(4), 1, 1e-5)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        operations.group_norm(jnp.ones((1, 12)), jnp.ones(12), jnp.ones(12), num_groups=5, eps=0.0)


def attention_formula(q, k, v, mask=None):
    """In float64, head by head."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    y = np.empty((*q.shape[:3], v.shape[-1]))
    for sample, head in itertools.product(range(q.shape[0]), range(q.shape[2])):
        logits = q[sample, :, head] @ k[sample, :, head].T / np.sqrt(q.shape[-1])
        if mask is not None:
            logits = np.where(np.broadcast_to(mask, (q.shape[0], q.shape[2], *logits.shape))[
                sample, head], logits, -np.inf)  # fmt: skip
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y[sample, :, head] = weights / weights.sum(-1, keepdims=True) @ v[sample, :, head]
    return y


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_attention_is_the_formula(scale):
    q, k, v = arrays((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8))
    ours = operations.attention(scale * q, k, v)
    np.testing.assert_allclose(ours, attention_formula(scale * q, k, v), atol=2e-5)


def test_attention_sees_only_what_the_mask_shows():
    q, k, v = arrays((2, 4, 2, 8), (2, 6, 2, 8), (2, 6, 2, 8))
    mask = np.random.default_rng(0).random((2, 1, 4, 6)) < 0.5
    mask[..., 0], mask[..., 5] = True, False
    ours = operations.attention(q, k, v, mask=jnp.asarray(mask))
    np.testing.assert_allclose(ours, attention_formula(q, k, v, mask), atol=2e-5)
    unseen = ~mask[0, 0].any(0)
    assert unseen.any()
    changed = operations.attention(q, k, v.at[0, unseen].set(100.0), mask=jnp.asarray(mask))
    np.testing.assert_array_equal(ours[0], changed[0])


def test_attention_that_sees_nothing_returns_the_mean_value():
    q, k, v = arrays((1, 2, 1, 4), (1, 3, 1, 4), (1, 3, 1, 4))
    ours = operations.attention(q, k, v, mask=jnp.zeros((1, 1, 1, 3), bool))
    np.testing.assert_allclose(ours, jnp.broadcast_to(v.mean(1, keepdims=True), ours.shape), 1e-5)


def test_attention_has_the_derivatives_of_the_formula():
    q, k, v, weight = arrays((2, 5, 2, 4), (2, 6, 2, 4), (2, 6, 2, 4), (2, 5, 2, 4))

    def direct(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("blhd,bshd->bhls", q, k) / 2.0)
        return jnp.einsum("bhls,bshd->blhd", weights, v)

    def derivatives(f, q, k, v):
        gradients = jax.grad(lambda *args: jnp.vdot(weight, f(*args)), argnums=(0, 1, 2))(q, k, v)
        return gradients, jax.jvp(f, (q, k, v), (k[:, :5], q[:, [0, 1, 2, 3, 4, 0]], v))[1]

    assert_close(
        *jax.jit(lambda *a: [derivatives(f, *a) for f in (operations.attention, direct)])(q, k, v)
    )


def test_attention_in_half_precision_has_a_float32_softmax():
    q, k, v = (a.astype(jnp.bfloat16) for a in arrays(*[(1, 256, 1, 8)] * 3))
    ours = operations.attention(q, k, v)
    assert ours.dtype == jnp.bfloat16
    wide = [a.astype(jnp.float32) for a in (q, k, v)]
    np.testing.assert_allclose(ours.astype(jnp.float32), attention_formula(*wide), atol=5e-3)


@pytest.mark.parametrize(
    ("size", "target"), [((3, 4), 2), ((3, 4), (7, 6)), ((5,), (12,))], ids=str
)
def test_upsample_takes_the_nearest_element(size, target):
    (x,) = arrays((2, *size, 3))
    y = operations.upsample_nearest(x, target)
    new = tuple(n * target for n in size) if isinstance(target, int) else target
    assert y.shape == (2, *new, 3)
    for position in itertools.product(*map(range, new)):
        source = tuple(i * old // n for i, old, n in zip(position, size, new))
        np.testing.assert_array_equal(y[:, *position], x[:, *source])


@pytest.mark.parametrize("size", [(8,), (4, 6), (2, 4, 6)], ids=len)
def test_pooling_undoes_upsampling_and_depth_to_space_undoes_space_to_depth(size):
    (x,) = arrays((2, *size, 3))
    np.testing.assert_allclose(operations.avg_pool(operations.upsample_nearest(x, 2)), x, rtol=1e-6)
    deep = operations.space_to_depth(x)
    assert deep.shape == (2, *(n // 2 for n in size), 3 * 2 ** len(size))
    np.testing.assert_array_equal(operations.depth_to_space(deep), x)
    corner = (slice(None, None, 2),) * len(size)
    np.testing.assert_array_equal(deep[..., :3], x[:, *corner])


def test_pooling_averages():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(operations.avg_pool(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


def test_filtered_resizing_with_two_equal_taps_is_pooling_and_repetition():
    x = arrays((2, 5, 8, 3))[0]
    halved = operations.fir_downsample(x[:, :4], (2, 2))
    np.testing.assert_allclose(halved, operations.avg_pool(x[:, :4], 2), rtol=1e-6)
    doubled = operations.fir_upsample(x, (1, 1), (10, 16))
    np.testing.assert_array_equal(doubled, operations.upsample_nearest(x, 2))


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
@pytest.mark.parametrize("size", [(9,), (6, 7), (3, 4, 5)], ids=len)
def test_filtered_upsampling_is_the_transpose_of_downsampling(size, taps):
    """<down(y), x> 2^dims = <y, up(x)>."""
    half = tuple(n // 2 for n in size)
    y, x = arrays((2, *size, 3), (2, *half, 3))
    down = operations.fir_downsample(y, taps)
    up = operations.fir_upsample(x, taps, size)
    chex.assert_shape(down, x.shape)
    chex.assert_shape(up, y.shape)
    inner = float((down * x).sum()) * 2 ** len(size)
    np.testing.assert_allclose(inner, float((y * up).sum()), rtol=1e-4)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1)])
def test_filters_keep_constant_images_away_from_the_edge(taps):
    x = jnp.full((1, 12, 12, 1), 2.0)
    inside = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_allclose(operations.fir_downsample(x, taps)[inside], 2.0, rtol=1e-6)
    np.testing.assert_allclose(operations.fir_upsample(x, taps, (24, 24))[inside], 2.0, rtol=1e-6)


def test_a_filter_is_numpys_convolution():
    x = arrays((2, 9, 1))[0]
    taps = np.array([1.0, 2.0, 5.0])
    filtered = operations.fir(x, taps, padding=(2, 2))
    for found, signal in zip(filtered[..., 0], x[..., 0]):
        np.testing.assert_allclose(found, np.convolve(signal, taps / 8), rtol=1e-5, atol=1e-6)
    strided = operations.fir(x, taps, padding=(2, 2), stride=2)
    np.testing.assert_array_equal(strided, filtered[:, ::2])


@pytest.mark.parametrize("operation", [operations.avg_pool, operations.space_to_depth])
def test_blocks_must_divide_the_image(operation):
    with pytest.raises(ValueError, match="blocks of 2 do not divide"):
        operation(jnp.ones((1, 4, 5, 3)))
