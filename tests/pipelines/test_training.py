"""The loss of a system, on one whose parts are lines."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.core import parameterizations
from diffjax.core.keys import batch_keys, sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.loss_weights import prediction_weight
from diffjax.core.losses import diffusion_loss
from diffjax.core.schedules import linear_betas
from diffjax.pipelines import System, encode
from diffjax.pipelines.training import null_prompt, plain, system_loss
from diffjax.training import init_train_state
from diffjax.training.frozen import make_frozen_step

TABLE = linear_betas(num_steps=100)
PARAMS = {
    "unet": {"slope": jnp.array(0.3)},
    "text_encoder": jnp.arange(5.0),
    "vae": jnp.full(3, 2.0),
}
KEYS = batch_keys(jax.random.key(0), 4)
BATCH = {
    "x0": jax.random.normal(jax.random.key(1), (4, 2, 2, 3)),
    "tokens": jnp.array([1, 2, 3, 4]),
}


def prepare(prompts, negative=None, *, height, width):
    conditions = [prompts] if negative is None else [prompts, ["" for _ in negative]]
    number = lambda text: int(text or 0)
    return [{"tokens": np.array(list(map(number, each)))} for each in conditions]


def draw_latents(params, keys, images, normal):
    return params["vae"] * images + 0.1 * normal(keys, images.shape[1:], images.dtype)


def predict(params, x, t, *, shift, keys=None):
    return params["unet"]["slope"] * x + shift[:, None, None, None]


SYSTEM = System(
    parameterization=parameterizations.eps,
    learned_variance=False,
    prepare=prepare,
    condition=lambda params, inputs: {"shift": params["text_encoder"][inputs["tokens"]]},
    apply=predict,
    encode=draw_latents,
    features=lambda params, images: images,
    decode=lambda params, latents: latents,
    latent_shape=lambda height, width: (height, width, 3),
    size=(2, 2),
)


@jax.jit
def losses(params, batch, keys):
    """With all prompts, with no prompt, and with all prompts where one image counts twice."""
    never = null_prompt(SYSTEM, 2, 2, 1.0)
    counts = {**batch, "loss_weight": jnp.array([1.0, 2.0, 1.0, 1.0])}
    return (
        system_loss(SYSTEM, TABLE)(params, batch, keys)[0],
        system_loss(SYSTEM, TABLE, null=never)(params, batch, keys)[0],
        system_loss(SYSTEM, TABLE)(params, counts, keys)[0],
    )


def test_the_loss_is_that_of_diffusion_on_latents_that_are_drawn():
    told, untold, counted = losses(PARAMS, BATCH, KEYS)
    latents = encode(SYSTEM, PARAMS, sample_keys(KEYS.key, KEYS.index), BATCH["x0"])
    assert np.abs(latents - PARAMS["vae"] * BATCH["x0"]).max() > 0.1
    of_latents = diffusion_loss(predict, TABLE)
    for tokens, found in ((BATCH["tokens"], told), (jnp.zeros(4, int), untold)):
        batch = {"x0": latents, "shift": PARAMS["text_encoder"][tokens]}
        np.testing.assert_allclose(found, of_latents(PARAMS, batch, KEYS)[0], rtol=1e-5)
    np.testing.assert_allclose(counted, told * jnp.array([1.0, 2.0, 1.0, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("name", parameterizations.PARAMETERIZATIONS)
def test_the_plain_error_of_what_is_predicted_has_weight_one(name):
    row = parameterizations.PARAMETERIZATIONS[name]
    alpha = np.array([0.999, 0.6, 0.01], np.float32)
    level = NoiseLevel(np.zeros(3), alpha, np.sqrt(1 - alpha**2))
    level = jax.tree.map(jnp.asarray, level)
    np.testing.assert_allclose(prediction_weight(plain(row), row, level), 1.0, rtol=1e-4)


def test_a_step_trains_one_part_and_takes_the_rest_as_data():
    optimizer = optax.sgd(0.1)
    trainable = {"unet": PARAMS["unet"]}
    frozen = {name: PARAMS[name] for name in ("text_encoder", "vae")}
    frozen["text_encoder"] = jnp.arange(5000.0)
    loss = system_loss(SYSTEM, TABLE)
    step = make_frozen_step(loss, optimizer)
    state = init_train_state(trainable, optimizer, ema_decay=())
    traced = jax.make_jaxpr(step)(state, frozen, BATCH, KEYS.key)
    assert max(np.size(const) for const in traced.consts) <= 101  # the schedule's table
    after, metrics = jax.jit(step)(state, frozen, BATCH, KEYS.key)
    assert after.params.keys() == {"unet"}
    # the slope is the only number that moves, down its own gradient
    keys = batch_keys(jax.random.fold_in(KEYS.key, 0), 4)
    mean = lambda slope: loss({**frozen, "unet": {"slope": slope}}, BATCH, keys)[0].mean()
    slope = PARAMS["unet"]["slope"]
    expected = slope - 0.1 * jax.jit(jax.grad(mean))(slope)
    np.testing.assert_allclose(after.params["unet"]["slope"], expected, rtol=1e-5)
    assert np.isfinite(metrics["loss"])
