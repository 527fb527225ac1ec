"""The array operations agree with formulas written out in NumPy."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_arrays import arrays, assert_close

from diffjax.networks import operations


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


def attention_of_many(*, mask):
    """Enough queries that they take turns, in blocks that do not divide them."""
    q, k, v, weight = arrays((2, 1030, 2, 4), (2, 1031, 2, 4), (2, 1031, 2, 3), (2, 1030, 2, 3))
    seen = jnp.arange(1031) < 1000 if mask else jnp.ones(1031, bool)

    def direct(q, k, v):
        logits = jnp.where(seen, jnp.einsum("blhd,bshd->bhls", q, k) / 2.0, -jnp.inf)
        return jnp.einsum("bhls,bshd->blhd", jax.nn.softmax(logits), v)

    ours = functools.partial(operations.attention, mask=seen[None, None, None] if mask else None)
    return ours, direct, (q, k, v), weight


@pytest.mark.parametrize("mask", [False, True], ids=["all", "masked"])
def test_queries_that_take_turns_have_the_values_and_gradients_of_the_formula(mask):
    ours, direct, inputs, weight = attention_of_many(mask=mask)

    def with_gradients(f, inputs):
        return f(*inputs), jax.grad(lambda inputs: jnp.vdot(weight, f(*inputs)))(inputs)

    both = jax.jit(lambda inputs: [with_gradients(f, inputs) for f in (ours, direct)])
    assert_close(*both(inputs))


def test_queries_that_take_turns_need_no_memory_for_all_weights():
    ours, direct, inputs, weight = attention_of_many(mask=False)
    all_weights = 4 * 2 * 2 * 1030 * 1031

    def memory(f):
        gradients = jax.jit(jax.grad(lambda inputs: jnp.vdot(weight, f(*inputs))))
        return gradients.lower(inputs).compile().memory_analysis().temp_size_in_bytes

    assert memory(ours) < all_weights < memory(direct)


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
