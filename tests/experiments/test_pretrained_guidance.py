"""Guidance of saved models by name: off where it should be, and what its transform says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constant_system import constant_system

import diffjax as dj
from diffjax.networks import UNetConfig
from diffjax.pipelines import conditioning, denoiser, make_plan
from diffjax.pipelines.weaker import WEAKER
from diffjax.pretrained import Components, Model, read_scheduler
from guidances import GUIDANCES
from pretrained_guidance import (
    GuidanceArgs,
    check_guidance,
    compares_prompts,
    guided_solver,
    guided_system,
    make_guidance,
)

LEVEL = dj.NoiseLevel(*jnp.array([500.0, 0.6, 0.8]))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
PROMPT, NULL = {"value": jnp.array([0.5, 0.7])}, {"value": jnp.array([0.1, -0.2])}
OF_SOLVERS = {"cfg_plus_plus", "apg_momentum"}
# how a network with the weights 1 counts that is changed or worse
WORSE = 0.25


def make(parts):
    """A system whose network bends x, towards what it is told."""
    model = parts.models["unet"]
    changed = model.config.identity_attention != "none"

    def apply(params, x, t, *, value):
        weight = params["unet"] * (WORSE if changed else 1.0)
        return jnp.sin(weight * x) + value[:, None, None, None]

    maps = lambda params, x, t, *, value: jnp.mean(x[:, ::2, ::2] ** 2, axis=-1)
    return constant_system()._replace(apply=maps if model.network.init is None else apply)


CONFIG = UNetConfig(block_out_channels=(8, 8), attention=(False, True), num_groups=4)


@pytest.fixture
def parts(monkeypatch):
    # of the two networks only their configurations count here
    shows = lambda parts: parts._replace(
        models={"unet": parts.models["unet"]._replace(network=dj.networks.Functional(None, None))}
    )
    monkeypatch.setattr("diffjax.pipelines.showing_attention", shows)
    model = lambda params: Model(CONFIG, dj.networks.unet(CONFIG), params)
    return Components("P", {}, {"unet": model(1.0), WEAKER: model(WORSE)}, {}, {})


def args_of(name, scale=3.0, **changes):
    weaker = {"weaker": "FOLDER"} if name == "autoguidance" else {}
    return GuidanceArgs(guidance=name, guidance_scale=scale, **weaker, **changes)


def estimates(parts, args):
    system = guided_system(args, parts, make)
    conditions = [PROMPT, NULL] if compares_prompts(args) else [PROMPT]
    guidance = make_guidance(args, system, len(conditions))
    told = conditioning(system, parts.params, conditions)
    return denoiser(system, parts.params, told, guidance)(X, LEVEL)


@pytest.mark.parametrize("name", sorted(set(GUIDANCES) - OF_SOLVERS))
def test_every_guidance_is_off_at_scale_one_and_in_no_interval(parts, name):
    plain = estimates(parts, GuidanceArgs(guidance_scale=1.0))
    assert np.abs(estimates(parts, args_of(name)) - plain).max() > 1e-3
    # the level is at the ratio 4/3
    for interval in ((0.0, 0.0), (2.0, 9.0)):
        off = estimates(parts, args_of(name, guidance_interval=interval))
        np.testing.assert_allclose(off, plain, atol=1e-6)
    inside = estimates(parts, args_of(name, guidance_interval=(0.5, 2.0)))
    np.testing.assert_allclose(inside, estimates(parts, args_of(name)), atol=1e-6)
    np.testing.assert_array_equal(estimates(parts, args_of(name, 1.0)), plain)


def test_classifier_free_guidance_is_that_of_the_library_to_the_bit(parts):
    system = make(parts)
    told = conditioning(system, parts.params, [PROMPT, NULL])
    guidance = partial(dj.classifier_free, guidance_scale=7.0)
    expected = denoiser(system, parts.params, told, guidance)(X, LEVEL)
    np.testing.assert_array_equal(estimates(parts, GuidanceArgs()), expected)


@pytest.mark.parametrize("name", ["perturbed_attention", "autoguidance", "blurred"])
def test_the_prompt_is_followed_beside_another_guidance(parts, name):
    plain = estimates(parts, GuidanceArgs(guidance_scale=1.0))
    towards = estimates(parts, GuidanceArgs(guidance_scale=2.0)) - plain
    away = estimates(parts, args_of(name)) - plain
    both = estimates(parts, args_of(name, prompt_scale=2.0))
    np.testing.assert_allclose(both, plain + towards + away, atol=1e-5)
    # and alone, where the other is off
    np.testing.assert_allclose(
        estimates(parts, args_of(name, 1.0, prompt_scale=2.0)), plain + towards, atol=1e-5
    )


def test_an_earlier_attention_and_other_weights_are_what_is_led_away_from(parts):
    plain = estimates(parts, GuidanceArgs(guidance_scale=1.0))
    worse = parts._replace(models={**parts.models, "unet": parts.models[WEAKER]})
    weaker = estimates(worse, GuidanceArgs(guidance_scale=1.0))
    for name in ("perturbed_attention", "autoguidance"):
        found = estimates(parts, args_of(name, 3.0))
        np.testing.assert_allclose(found, weaker + 3.0 * (plain - weaker), atol=1e-5)


@pytest.mark.parametrize("name", sorted(OF_SOLVERS))
def test_guidances_of_solvers_get_both_estimates(parts, name):
    args = args_of(name, 0.5)
    plan = make_plan(read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}), 3)
    system = guided_system(args, parts, make)
    solver = guided_solver(args, system, plan.solver)
    found = denoiser(system, parts.params, conditioning(system, parts.params, [PROMPT, NULL]))
    assert make_guidance(args, system, 2) is None
    row = GUIDANCES[name]()
    wanted = row.solver(plan.solver, guidance_scale=0.5)
    levels = [jax.tree.map(lambda leaf, i=i: leaf[i], plan.levels) for i in (0, 1)]
    steps = [each.step(None, X, each.init(X), found, *levels)[0] for each in (solver, wanted)]
    np.testing.assert_array_equal(*steps)


def test_estimates_are_limited_whatever_the_solver(parts):
    plan = make_plan(read_scheduler({"_class_name": "DDIMScheduler", "clip_sample": False}), 3)
    system = make(parts)
    last = [jax.tree.map(lambda leaf, i=i: leaf[i], plan.levels) for i in (-2, -1)]
    seen = []

    def step(threshold):
        solver = guided_solver(GuidanceArgs(threshold=threshold), system, dj.ddim())
        spied = lambda x, level: seen.append(None) or 3.0 * x
        return solver.step(None, X, solver.init(X), spied, *last)[0]

    assert np.abs(step("static")).max() < np.abs(step("static(low=-2, high=2)")).max()
    assert np.abs(step("dynamic")).max() < np.abs(step(None)).max()
    assert len(seen) == 4
    latent = system._replace(latent_shape=lambda height, width: (height // 2, width // 2, 4))
    for threshold in ("static", "dynamic(quantile=0.9)"):
        with pytest.raises(ValueError, match="a model of latents"):
            guided_solver(GuidanceArgs(threshold=threshold), latent, dj.ddim())
    guided_solver(GuidanceArgs(threshold="static(low=-4, high=4)"), latent, dj.ddim())


def test_a_model_without_a_second_estimate_is_guided_by_default_settings_alone(parts):
    assert make_guidance(GuidanceArgs(), make(parts), 1) is None
    for changes in ({"guidance": "apg"}, {"guidance_interval": (0.1, 1.0)}):
        with pytest.raises(ValueError, match="no estimate without a prompt"):
            make_guidance(GuidanceArgs(**changes), make(parts), 1)
    assert make_guidance(args_of("perturbed_attention"), make(parts), 1) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"guidance": "agp"}, "Did you mean 'apg'"),
        ({"guidance": "apg(perpendicular=1)"}, "has no argument 'perpendicular'"),
        ({"guidance_interval": (2.0, 1.0)}, "needed is 0 <= low <= high"),
        ({"guidance": "cfg_plus_plus"}, "from 0 to 1; it is 7"),
        ({"guidance": "apg_momentum", "guidance_interval": (0.0, 1.0)}, "it has no interval"),
        ({"guidance": "apg_momentum", "guidance_rescale": 0.5}, "--guidance-rescale does not go"),
        ({"guidance": "autoguidance(checkpoint=3)"}, "a saved model has no checkpoints"),
        ({"guidance": "autoguidance"}, "need each other"),
        ({"weaker": "FOLDER"}, "need each other"),
        ({"guidance": "apg", "prompt_scale": 2.0}, "the scale is --guidance-scale alone"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        check_guidance(GuidanceArgs(**changes))
