from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constant_system import constant_system

import diffjax as dj
from diffjax.networks import UNetConfig
from diffjax.networks.dit import DiTConfig
from diffjax.pipelines import (
    beside,
    make_plan,
    perturbed_attention,
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
    "perturbed": (1, perturbed_attention(perturbed_scale=3.0), None, True, 1.1),
    "perturbed and guided": (2, perturbed_attention(2.0, 3.0), None, True, 1.5),
    "autoguided": (1, partial(dj.autoguidance, guidance_scale=2.0), None, True, 0.7),
}


@pytest.mark.parametrize("name", GUIDED)
def test_every_guidance_of_the_library_guides_whole_systems(name):
    count, guidance, change, worse, expected = GUIDED[name]
    plan, system = make_plan(read_scheduler(SCHEDULER), 3), as_told()
    system = beside(system, as_told(WORSE - PROMPT)) if worse else system
    conditions = [{"value": jnp.full(2, value)} for value in (PROMPT, NULL)[:count]]
    solver = plan.solver if change is None else change(plan.solver)

    @jax.jit
    def run(keys):
        told = {"solver": solver, "levels": plan.levels, "guidance": guidance, **SIZES}
        return txt2img(system, {}, keys, conditions, **told)

    images = run(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(images, np.full((2, 4, 4, 3), expected), atol=1e-5)


def test_attention_maps_are_replaced_in_unets_alone():
    parts_of = lambda config: Components("P", {}, {"unet": Model(config, None, {"a": 1})}, {}, {})
    parts = parts_of(UNetConfig(block_out_channels=(8, 8), attention=(False, True), num_groups=4))
    changed = without_attention_maps(parts, where="all").models["unet"]
    assert changed.config.identity_attention == "all"
    assert changed.params is parts.models["unet"].params
    with pytest.raises(UnsupportedError, match="P has none"):
        without_attention_maps(parts_of(DiTConfig()))
