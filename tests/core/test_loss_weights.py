"""Loss weights: those of the papers, each in the space that its network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import densities, losses, parameterizations, schedules
from diffjax.core.levels import NoiseLevel, logsnr
from diffjax.core.loss_weights import WEIGHTS, prediction_weight
from diffjax.core.parameterizations import PARAMETERIZATIONS
from diffjax.core.schedules import linear
from diffjax.core.sde import drift_and_diffusion

LEVELS = NoiseLevel(
    jnp.arange(5.0),
    jnp.array([0.999, 0.9, 0.6, 0.3, 0.01]),
    jnp.sqrt(1 - jnp.array([0.999, 0.9, 0.6, 0.3, 0.01]) ** 2),
)
SNR = np.square(np.asarray(LEVELS.alpha) / np.asarray(LEVELS.sigma))


@pytest.mark.parametrize(
    ("weight", "row", "expected"),
    [
        # each paper writes its weight in the space that its network predicts
        (losses.simple, "eps", np.ones(5)),
        (losses.constant, "x0", np.ones(5)),
        (losses.snr_plus_one, "v", np.ones(5)),
        (losses.truncated_snr, "x0", np.maximum(SNR, 1)),
        (losses.min_snr(5.0), "x0", np.minimum(SNR, 5)),
        (losses.min_snr(5.0), "eps", np.minimum(SNR, 5) / SNR),
        (losses.min_snr(5.0), "v", np.minimum(SNR, 5) / (SNR + 1)),
        (losses.p2(0.5, 2.0), "eps", 1 / (2 + SNR) ** 0.5),
        (losses.sigmoid(-3.0), "eps", 1 / (1 + np.exp(np.log(SNR) + 3))),
        (WEIGHTS["score_matching"](), "score", np.square(np.asarray(LEVELS.sigma))),
        (losses.velocity, "velocity", np.ones(5)),
        (losses.edm(0.5), "edm", np.ones(5)),
    ],
)
def test_weight_is_that_of_its_paper_in_its_own_space(weight, row, expected):
    got = prediction_weight(weight, PARAMETERIZATIONS[row], LEVELS)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "sub_vp", "variance_exploding", "flow", "shifted"])
def test_likelihood_weights_the_score_by_the_squared_diffusion(name):
    schedule = schedules.shifted(schedules.flow(clock=1000.0), 2.0)
    if name != "shifted":
        schedule = schedules.SCHEDULES[name]()
    t = jnp.array([0.1, 0.5, 0.9])
    weight = prediction_weight(losses.likelihood(schedule), parameterizations.score, schedule(t))
    np.testing.assert_allclose(weight, drift_and_diffusion(schedule, t)[1], rtol=1e-3)


def test_likelihood_weight_is_importance_sampling_of_even_log_snr():
    """Mean weight times error over uniform time = log-SNR range times mean error over log-SNR."""
    schedule = schedules.between(linear(), 0.05, 0.9)
    ends = logsnr(schedule(jnp.array([0.0, 1.0])))
    even = schedules.resampled(linear(), densities.uniform(*map(float, ends)))
    error = lambda level: jax.nn.sigmoid(logsnr(level))
    u = (jnp.arange(2000) + 0.5) / 2000
    weight = prediction_weight(losses.likelihood(schedule), parameterizations.eps, schedule(u))
    weighted = jnp.mean(weight * error(schedule(u)))
    np.testing.assert_allclose(weighted, (ends[0] - ends[1]) * jnp.mean(error(even(u))), rtol=1e-4)


def test_min_snr_lowers_the_weight_of_the_clean_end_only():
    """The trap: with max for min, or 1 / SNR for SNR, it lowers that of the noisy end."""
    # LEVELS run from clean to noisy
    ratio = prediction_weight(losses.min_snr(5.0), parameterizations.eps, LEVELS)
    assert np.all(np.diff(ratio) > -1e-6)
    assert ratio[0] < 0.02
    np.testing.assert_allclose(ratio[SNR < 5], 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
# that of the likelihood is infinite without noise
@pytest.mark.parametrize("weight_name", sorted(WEIGHTS.keys() - {"likelihood"}))
def test_weights_are_finite_at_zero_and_infinite_snr(weight_name, name):
    ends = NoiseLevel(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    weights = prediction_weight(WEIGHTS[weight_name](), PARAMETERIZATIONS[name], ends)
    assert np.all(np.isfinite(weights))
    assert np.all(np.asarray(weights) >= 0)


def test_names_and_builders_in_the_place_of_a_weight_are_refused():
    for weight in ("min_snr", losses.min_snr, losses.edm):
        with pytest.raises(TypeError, match=r"min_snr\(\)"):
            prediction_weight(weight, parameterizations.eps, LEVELS)
