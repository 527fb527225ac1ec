"""The learned schedule: monotone, trained on the bound and on its variance, as it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.core import exact
from diffjax.core.continuous_bound import bound_loss
from diffjax.core.learned_schedule import learned_bound_loss, learned_logsnr
from diffjax.core.levels import expand_level, logsnr
from diffjax.core.losses import uniform
from diffjax.core.parameterizations import estimate_eps
from diffjax.core.schedules import level_at, log_linear, time_of

KEY = jax.random.key(0)
START, END = 10.0, -8.0
SCHEDULE = learned_logsnr(START, END, num_features=32)
# two narrow modes: all there is to learn is learned in a short interval of log-SNR
MODES = exact.mixture([0.5, 0.5], [[-1.0], [1.0]], [0.0025, 0.0025])


def scrambled(key):
    leaves, structure = jax.tree.flatten(SCHEDULE.params | {"ends": jnp.zeros(2)})
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    params = jax.tree.unflatten(structure, moved)
    return SCHEDULE.with_params(params | {"ends": jnp.array([9.0, -7.0])})


def perfect(params, x, t, keys):
    """The noise of the mixture, params + 1 times."""
    level = log_linear(START, END)(t)
    return (1.0 + params) * estimate_eps(x, exact.denoiser(MODES)(x, level), level)


def test_any_parameters_give_a_schedule_that_falls_from_end_to_end():
    t = jnp.linspace(0.0, 1.0, 101)
    for schedule in (SCHEDULE, scrambled(KEY)):
        level = schedule(t)
        assert np.all(np.diff(logsnr(level)) < 0)
        np.testing.assert_allclose(
            logsnr(level)[np.array([0, -1])], schedule.params["ends"], rtol=1e-5
        )
        np.testing.assert_allclose(np.square(level.alpha) + np.square(level.sigma), 1, rtol=1e-6)
        np.testing.assert_allclose(time_of(schedule, level)[1:-1], t[1:-1], atol=1e-4)


def test_first_schedule_is_nearly_log_linear():
    t = jnp.linspace(0.0, 1.0, 11)
    expected = START + (END - START) * t
    np.testing.assert_allclose(logsnr(SCHEDULE(t)), expected, atol=0.02 * (START - END))


def test_clock_tells_the_level_whatever_the_parameters():
    ratio = jnp.array([0.01, 0.5, 20.0])
    for schedule in (SCHEDULE, scrambled(KEY)):
        expected = (START + 2.0 * jnp.log(ratio)) / (START - END)
        np.testing.assert_allclose(level_at(schedule)(ratio).t, expected, rtol=1e-5)


def test_one_backward_pass_trains_ends_on_the_bound_and_the_rest_on_its_square(x64):
    batch = {"x0": exact.draw(KEY, MODES, 32)}
    schedule = scrambled(jax.random.key(1))
    params = {"network": jnp.array(0.1), "schedule": schedule.params}
    learned = learned_bound_loss(perfect, SCHEDULE, num_bins=None)

    def mean(params):
        return jnp.mean(learned(params, batch, KEY)[0])

    # the same values without the trick, for the derivatives of the bound and of its square
    def plain(params, power):
        fixed = SCHEDULE.with_params(params["schedule"])
        values, metrics = bound_loss_under(fixed)(params["network"], batch, KEY)
        return jnp.mean(metrics["diffusion"] ** 2) if power == 2 else jnp.mean(values)

    def bound_loss_under(fixed):
        return bound_loss(perfect, fixed, num_bins=None)

    one, bound, square = jax.jit(
        lambda params: (
            jax.grad(mean)(params), jax.grad(plain)(params, 1), jax.grad(plain)(params, 2)
        )
    )(params)  # fmt: skip
    np.testing.assert_allclose(one["network"], bound["network"], rtol=1e-6)
    np.testing.assert_allclose(one["schedule"]["ends"], bound["schedule"]["ends"], rtol=1e-6)
    for name in ("slope", "inner", "outer"):
        got, expected = one["schedule"][name], square["schedule"][name]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), got, expected
        )


def test_training_lowers_the_variance_and_leaves_the_mean():
    loss = learned_bound_loss(perfect, SCHEDULE, times=uniform, num_bins=None)
    optimizer = optax.adam(0.05)

    def measured(params, key):
        batch = {"x0": exact.draw(key, MODES, 20_000)}
        diffusion = loss({"network": 0.0, "schedule": params}, batch, key)[1]["diffusion"]
        return jnp.mean(diffusion), jnp.std(diffusion)

    @jax.jit
    def run():
        def step(carry, key):
            params, state = carry
            batch = {"x0": exact.draw(key, MODES, 256)}
            total = lambda p: jnp.mean(loss({"network": 0.0, "schedule": p}, batch, key)[0])
            updates, state = optimizer.update(jax.grad(total)(params), state)
            # the ends are held, so that the mean is the same quantity before and after
            updates["ends"] = jnp.zeros(2)
            return (optax.apply_updates(params, updates), state), None

        start = SCHEDULE.params, optimizer.init(SCHEDULE.params)
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(KEY, 300))
        test_key = jax.random.key(7)
        return measured(SCHEDULE.params, test_key), measured(params, test_key)

    (mean, spread), (trained_mean, trained_spread) = run()
    assert trained_spread < 0.8 * spread
    error = (spread**2 + trained_spread**2) ** 0.5 / 20_000**0.5
    assert abs(trained_mean - mean) < 4 * error


def test_ends_move_towards_a_smaller_bound():
    """Data of infinite precision: the bound tightens as the clean end gets cleaner."""
    schedule = learned_logsnr(2.0, -1.0, num_features=4)
    loss = learned_bound_loss(lambda p, x, t, keys: gaussian_eps(x, t), schedule, num_bins=None)

    def gaussian_eps(x, t):
        level = expand_level(log_linear(2.0, -1.0)(t), x)
        return level.sigma * x

    x0 = jax.random.normal(KEY, (4000, 1))
    total = lambda params: jnp.mean(loss({"network": 0, "schedule": params}, {"x0": x0}, KEY)[0])
    slope = jax.jit(jax.grad(total))(schedule.params)["ends"]
    # standard normal data under a perfect denoiser: (log(1 + SNR) - log SNR) / 2 is too much
    snr = np.exp(2.0)
    expected = 0.5 * (snr / (1 + snr) - 1.0) / np.log(2)
    np.testing.assert_allclose(slope[0], expected, atol=0.02)
    np.testing.assert_allclose(slope[1], 0.0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"start": -5.0, "end": 5.0}, "start is -5.0"), ({"num_features": 0}, "num_features is 0")],
)
def test_errors_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        learned_logsnr(**arguments)
