"""Where this project departs from diffusers on purpose: the reference's rule, for each named entry.

Every bridge compares one part of a case with the reference's rule in the place of ours; None where
the entry does not apply. A gap that a bridge closes is a known difference: it is proven to come
from that rule alone. docs/diffusers_differences.md explains each entry under its name.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from parity_cases import Comparison, last

from diffjax.core.parameterizations import estimate_eps, estimate_x0, split_learned_variance
from diffjax.pretrained import scheduler_tables as tables
from diffjax.solvers.adams import slope_transfer
from diffjax.solvers.ancestral import reverse_variance
from diffjax.solvers.exponential import RULES


def fixed_stride(run):
    """DDPM and DDIM take the next time step as t - T // N, not from the grid."""
    name, options = run.scheduler.name, run.case.settings["set_timesteps"]
    if not name.startswith(("DDPM", "DDIM")) or "num_inference_steps" not in options:
        return None
    schedule = run.scheduler.schedule
    stride = run.scheduler.config["num_train_timesteps"] // options["num_inference_steps"]

    def moved(level):
        return schedule(jnp.maximum(level.t - stride, -1))

    if name == "DDIMInverseScheduler":
        pairs = [(moved(next_), next_) for _, next_ in run.pairs()]
    else:
        pairs = [(current, moved(current)) for current, _ in run.pairs()]
    return run.compare(run.follow(pairs=pairs))


def stale_churn(run):
    """Schedulers with churn call the network before they add the noise."""
    if not run.step_options.get("s_churn"):
        return None
    prediction = run.scheduler.parameterization

    def stale(run, calls, denoise, x, current):
        denoise(x, current)
        output = calls[-1].output

        def reuse(x, level):
            x0 = estimate_x0(prediction, x, output, level)
            if prediction.name == "v" and run.scheduler.name == "EulerDiscreteScheduler":
                # converts at the old level, too
                x0 = estimate_x0(prediction, x * current.alpha / level.alpha, output, current)
            calls[-1] = calls[-1]._replace(x0=run.scheduler.limit(lambda x, level: x0)(x, level))
            return x0

        return reuse

    return run.compare(run.follow(denoiser=stale))


def ipndm_first_step(run):
    """IPNDM's scheduler does not use the network in its first step, from pure noise."""
    if run.scheduler.name != "IPNDMScheduler":
        return None

    def silent(run, calls, denoise, x, current):
        return lambda x, level: jnp.where(level.alpha > 0, denoise(x, level), 0.0)

    return run.compare(run.follow(denoiser=silent))


def rounding(run):
    """Heun and Euler schedulers hold x / alpha in float32: a long first step multiplies rounding.

    Moving the array of the second call by less than that rounding must move our own run by as much
    as it is away from the reference.
    """
    ratios = np.asarray(run.levels.sigma / run.levels.alpha)
    if not run.scheduler.name.startswith(("Heun", "Euler")) or ratios[0] < 1000.0:
        return None
    calls, result = run.follow()
    names = [name for name in ("samples", "model_inputs") if name in run.case.outputs]
    arrays = run.arrays((calls, result))
    spacing = np.spacing(np.float32(np.abs(run.case.outputs["samples"][0]).max()))
    moved = dict.fromkeys(names, 0.0)
    for seed in range(4):
        signs = np.random.default_rng(seed).uniform(-1.0, 1.0, result.shape)

        def nudge(run, calls, denoise, x, current, signs=signs):
            def moved_denoise(x, level):
                push = signs * spacing * level.alpha if len(calls) == 1 else 0.0
                return denoise(x + jnp.asarray(push, x.dtype), level)

            return moved_denoise

        nudged = run.arrays(run.follow(denoiser=nudge))
        for name in names:
            moved[name] = max(moved[name], np.abs(nudged[name] - arrays[name]).max())
    # the other arrays follow from these, call by call
    again: list = []
    for call, u in zip(calls, run.case.outputs["samples"]):
        run.recording(again, call.level)(call.level.alpha * last(u), call.level)
    return [
        *(
            Comparison(name, np.abs(arrays[name] - run.case.outputs[name]).max() / moved[name], 2.0)
            for name in names
        ),
        *(each for each in run.compare((again, result)) if each.name not in names),
    ]


def pndm_fixed_stride(run):
    """PNDM with the next time step t - T // N; some calls are told other times than those of x."""
    config = run.scheduler.config
    if run.scheduler.name != "PNDMScheduler":
        return None
    stride = (
        config["num_train_timesteps"] // run.case.settings["set_timesteps"]["num_inference_steps"]
    )
    schedule = run.scheduler.schedule
    slope = "v" if run.scheduler.parameterization.name == "v" else "eps"
    weights = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12]}
    weights[4] = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    runge_kutta = 0 if config["skip_prk_steps"] else 12
    x, calls, slopes, started, total, anchor = run.start(), [], [], None, 0.0, 0
    for counter, t in enumerate(run.case.outputs["timesteps"].astype(int)):
        level = schedule(jnp.asarray(t))
        x0 = run.recording(calls, level)(x, level)
        eps = estimate_eps(x, x0, level)
        value = eps if slope == "eps" else level.alpha * eps - level.sigma * x0
        phase = counter % 4
        if counter < runge_kutta:
            if phase == 0:
                started, anchor, total, slopes = x, t, 0.0, [value, *slopes[:3]]
            total = total + value / (6.0, 3.0, 3.0, 6.0)[phase]
            ends = anchor, t - (0 if phase % 2 else stride // 2)
            value, x = total if phase == 3 else value, started
        elif counter == 1:
            value, x, ends = 0.5 * (value + slopes[0]), started, (t + stride, t)
        else:
            slopes, started, ends = [value, *slopes[:3]], x, (t, t - stride)
            value = sum(w * each for w, each in zip(weights[len(slopes)], slopes))
        start, end = (schedule(jnp.asarray(max(each, -1))) for each in ends)
        row = slope_transfer(start, end, slope)
        x = row.keep * x + row.gain * value
    return run.compare((calls, x))


def noise_by_time(run):
    """SA-Solver's `add_noise` looks up the table at whole time steps, whatever the grid holds."""
    if run.scheduler.name != "SASolverScheduler":
        return None
    steps = jnp.asarray(run.levels.t, jnp.int32)
    return run.compare(run.follow(start=run.start(tables.table(run.scheduler.config)(steps))))


def noised_by_time(run):
    """The same for `add_noise` itself."""
    if run.scheduler.name != "SASolverScheduler":
        return None
    steps = jnp.asarray(run.case.outputs["add_noise_timesteps"], jnp.int32)
    return [run.noised_to(tables.table(run.scheduler.config)(steps))]


def noise_on_clean_data(run):
    """DDPM's schedulers add noise in the step to clean data, unless that starts at t = 0."""
    current, next_ = run.pairs()[-1]
    if not run.scheduler.name.startswith("DDPM") or current.t == 0 or next_.sigma > 0:
        return None
    calls, result = run.follow()
    variance, fraction = run.scheduler.config["variance_type"], None
    if variance == "learned_range":
        _, values = split_learned_variance(calls[-1].output, result)
        fraction = 0.5 * (values + 1.0)
    spread = jnp.sqrt(reverse_variance(current, next_, variance, fraction))
    return run.compare((calls, result + spread * last(run.case.inputs["noise"][-1])))


def unclip_cancellation(run):
    """UnCLIP's scheduler subtracts nearly equal float32 numbers in its first and its last step."""
    if run.scheduler.name != "UnCLIPScheduler":
        return None

    def rounded(current, next_):
        beta = 1.0 - (current.alpha / next_.alpha) ** 2
        return current._replace(alpha=next_.alpha * jnp.sqrt(1.0 - beta))

    def at_true_level(run, calls, denoise, x, current):
        return lambda x, level: denoise(x, run.scheduler.schedule(level.t))

    pairs = [(rounded(current, next_), next_) for current, next_ in run.pairs()]
    calls, result = run.follow(pairs=pairs, denoiser=at_true_level)
    # the weight of x0 in the last step, one but for rounding
    beta = tables.betas(run.scheduler.config)[0]
    weight = beta / (np.float32(1.0) - (np.float32(1.0) - beta))
    return run.compare((calls, result * weight))


def middle_as_end(run):
    """`add_noise` of KDPM2 and DPM-Solver-SDE, in the middle of a step, noises to its end."""
    if not run.scheduler.name.startswith(("KDPM2", "DPMSolverSDE")):
        return None
    times = run.reference.times(run.levels, run.scheduler)
    wanted = run.case.outputs["add_noise_timesteps"].astype(np.float64)
    call = np.argmin(np.abs(times[:, None] - wanted), axis=0)
    # calls alternate between starts and middles of steps
    level = jax.tree.map(lambda leaf: leaf[(call + 1) // 2], run.levels)
    return [run.noised_to(level)]


def velocity_by_position(run):
    """Euler's `get_velocity` looks up its table at the position in the list, not at the time."""
    if run.scheduler.name != "EulerDiscreteScheduler":
        return None
    times = np.asarray(run.levels.t, np.float64)
    wanted = run.case.outputs["add_noise_timesteps"].astype(np.float64)
    return [run.velocity_at(np.argmin(np.abs(times[:, None] - wanted), axis=0))]


def third_order_weight(run):
    """The multistep DPM schedulers weigh the second difference of a third-order step wrongly."""
    config = run.scheduler.config
    if "DPMSolverMultistep" not in run.scheduler.name or config["solver_order"] != 3:
        return None
    lower = RULES["exact" if config["solver_type"] == "heun" else "midpoint"]

    def published(exponent, means):
        if len(means) < 3:
            return lower(exponent, means)
        if not config["algorithm_type"].startswith("sde"):
            return [*means[:2], 0.5 * means[2]]
        gain = -jnp.expm1(-exponent)
        return [*means[:2], ((gain - exponent) / exponent**2 - 0.5) / gain]

    return run.compare(run.follow(solver_options={"rule": published}))


def unrecorded_noise(run):
    """A stochastic run without its draws: they are inferred, and must look like normal noise."""
    if "noise" in run.case.inputs or not run.scheduler.config.get("algorithm_type", "").startswith(
        "sde"
    ):
        return None
    zero, one = (
        run.scheduler.solver(run.levels, normal=lambda keys, shape, dtype, z=z: z)
        for z in (0.0, 1.0)
    )
    x, calls, draws = run.start(), [], []
    state, keys = zero.init(x), jax.random.split(jax.random.key(0), x.shape[0])
    for i, (current, next_) in enumerate(run.pairs()):
        arguments = x, state, run.recording(calls, current), current, next_
        with jax.disable_jit():
            mean, state = zero.step(keys, *arguments)
            spread = one.step(keys, *arguments)[0] - mean
        calls.pop()  # of the second call
        reference = last(run.case.outputs["samples"][i + 1]) / run.reference.unit(next_)
        if jnp.max(jnp.abs(spread)) > 0:
            draws.append((reference - mean) / jnp.mean(spread))
        x = mean if jnp.max(jnp.abs(spread)) == 0 else reference
    draws = np.array(draws)
    standard_errors = 4.0 / np.sqrt(draws.size)
    return [
        *run.compare((calls, x)),
        Comparison("mean of the noise", abs(draws.mean()), standard_errors),
        Comparison("variance of the noise", abs(draws.var() - 1.0), standard_errors * 2**0.5),
    ]


def infinite_step(run):
    """UniPC's scheduler multiplies infinity by zero in the step to clean data, and returns NaN."""
    if run.scheduler.name != "UniPCMultistepScheduler" or float(run.levels.sigma[-1]) != 0.0:
        return None
    calls, result = run.follow()
    return run.compare((calls, jnp.full_like(result, jnp.nan)))


# name -> {part of a case that it is about: the comparisons of that part across the difference}
BRIDGES: dict[str, dict[str, Callable]] = {
    "fixed-stride": {"trajectory": fixed_stride},
    "fixed-stride-plms": {"trajectory": pndm_fixed_stride},
    "infinite-step": {"trajectory": infinite_step},
    "ipndm-first-step": {"trajectory": ipndm_first_step},
    "middle-as-end": {"noising": middle_as_end},
    "noise-by-time": {"trajectory": noise_by_time, "noising": noised_by_time},
    "noise-on-clean-data": {"trajectory": noise_on_clean_data},
    "rounding": {"trajectory": rounding},
    "stale-churn": {"trajectory": stale_churn},
    "third-order-weight": {"trajectory": third_order_weight},
    "unclip-cancellation": {"trajectory": unclip_cancellation},
    "unrecorded-noise": {"trajectory": unrecorded_noise},
    "velocity-by-position": {"velocity": velocity_by_position},
}
