"""The array operations agree with XLA's convolution and with formulas written out in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import convolution, operations

# spatial size, window, Cin, Cout, strides, padding; every formulation of the CPU is in the table
CASES = {
    "1x1": ((5, 4), (1, 1), 6, 7, 1, 0),
    "1x1 with stride": ((5, 4), (1, 1), 6, 7, 2, 0),
    "1x1 with padding": ((5, 4), (1, 1), 6, 7, 1, 1),
    "tiny image": ((2, 2), (3, 3), 5, 7, 1, 1),
    "tiny odd image": ((1, 2), (3, 3), 5, 7, 1, 1),
    "tiny line": ((2,), (3,), 5, 7, 1, 1),
    "small image": ((4, 4), (3, 3), 16, 17, 1, 1),
    "small odd image": ((5, 7), (3, 3), 16, 17, 1, 1),
    "large image": ((16, 16), (3, 3), 16, 17, 1, 1),
    "large odd image": ((17, 19), (3, 3), 16, 17, 1, 1),
    "line": ((9,), (3,), 16, 17, 1, 1),
    "volume": ((3, 5, 4), (3, 3, 3), 16, 17, 1, 1),
    "large volume": ((7, 6, 7), (3, 3, 3), 16, 17, 1, 1),
    "few inputs": ((6, 7), (3, 3), 3, 20, 1, 1),
    "few outputs": ((6, 7), (3, 3), 20, 3, 1, 1),
    "few outputs, even window": ((6, 7), (4, 2), 20, 3, 1, ((1, 2), (0, 1))),
    "halving, high side": ((8, 8), (3, 3), 16, 16, 2, ((0, 1), (0, 1))),
    "halving, both sides": ((7, 8), (3, 3), 16, 16, 2, 1),
    "halving, SAME": ((7, 8), (3, 3), 16, 16, 2, "SAME"),
    "VALID": ((7, 8), (3, 3), 16, 16, 1, "VALID"),
    "causal line": ((9,), (3,), 16, 16, 1, ((2, 0),)),
    "unequal strides": ((7, 9), (4, 2), 5, 6, (2, 3), ((1, 2), (0, 1))),
    "window 5": ((6, 6), (5, 5), 8, 8, 1, "SAME"),
    "small volume": ((3, 2, 4), (2, 3, 1), 4, 4, 1, "SAME"),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def both(case):
    """`conv` of a case and XLA's convolution of it, as functions of (x, kernel), and inputs."""
    size, window, inputs, outputs, strides, padding = case
    x, kernel = arrays((2, *size, inputs), (*window, inputs, outputs))
    strides_each = (strides,) * len(size) if isinstance(strides, int) else strides
    xla_padding = [(padding, padding)] * len(size) if isinstance(padding, int) else padding
    axes = "DHW"[3 - len(size) :]
    xla = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides_each,
        padding=xla_padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    ours = lambda x, kernel: operations.conv(x, kernel, strides=strides, padding=padding)
    return ours, xla, x, kernel


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


@CASE
def test_convolution_and_its_derivatives_are_those_of_xla(case):
    ours, xla, x, kernel = both(case)
    compare = jax.jit(lambda x, kernel: [derivatives(f, x, kernel) for f in (ours, xla)])
    assert_close(*compare(x, kernel))


def test_the_table_reaches_every_formulation_of_the_cpu():
    reached = set()
    for size, window, inputs, outputs, strides, padding in CASES.values():
        strides = (strides,) * len(size) if isinstance(strides, int) else strides
        sides = convolution._sides(padding, size, window, strides)
        choice = convolution._formulation(
            (2, *size, inputs), (*window, inputs, outputs), strides, sides, "cpu"
        )
        reached.add((getattr(choice, "func", choice), *getattr(choice, "keywords", {}).values()))
    assert reached == {
        (convolution.pointwise,),
        (convolution.whole_image,),
        (convolution.winograd, 1),
        (convolution.winograd, 2),
        (convolution.patches,),
        (convolution.scattered,),
    }


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_use_the_convolution_of_xla(platform):
    sides = ((1, 1), (1, 1))
    choice = convolution._formulation((2, 4, 4, 16), (3, 3, 16, 16), (1, 1), sides, platform)
    assert choice is convolution.native


def test_an_image_too_large_to_be_copied_uses_the_convolution_of_xla():
    sides = ((2, 2), (2, 2))
    choice = convolution._formulation((8, 1024, 1024, 3), (5, 5, 3, 8), (1, 1), sides, "cpu")
    assert choice is convolution.native


@pytest.mark.parametrize("name", ["line", "few inputs", "halving, high side", "volume"])
def test_the_native_formulation_is_the_convolution_of_xla(name):
    _, xla, x, kernel = both(CASES[name])
    size, window, _, _, strides, padding = CASES[name]
    strides = (strides,) * len(size)
    sides = convolution._sides(padding, size, window, strides)
    assert_close(convolution.native(x, kernel, strides, sides), xla(x, kernel))


@pytest.mark.parametrize("name", ["tiny image", "small odd image", "large image", "few outputs"])
def test_second_derivatives_are_those_of_xla(name):
    ours, xla, x, kernel = both(CASES[name])
    # the gradient of x is linear in the kernel: its derivative along one is itself, with that
    energy = lambda f: lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel) / 10))
    along = tuple(arrays(x.shape, kernel.shape, seed=3))

    def second(f):
        gradient = jax.grad(energy(f), argnums=(0, 1))
        forward = jax.jvp(gradient, (x, kernel), along)[1]
        reverse = jax.grad(lambda x: jnp.vdot(gradient(x, kernel)[0], along[0]))(x)
        return forward, reverse

    assert_close(jax.jit(lambda: second(ours))(), jax.jit(lambda: second(xla))())


@pytest.mark.parametrize("name", ["tiny image", "small image", "large odd image", "few inputs"])
def test_vmap_over_images_and_over_kernels_is_a_loop(name):
    ours, _, x, kernel = both(CASES[name])
    alone = jax.jit(ours)
    images = jax.vmap(lambda x: ours(x[None], kernel)[0])(x)
    assert_close(images, jnp.stack([alone(each[None], kernel)[0] for each in x]))
    kernels = jnp.stack([kernel, 2.0 - kernel])
    assert_close(
        jax.vmap(ours)(jnp.stack([x, x + 1]), kernels),
        jnp.stack([alone(x, kernels[0]), alone(x + 1, kernels[1])]),
    )


@pytest.mark.parametrize("name", ["small image", "tiny image", "large image", "1x1"])
def test_half_precision_is_as_near_to_float32_as_rounding_allows(name):
    ours, xla, x, kernel = both(CASES[name])
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = ours(x, kernel)
    assert y.dtype == jnp.bfloat16
    exact = xla(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert_close(y.astype(jnp.float32), exact, tolerance=2.0**-7)
    gradient = jax.grad(lambda x: ours(x, kernel).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(gradient.astype(jnp.float32)).all())


def test_conv_adds_the_bias():
    x, kernel, bias = arrays((2, 4, 4, 3), (3, 3, 3, 5), (5,))
    with_bias = operations.conv(x, kernel, bias)
    assert_close(with_bias, operations.conv(x, kernel) + bias)


def test_convolution_gradients_do_not_need_xlas_convolution():
    """Inside loops XLA:CPU runs that tens of times slower."""
    x, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
    gradient = jax.grad(lambda x, kernel: (operations.conv(x, kernel) ** 2).sum(), (0, 1))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(gradient)(x, kernel))


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


@pytest.mark.parametrize("operation", [operations.avg_pool, operations.space_to_depth])
def test_blocks_must_divide_the_image(operation):
    with pytest.raises(ValueError, match="blocks of 2 do not divide"):
        operation(jnp.ones((1, 4, 5, 3)))
