from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constant_system import constant_system

import diffjax as dj
from diffjax.networks import UNetConfig
from diffjax.networks.dit import DiTConfig
from diffjax.networks.functional import Functional
from diffjax.pipelines import (
    attentive,
    beside,
    guided_within,
    make_plan,
    perturbed_attention,
    showing_attention,
    txt2img,
    without_attention_maps,
)
from diffjax.pretrained import Components, Model, UnsupportedError, read_scheduler

SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "sample"}
PROMPT, NULL, WORSE = 0.5, 0.1, 0.3
SIZES = {"height": 4, "width": 4}


def as_told(change=0.0):
    """Every image is the constant that the network is told, and a change."""
    return constant_system(lambda params, value: value + change)


def off(prompt, null):
    strong = dj.classifier_free(prompt, null, guidance_scale=9.0)
    return dj.guidance_interval(strong, prompt, low=0.0, high=0.0)


def blurred_and_guided(prompt, null):
    sharper = dj.blur_guidance(prompt, guidance_scale=9.0)
    return dj.composed(prompt, [null, sharper], guidance_scales=[-2.0, 1.0])


def rescaled(prompt, null):
    return dj.rescaled(dj.classifier_free(prompt, null, guidance_scale=3.0), prompt, amount=0.0)


# conditions -> guidance, the change that it makes to a solver, whether a worse network is there
# and what constants become
GUIDED = {
    "classifier-free": (2, partial(dj.classifier_free, guidance_scale=3.0), None, False, 1.3),
    "in no interval": (2, off, None, False, PROMPT),
    "rescaled by nothing": (2, rescaled, None, False, 1.3),
    # between constants every difference is parallel to the estimate
    "apg": (2, partial(dj.apg, guidance_scale=3.0, parallel=0.0), None, False, PROMPT),
    "apg along": (2, partial(dj.apg, guidance_scale=3.0, parallel=1.0), None, False, 1.3),
    "cfg++": (2, None, partial(dj.cfg_plus_plus, guidance_scale=0.6), False, 0.34),
    "momentum": (2, None, partial(dj.apg_momentum, guidance_scale=3.0), False, PROMPT),
    # a constant is as sharp as its blur; its network is asked at another x too
    "blurred": (1, partial(dj.blur_guidance, guidance_scale=9.0), None, False, PROMPT),
    "blurred and guided": (2, blurred_and_guided, None, False, 1.3),
    "perturbed": (1, perturbed_attention(perturbed_scale=3.0), None, True, 1.1),
    "perturbed and guided": (2, perturbed_attention(2.0, 3.0), None, True, 1.5),
    "autoguided": (1, partial(dj.autoguidance, guidance_scale=2.0), None, True, 0.7),
}


@pytest.mark.parametrize("name", GUIDED)
def test_every_guidance_of_the_library_guides_whole_systems(name):
    count, guidance, change, worse, expected = GUIDED[name]
    system = beside(as_told(), as_told(WORSE - PROMPT)) if worse else as_told()
    conditions = [{"value": jnp.full(2, value)} for value in (PROMPT, NULL)[:count]]
    images = images_of(system, conditions, guidance, change)
    np.testing.assert_allclose(images, np.full((2, 4, 4, 3), expected), atol=1e-5)


def images_of(system, conditions, guidance=None, change=None):
    plan = make_plan(read_scheduler(SCHEDULER), 3)
    solver = plan.solver if change is None else change(plan.solver)

    @jax.jit
    def run(keys):
        told = {"solver": solver, "levels": plan.levels, "guidance": guidance, **SIZES}
        return txt2img(system, {}, keys, conditions, **told)

    return run(jax.random.split(jax.random.key(0), 2))


def test_outside_of_its_interval_the_network_is_called_for_the_prompt_alone():
    counting = constant_system(lambda params, value: jnp.where(len(value) == 2, value, jnp.nan))
    conditions = [{"value": jnp.full(2, value)} for value in (PROMPT, NULL)]
    guidance = partial(dj.classifier_free, guidance_scale=3.0)
    alone = images_of(guided_within(counting, 0.0, 0.0), conditions, guidance)
    np.testing.assert_allclose(alone, PROMPT, atol=1e-5)
    assert np.isnan(images_of(guided_within(counting, 0.0, jnp.inf), conditions, guidance)).all()
    with pytest.raises(ValueError, match="in an interval is no matter of solvers"):
        images_of(guided_within(counting, 0.0, 1.0), conditions)


def test_a_guidance_is_shown_where_the_network_attends():
    shown = constant_system()._replace(
        apply=lambda params, x, t, value: jnp.broadcast_to(value[:, None, None], (2, 2, 2))
    )
    added = lambda prompt, attends: lambda x, level: prompt(x, level) + attends(x, level)[0, 0, 0]
    images = images_of(attentive(as_told(), shown), [{"value": jnp.full(2, PROMPT)}], added)
    np.testing.assert_allclose(images, 2 * PROMPT, atol=1e-5)


def parts_of(config):
    return Components("P", {}, {"unet": Model(config, Functional(None, None), {"a": 1})}, {}, {})


def test_attention_is_changed_and_read_in_unets_that_attend():
    sizes = {"block_out_channels": (8, 8), "attention": (False, True), "num_groups": 4}
    parts = parts_of(UNetConfig(**sizes))
    changed = without_attention_maps(parts, where="all").models["unet"]
    assert changed.config.identity_attention == "all"
    for model in (changed, showing_attention(parts).models["unet"]):
        assert model.params is parts.models["unet"].params
    blind = parts_of(UNetConfig(**sizes, mid_attention=False))
    for function, reason in ((without_attention_maps, "to replace"), (showing_attention, "shows")):
        with pytest.raises(UnsupportedError, match="P has none"):
            function(parts_of(DiTConfig()))
        with pytest.raises(UnsupportedError, match=reason):
            function(blind)
