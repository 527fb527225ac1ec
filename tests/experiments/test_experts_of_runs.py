"""Experts of a run: who trains when, on which times, and who is asked when sampling."""

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
from objective import make_loss, make_losses
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
    config = with_experts(DIGITS, 0.6, weights=("constant", "p2(k=0.1)"))
    affine = lambda params, x, t, *, keys=None: params * x + 1e-3 * t[:, None, None, None]
    network = experts(Functional(lambda key: jnp.array(0.1), affine), handovers(config))
    params, key = {"0": jnp.array(0.1), "1": jnp.array(0.2)}, jax.random.key(0)
    for i, loss in enumerate(make_losses(config, network.apply)):
        values = loss(params, {"x0": IMAGES}, key)[0]
        diffusion = dataclasses.replace(DIGITS.diffusion, weight=config.experts.weights[i])
        part = [(0.0, 0.6), (0.6, 1.0)][i]
        alone = make_loss(dataclasses.replace(DIGITS, diffusion=diffusion), affine, part)
        np.testing.assert_allclose(values, alone(params[str(i)], {"x0": IMAGES}, key)[0], rtol=1e-6)
        # whom the times of the part ask is the one that learns
        routed = make_loss(dataclasses.replace(DIGITS, diffusion=diffusion), network.apply, part)
        np.testing.assert_allclose(values, routed(params, {"x0": IMAGES}, key)[0], rtol=1e-6)
        mean = lambda params, loss=loss: loss(params, {"x0": IMAGES}, key)[0].mean()
        slopes = jax.grad(mean)(params)
        assert [float(slopes[name]) != 0.0 for name in "01"] == [i == 0, i == 1]


def test_without_boundaries_there_is_one_loss_of_all_times():
    apply = lambda params, x, t, *, keys=None: params * x
    (loss,) = make_losses(DIGITS, apply)
    values = [each(0.1, {"x0": IMAGES}, jax.random.key(0))[0]
              for each in (loss, make_loss(DIGITS, apply))]  # fmt: skip
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (partial(ExpertsConfig, (0.5, 0.2)), "ascend between 0 and 1"),
        (partial(ExpertsConfig, (1.0,)), "ascend between 0 and 1"),
        (partial(ExpertsConfig, (0.5,), steps=(3,)), r"experts\.steps is \(3,\)"),
        (partial(ExpertsConfig, (0.5,), weights=("simple",) * 3), r"experts\.weights"),
        (partial(ExpertsConfig, (0.5,), steps=(3, 0)), "at least 1"),
        (partial(ExpertsConfig, weights=("simple",)), "without experts.boundaries"),
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
