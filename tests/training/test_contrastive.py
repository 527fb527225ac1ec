"""The contrastive loss knows which text belongs to which image, equal texts included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax.training import init_train_state, make_train_step
from diffjax.training.contrastive import contrastive_loss, contrastive_params

embed = lambda params, rows: rows.astype(jnp.float32) @ params
loss = contrastive_loss(embed, embed)


def params(log_scale):
    return {**contrastive_params(jnp.eye(4), jnp.eye(4)), "log_scale": jnp.float32(log_scale)}


def test_equal_similarities_cost_the_logarithm_of_the_batch():
    batch = {"x0": jnp.ones((6, 4)), "tokens": jnp.eye(6, 4) + jnp.arange(6)[:, None]}
    losses, metrics = loss({**params(0.0), "image": jnp.zeros((4, 4))}, batch, None)
    np.testing.assert_allclose(losses, np.log(6), rtol=1e-5)
    assert metrics["found"].sum() == 1


def test_an_image_in_which_nothing_is_seen_has_a_gradient():
    batch = {"x0": jnp.eye(4).at[0].set(0.0), "tokens": jnp.eye(4)}
    total = lambda image: loss({**params(0.0), "image": image}, batch, None)[0].sum()
    assert np.all(np.isfinite(jax.grad(total)(jnp.eye(4))))


def test_a_perfect_match_costs_nothing_and_equal_texts_only_their_ambiguity():
    own = jnp.eye(4)
    losses, metrics = loss(params(np.log(100)), {"x0": own, "tokens": own}, None)
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)
    # the first text twice: either is right, so that half a bit each way cannot be told
    twice = own[jnp.array([0, 0, 1, 2])]
    losses, metrics = loss(params(np.log(100)), {"x0": twice, "tokens": twice}, None)
    np.testing.assert_allclose(losses, [np.log(2), np.log(2), 0, 0], atol=1e-5)
    np.testing.assert_array_equal(metrics["found"], 1.0)


def test_the_scale_never_exceeds_a_hundred():
    batch = {"x0": jnp.eye(4), "tokens": jnp.eye(4)[::-1]}
    np.testing.assert_allclose(
        loss(params(9.0), batch, None)[0], loss(params(np.log(100)), batch, None)[0], rtol=1e-6
    )


def test_training_finds_which_tokens_go_with_which_images():
    tokens = jnp.eye(8, dtype=jnp.int32)
    x0 = jax.random.normal(jax.random.key(0), (8, 12))
    start = contrastive_params(
        0.1 * jax.random.normal(jax.random.key(1), (12, 8)),
        0.1 * jax.random.normal(jax.random.key(2), (8, 8)),
    )
    optimizer = optax.adam(0.03)
    step = jax.jit(make_train_step(loss, optimizer, ema_decay=()))
    state = init_train_state(start, optimizer, ema_decay=())
    for _ in range(60):
        state, metrics = step(state, {"x0": x0, "tokens": tokens}, jax.random.key(3))
    assert metrics["found"] == 1.0
    assert metrics["loss"] < 0.5
