"""Adapters of low rank: what they change, and that others read them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.networks.functional import flatten
from diffjax.networks.layers import Conv
from diffjax.networks.low_rank import LowRankKernel
from diffjax.pretrained import Model
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.lora_adapters import apply_adapters, init_adapters, save_adapters

CONFIG = CLIPTextConfig(
    vocab_size=9, hidden_size=6, intermediate_size=8, num_heads=2, num_layers=1, max_positions=4
)
NETWORK = clip_text(CONFIG)
TOKENS = jnp.array([[1, 2, 3, 4]])
encode = jax.jit(lambda params: NETWORK.apply(params["text_encoder"], TOKENS).last)


@pytest.fixture(scope="module")
def models():
    return {"text_encoder": Model(CONFIG, NETWORK, NETWORK.init(jax.random.key(0)))}


@pytest.fixture(scope="module")
def params(models):
    return {"text_encoder": models["text_encoder"].params}


def drawn(adapters):
    """The same adapters, as they may be after training."""
    leaves, tree = jax.tree.flatten(adapters)
    normal = np.random.default_rng(1).normal
    return tree.unflatten([normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def test_new_adapters_leave_the_outputs_as_they_are(models, params):
    adapters = init_adapters(jax.random.key(1), models, 2)
    assert len(flatten(adapters)) == 2 * 4  # down and up of the four projections
    adapted = encode(apply_adapters(params, adapters, 3.0))
    np.testing.assert_array_equal(adapted, encode(params))


def test_applied_saved_and_merged_changes_are_the_same(models, params, tmp_path):
    adapters = drawn(init_adapters(jax.random.key(1), models, 2, targets="(q_proj|fc1)$"))
    applied = encode(apply_adapters(params, adapters, 0.7))
    save_adapters(tmp_path / "lora.safetensors", adapters, models, 0.7)
    lora = load_lora(tmp_path / "lora.safetensors", models)
    np.testing.assert_allclose(encode(merge_lora(params, lora)), applied, atol=1e-5)
    assert np.abs(applied - encode(params)).max() > 0.1


def test_a_convolution_adds_its_change_as_if_it_were_merged():
    from flax import nnx

    conv = Conv(3, 4, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
    normal = np.random.default_rng(0).normal
    x, down, up = (
        jnp.asarray(normal(size=shape), jnp.float32)
        for shape in ((2, 5, 5, 3), (3, 3, 3, 2), (2, 4))
    )
    kernel = conv.kernel[...]
    conv.kernel = nnx.Param(kernel + down @ up)
    merged = conv(x)
    conv.kernel = nnx.Param(LowRankKernel(kernel, down, up))
    np.testing.assert_allclose(conv(x), merged, atol=1e-5)


def test_targets_that_fit_nothing_are_refused_with_names_that_would(models):
    with pytest.raises(ValueError, match=r"fits no module; there are text_encoder\.text_model"):
        init_adapters(jax.random.key(0), models, 2, targets="to_q")
    with pytest.raises(ValueError, match="rank is 0"):
        init_adapters(jax.random.key(0), models, 0)
