"""The attention that positions receive, which self-attention guidance reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import ContextConfig, UNetConfig, functional, unet, unet_attention_map
from diffjax.networks.attention import attention_received
from diffjax.networks.unet_attention import SelfAttention, SpatialTransformer

CONFIG = UNetConfig(
    block_out_channels=(8, 8), layers_per_block=1, attention=(False, False), num_groups=4,
    in_channels=1, out_channels=1,
)  # fmt: skip


def read(make):
    init, apply = functional(make, call=lambda module, x: module.attention_map(x))
    return lambda x: apply(init(jax.random.key(0)), x)


KINDS = {
    "plain": lambda rngs: SelfAttention(
        8, head_dim=4, num_groups=4, eps=1e-5, zero=True, rngs=rngs
    ),
    "transformer": lambda rngs: SpatialTransformer(
        8, num_heads=2, depth=1, context_features=3, num_groups=4, linear=True, dims=2, zero=True,
        rngs=rngs,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_equal_positions_receive_equally_much_and_one_on_average(kind):
    attention_map = jax.jit(read(KINDS[kind]))
    np.testing.assert_allclose(attention_map(jnp.full((2, 3, 4, 8), 0.7)), 1.0, atol=1e-5)
    received = attention_map(3.0 * jax.random.normal(jax.random.key(1), (2, 3, 4, 8)))
    assert received.shape == (2, 3, 4)
    np.testing.assert_allclose(received.mean(axis=(1, 2)), 1.0, atol=1e-5)
    assert np.all(received >= 0)
    assert np.std(received) > 0.01


def test_where_all_queries_are_equal_the_map_is_their_softmax():
    query, keys = jax.random.normal(jax.random.key(2), (4,)), jnp.eye(5, 4)[None, :, None]
    received = attention_received(jnp.broadcast_to(query, (1, 7, 1, 4)), keys, scale=0.5)
    expected = 7.0 * jax.nn.softmax(0.5 * jnp.append(query, 0.0))
    np.testing.assert_allclose(received[0], expected, rtol=1e-5)


def test_a_network_shows_the_map_of_its_middle_from_the_same_parameters():
    params = unet(CONFIG).init(jax.random.key(0))
    apply = jax.jit(unet_attention_map(CONFIG).apply)
    x = jax.random.normal(jax.random.key(1), (2, 8, 6, 1))
    received = apply(params, x, jnp.full(2, 0.5))
    assert received.shape == (2, 4, 3)
    np.testing.assert_allclose(received.mean(axis=(1, 2)), 1.0, atol=1e-5)


def test_networks_without_such_attention_are_refused():
    with pytest.raises(ValueError, match="mid_attention False"):
        unet_attention_map(dataclasses.replace(CONFIG, mid_attention=False))
    context = ContextConfig(features=3, num_heads=2, mid_only_context=True)
    blind = dataclasses.replace(CONFIG, mid_attention="extended", context=context)
    shapes = jax.eval_shape(unet(blind).init, jax.random.key(0))
    with pytest.raises(ValueError, match="a context alone"):
        jax.eval_shape(
            unet_attention_map(blind).apply, shapes, jnp.ones((1, 4, 4, 1)), jnp.ones(1),
            context=jnp.ones((1, 2, 3)),
        )  # fmt: skip
