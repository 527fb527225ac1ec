import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.keys import sample_keys
from diffjax.networks import (
    UNetConfig,
    count_parameters,
    operations,
    unet,
    unet_presets,
)

TINY = UNetConfig(
    in_channels=2,
    out_channels=2,
    block_out_channels=(4, 8),
    layers_per_block=1,
    attention=(False, True),
    num_groups=2,
    num_classes=3,
    cond_drop_prob=0.5,
    dropout=0.2,
)

# the least network with every kind of layer: what has to be compiled again uses this one
SMALL = dataclasses.replace(TINY, block_out_channels=(4,), attention=(True,), mid_block=False)

FILTERED = {
    "downsample": "fir",
    "upsample": "fir",
    "num_groups": None,
    "residual_scale": 0.5**0.5,
}

# name -> changes of TINY, spatial shape
VARIANTS = {
    "plain": ({}, (8, 8)),
    "odd sides": ({}, (7, 5)),
    "odd sides, padding 1": ({"downsample_padding": 1}, (7, 5)),
    "odd sides, resnet": ({"downsample": "resnet", "upsample": "resnet"}, (7, 5)),
    "odd sides, parameter-free": ({"downsample": "plain", "upsample": "plain"}, (7, 5)),
    "one way each level": (
        {"downsample": ("resnet", "conv"), "upsample": ("conv", "plain")},
        (8, 8),
    ),
    "attention on the way up alone": (
        {"attention": (False,) * 2, "up_attention": (True,) * 2},
        (8, 8),
    ),
    "heads": ({"head_dim": 2, "mid_attention_groups": 0}, (8, 8)),
    "scale and shift": ({"scale_shift": True, "flip_sin_to_cos": True, "freq_shift": 0}, (8, 8)),
    "no middle": ({"mid_block": False}, (8, 8)),
    "no middle attention": ({"mid_attention": False}, (8, 8)),
    "one level": ({"block_out_channels": (4,), "attention": (True,)}, (3, 3)),
    "two layers": ({"layers_per_block": 2, "time_features": 6}, (8, 8)),
    "patches": ({"patch_size": 2}, (8, 12)),
    "learned variance": ({"out_channels": 4}, (8, 8)),
    "line": ({"spatial_dims": 1}, (9,)),
    "volume": ({"spatial_dims": 3, "patch_size": 2}, (4, 8, 4)),
    "half precision": ({"dtype": "bfloat16", "param_dtype": "bfloat16"}, (8, 8)),
    "remat": ({"remat": True}, (8, 8)),
    "a stem of its own": ({"stem_channels": 6, "num_groups": 1}, (8, 8)),
    "attention behind the last block up": ({"up_attention": (False, "last")}, (8, 8)),
    "NCSN++": ({**FILTERED, "progressive_input": "residual", "time_embedding": "fourier"}, (8, 8)),
    "NCSN++, odd sides": ({**FILTERED, "progressive_input": "residual"}, (7, 5)),
    "image pyramids": (
        {**FILTERED, "progressive_input": "sum", "progressive_output": True},
        (7, 5),
    ),
    "image pyramids, patches": (
        {"progressive_input": "cat", "progressive_output": True, "patch_size": 2},
        (8, 12),
    ),
    "NCSN++, volume": (
        {**FILTERED, "progressive_input": "cat", "spatial_dims": 3},
        (4, 6, 5),
    ),
    "VDM": (
        {
            "block_out_channels": (4,),
            "attention": (False,),
            "layers_per_block": 3,
            "input_waves": (7, 8),
            "add_input": True,
        },
        (5, 4),
    ),
    "positions": ({"positions": True, "sample_size": (8, 6), "patch_size": 2}, (8, 6)),
    "table of times": ({"time_embedding": "learned", "num_times": 1000}, (8, 8)),
}


def random_params(config, seed=0):
    """Params without a zero in them, so that every branch shows in the output."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(unet(config).init, jax.random.key(0))
    draw = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(draw, shapes)


def inputs(batch=3, side=8, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, side, side, channels)).astype(np.float32)
    return x, np.linspace(0, 900, batch).astype(np.float32)


@functools.cache
def compiled(config):
    """Random params and the compiled network, shared by the tests."""
    return random_params(config), jax.jit(unet(config).apply)


@pytest.mark.parametrize("name", VARIANTS)
def test_output_has_the_shape_of_the_images_and_is_float32(name):
    changes, spatial = VARIANTS[name]
    config = dataclasses.replace(TINY, **changes)
    init, apply = unet(config)
    params = jax.eval_shape(init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(config.param_dtype)}
    x, t = jnp.ones((2, *spatial, 2)), jnp.array([3, 999])
    keys = sample_keys(jax.random.key(0), jnp.arange(2))
    labels = jnp.array([0, 3])
    y = jax.eval_shape(apply, params, x, t, labels=labels, keys=keys)
    chex.assert_shape(y, (2, *spatial, config.out_channels))
    assert y.dtype == jnp.float32


# NCSN++ and DDPM++ as their authors' own code counts them; NCSN++ with its 128 fixed frequencies
SIZES = {
    "ddpm_cifar10": ({}, 35_746_307),
    "ddpm_celeba64": ({}, 78.7e6),
    "ddpmpp_cifar10": ({}, 61_804_419),
    "ddpmpp_cifar10, deep": ({"deep": True}, 106_632_579),
    "ncsnpp_cifar10": ({}, 62_758_915),
    "ncsnpp_cifar10, deep": ({"deep": True}, 107_587_075),
    "edm_cifar10": ({}, 55.7e6),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(name):
    changes, published = SIZES[name]
    config = getattr(unet_presets, name.split(",")[0])(**changes)
    size = count_parameters(jax.eval_shape(unet(config).init, jax.random.key(0)))
    # figures in millions are published with one decimal
    assert size == published if isinstance(published, int) else abs(size - published) < 0.05e6


def test_vdm_has_the_blocks_of_its_paper():
    params = jax.eval_shape(unet(unet_presets.vdm_cifar10()).init, jax.random.key(0))
    assert len(params["down_blocks"]["0"]["resnets"]) == 32
    assert len(params["up_blocks"]["0"]["resnets"]) == 33
    assert params["conv_in"]["kernel"].shape == (3, 3, 15, 128)


def test_the_untrained_network_returns_zero():
    _, apply = compiled(TINY)
    params = unet(TINY).init(jax.random.key(0))
    x, t = inputs()
    assert float(jnp.abs(apply(params, x, t, labels=np.arange(3))).max()) == 0.0


def test_compiled_and_eager_agree():
    params, apply = compiled(SMALL)
    x, t = inputs()
    labels = np.arange(3)
    eager = unet(SMALL).apply(params, jnp.array(x), jnp.array(t), labels=jnp.array(labels))
    chex.assert_trees_all_close(apply(params, x, t, labels=labels), eager, rtol=1e-4, atol=1e-4)


def test_samples_of_a_batch_do_not_see_each_other():
    params, apply = compiled(TINY)
    x, t = inputs()
    keys = sample_keys(jax.random.key(0), jnp.arange(3))
    labels = np.arange(3)
    order = np.array([2, 0, 1])
    together = apply(params, x, t, labels=labels, keys=keys)
    moved = apply(params, x[order], t[order], labels=labels[order], keys=keys[order])
    np.testing.assert_allclose(moved, together[order], atol=1e-5)
    other, _ = inputs(seed=1)
    other[0], other_labels = x[0], np.array([0, 2, 2])
    beside = apply(params, other, t, labels=other_labels, keys=keys)
    np.testing.assert_allclose(beside[0], together[0], atol=1e-5)
    assert float(jnp.abs(beside[1] - together[1]).max()) > 0.01


def test_a_batch_is_its_samples_one_by_one():
    params, apply = compiled(TINY)
    x, t = inputs()
    labels = np.arange(3)
    single = apply(params, x[1:2], t[1:2], labels=labels[1:2])
    np.testing.assert_allclose(single, apply(params, x, t, labels=labels)[1:2], atol=1e-5)


def test_dropout_draws_anew_for_every_sample_and_key():
    params, apply = compiled(TINY)
    x, t = (np.repeat(each[:1], 3, axis=0) for each in inputs())
    # the null label is the same dropped or not: dropout alone is left to chance
    draw = lambda key: apply(
        params, x, t, labels=np.full(3, 3), keys=sample_keys(key, jnp.arange(3))
    )
    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    different = [first[0] - first[1], first[1] - first[2], first - other]
    assert min(float(jnp.abs(each).max()) for each in different) > 0.01


def test_a_dropped_label_is_the_null_label():
    batch = 16
    params, apply = compiled(dataclasses.replace(SMALL, dropout=0.0))
    x, t = inputs(batch)
    keys = sample_keys(jax.random.key(0), jnp.arange(batch))
    labels = np.arange(batch) % 3
    kept = apply(params, x, t, labels=labels)
    null = apply(params, x, t, labels=np.full(batch, 3))
    trained = apply(params, x, t, labels=labels, keys=keys)
    same = lambda a: np.abs(np.asarray(trained - a)).max((1, 2, 3)) < 1e-4
    dropped = same(null)
    np.testing.assert_array_equal(dropped, ~same(kept))
    # four standard errors of a fair coin thrown 16 times are 8 throws
    assert 1 <= dropped.sum() <= 15


@pytest.mark.slow
def test_remat_changes_no_gradient_and_every_parameter_has_one():
    params = random_params(SMALL)
    x, t = inputs(side=4)
    keys = sample_keys(jax.random.key(0), jnp.arange(3))

    def gradient(remat):
        apply = unet(dataclasses.replace(SMALL, remat=remat)).apply
        loss = lambda p: jnp.square(apply(p, x, t, labels=np.arange(3), keys=keys)).mean()
        return jax.jit(jax.grad(loss))(params)

    plain, rematerialised = gradient(False), gradient(True)
    chex.assert_trees_all_close(plain, rematerialised, rtol=1e-3, atol=1e-4)
    paths = jax.tree_util.tree_leaves_with_path(plain)
    # a bias in front of the softmax's keys shifts all logits of a query alike
    unused = [str(path) for path, leaf in paths if not np.abs(leaf).max() > 1e-6]
    assert all("to_k" in path and "bias" in path for path in unused)
    chex.assert_tree_all_finite(plain)


def test_bfloat16_computes_near_float32():
    params, apply = compiled(SMALL)
    rough = jax.jit(unet(dataclasses.replace(SMALL, dtype="bfloat16")).apply)
    x, t = inputs()
    exact = apply(params, x, t, labels=np.arange(3))
    error = jnp.abs(rough(params, x, t, labels=np.arange(3)) - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < float(error) < 0.05


def test_patches_are_channels_of_a_smaller_image():
    patched = dataclasses.replace(SMALL, patch_size=2)
    whole = dataclasses.replace(SMALL, in_channels=8, out_channels=8)
    params = random_params(whole)
    x, t = inputs()
    labels = np.arange(3)
    y = jax.jit(unet(patched).apply)(params, x, t, labels=labels)
    inner = jax.jit(unet(whole).apply)(params, operations.space_to_depth(x, 2), t, labels=labels)
    np.testing.assert_allclose(y, operations.depth_to_space(inner, 2), atol=1e-5)


def test_the_clock_is_scaled_before_its_embedding():
    params, apply = compiled(SMALL)
    scaled = jax.jit(unet(dataclasses.replace(SMALL, time_scale=1000.0)).apply)
    x, t = inputs()
    y = scaled(params, x, t / 1000, labels=np.arange(3))
    np.testing.assert_allclose(y, apply(params, x, t, labels=np.arange(3)), atol=1e-3)


def test_a_sigma_clock_is_embedded_as_its_logarithm_and_divides_the_output():
    params, apply = compiled(SMALL)
    by_sigma = jax.jit(unet(dataclasses.replace(SMALL, sigma_clock=True)).apply)
    x, _ = inputs()
    t, labels = np.array([0.1, 1.0, 20.0], np.float32), np.arange(3)
    expected = apply(params, x, np.log(t), labels=labels) / t[:, None, None, None]
    np.testing.assert_allclose(by_sigma(params, x, t, labels=labels), expected, rtol=1e-3)


def test_an_added_input_is_the_output_of_the_untrained_network():
    config = dataclasses.replace(SMALL, add_input=True)
    init, apply = unet(config)
    x, t = inputs()
    y = jax.jit(apply)(init(jax.random.key(0)), x, t, labels=np.arange(3))
    np.testing.assert_array_equal(y, x)


def test_a_label_outside_the_table_gives_nan_for_its_sample_alone():
    params, apply = compiled(TINY)
    x, t = inputs()
    y = apply(params, x, t, labels=np.array([0, 4, 3]))
    np.testing.assert_array_equal(jnp.isnan(y).any((1, 2, 3)), [False, True, False])


def test_a_table_of_positions_tells_places_apart_that_look_alike():
    config = dataclasses.replace(SMALL, positions=True, sample_size=20)
    params, apply = random_params(config), jax.jit(unet(config).apply)
    x, labels = np.ones((1, 20, 20, 2), np.float32), np.array([1])

    def spread(params):
        # in the middle, which the padding of the convolutions does not reach
        middle = apply(params, x, np.ones(1), labels=labels)[:, 9:11, 9:11]
        return float(jnp.ptp(middle, axis=(1, 2)).max())

    blind = {**params, "positions": np.zeros_like(params["positions"])}
    assert spread(blind) < 1e-5
    assert spread(params) > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 3}, r"block_out_channels \(4\) must be a multiple of num_groups \(3\)"),
        ({"head_dim": 9}, "head_dim is 9; an attention of 8 channels has no head"),
        ({"head_dim": 8, "attention": (True, True)}, "an attention of 4 channels has no head"),
        ({"attention": (True,)}, "attention has 1 entries for the 2 levels"),
        ({"up_attention": (True,) * 3}, "up_attention has 3 entries for the 2 levels"),
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        ({"downsample": "blur"}, "downsample is 'blur'"),
        ({"upsample": ("conv", "blur")}, "upsample is 'blur'"),
        ({"up_attention": (False, "first")}, "up_attention is 'first'"),
        ({"fir_kernel": (1.0,)}, "must have 2 taps or more"),
        ({"progressive_input": "product"}, "progressive_input is 'product'"),
        ({"activation": "sin"}, "activation is 'sin'"),
        ({"positions": True, "sample_size": 9, "patch_size": 2}, "sample_size, 9, must be multip"),
        ({"positions": True, "sample_size": None}, "sample_size, None, must be multiples"),
        ({"add_input": True, "out_channels": 4}, "add_input adds 2 channels to 4"),
        ({"time_embedding": "learned"}, "needs the number of times"),
        ({"num_times": 10}, "needs the number of times"),
        ({"class_embedding": "identity"}, "leave num_classes out"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"cond_drop_prob": -0.1}, "cond_drop_prob is -0.1"),
        ({"num_classes": None}, "give num_classes as well"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"block_out_channels": (2, 8)}, "need more than 2 channels"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


VECTORS = {"num_classes": None, "cond_drop_prob": 0.0, "class_embedding": "identity"}


@pytest.mark.parametrize(
    ("changes", "shape", "labels", "message"),
    [
        ({}, (2, 8, 8, 3), True, r"takes \[B, height, width, 2\]"),
        ({}, (2, 8, 2), True, r"takes \[B, height, width, 2\]"),
        ({}, (2, 1, 8, 2), True, "at least 2"),
        ({"patch_size": 2}, (2, 7, 8, 2), True, r"multiples of patch_size \(2\)"),
        ({"positions": True}, (2, 8, 8, 2), True, r"the sides are \(32, 32\) alone"),
        ({}, (3, 8, 8, 2), True, "one clock for each of 3 samples"),
        ({}, (2, 8, 8, 2), False, "give labels"),
        ({"num_classes": None, "cond_drop_prob": 0.0}, (2, 8, 8, 2), True, "without num_classes"),
        ({**VECTORS}, (2, 8, 8, 2), True, r"labels is int32\[2\]; the .* \[B, 16\] vectors"),
        ({**VECTORS, "class_embedding": "timestep"}, (2, 8, 8, 2), False, r"\[B\] numbers"),
    ],
)
def test_impossible_inputs_are_refused(changes, shape, labels, message):
    init, apply = unet(dataclasses.replace(TINY, **changes))
    params = jax.eval_shape(init, jax.random.key(0))
    given = jnp.zeros(2, int) if labels else None
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(apply, params, jnp.ones(shape), jnp.ones(2), labels=given)
