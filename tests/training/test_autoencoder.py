"""The loss of autoencoders: what flows where, the balance of its parts, that both parts learn."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.core.keys import batch_keys, sample_keys
from diffjax.core.latents import Posterior, latent_loss, posterior_kl, sample_posterior
from diffjax.training import init_train_state, make_train_step
from diffjax.training.autoencoder import (
    Discriminator,
    autoencoder_loss,
    each_part,
    hinge,
    perceptual_distance,
    psnr,
)

LAST = ("last", "kernel")
WEIGHT, KL_WEIGHT = 0.7, 0.3


def encode(params, images):
    moments = jnp.tanh(images @ params["first"])
    return Posterior(moments[..., :2], moments[..., 2:] - 3.0)


def decode(params, z):
    return z @ params["last"]["kernel"]


def judge(params, images):
    return jnp.tanh(images @ params["kernel"]) @ params["out"]


def parameters():
    draw = lambda seed, *shape: 0.5 * jax.random.normal(jax.random.key(seed), shape)
    own = {"first": draw(0, 3, 4), "last": {"kernel": draw(1, 2, 3)}}
    return {"autoencoder": own, "discriminator": {"kernel": draw(2, 3, 5), "out": draw(3, 5, 1)}}


PARAMS = parameters()
BATCH = {"x0": jax.random.uniform(jax.random.key(4), (8, 4, 4, 3), minval=-1, maxval=1)}
KEYS = batch_keys(jax.random.key(5), 8)
LOSS = autoencoder_loss(
    encode, decode, error="l2", kl_weight=KL_WEIGHT,
    discriminator=Discriminator(judge, WEIGHT), last_layer=LAST,
)  # fmt: skip


@jax.jit
def reconstruct(own):
    return decode(
        own, sample_posterior(sample_keys(KEYS.key, KEYS.index), encode(own, BATCH["x0"]))
    )


@functools.cache
def gradients():
    mean = lambda params: jnp.mean(LOSS(params, BATCH, KEYS)[0])
    metrics = jax.jit(lambda params: LOSS(params, BATCH, KEYS)[1])(PARAMS)
    return jax.jit(jax.grad(mean))(PARAMS), metrics


def test_the_discriminator_sees_the_hinge_alone():
    still = reconstruct(PARAMS["autoencoder"])
    alone = lambda params: jnp.mean(hinge(judge, params, BATCH["x0"], still))
    expected = jax.jit(jax.grad(alone))(PARAMS["discriminator"])
    chex.assert_trees_all_close(gradients()[0]["discriminator"], expected, rtol=1e-5)


def test_the_autoencoder_sees_error_divergence_and_verdict_alone():
    balance = gradients()[1]["balance"][0]

    def alone(own):
        error = jnp.mean(jnp.square(BATCH["x0"] - reconstruct(own)))
        divergence = jnp.mean(posterior_kl(encode(own, BATCH["x0"]))) / 48
        verdict = -jnp.mean(judge(PARAMS["discriminator"], reconstruct(own)))
        return error + KL_WEIGHT * divergence + balance * WEIGHT * verdict

    expected = jax.jit(jax.grad(alone))(PARAMS["autoencoder"])
    chex.assert_trees_all_close(gradients()[0]["autoencoder"], expected, rtol=1e-4, atol=1e-7)


def test_the_balance_makes_both_gradients_of_the_last_layer_equally_long():
    def length(of):
        return jnp.linalg.norm(jax.jit(jax.grad(of))(PARAMS["autoencoder"])["last"]["kernel"])

    error = length(lambda own: jnp.mean(jnp.square(BATCH["x0"] - reconstruct(own))))
    verdict = length(lambda own: -jnp.mean(judge(PARAMS["discriminator"], reconstruct(own))))
    balance = gradients()[1]["balance"]
    np.testing.assert_allclose(balance * (verdict + 1e-4), jnp.full(8, error), rtol=1e-4)


def test_without_a_discriminator_its_params_stay_as_they_are():
    loss = autoencoder_loss(encode, decode, kl_weight=KL_WEIGHT)
    grads = jax.jit(jax.grad(lambda params: jnp.mean(loss(params, BATCH, KEYS)[0])))(PARAMS)
    chex.assert_trees_all_equal(
        grads["discriminator"], jax.tree.map(jnp.zeros_like, PARAMS["discriminator"])
    )


def test_both_parts_learn_in_one_step():
    optimizer = each_part(lambda: optax.adam(0.02))
    step = jax.jit(make_train_step(LOSS, optimizer, ema_decay=()))
    state = init_train_state(PARAMS, optimizer, ema_decay=())
    metrics = []
    for _ in range(60):
        state, latest = step(state, BATCH, jax.random.key(6))
        metrics.append(latest)
    assert metrics[-1]["psnr"] > metrics[0]["psnr"] + 3
    # a discriminator that knows nothing costs 1
    assert metrics[-1]["discriminator"] < min(1.0, metrics[0]["discriminator"])


def test_each_part_is_optimized_as_if_it_were_alone():
    make = lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))
    grads = gradients()[0]
    together = each_part(make)
    update = lambda rule, grads, params: rule.update(grads, rule.init(params), params)[0]
    updates = jax.jit(partial(update, together))(grads, PARAMS)
    for part in PARAMS:
        alone = jax.jit(partial(update, make()))(grads[part], PARAMS[part])
        chex.assert_trees_all_close(updates[part], alone, rtol=1e-6)


def test_the_perceptual_distance_sees_directions_and_not_lengths():
    layers = lambda x: [x, x[:, ::2, ::2]]
    x, y = BATCH["x0"], BATCH["x0"][::-1]
    d = jax.jit(lambda x, y: perceptual_distance(layers, x, y))
    np.testing.assert_allclose(d(x, 3.0 * x), 0.0, atol=1e-6)
    np.testing.assert_allclose(d(x, -x), 8.0, rtol=1e-4)  # opposite unit vectors, in both layers
    np.testing.assert_allclose(d(x, y), d(2.0 * x, 5.0 * y), rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(d(x, y))))(jnp.zeros_like(x))
    chex.assert_tree_all_finite(gradient)


def test_features_weigh_in_the_error():
    layers = lambda x: [x]
    loss = autoencoder_loss(
        encode, decode, error="l2", kl_weight=0.0, features=layers, perceptual_weight=2.0
    )
    losses, _ = jax.jit(loss)(PARAMS, BATCH, KEYS)
    y = reconstruct(PARAMS["autoencoder"])
    expected = jnp.mean(jnp.square(BATCH["x0"] - y), (1, 2, 3))
    expected += 2.0 * perceptual_distance(layers, BATCH["x0"], y)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_halved_error_gains_six_decibels():
    x = jnp.zeros((1, 4, 4, 1))
    gain = psnr(x, x + 0.1) - psnr(x, x + 0.2)
    np.testing.assert_allclose(gain, 20 * np.log10(2), rtol=1e-5)


def test_an_unknown_error_is_refused():
    with pytest.raises(ValueError, match="'l3'; expected one of l1, l2"):
        autoencoder_loss(encode, decode, error="l3")


def test_latents_are_drawn_anew_with_mean_and_variance_and_brought_to_scale():
    mean, logvar = jnp.full((400, 5, 5, 1), 3.0), jnp.full((400, 5, 5, 1), np.log(0.25))
    seen = lambda params, batch, keys: (batch["x0"][:, 0, 0, 0], {"x0": batch["x0"]})
    loss = latent_loss(seen, shift=1.0, scale=2.0)
    batch = {"x0": mean, "logvar": logvar}
    draw = jax.jit(lambda key: loss(None, batch, key)[1]["x0"])
    drawn = [draw(jax.random.key(seed)) for seed in (0, 1)]
    assert jnp.abs(drawn[0] - drawn[1]).mean() > 0.5
    for x0 in drawn:
        # 2 (z - 1) with z ~ N(3, 1/4): mean 4, standard deviation 1, of 10,000 numbers
        assert abs(float(x0.mean()) - 4.0) < 4 * 0.01
        assert abs(float(x0.std()) - 1.0) < 4 * 0.01 / np.sqrt(2)
