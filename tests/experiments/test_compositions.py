"""Several conditions at once, by labels and by prompts; and losses of the user's."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
import sample
from compositions import read_composition
from config import LatentsConfig, TextConfig
from configs import CONFIGS
from denoisers import sampling_denoiser
from diffjax.core.conditioning import Condition
from diffjax.networks import ContextConfig, Functional
from guidances import Guides
from model import SampleOptions
from steering import parse_labels

CONFIG = CONFIGS["digits"]
LEVEL = dj.NoiseLevel(*jnp.array([500.0, 0.6, 0.8]))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
BOTH = jnp.array([[3, 7], [1, 4]])


def apply(params, x, t, *, labels):
    return jnp.sin(params * x) - 0.1 * labels[:, None, None, None].astype(x.dtype)


NETWORK = Functional(lambda key: 0.3, apply)


@partial(jax.jit, static_argnames="options")
def estimate(options, labels):
    return sampling_denoiser(CONFIG, NETWORK, options)(0.3, labels, None, Guides(0.1))(X, LEVEL)


options = partial(SampleOptions, clip=False)


def test_a_composition_adds_up_what_each_condition_changes():
    nothing = estimate(options(), jnp.array([10, 10]))
    first, second = (estimate(options(), BOTH[:, i]) for i in (0, 1))
    for scale in (1.0, 3.0):
        both = estimate(options(weights=(1.0, -0.5), guidance_scale=scale), BOTH)
        expected = nothing + scale * ((first - nothing) - 0.5 * (second - nothing))
        np.testing.assert_allclose(both, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["classifier_free", "apg", "autoguidance(checkpoint=1)"])
def test_a_composition_of_one_condition_is_that_condition_under_every_guidance(name):
    guided = partial(options, guidance=name, guidance_scale=2.0)
    alone, only = estimate(guided(), BOTH[:, 0]), estimate(guided(weights=(1.0, 0.0)), BOTH)
    np.testing.assert_allclose(only, alone, atol=1e-5)


def test_a_solver_that_guides_is_given_the_composition():
    several = options(weights=(0.5, 0.5), guidance="cfg_plus_plus", guidance_scale=0.5)
    with_both, without = estimate(several, BOTH)
    np.testing.assert_allclose(without, estimate(options(), jnp.array([10, 10])), atol=1e-6)
    np.testing.assert_allclose(with_both, estimate(options(weights=(0.5, 0.5)), BOTH), atol=1e-6)


def test_prompts_compose_by_their_tokens_and_masks():
    told = {"context": ContextConfig(features=2)}
    network = dataclasses.replace(CONFIG.network, num_classes=None, cond_drop_prob=0.0, **told)
    config = dataclasses.replace(CONFIG, network=network, text=TextConfig(features=2))

    def listen(params, x, t, *, context, context_mask):
        return params * x - jnp.sum(context * context_mask[..., None], (1, 2))[:, None, None, None]

    rng = np.random.default_rng(0)
    texts = {
        "context": jnp.asarray(rng.normal(size=(2, 3, 4, 2)), jnp.float32),
        "context_mask": jnp.asarray(rng.random((2, 3, 4)) < 0.6, jnp.float32),
    }
    empty = Condition({"context": jnp.ones((4, 2)), "context_mask": jnp.eye(4)[0]})

    def told(weights, texts):
        each = options(weights=weights)
        denoiser = sampling_denoiser(config, Functional(None, listen), each, empty)
        return denoiser(0.3, None, texts)(X, LEVEL)

    alone = [told(None, {name: rows[:, i] for name, rows in texts.items()}) for i in range(3)]
    together = told((0.2, 0.5, 0.3), texts)
    np.testing.assert_allclose(together, np.tensordot([0.2, 0.5, 0.3], alone, 1), atol=1e-5)


def test_what_stands_between_and_is_a_condition_with_its_weight():
    read = read_composition("two red circles:0.8 AND a blue square AND a fog : -.5")
    assert read == (("two red circles", "a blue square", "a fog"), (0.8, 1.0, -0.5))
    # a text is taken as it stands where nothing is composed
    assert read_composition("a red circle:2 and a sANDal") == (
        ("a red circle:2 and a sANDal",),
        None,
    )
    for text in ("a red circle AND ", "AND", "3 AND :2"):
        with pytest.raises(ValueError, match="without a condition on each side"):
            read_composition(text)
    np.testing.assert_array_equal(parse_labels("3 AND 8:0.5", 10), [[3, 8]])
    with pytest.raises(ValueError, match="the classes of this run are 0 to 9"):
        parse_labels("3 AND 10", 10)
    with pytest.raises(ValueError, match='expected numbers such as 0,1,2 or "3 AND 8"'):
        parse_labels("3,4 AND 8", 10)


def args(**changes):
    return sample.Args(workdir="run", **changes)


def test_what_a_composition_does_not_go_with_is_refused():
    assert sample.sample_options(args(labels="3 AND 8:0.5"), CONFIG).weights == (1.0, 0.5)
    certain = dataclasses.replace(CONFIG.network, cond_drop_prob=0.0)
    with pytest.raises(ValueError, match=r"AND composes conditions, but .* no unconditional"):
        sample.sample_options(args(labels="3 AND 8"), dataclasses.replace(CONFIG, network=certain))
    seen = args(labels="3 AND 8", guidance="self_attention", guidance_scale=2.0)
    for given in (seen, args(labels="3 AND 8", classifier="run")):
        with pytest.raises(ValueError, match="looks at one condition"):
            sample.sample_options(given, CONFIG)


def mirrored(x0):
    """A loss of a user's: how far images are from their mirror images."""
    return ((x0 - x0[:, :, ::-1]) ** 2).sum(axis=(1, 2, 3))


@pytest.mark.parametrize("how", [{"loss_strength": 0.1}, {"loss_step_size": 0.05}])
def test_a_loss_of_the_users_leads_estimates_down_its_gradient(how):
    labels, off = BOTH[:, 0], {"loss_strength": 0.0, "loss_step_size": 0.0}
    plain = estimate(options(), labels)
    guided = estimate(options(loss=f"{__name__}:mirrored", **{**off, **how}), labels)
    assert np.all(mirrored(guided) < 0.9 * mirrored(plain))
    idle = estimate(options(loss=f"{__name__}:mirrored", **off), labels)
    np.testing.assert_allclose(idle, plain, atol=1e-6)


def test_a_loss_that_is_not_there_or_cannot_guide_is_refused():
    with pytest.raises(ValueError, match=r"--loss is 'nowhere:loss'; expected MODULE:FUNCTION"):
        sample.sample_options(args(loss="nowhere:loss"), CONFIG)
    latent = dataclasses.replace(CONFIG, latents=LatentsConfig())
    with pytest.raises(ValueError, match="--loss reads images, but this run diffuses latents"):
        sample.sample_options(args(loss=f"{__name__}:mirrored"), latent)
    both = args(loss="math:sqrt", guidance="cfg_plus_plus", guidance_scale=0.6)
    with pytest.raises(ValueError, match="--loss does not go with --guidance cfg_plus_plus"):
        sample.sample_options(both, CONFIG)
