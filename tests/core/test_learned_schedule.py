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
# next to nothing is learned of it below a log-SNR of 4; many numbers have light tails together
NARROW = exact.gaussian([0.0] * 16, 0.01)


def scrambled(key):
    leaves, structure = jax.tree.flatten(SCHEDULE.params | {"ends": jnp.zeros(2)})
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    params = jax.tree.unflatten(structure, moved)
    return SCHEDULE.with_params(params | {"ends": jnp.array([9.0, -7.0])})


def perfect(params, x, t, keys):
    """The noise of the data, params + 1 times."""
    level = log_linear(START, END)(t)
    return (1.0 + params) * estimate_eps(x, exact.denoiser(NARROW)(x, level), level)


@jax.jit
def levels_and_times(schedule, t):
    level = schedule(t)
    return level, time_of(schedule, level)


def test_any_parameters_give_a_schedule_that_falls_from_end_to_end():
    t = jnp.linspace(0.0, 1.0, 101)
    for schedule in (SCHEDULE, scrambled(KEY)):
        level, times = levels_and_times(schedule, t)
        assert np.all(np.diff(logsnr(level)) < 0)
        np.testing.assert_allclose(
            logsnr(level)[np.array([0, -1])], schedule.params["ends"], rtol=1e-5
        )
        np.testing.assert_allclose(np.square(level.alpha) + np.square(level.sigma), 1, rtol=1e-6)
        np.testing.assert_allclose(times[1:-1], t[1:-1], atol=1e-4)


def test_first_schedule_is_nearly_log_linear():
    t = jnp.linspace(0.0, 1.0, 11)
    expected = START + (END - START) * t
    np.testing.assert_allclose(logsnr(SCHEDULE(t)), expected, atol=0.02 * (START - END))


def test_clock_tells_the_level_whatever_the_parameters():
    ratio = jnp.array([0.01, 0.5, 20.0])
    for schedule in (SCHEDULE, scrambled(KEY)):
        expected = (START + 2.0 * jnp.log(ratio)) / (START - END)
        np.testing.assert_allclose(level_at(schedule)(ratio).t, expected, rtol=1e-5)


@pytest.mark.slow
def test_one_backward_pass_trains_ends_on_the_bound_and_the_rest_on_its_square(x64):
    batch = {"x0": exact.draw(KEY, NARROW, 32)}
    schedule = scrambled(jax.random.key(1))
    params = {"network": jnp.array(0.1), "schedule": schedule.params}
    learned = learned_bound_loss(perfect, SCHEDULE, num_bins=None)

    def mean(params):
        return jnp.mean(learned(params, batch, KEY)[0])

    # the same values without the trick: the bound and its square
    def plain(params):
        fixed = SCHEDULE.with_params(params["schedule"])
        values, metrics = bound_loss(perfect, fixed, num_bins=None)(params["network"], batch, KEY)
        return jnp.stack([jnp.mean(values), jnp.mean(metrics["diffusion"] ** 2)])

    one, both = jax.jit(lambda params: (jax.grad(mean)(params), jax.jacrev(plain)(params)))(params)
    bound, square = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
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

    def diffusion(params, key, size):
        # keys of their own: noise that is known from the data would have no cost
        for_data, for_noise = jax.random.split(key)
        batch = {"x0": exact.draw(for_data, NARROW, size)}
        return loss({"network": 0.0, "schedule": params}, batch, for_noise)[1]["diffusion"]

    @jax.jit
    def run():
        def step(carry, key):
            params, state = carry
            total = lambda params: jnp.mean(diffusion(params, key, 64))
            updates, state = optimizer.update(jax.grad(total)(params), state)
            # the ends are held, so that the mean is the same quantity before and after
            updates["ends"] = jnp.zeros(2)
            return (optax.apply_updates(params, updates), state), None

        start = SCHEDULE.params, optimizer.init(SCHEDULE.params)
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(KEY, 200))
        measured = lambda params: diffusion(params, jax.random.key(7), 10_000)
        return measured(SCHEDULE.params), measured(params)

    before, after = (np.asarray(values, np.float64) for values in run())
    assert after.std() < 0.5 * before.std()
    # what x at t = 0 tells of each number of x0
    information = 0.5 * np.log2(1.0 + 0.01 * np.exp(START))
    for values in (before, after):
        assert abs(values.mean() - information) < 4 * values.std() / 100


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
