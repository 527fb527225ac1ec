"""Experts of a run: which times each is trained on, and who is asked when sampling."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from config import Config, ExpertsConfig
from configs import CONFIGS
from diffjax.core.noising import training_times
from diffjax.networks import Functional, experts
from model import make_parameterization, make_schedule
from objective import make_loss, make_part_loss, training_parts
from runs import handovers, make_network

DIGITS = CONFIGS["digits"]
IMAGES = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)


def with_experts(config, *boundaries, **settings):
    parts = ExpertsConfig(boundaries=boundaries, **settings)
    return dataclasses.replace(config, experts=parts)


def clock_of(config, u):
    schedule = make_schedule(config.diffusion)
    level = schedule(training_times(schedule, jnp.array(u)))
    return float(make_parameterization(config.diffusion).clock(level))


@pytest.mark.parametrize("name", ["digits", "digits_flow", "digits_ncsn", "shapes_text"])
def test_a_network_hands_over_where_training_does(name):
    config = with_experts(CONFIGS[name], 0.3, 0.8)
    for boundary, told in zip((0.3, 0.8), handovers(config), strict=True):
        assert clock_of(config, boundary - 0.01) < told <= clock_of(config, boundary + 0.01)


def test_each_expert_learns_of_its_times_by_its_weight():
    config = with_experts(DIGITS, 0.6, overlap=0.1, weights=("constant", "p2(k=0.1)"))
    affine = lambda params, x, t, *, keys=None: params * x + 1e-3 * t[:, None, None, None]
    network = experts(Functional(lambda key: jnp.array(0.1), affine), handovers(config))
    params, key = {"0": jnp.array(0.1), "1": jnp.array(0.2)}, jax.random.key(0)
    slope = lambda loss, params, key: jax.grad(
        lambda params: loss(params, {"x0": IMAGES}, key)[0].mean()
    )(params)
    found = slope(make_loss(config, network.apply), params, key)
    for i, part in enumerate([(0.0, 0.7), (0.5, 1.0)]):
        diffusion = dataclasses.replace(DIGITS.diffusion, weight=config.experts.weights[i])
        alone = make_part_loss(dataclasses.replace(DIGITS, diffusion=diffusion), affine, part)
        wanted = slope(alone, params[str(i)], jax.random.fold_in(key, i))
        np.testing.assert_allclose(found[str(i)], wanted, rtol=1e-6)


def test_the_loss_of_experts_is_told_part_by_part():
    config = with_experts(DIGITS, 0.6)
    network = experts(Functional(lambda key: key, lambda params, x, t, **_: params * x), [0.6])
    params, batch = {"0": 0.1, "1": 0.2}, {"x0": IMAGES}
    values, metrics = make_loss(config, network.apply)(params, batch, jax.random.key(0))
    assert values.shape == (16,)
    np.testing.assert_allclose(values, metrics["mse_0"] + metrics["mse_1"], rtol=1e-6)


@pytest.mark.parametrize(
    ("boundaries", "overlap", "parts"),
    [
        ((), 0.0, [(0.0, 1.0)]),
        ((0.5,), 0.0, [(0.0, 0.5), (0.5, 1.0)]),
        ((0.25, 0.75), 0.5, [(0.0, 0.75), (0.0, 1.0), (0.25, 1.0)]),
    ],
)
def test_parts_overlap_within_the_whole(boundaries, overlap, parts):
    assert training_parts(with_experts(DIGITS, *boundaries, overlap=overlap)) == parts


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (partial(ExpertsConfig, (0.5, 0.2)), "ascend between 0 and 1"),
        (partial(ExpertsConfig, (1.0,)), "ascend between 0 and 1"),
        (partial(ExpertsConfig, (0.5,), overlap=-0.1), r"experts\.overlap is -0\.1"),
        (partial(ExpertsConfig, (0.5,), weights=("simple",) * 3), r"experts\.weights"),
        (partial(ExpertsConfig, (0.5,), every=(1, 0)), r"experts\.every is \(1, 0\)"),
        (partial(ExpertsConfig, (0.5,), every=(2,)), r"experts\.every is \(2,\)"),
        (partial(ExpertsConfig, weights=("simple",)), r"experts\.boundaries part, which are \(\)"),
        (partial(with_experts, CONFIGS["digits_classifier"], 0.5), "task is classify"),
        (partial(with_experts, CONFIGS["cifar10_edm"], 0.5), r"diffusion\.density"),
    ],
)
def test_experts_that_do_not_go_with_a_run_are_refused(make, culprit):
    with pytest.raises(ValueError, match=culprit):
        make()


def test_a_schedule_that_is_learned_has_no_experts():
    learned = dataclasses.replace(
        DIGITS.diffusion, schedule="learned_logsnr(start=13.3, end=-5.0)", weight="likelihood"
    )
    config = with_experts(Config(network=DIGITS.network, diffusion=learned), 0.5)
    with pytest.raises(ValueError, match="is learned"):
        make_network(config)
