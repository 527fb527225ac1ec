"""One network that is told a class, a text and an image at once, and what it makes of each."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.conditioning import Condition, told_nothing, with_drops, with_image
from diffjax.networks import UNetConfig, unet
from diffjax.networks.unet_context import ContextConfig

CONFIG = UNetConfig(
    in_channels=3 + 1,
    out_channels=3,
    block_out_channels=(8,),
    layers_per_block=1,
    attention=("transformer",),
    mid_block=False,
    num_groups=4,
    num_classes=5,
    cond_drop_prob=0.5,  # of the label, in the network
    zero_init=False,
    context=ContextConfig(features=6, num_heads=2),
)
NULLS = [
    Condition({"context": 0.0, "context_mask": jnp.array([1.0, 0.0, 0.0, 0.0])}, drop_prob=1.0),
    Condition({"image": 0.0}, drop_prob=1.0),
]
NETWORK = unet(CONFIG)
KEYS = jax.random.split(jax.random.key(7), 4)
X = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
GIVEN = {
    "labels": jnp.array([0, 1, 4, 5]),
    "context": jax.random.normal(jax.random.key(2), (4, 4, 6)),
    "context_mask": jnp.array([[1.0, 1.0, 0.0, 0.0]] * 4),
    "image": jax.random.normal(jax.random.key(3), (4, 4, 4, 1)),
}


@pytest.fixture(scope="module")
def told():
    """`told(drops=False, **changes)`: the network's output, in training with everything dropped."""
    params = NETWORK.init(jax.random.key(0))
    seeing = with_image(NETWORK.apply)
    # the label's own drops are told apart by a network without keys
    without_keys = lambda params, x, t, *, keys=None, **given: seeing(params, x, t, **given)
    apply = {False: jax.jit(seeing), True: jax.jit(with_drops(without_keys, NULLS))}

    def output(drops=False, **changes):
        keys = {"keys": KEYS} if drops else {}
        return np.asarray(apply[drops](params, X, jnp.arange(4.0), **{**GIVEN, **changes}, **keys))

    return output


@pytest.mark.parametrize("name", ["labels", "context", "context_mask", "image"])
def test_each_condition_matters(told, name):
    changed = jnp.roll(GIVEN[name], 1, axis=-1) if name != "image" else -GIVEN[name]
    assert np.abs(told(**{name: changed}) - told()).max() > 1e-3


def test_hidden_tokens_do_not_matter_and_seen_ones_do(told):
    context = GIVEN["context"]
    np.testing.assert_array_equal(told(context=context.at[:, 2:].set(9.0)), told())
    assert np.abs(told(context=context.at[:, 1].set(9.0)) - told()).max() > 1e-3


def test_dropped_conditions_give_what_the_null_conditions_give(told):
    nothing = told_nothing(GIVEN, NULLS)
    np.testing.assert_allclose(told(drops=True), told(**nothing), atol=1e-5)
    np.testing.assert_array_equal(nothing["labels"], GIVEN["labels"])


def test_a_label_that_the_network_drops_is_the_null_label():
    least = UNetConfig(
        in_channels=1, out_channels=1, block_out_channels=(4,), layers_per_block=1,
        attention=(False,), mid_block=False, num_groups=2, num_classes=3, cond_drop_prob=0.5,
        zero_init=False,
    )  # fmt: skip
    init, apply = unet(least)
    run = jax.jit(partial(apply, init(jax.random.key(0))))
    x, t, labels = X[..., :1], jnp.arange(4.0), jnp.array([0, 1, 2, 0])
    trained = run(x, t, labels=labels, keys=KEYS)
    options = [run(x, t, labels=each) for each in (labels, jnp.full(4, 3))]
    nearest = [
        min(range(2), key=lambda k: np.abs(trained[i] - options[k][i]).max()) for i in range(4)
    ]
    assert set(nearest) == {0, 1}
    for i, kind in enumerate(nearest):
        np.testing.assert_allclose(trained[i], options[kind][i], atol=1e-5)
