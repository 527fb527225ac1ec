"""A class as a token: the label decides, dropped labels are the null label, gradients reach it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import Functional, UNetConfig
from diffjax.networks.class_tokens import class_tokens
from diffjax.networks.unet_context import ContextConfig

CONFIG = UNetConfig(
    block_out_channels=(8, 8), attention=("transformer", False), mid_attention=False, num_groups=4,
    num_classes=3, cond_drop_prob=0.25, context=ContextConfig(features=4, num_heads=1),
)  # fmt: skip


def seen(config):
    """A network that gives back the token that it is told."""
    assert config.num_classes is None
    return Functional(lambda key: {}, lambda params, x, t, *, context, keys=None: context[:, 0])


NETWORK = class_tokens(CONFIG, seen)
PARAMS = NETWORK.init(jax.random.key(0))
TABLE = PARAMS["class_token"]["embedding"]


def told(labels, keys=None):
    x = jnp.zeros((len(labels), 4, 4, 3))
    return NETWORK.apply(PARAMS, x, jnp.zeros(len(labels)), labels=labels, keys=keys)


def test_every_class_and_the_null_label_have_a_token():
    np.testing.assert_array_equal(told(jnp.arange(4)), TABLE)
    assert TABLE.shape == (4, 4)


def test_labels_are_dropped_in_training_as_often_as_asked_for():
    labels = jnp.ones(4000, int)
    tokens = told(labels, jax.random.split(jax.random.key(1), 4000))
    null = np.all(np.asarray(tokens) == np.asarray(TABLE[3]), axis=1)
    np.testing.assert_array_equal(tokens[~null], np.broadcast_to(TABLE[1], (int((~null).sum()), 4)))
    assert abs(null.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_a_network_without_context_or_classes_is_refused():
    with pytest.raises(ValueError, match="needs both"):
        class_tokens(UNetConfig(num_classes=3))
