"""Guidances by name: each is off at scale 1, and does what its transform says."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
import sample
import steering
from configs import CONFIGS
from denoisers import sampling_denoiser
from diffjax.networks import Functional
from diffjax.training import make_mesh
from guidances import GUIDANCES, Guides
from model import SampleOptions, sampling_defaults
from runs import Run, make_network
from samplers import make_sampler

CONFIG = CONFIGS["digits"]
LEVEL = dj.NoiseLevel(*jnp.array([500.0, 0.6, 0.8]))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
LABELS = jnp.array([3, 7])
ARGUMENTS = {"autoguidance": "(checkpoint=1000)"}


def apply(params, x, t, *, labels):
    return jnp.sin(params * x) - 0.1 * labels[:, None, None, None].astype(x.dtype)


NETWORK = Functional(lambda key: 0.3, apply)


@partial(jax.jit, static_argnames="options")
def estimate(options):
    """Estimates of a plain network, away from one with other weights where that is asked for."""
    denoiser = sampling_denoiser(CONFIG, NETWORK, options)
    weaker = 0.1 if options.guidance.startswith("autoguidance") else None
    return denoiser(0.3, LABELS, None, Guides(weaker))(X, LEVEL)


def options(name, scale, **changes):
    return SampleOptions(
        guidance=name + ARGUMENTS.get(name, ""), guidance_scale=scale, clip=False, **changes
    )


PLAIN = options("classifier_free", 1.0)
WITH_ATTENTION = {"perturbed_attention", "self_attention"}
OF_DENOISERS = sorted(set(GUIDANCES) - {"cfg_plus_plus", "apg_momentum"} - WITH_ATTENTION)


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_a_guidance_is_off_at_scale_one_and_outside_of_its_interval(name):
    plain, guided = estimate(PLAIN), estimate(options(name, 3.0))
    assert np.abs(guided - plain).max() > 1e-3
    # the level is at the ratio 4/3
    outside, empty = (2.0, 9.0), (4 / 3, 4 / 3)
    intervals = [options(name, 3.0, guidance_interval=ends) for ends in (outside, empty)]
    for off in (options(name, 1.0), *intervals):
        np.testing.assert_allclose(estimate(off), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["cfg_plus_plus", "apg_momentum"])
def test_guidances_that_are_solvers_get_both_estimates(name):
    conditional, unconditional = estimate(options(name, 0.5))
    free = estimate(options("classifier_free", 3.0))
    expected = unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(free, expected, atol=1e-5)
    with pytest.raises(ValueError, match="it has no interval"):
        options(name, 0.5, guidance_interval=(0.1, 1.0)).read_guidance()
    generate = make_sampler(CONFIG, NETWORK, options(name, 0.5, num_steps=2), make_mesh())
    assert generate(0.3, jax.random.key(0), jnp.arange(2), LABELS).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("name", sorted(WITH_ATTENTION))
def test_attention_that_is_not_there_cannot_guide(name):
    with pytest.raises(ValueError, match=f"{name} .* the network has none"):
        sampling_denoiser(CONFIG, NETWORK, options(name, 2.0))


def test_guidances_by_attention_read_the_network_of_the_run():
    attentive = dataclasses.replace(
        CONFIG.network, attention=(False, False), mid_attention=True, num_groups=4,
        block_out_channels=(8, 8), zero_init=False,
    )  # fmt: skip
    config = dataclasses.replace(CONFIG, network=attentive)
    network = make_network(config)
    names = {
        "off": options("self_attention", 1.0),
        "seen": options("self_attention", 3.0),
        "everywhere": options("self_attention(threshold=-1.0)", 3.0),
        "nowhere": options("self_attention(threshold=99.0)", 3.0),
        "blurred": options("blurred", 3.0),
        "perturbed": options("perturbed_attention", 3.0),
    }

    @jax.jit
    def run(params):
        denoiser = lambda each: sampling_denoiser(config, network, each)(params, LABELS)
        return {name: denoiser(each)(X, LEVEL) for name, each in names.items()}

    found = run(network.init(jax.random.key(0)))
    np.testing.assert_allclose(found["nowhere"], found["off"], atol=1e-5)
    np.testing.assert_allclose(found["everywhere"], found["blurred"], atol=1e-5)
    for one, other in (("seen", "off"), ("seen", "blurred"), ("perturbed", "off")):
        assert np.abs(found[one] - found[other]).max() > 1e-4


def args(**changes):
    return sample.Args(workdir="run", **changes)


def test_the_command_line_fills_the_guidance_and_refuses_what_the_run_has_not():
    given = args(guidance="apg(parallel=0.2)", guidance_scale=3.0, guidance_interval=(0.2, 2.0))
    read = sample.sample_options(given, CONFIG)
    assert read == sampling_defaults(
        CONFIG, guidance="apg(parallel=0.2)", guidance_scale=3.0, guidance_interval=(0.2, 2.0)
    )
    certain = dataclasses.replace(CONFIG.network, cond_drop_prob=0.0)
    never_dropped = dataclasses.replace(CONFIG, network=certain)
    with pytest.raises(ValueError, match="no unconditional estimate"):
        sample.sample_options(given, never_dropped)
    sample.sample_options(args(guidance="blurred", guidance_scale=3.0), never_dropped)
    with pytest.raises(ValueError, match="Did you mean 'apg'"):
        sample.sample_options(args(guidance="agp", guidance_scale=3.0), CONFIG)
    both = args(guidance="cfg_plus_plus", guidance_scale=0.6, classifier="run")
    with pytest.raises(ValueError, match="--classifier does not go with"):
        sample.sample_options(both, CONFIG)
    for scale in (-0.1, 1.1):
        with pytest.raises(ValueError, match="takes a --guidance-scale from 0 to 1"):
            sample.sample_options(args(guidance="cfg_plus_plus", guidance_scale=scale), CONFIG)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("diffusion", {"schedule": "linear_betas"}, r"schedule linear_betas, this run with cosine"),
        ("network", {"num_classes": 7}, "network.num_classes 7, this run with 10"),
        ("network", {"sample_size": 16}, r"images of \(16, 16, 1\), this run with \(8, 8, 1\)"),
    ],
)
def test_a_classifier_of_other_levels_classes_or_images_is_refused(
    monkeypatch, part, changes, message
):
    other = dataclasses.replace(
        CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **changes)}
    )
    monkeypatch.setattr(steering, "load_run", lambda *_, **__: Run(other, NETWORK, 0.3, 1))
    with pytest.raises(ValueError, match=message):
        steering.load_guides(args(classifier="other"), Run(CONFIG, NETWORK, 0.3, 1), PLAIN, None)


def test_a_classifier_leans_towards_the_label_as_its_transform_does():
    classify = Functional(None, lambda params, x, t: params * x.reshape(len(x), -1)[:, :10])
    denoiser = sampling_denoiser(
        CONFIG, NETWORK, dataclasses.replace(PLAIN, classifier_scale=2.0), None, classify
    )
    guided = denoiser(0.3, LABELS, None, Guides(classifier=5.0))(X, LEVEL)
    change = np.asarray(guided - estimate(PLAIN)).reshape(2, -1)
    assert change[0, 3] > 1.0
    assert change[1, 7] > 1.0
    assert np.abs(change[:, 10:]).max() < 1e-5
