"""Every schedule: its formula in extended precision, its ends, its inverse, its gradients."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core import densities, schedules
from diffjax.core.inverse import time_at
from diffjax.core.levels import NoiseLevel, logsnr, ratio_of
from diffjax.core.schedules import SCHEDULES
from diffjax.core.vp_schedules import Linear


def squared_cosine(t):
    angle = np.longdouble(np.pi) / 2 * np.array([(t + 0.008) / 1.008, 0.008 / 1.008 + 0 * t])
    # pi in extended precision: what float64 leaves of it
    angle = angle * (1 + np.longdouble(1.2246467991473532e-16) / np.longdouble(np.pi))
    return np.cos(angle[0]) ** 2 / np.cos(angle[1]) ** 2


def sigmoid_signal(t):
    s = lambda u: 1 / (1 + np.exp(-u))
    return (s(np.longdouble(3)) - s(-3 + 6 * t)) / (s(np.longdouble(3)) - s(np.longdouble(-3)))


def scaled_linear_signal(t):
    start, end = np.sqrt(np.longdouble(0.85)), np.sqrt(np.longdouble(12))
    root = start + t * (end - start)
    return np.exp(-(root**3 - start**3) / (3 * (end - start)))


def linear_signal(t):
    return np.exp(-t * (0.1 + t * 19.9 / 2))


def laplace_signal(t):
    return 1 / (1 + np.exp(np.sign(0.5 - t) * 0.5 * np.log(1 - 2 * np.abs(t - 0.5))))


def log_linear_signal(t):
    return 1 / (1 + np.exp(-13.3 + 18.3 * t))


def rising(smallest, largest, rho):
    """Squares of sigmas whose roots are evenly spaced; rho 0 stands for logarithms."""
    if rho == 0:
        return lambda t: (smallest * (np.longdouble(largest) / smallest) ** t) ** 2
    low, high = (np.longdouble(end) ** (1 / np.longdouble(rho)) for end in (smallest, largest))
    return lambda t: (low + t * (high - low)) ** (2 * rho)


# alpha^2 and sigma^2 as the papers write them
FORMULAS = {
    "linear": (linear_signal, lambda t: 1 - linear_signal(t)),
    "sub_vp": (linear_signal, lambda t: (1 - linear_signal(t)) ** 2),
    "scaled_linear": (scaled_linear_signal, lambda t: 1 - scaled_linear_signal(t)),
    "cosine": (squared_cosine, lambda t: 1 - squared_cosine(t)),
    "sigmoid": (sigmoid_signal, lambda t: 1 - sigmoid_signal(t)),
    "laplace": (laplace_signal, lambda t: 1 - laplace_signal(t)),
    "log_linear": (log_linear_signal, lambda t: 1 - log_linear_signal(t)),
    "variance_exploding": (np.ones_like, rising(0.01, 50.0, 0)),
    "edm_sigmas": (np.ones_like, rising(0.002, 80.0, 7)),
    "flow": (lambda t: (1 - t) ** 2, lambda t: t**2),
}
BUILT = {name: build() for name, build in SCHEDULES.items()}
# compositions, which must do all that the others do
BUILT["shifted"] = schedules.shifted(schedules.cosine(), 2.0)
BUILT["shifted_flow"] = schedules.shifted(schedules.flow(clock=1000.0), 3.0)
BUILT["shifted_table"] = schedules.shifted(schedules.linear_betas(), 2.0)
BUILT["resampled"] = schedules.resampled(schedules.edm_sigmas(), densities.log_normal())
BUILT["between"] = schedules.between(schedules.linear(), 1e-3, 1.0)
ENDS_CLEAN = {"linear", "sub_vp", "scaled_linear", "cosine", "sigmoid", "laplace", "flow"}
ENDS_IN_PURE_NOISE = {"cosine", "sigmoid", "laplace", "flow", "shifted", "shifted_flow"}
SCALED = {"sub_vp", "variance_exploding", "edm_sigmas", "flow", "geometric_sigmas",
          "shifted_flow", "resampled"}  # fmt: skip


@cache
def compiled():
    """Levels of every schedule over its times, and what its inverse makes of them: one program."""

    def run(built):
        levels, again, times = {}, {}, {}
        for name, schedule in built.items():
            levels[name] = schedule(times_of(schedule))
            inner = jax.tree.map(lambda leaf: leaf[1:-1:30], levels[name])
            again[name] = schedules.level_at(schedule)(ratio_of(inner))
            times[name] = schedules.time_of(schedule, inner)
        return levels, again, times

    return jax.jit(run)(BUILT)


every_formula = pytest.mark.parametrize("name", FORMULAS)
every_schedule = pytest.mark.parametrize("name", BUILT)


def times_of(schedule):
    """Times from clean to noisy: the steps of a table, or floats."""
    steps = schedules.num_train_steps(schedule)
    if steps is None:
        return np.linspace(0, 1, 250).astype(np.float32)
    return np.arange(0, steps, 4)


def test_every_continuous_schedule_has_its_formula_here():
    continuous = {name for name in SCHEDULES if schedules.num_train_steps(BUILT[name]) is None}
    assert continuous == FORMULAS.keys()


@every_formula
def test_float32_has_full_relative_accuracy_up_to_both_ends(name):
    edge = np.array([1e-4, 1e-3, 1e-2])
    t = np.concatenate([edge, np.linspace(0.05, 0.95, 19), 1 - edge[::-1]]).astype(np.float32)
    level = BUILT[name](t)
    assert level.alpha.dtype == level.sigma.dtype == jnp.float32
    for got, formula in zip(level[1:], FORMULAS[name]):
        exact = np.sqrt(formula(t.astype(np.longdouble))).astype(float)
        np.testing.assert_allclose(got, exact, rtol=3e-6)


@pytest.mark.parametrize("name", sorted(ENDS_CLEAN | ENDS_IN_PURE_NOISE))
def test_continuous_time_runs_from_data_to_noise(name):
    level = BUILT[name](jnp.array([0.0, 1.0]))
    if name in ENDS_CLEAN:
        np.testing.assert_allclose(level.alpha[0], 1.0, rtol=1e-7)
        assert level.sigma[0] == 0.0
    assert (level.alpha[1] == 0.0) == (name in ENDS_IN_PURE_NOISE)
    np.testing.assert_allclose(level.sigma[1], 1.0, atol=0.01)


@every_schedule
def test_snr_falls_and_variance_is_preserved_where_it_should_be(name):
    level = compiled()[0][name]
    # but for the last digit of numbers near 1
    assert np.all(np.diff(level.alpha) <= 1e-7)
    assert np.all(np.diff(level.sigma) >= -2e-7)
    assert np.all(np.diff(logsnr(level)) < 0)
    # a shift leads beyond the noisiest level of a table, whose time is told there
    assert np.all(np.diff(level.t) >= (0 if name == "shifted_table" else 1e-7))
    preserved = np.allclose(np.square(level.alpha) + np.square(level.sigma), 1.0, rtol=1e-6)
    assert preserved == (name not in SCALED)


def test_gradients_with_respect_to_time_and_parameters_are_finite_at_the_ends():
    smooth = {name: BUILT[name] for name in BUILT if not hasattr(BUILT[name], "logsnr")}

    def total(built, t):
        levels = [schedule(t[name]) for name, schedule in built.items()]
        return sum(jnp.sum(level.alpha + 2.0 * level.sigma) for level in levels)

    times = {name: jnp.array([0.0, 0.3, 1.0]) for name in smooth}
    times["shifted_table"] = jnp.array([0.0, 300.5, 999.0])
    by_schedule, by_time = jax.jit(jax.grad(total, argnums=(0, 1), allow_int=True))(smooth, times)
    for name, slope in by_time.items():
        assert np.all(np.isfinite(slope)), name
        assert np.any(slope != 0), name
    for name, slopes in by_schedule.items():
        slopes = jax.tree.leaves(slopes)
        assert all(np.all(np.isfinite(slope)) for slope in slopes), name
        assert not slopes or any(np.any(slope != 0) for slope in slopes), name


@every_schedule
def test_jit_takes_a_schedule_as_an_argument(name):
    schedule = BUILT[name]
    for got, expected in zip(compiled()[0][name], schedule(times_of(schedule))):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@every_schedule
def test_levels_are_float32_when_a_model_computes_in_half_precision(name):
    """The trap: alphas of 8 bits, of bfloat16 times or ratios, would cancel in every solver."""
    schedule, half = BUILT[name], jnp.asarray([0.25, 0.75], jnp.bfloat16)
    for make in (schedule, schedules.level_at(schedule)):
        level = make(half)
        assert all(leaf.dtype == jnp.float32 for leaf in level)
        for got, expected in zip(level, make(half.astype(jnp.float32))):
            np.testing.assert_array_equal(got, expected)


@every_schedule
def test_level_of_a_ratio_is_the_level_whose_ratio_it_is(name):
    levels, again, times = (result[name] for result in compiled())
    level = jax.tree.map(lambda leaf: leaf[1:-1:30], levels)
    np.testing.assert_allclose(again.alpha, level.alpha, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.sigma, level.sigma, rtol=2e-5)
    np.testing.assert_allclose(again.t, level.t, rtol=2e-4)
    t = times_of(BUILT[name])[1:-1:30]
    inside = level.t < 998 if name == "shifted_table" else slice(None)
    np.testing.assert_allclose(times[inside], t[inside], rtol=2e-4, atol=1e-6)


def test_inverse_reaches_clean_data_and_pure_noise_and_tells_times_that_the_network_knows():
    ratios = jnp.array([0.0, jnp.inf, 1e-9, 1e9])
    run = jax.jit(lambda built: {name: schedules.level_at(built[name])(ratios) for name in built})
    for name, level in run(BUILT).items():
        assert level.sigma[0] == 0.0, name
        assert np.all(np.isfinite(level.t)), name
        last = (
            1000.0 if name == "shifted_flow" else (schedules.num_train_steps(BUILT[name]) or 2) - 1
        )
        assert np.all((level.t[2:] >= 0) & (level.t[2:] <= last)), name
        if name not in {"variance_exploding", "edm_sigmas", "geometric_sigmas", "resampled"}:
            assert level.alpha[1] == 0.0, name


def test_inverse_has_the_derivative_of_a_root(x64):
    """By bisection too: sigma of a straight flow, and of a preserved variance, is known."""
    ratio, straight = jnp.array([0.1, 1.0, 5.0]), lambda t: NoiseLevel(t, 1.0 - t, t)

    def sigmas(ratio):
        made = [schedules.level_at(schedule)(ratio) for schedule in (schedules.cosine(), straight)]
        return jnp.stack([level.sigma for level in made])

    sigma, slope = jax.jit(lambda r: jax.jvp(sigmas, (r,), (jnp.ones_like(r),)))(ratio)
    expected = [ratio / np.sqrt(1 + ratio**2), ratio / (1 + ratio)]
    np.testing.assert_allclose(sigma, expected, rtol=1e-9)
    np.testing.assert_allclose(slope, [(1 + ratio**2) ** -1.5, (1 + ratio) ** -2.0], rtol=1e-7)


def test_time_of_a_ratio_is_differentiable_in_the_parameters_of_the_schedule(x64):
    def time(beta_max):
        return time_at(Linear(0.1, beta_max), jnp.array(0.7))

    value, slope = jax.jit(jax.value_and_grad(time))(20.0)
    # log(1 + ratio^2) = t beta_min + t^2 (beta_max - beta_min) / 2 at every beta_max
    np.testing.assert_allclose(0.1 * value + 9.95 * value**2, np.log(1.49), rtol=1e-9)
    np.testing.assert_allclose(slope, -0.5 * value**2 / (0.1 + 19.9 * value), rtol=1e-7)


def test_number_of_training_steps_is_known_for_tables_only():
    assert schedules.num_train_steps(schedules.linear_betas(num_steps=7)) == 7
    assert schedules.num_train_steps(schedules.cosine()) is None
    assert schedules.num_train_steps(lambda t: NoiseLevel(t, t, t)) is None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: schedules.linear(2.0, 1.0), ValueError, "beta_max is 1.0"),
        (lambda: schedules.linear(-1.0, 1.0), ValueError, "beta_min is -1.0"),
        (lambda: schedules.sub_vp(2.0, 1.0), ValueError, "sub_vp: beta_min is 2.0"),
        (lambda: schedules.scaled_linear(0.0, 1.0), ValueError, "must be positive"),
        (lambda: schedules.cosine(-0.1), ValueError, "offset is -0.1"),
        (lambda: schedules.sigmoid(temperature=0.0), ValueError, "temperature is 0.0"),
        (lambda: schedules.sigmoid(1.0, 1.0), ValueError, "end is 1.0"),
        (lambda: schedules.laplace(scale=0.0), ValueError, "scale is 0.0"),
        (lambda: schedules.log_linear(-5.0, 5.0), ValueError, "start is -5.0"),
        (lambda: schedules.variance_exploding(0.0, 5.0), ValueError, "sigma_min is 0.0"),
        (lambda: schedules.linear_betas(num_steps=0), ValueError, "num_steps is 0"),
        (lambda: schedules.linear_betas(0.02, 1e-4), ValueError, "must be larger"),
        (lambda: schedules.cosine_betas(num_steps=-1), ValueError, "at least one step"),
        (lambda: schedules.geometric_sigmas(1.0, 0.1), ValueError, "sigma_max is 0.1"),
        (lambda: schedules.from_betas(np.array([0.1, 1.0, 0.1])), ValueError, "only the last"),
        (lambda: schedules.from_betas(np.array([0.1, np.nan])), ValueError, "must be in"),
        (lambda: schedules.from_betas(np.zeros((2, 2))), ValueError, "one-dimensional"),
        (lambda: schedules.from_alphas_cumprod(np.array([0.5, 0.6])), ValueError, "not increase"),
        (lambda: schedules.from_alphas_cumprod(np.array([np.nan])), ValueError, "lie in"),
        (lambda: schedules.from_alphas_cumprod(np.array([])), ValueError, "not empty"),
        (lambda: schedules.zero_terminal_snr(schedules.cosine()), TypeError, "Cosine"),
        (
            lambda: schedules.zero_terminal_snr(schedules.geometric_sigmas()),
            ValueError,
            "preserve the variance",
        ),
        (
            lambda: schedules.zero_terminal_snr(schedules.linear_betas(num_steps=1)),
            ValueError,
            "1 step",
        ),
        (lambda: schedules.cosine()(3), TypeError, "Was a table meant"),
        (lambda: schedules.flow()(3), TypeError, "Was a table meant"),
        (lambda: schedules.cosine()(1.5), ValueError, "from 1.5 to 1.5.*Was a table meant"),
        (lambda: schedules.linear()(np.array([0.5, np.nan])), ValueError, "in .0, 1."),
        (lambda: schedules.linear_betas()(np.nan), ValueError, "from nan"),
        (lambda: schedules.linear_betas()(1000), ValueError, "-1 .clean. .. 999"),
        (lambda: schedules.linear_betas()(-2), ValueError, "from -2"),
        (lambda: schedules.shifted(schedules.flow(), 0.0), ValueError, "shift is 0.0"),
        (lambda: schedules.between(schedules.flow(), 0.5, 0.1), ValueError, "end is 0.1"),
        (lambda: schedules.between(schedules.flow(), 0.5, 2.0), ValueError, "inside of .0, 1."),
        (lambda: schedules.between(schedules.linear_betas(), 0.0, 1.0), TypeError, "table"),
    ],
)
def test_errors_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()
