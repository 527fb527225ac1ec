"""The accelerator gives the numbers of the CPU; half precision stays near them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax.networks import operations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator"),
]

SHAPE = (16, 16, 3)


def network(dtype="float32"):
    config = dj.UNetConfig(
        sample_size=16, block_out_channels=(32, 64), attention=(False, True), num_groups=8,
        num_classes=10, dtype=dtype, zero_init=False,
    )  # fmt: skip
    return dj.unet(config)


def on(device, function, *arguments):
    """Run a function on one device, products in full precision."""
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))


def both(function, *arguments):
    return (on(jax.devices(kind)[0], function, *arguments) for kind in ("cpu", None))


@pytest.mark.parametrize("shape", [(2, 32, 32, 64), (2, 8, 8, 256), (2, 4, 4, 48)])
def test_convolution_equals_that_of_the_cpu(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 32)) / 24
    value = lambda x, kernel: operations.conv(x, kernel)
    gradient = jax.grad(lambda x, kernel: jnp.sum(value(x, kernel) ** 2), argnums=(0, 1))
    for function, scale in ((value, 1.0), (gradient, 100.0)):
        chex.assert_trees_all_close(*both(function, x, kernel), atol=2e-4 * scale, rtol=2e-4)


def test_fused_attention_is_near_the_formula():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 64, 4, 64))
    exact = on(jax.devices("cpu")[0], operations.attention, q, k, v)
    half = [array.astype(jnp.bfloat16) for array in (q, k, v)]
    fused = on(jax.devices()[0], operations.attention, *half)
    np.testing.assert_allclose(fused.astype(np.float32), exact, atol=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_loss_and_gradients_equal_those_of_the_cpu(dtype, tolerance):
    init, apply = network()
    params = jax.device_get(init(jax.random.key(0)))
    batch = {"x0": np.zeros((4, *SHAPE), np.float32), "labels": np.arange(4)}

    def value(apply):
        loss = dj.diffusion_loss(apply, dj.cosine_betas(), dj.v)
        mean = lambda params, batch: jnp.mean(loss(params, batch, jax.random.key(1))[0])
        return jax.value_and_grad(mean)

    expected = on(jax.devices("cpu")[0], value(apply), params, batch)
    found = on(jax.devices()[0], value(network(dtype).apply), params, batch)
    chex.assert_tree_all_finite(found)
    norm = float(optax.global_norm(expected))
    difference = jax.tree.map(lambda a, b: a - b, expected, found)
    assert float(optax.global_norm(difference)) < tolerance * norm


def test_a_seed_gives_the_images_of_the_cpu():
    init, apply = network()
    params = jax.device_get(init(jax.random.key(0)))
    levels = dj.cosine_betas()(dj.trailing(10, 1000))

    def generate(params):
        denoise = dj.make_denoiser(apply, params, dj.v, labels=jnp.arange(4))
        x = dj.initial_noise(jax.random.key(1), (4, *SHAPE), dj.NoiseLevel(*(a[0] for a in levels)))
        return dj.sample(jax.random.key(2), x, dj.clip_denoised(denoise), dj.ddim(), levels)

    expected, found = both(generate, params)
    np.testing.assert_allclose(found, expected, atol=2 / 255)


def test_the_training_step_donates_and_compiles_once():
    init, apply = network("bfloat16")
    optimizer = optax.adam(1e-3)
    loss = dj.diffusion_loss(apply, dj.linear_betas())
    step = chex.assert_max_traces(dj.make_train_step(loss, optimizer), n=1)
    step = jax.jit(step, donate_argnums=0)
    state = dj.init_train_state(init(jax.random.key(0)), optimizer)
    batch = {"x0": jnp.zeros((8, *SHAPE)), "labels": jnp.arange(8)}
    first = jax.tree.leaves(state.params)[0]
    for _ in range(3):
        state, metrics = step(state, batch, jax.random.key(1))
    assert first.is_deleted()
    assert jnp.isfinite(metrics["loss"])
