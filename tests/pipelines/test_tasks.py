from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constant_system import constant_system

import diffjax as dj
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.controlnet import ControlNetConfig
from diffjax.networks.t2i_adapter import T2IAdapterConfig
from diffjax.networks.unet_latent_presets import sd1_unet
from diffjax.pipelines import (
    control_times,
    enlarged,
    img2img,
    inpaint,
    make_plan,
    make_system,
    steered,
    txt2img,
    with_control,
    with_tiles,
)
from diffjax.pipelines.pictures import resize_linear
from diffjax.pretrained import Components, Model, UnsupportedError, read_scheduler

DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "sample"}
SCHEDULER = read_scheduler(DDIM)


@pytest.fixture(scope="module")
def run():
    """txt2img of the constant system: (keys, conditions, scale) -> images."""
    plan = make_plan(SCHEDULER, 4)

    def generate(keys, conditions, scale):
        return txt2img(
            constant_system(),
            1.0,
            keys,
            conditions,
            solver=plan.solver,
            levels=plan.levels,
            height=4,
            width=4,
            guidance=partial(dj.classifier_free, guidance_scale=scale),
        )

    return jax.jit(generate)


def keys_of(count):
    return jax.random.split(jax.random.key(0), count)


def test_guidance_extrapolates_from_the_second_condition_to_the_first(run):
    conditions = [{"value": jnp.array([0.5, 0.2])}, {"value": jnp.array([0.1, 0.2])}]
    images = run(keys_of(2), conditions, 3.0)
    assert images.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(images[0], 1.3, atol=1e-5)
    np.testing.assert_allclose(images[1], 0.2, atol=1e-5)
    np.testing.assert_allclose(run(keys_of(2), conditions, 1.0)[0], 0.5, atol=1e-5)


@pytest.mark.parametrize("from_noise", [True, False])
def test_inpainting_keeps_what_is_known_and_paints_the_rest(from_noise):
    images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3))
    mask = jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1.0)
    plan = make_plan(SCHEDULER, 4, strength=1.0 if from_noise else 0.5)
    filled = inpaint(
        constant_system(),
        1.0,
        keys_of(2),
        [{"value": jnp.array([0.5, -0.5])}],
        images,
        mask,
        solver=plan.solver,
        levels=plan.levels,
        from_noise=from_noise,
    )
    np.testing.assert_array_equal(filled[:, 2:], images[:, 2:])
    np.testing.assert_allclose(filled[0, :2], 0.5, atol=1e-5)
    np.testing.assert_allclose(filled[1, :2], -0.5, atol=1e-5)


def test_images_are_changed_by_their_own_key_alone():
    plan = make_plan(SCHEDULER, 4, strength=0.5)
    system = constant_system()._replace(apply=lambda params, x, t, **told: 0.5 * x)
    change = partial(img2img, system, 1.0, solver=plan.solver, levels=plan.levels)
    images, values = jax.random.uniform(jax.random.key(1), (3, 4, 4, 3)), jnp.zeros(3)
    whole = change(keys_of(3), [{"value": values}], images)
    part = change(keys_of(3)[1:], [{"value": values[1:]}], images[1:])
    np.testing.assert_allclose(whole[1:], part, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_a_plan_can_be_walked_in_parts():
    whole = make_plan(SCHEDULER, 10).levels.t
    first = make_plan(SCHEDULER, 10, part=(0.0, 0.7)).levels.t
    second = make_plan(SCHEDULER, 10, part=(0.7, 1.0)).levels.t
    np.testing.assert_array_equal(np.concatenate([first, second[1:]]), whole)
    np.testing.assert_array_equal(make_plan(SCHEDULER, 10, strength=0.3).levels.t, whole[7:])
    for wrong in ({"part": (0.5, 0.5)}, {"part": (0.0, 1.5)}, {"strength": 0.01}):
        with pytest.raises(ValueError, match=r"part is|strength is"):
            make_plan(SCHEDULER, 10, **wrong)


def test_linear_resizing_lays_corners_upon_each_other():
    rows, columns = jnp.meshgrid(jnp.linspace(0, 1, 3), jnp.linspace(0, 2, 4), indexing="ij")
    large = resize_linear((rows + columns)[None, ..., None], 9, 5)
    rows, columns = jnp.meshgrid(jnp.linspace(0, 1, 9), jnp.linspace(0, 2, 5), indexing="ij")
    np.testing.assert_allclose(large[0, ..., 0], rows + columns, atol=1e-6)


def test_small_images_are_enlarged_within_the_range_of_images():
    (told,) = enlarged(jnp.full((1, 2, 2, 3), 3.0), 4, 6)
    np.testing.assert_allclose(told["channels"], np.ones((1, 4, 6, 3)), atol=1e-6)


def test_a_part_without_steps_steers_nothing_and_is_refused():
    with pytest.raises(ValueError, match="no step of 4"):
        control_times(SCHEDULER.levels(4), 0.3, 0.4)


def test_what_networks_that_steer_say_is_scaled_and_added_up_within_their_times():
    """The UNet returns what it is told; a ControlNet says its picture, an adapter twice that."""

    def unet(params, x, t, *, residuals=((), 0.0), features=(), context):
        return residuals[1] + sum(features)

    def see(params, x, t, *, condition, guess, context):
        return [x], params * condition

    net = SimpleNamespace(apply=see)
    adapter = SimpleNamespace(apply=lambda params, picture: [params * picture])
    config = ControlNetConfig(sd1_unet())
    steering = {"a": Model(config, net, 1.0), "b": Model(config, net, 1.0)}
    told = {"context": jnp.ones((2, 3, 1))}
    system = constant_system()._replace(apply=unet, condition=lambda params, inputs: {**told})
    params, x, t = {"a": 1.0, "b": 1.0, "c": 2.0}, jnp.zeros((2, 4, 4, 3)), jnp.array([5.0, 500.0])
    picture = jnp.ones((2, 4, 4, 3))

    def said(names, scales, times=(jnp.inf, -jnp.inf)):
        models = {**steering, "c": Model(T2IAdapterConfig(), adapter, 2.0)}
        told = steered(system, {name: models[name] for name in names})
        conditions = [{}]
        for name, scale in zip(names, scales):
            conditions = with_control(conditions, name, picture, scales=scale, times=times)
        (inputs,) = conditions
        return told.apply(params, x, t, **told.condition(params, inputs))[:, 0, 0, 0]

    np.testing.assert_allclose(said("ab", (0.5, 0.25)), 0.75)
    np.testing.assert_allclose(said("c", (0.5,)), 1.0)
    np.testing.assert_allclose(said("abc", (1.0, 0.0, 0.5)), 2.0)
    np.testing.assert_allclose(said("a", (1.0,), times=(900.0, 100.0)), [0.0, 1.0])
    with pytest.raises(ValueError, match="no picture for 'a'; see with_control"):
        steered(system, steering).condition(params, {})


def test_controlnets_see_the_words_and_the_unet_the_image_too():
    wide = lambda context: context.sum((1, 2))[:, None, None, None]
    net = SimpleNamespace(apply=lambda params, x, t, *, context, **_: ([x], wide(context)))
    context = jnp.broadcast_to(jnp.array([1.0, 1.0, 1.0, 7.0, 7.0])[:, None], (2, 5, 1))
    system = constant_system()._replace(
        apply=lambda params, x, t, *, context, residuals: residuals[1] + 100.0 * wide(context),
        condition=lambda params, inputs: {"context": context},
    )
    model = Model(ControlNetConfig(sd1_unet()), net, 1.0)
    told = steered(system, {"a": model}, image_tokens=2)
    (inputs,) = with_control([{}], "a", jnp.ones((2, 4, 4, 3)))
    x = jnp.zeros((2, 4, 4, 3))
    said = told.apply({"a": 1.0}, x, jnp.ones(2), **told.condition({}, inputs))
    np.testing.assert_allclose(said.ravel(), 1703.0)


def test_a_system_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(UnsupportedError, match="nearest name is 'StableDiffusionPipeline'"):
        make_system(Components("StableDifusionPipeline", {}, {}, {}, {}))
    with pytest.raises(
        UnsupportedError, match=r"no single system; unclip\(parts\) makes its three"
    ):
        make_system(Components("UnCLIPPipeline", {}, {}, {}, {}))


def test_sides_that_the_network_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        constant_system().latent_shape(4, 3)


def test_tiles_that_are_too_small_or_of_nothing_are_refused():
    vae = AutoencoderKLConfig(block_out_channels=(32, 32, 32, 32))
    model = Model(vae, autoencoder_kl(vae), {})
    parts = Components("StableDiffusionPipeline", {}, {"vae": model}, {}, {})
    with pytest.raises(ValueError, match=r"of 15 pixels is 1 latents .* needs 16 pixels or more"):
        with_tiles(parts, 15)
    assert with_tiles(parts, 16).models["vae"].network is not model.network
    with pytest.raises(ValueError, match="has no variational autoencoder"):
        with_tiles(parts._replace(models={}), 16)
