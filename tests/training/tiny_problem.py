"""A tiny denoising problem in plain JAX: a two-layer network, a loss with per-sample noise."""

import functools

import jax
import jax.numpy as jnp
import optax

from diffjax.core.keys import normal_each, sample_keys
from diffjax.training.state import init_train_state

SGD = optax.sgd(0.1)
ADAM = optax.adam(1e-3)


def init(key, width=8, dtype=jnp.float32):
    first, second = jax.random.split(key)
    return {
        "inner": {
            "kernel": 0.3 * jax.random.normal(first, (16, width), dtype),
            "bias": jnp.zeros(width, dtype),
        },
        "out": {"kernel": 0.3 * jax.random.normal(second, (width, 16), dtype)},
    }


def apply(params, x, dtype=jnp.float32):
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
    x = jnp.tanh(x @ params["inner"]["kernel"] + params["inner"]["bias"])
    return (x @ params["out"]["kernel"]).astype(jnp.float32)


def loss(params, batch, keys, dtype=jnp.float32):
    """Denoise x0 + eps; the strength of the noise is stratified over the global batch."""
    x0 = batch["x0"]
    eps = normal_each(sample_keys(keys.key, keys.index), x0.shape[1:])
    strength = (keys.index + 0.5) / keys.size
    error = apply(params, x0 + strength[:, None] * eps, dtype) - x0
    losses = jnp.mean(error**2, axis=1)
    return losses, {"strength": strength, "squared": losses**2}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def new_state(optimizer=SGD, ema_decay=(0.0, 0.9), width=8):
    return init_train_state(init(jax.random.key(0), width), optimizer, ema_decay=ema_decay)


def make_batch(size=16, seed=1):
    return {"x0": jax.random.normal(jax.random.key(seed), (size, 16))}
