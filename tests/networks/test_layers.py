import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffjax.core.keys import sample_keys
from diffjax.networks import functional
from diffjax.networks.layers import (
    Downsample,
    Embedding,
    GroupNorm,
    ResidualBlock,
    Upsample,
    dropout,
    halve,
    sinusoidal_features,
)
from diffjax.networks.unet_attention import SelfAttention


def features_one_by_one(t, features, flip, shift):
    half = features // 2
    sines = [np.sin(t * 10000 ** (-i / (half - shift))) for i in range(half)]
    cosines = [np.cos(t * 10000 ** (-i / (half - shift))) for i in range(half)]
    return (cosines + sines if flip else sines + cosines) + [0.0] * (features % 2)


@pytest.mark.parametrize(("features", "flip", "shift"), [(8, False, 1), (8, True, 0), (7, True, 0)])
def test_sinusoidal_features_follow_the_definition(features, flip, shift):
    t = np.array([0.0, 0.5, 3.0])
    expected = [features_one_by_one(each, features, flip, shift) for each in t]
    found = sinusoidal_features(jnp.array(t), features, flip_sin_to_cos=flip, freq_shift=shift)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_integer_and_float_clocks_agree():
    integer = sinusoidal_features(jnp.array([3, 999]), 8)
    np.testing.assert_array_equal(integer, sinusoidal_features(jnp.array([3.0, 999.0]), 8))


def test_dropout_keeps_the_mean_and_depends_on_the_key_of_the_sample():
    keys = sample_keys(jax.random.key(0), jnp.arange(4))
    x = jnp.ones((4, 2500))
    y = dropout(x, keys, 0.25)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs(float(y.mean()) - 1) < 4 * (0.25 / 0.75 / x.size) ** 0.5
    np.testing.assert_array_equal(dropout(x[1:3], keys[1:3], 0.25), y[1:3])
    assert dropout(x, None, 0.25) is x


def test_an_embedding_outside_the_table_is_nan():
    init, apply = functional(lambda rngs: Embedding(3, 4, rngs=rngs))
    found = apply(init(jax.random.key(0)), jnp.array([0, 2, 3, -1]))
    np.testing.assert_array_equal(jnp.isnan(found).any(axis=1), [False, False, True, True])


def test_halve_averages_pairs_and_leaves_out_an_odd_end():
    x = jnp.arange(5.0).reshape(1, 5, 1)
    np.testing.assert_array_equal(halve(x).ravel(), [0.5, 2.5])


def test_without_a_number_norms_have_groups_of_four_channels_and_at_most_32():
    counts = [GroupNorm(channels, None, eps=1e-6).num_groups for channels in (4, 24, 128, 256)]
    assert counts == [1, 6, 32, 32]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("n", [4, 5])
def test_downsample_positions_follow_its_padding(padding, n):
    init, apply = functional(lambda rngs: Downsample(1, dims=1, padding=padding, rngs=rngs))
    params = jax.tree.map(jnp.ones_like, init(jax.random.key(0)))
    x = jnp.arange(1.0, n + 1).reshape(1, n, 1)
    padded = np.pad(np.arange(1.0, n + 1), (padding, 1))
    windows = [padded[i : i + 3].sum() + 1 for i in range(0, len(padded) - 2, 2)]
    np.testing.assert_allclose(apply(params, x).ravel(), windows)


def blocks(dims):
    common = {"dims": dims, "num_groups": 2, "eps": 1e-6, "zero": False}

    def residual(resize, **options):
        return lambda rngs: ResidualBlock(4, 6, 5, resize=resize, rngs=rngs, **options, **common)

    attention = lambda rngs: SelfAttention(
        4, head_dim=2, num_groups=2, eps=1e-6, zero=False, rngs=rngs
    )
    side, half, twice = (4,) * dims, (2,) * dims, (7,) * dims
    temb = jnp.ones((2, 5))
    return [
        (residual(None), (temb,), {}, (2, *side, 6)),
        (residual("down"), (temb,), {}, (2, *half, 6)),
        (residual("up"), (temb,), {"size": twice}, (2, *twice, 6)),
        (residual("down", fir=(1, 3, 3, 1)), (temb,), {}, (2, *half, 6)),
        (residual("up", fir=(1, 3, 3, 1)), (temb,), {"size": twice}, (2, *twice, 6)),
        (lambda rngs: Upsample(4, dims=dims, rngs=rngs), (twice,), {}, (2, *twice, 4)),
        (attention, (), {}, (2, *side, 4)),
    ]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_blocks_take_any_number_of_spatial_axes(dims):
    x = jnp.ones((2, *(4,) * dims, 4))
    for make, arguments, named, shape in blocks(dims):
        init, apply = functional(make)
        params = jax.eval_shape(init, jax.random.key(0))
        found = jax.eval_shape(lambda p, x: apply(p, x, *arguments, **named), params, x)  # noqa: B023
        chex.assert_shape(found, shape)


def test_attention_does_not_know_the_order_of_positions():
    init, apply = functional(
        lambda rngs: SelfAttention(4, head_dim=2, num_groups=2, eps=1e-6, zero=False, rngs=rngs)
    )
    params = init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float32)
    order = np.array([3, 1, 8, 0, 2, 7, 6, 5, 4])
    apply = jax.jit(apply)
    mixed = apply(params, x)
    np.testing.assert_allclose(apply(params, x[:, order]), mixed[:, order], atol=1e-5)
    assert float(jnp.abs(mixed - x).max()) > 0.01


def test_wrong_groups_and_heads_are_named():
    with pytest.raises(ValueError, match=r"\(10\) must be a multiple of num_groups \(4\)"):
        GroupNorm(10, 4, eps=1e-6)
    with pytest.raises(ValueError, match="head_dim is 12; an attention of 10 channels has no head"):
        SelfAttention(10, head_dim=12, num_groups=2, eps=1e-6, zero=False, rngs=nnx.Rngs(0))
