"""The grids of levels that diffusers' schedulers make: one function for each family.

Every function takes (config, schedule, num_steps, **options) and returns the levels in sampling
order. The rules differ in small ways: which spacing counts the clean end as a step, what is
rounded, where Karras' ratios begin and end, whether the last level is clean. They are kept as they
are, because a grid is data: a model sampled on it gives the same images here and there.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.core.grids import from_times
from diffjax.core.levels import NoiseLevel
from diffjax.core.schedules import Schedule, Table
from diffjax.core.sigma_grids import (
    beta_ratios,
    exponential_ratios,
    karras_ratios,
    shifted,
)
from diffjax.pretrained.weights import UnsupportedError


def table_ratios(table: Table) -> np.ndarray:
    """sigma / alpha of the steps 0 .. T - 1, rounded to float32 in between as diffusers does."""
    signal = (table.alpha[1:] ** 2).astype(np.float32)
    return np.sqrt((np.float32(1.0) - signal) / signal)


def table_times(table: Table, ratios: np.ndarray) -> np.ndarray:
    """Clock of a table at given ratios, interpolated in the logarithm of the ratio."""
    known = np.log(table_ratios(table))
    return np.interp(np.log(np.maximum(ratios, 1e-10)), known, np.arange(len(known)))


def spaced_steps(spacing: str, num_steps: int, num_train_steps: int, offset: int) -> np.ndarray:
    """Time steps in sampling order, without the clean end; "linspace" is not rounded.

    Float rounding in `arange` decides ties of "trailing", so it is called as diffusers calls it;
    for some num_steps it yields one entry too many, which is left out.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise ValueError(
            f"num_steps is {num_steps}; with {num_train_steps} training steps it must be in "
            f"[1, {num_train_steps}]."
        )
    if spacing == "linspace":
        return np.linspace(0, num_train_steps - 1, num_steps)[::-1]
    if spacing == "leading":
        return np.arange(num_steps)[::-1] * (num_train_steps // num_steps) + float(offset)
    if spacing == "trailing":
        stride = num_train_steps / num_steps
        return np.arange(num_train_steps, 0, -stride).round()[:num_steps] - 1
    raise UnsupportedError(
        f"timestep_spacing is {spacing!r}; supported: linspace, leading, trailing."
    )


def integer_levels(config, schedule: Table, num_steps: Any = None, *, timesteps=None) -> NoiseLevel:
    """Whole time steps of a table and the clean end; or a list of one's own, noise first."""
    total = config["num_train_timesteps"]
    if timesteps is None:
        spacing, offset = config["timestep_spacing"], config["steps_offset"]
        timesteps = spaced_steps(spacing, num_steps, total, offset).round().astype(np.int64)
    return schedule(jnp.asarray(from_times(list(timesteps), total)))


def inverse_integer_levels(config, schedule: Table, num_steps) -> NoiseLevel:
    """The levels of `integer_levels`, clean end first."""
    levels = integer_levels(config, schedule, num_steps)
    return NoiseLevel(*(leaf[::-1] for leaf in levels))


def ratio_levels(
    config, schedule: Table, num_steps: Any = None, *, timesteps=None, sigmas=None
) -> NoiseLevel:
    """Levels told by sigma / alpha, as the k-diffusion family makes them.

    Evenly spaced time steps are looked up in the table, between its steps where need be; Karras',
    exponential or beta ratios, or a list of one's own, are spread between them instead.
    """
    if sigmas is not None:
        ratios = np.asarray(sigmas, np.float64)
        return vp_levels(table_times(schedule, ratios[:-1]), ratios)
    total = config["num_train_timesteps"]
    if timesteps is None:
        spacing, offset = config["timestep_spacing"], config["steps_offset"]
        timesteps = spaced_steps(spacing, num_steps, total, offset)
    times, known = np.asarray(timesteps, np.float64), table_ratios(schedule)
    ratios = np.interp(times, np.arange(len(known)), known)
    log_linear = config.get("interpolation_type", "linear") == "log_linear"
    if log_linear:
        ratios = np.exp(np.linspace(np.log(known[-1]), np.log(known[0]), len(times) + 1))
    spread = spread_ratios(config, len(times), ratios[-1], ratios[0])
    if spread is None and log_linear:
        # this grid ends at the table's smallest ratio, without a clean end
        return vp_levels(times, ratios)
    if spread is not None:
        ratios, times = spread, table_times(schedule, spread)
        if config.get("rounds_times") and config["use_karras_sigmas"]:
            times = np.round(times)
    if config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction":
        times = 0.25 * np.log(ratios)
    end = known[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return vp_levels(times, np.append(ratios, end))


SPREADS = {
    "use_karras_sigmas": karras_ratios,
    "use_lu_lambdas": exponential_ratios,
    "use_exponential_sigmas": exponential_ratios,
    "use_beta_sigmas": beta_ratios,
}


def spread_ratios(config, num_steps: int, smallest: float, largest: float) -> np.ndarray | None:
    """Ratios spread as the config asks, without a clean end; None if it does not ask.

    The config may set its own smallest and largest.
    """
    asked = [name for name in SPREADS if config.get(name)]
    if len(asked) > 1:
        raise ValueError(f"Only one of {' and '.join(asked)} can be used.")
    if not asked:
        return None
    own_smallest, own_largest = config.get("sigma_min"), config.get("sigma_max")
    smallest = float(smallest) if own_smallest is None else own_smallest
    largest = float(largest) if own_largest is None else own_largest
    return SPREADS[asked[0]](num_steps, smallest, largest)[:-1]


def final_order_levels(
    config, schedule: Table, num_steps: Any = None, *, timesteps=None, mu=None, sigmas=None
) -> NoiseLevel:
    """Levels of the solvers in log-SNR: DPM-Solver, DEIS, UniPC.

    Their evenly spaced grids count the clean end as a step, and their clock is a whole number.
    """
    if config.get("use_flow_sigmas"):
        return _flow_ratio_levels(config, num_steps, mu, sigmas)
    known = table_ratios(schedule)
    ratios = spread_ratios(config, num_steps, known[0], known[-1]) if timesteps is None else None
    spread = ratios is not None
    if ratios is not None:
        times = _whole_times(config, schedule, ratios)
    else:
        if timesteps is None:
            timesteps = _steps_before_clean_end(config, known, num_steps)
        times = np.asarray(timesteps, np.int64)
        ratios = np.interp(times, np.arange(len(known)), known)
    end = 0.0
    if config["final_sigmas_type"] == "sigma_min":
        end = ratios[-1] if spread and config["repeats_last"] else known[0]
    return vp_levels(times, np.append(ratios, end))


def _steps_before_clean_end(config, known: np.ndarray, num_steps: int) -> np.ndarray:
    total = config["num_train_timesteps"]
    # the table's steps whose log(alpha / sigma) is at least lambda_min_clipped
    first = total - int(np.sum(-np.log(known) < config.get("lambda_min_clipped", -np.inf)))
    spacing, offset = config["timestep_spacing"], config["steps_offset"]
    if spacing == "trailing":
        return np.arange(first, 0, -total / num_steps).round()[:num_steps] - 1
    if spacing == "leading":
        stride = first // (num_steps + 1)
        return np.arange(num_steps + 1)[::-1][:-1] * stride + offset
    if spacing == "linspace":
        return np.linspace(0, first - 1, num_steps + 1).round()[::-1][:-1]
    raise UnsupportedError(
        f"timestep_spacing is {spacing!r}; supported: linspace, leading, trailing."
    )


def inverse_final_order_levels(config, schedule: Table, num_steps: Any = None) -> NoiseLevel:
    """The levels of DPM-Solver's inversion, cleanest first, to the noisiest."""
    known = table_ratios(schedule)
    if config.get("use_flow_sigmas"):
        raise UnsupportedError(
            "Inversion with use_flow_sigmas is not supported: it runs from noise."
        )
    spread = spread_ratios(config, num_steps, known[0], known[-1])
    if spread is not None:
        ratios = spread[::-1]
        times = _whole_times(config, schedule, ratios)
        if len(np.unique(times)) < num_steps:
            raise UnsupportedError("Inversion on a list that repeats a time step is not supported.")
        return _rising_levels(times, np.append(ratios, ratios[-1]), times[-1])
    total = config["num_train_timesteps"]
    first = total - int(np.sum(-np.log(known) < config["lambda_min_clipped"]))
    spacing, offset = config["timestep_spacing"], config["steps_offset"]
    if spacing == "linspace":
        times = np.linspace(0, first - 1, num_steps + 1).round()[:-1]
    elif spacing == "leading":
        times = np.arange(num_steps) * (first // (num_steps + 1)) + offset
    else:
        times = np.arange(first, 0, -total / num_steps).round()[::-1] - 1
    times = times.astype(int)
    return _rising_levels(times, known[np.append(times, first - 1)].astype(np.float64), first - 1)


def _rising_levels(times: np.ndarray, ratios: np.ndarray, last: float) -> NoiseLevel:
    levels = vp_levels(times, ratios)
    return levels._replace(t=jnp.asarray(np.append(times, last), jnp.float32))


def _whole_times(config, schedule: Table, ratios: np.ndarray) -> np.ndarray:
    times = table_times(schedule, ratios)
    rounded = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
    if rounded and (config["rounds_times"] or config["beta_schedule"] != "squaredcos_cap_v2"):
        times = np.round(times)
    return np.trunc(times)


def _flow_ratio_levels(config, num_steps, mu, sigmas) -> NoiseLevel:
    """Levels on the straight flow for solvers in log-SNR, with a whole-numbered clock."""
    total, shift = config["num_train_timesteps"], config["flow_shift"]
    if config["flow_sigmas_from_one"]:
        sigmas = np.linspace(1, 1 / total, num_steps + 1)[:-1] if sigmas is None else sigmas
        values = dynamic_shift(config, np.asarray(sigmas), mu, shift)
        # log(alpha) must be finite
        values[0] = min(values[0], 1.0 - 1e-6)
    else:
        shift = shift if mu is None else np.exp(mu)
        values = shifted(1.0 - np.linspace(1, 1 / total, num_steps + 1), shift)[::-1][:-1]
    times = np.trunc(values * total)
    end = 0.0
    if config["final_sigmas_type"] == "sigma_min":
        if not config["repeats_last"]:
            raise UnsupportedError("use_flow_sigmas is supported with final_sigmas_type 'zero'.")
        end = values[-1]
    return _flow_levels(times, np.append(values, end))


def flow_levels(
    config, schedule: Schedule, num_steps: Any = None, *, sigmas=None, timesteps=None, mu=None
) -> NoiseLevel:
    """Levels of the flow-matching schedulers: sigmas evenly spaced, then shifted.

    Without dynamic shifting the smallest sigma has the shift in it twice, as it has in diffusers.
    """
    total, shift = config["num_train_timesteps"], config["shift"]
    if config.get("invert_sigmas"):
        raise UnsupportedError("invert_sigmas is not supported; sampling runs from noise to data.")
    if sigmas is None:
        smallest = 1.0 / total
        if not config.get("use_dynamic_shifting"):
            smallest = shifted(smallest, shift)
        even = np.linspace(total, smallest * total, num_steps) if timesteps is None else timesteps
        sigmas = np.asarray(even, np.float64) / total
    values = dynamic_shift(config, np.asarray(sigmas, np.float64), mu, shift)
    spread = spread_ratios(config, len(values), values[-1], values[0])
    values = values if spread is None else spread
    times = values * total if timesteps is None else np.asarray(timesteps, np.float64)
    return _flow_levels(times, np.append(values, 0.0))


def dynamic_shift(config, sigmas: np.ndarray, mu: float | None, shift: float) -> np.ndarray:
    """Shift sigmas towards noise by `shift`, or by `mu` where the config asks for it."""
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ValueError("This config shifts dynamically: `mu` must be given.")
        shift = np.exp(mu) if config["time_shift_type"] == "exponential" else mu
    values = np.array(shifted(sigmas, shift))
    if config.get("shift_terminal"):
        stretch = (1.0 - values[-1]) / (1.0 - config["shift_terminal"])
        values = 1.0 - (1.0 - values) / stretch
    return values


def _flow_levels(times: np.ndarray, sigmas: np.ndarray) -> NoiseLevel:
    leaves = np.append(times, 0.0), 1.0 - sigmas, sigmas
    return NoiseLevel(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def edm_levels(config, schedule: Schedule, num_steps: Any = None) -> NoiseLevel:
    """Levels of EDM's schedulers: Karras' or exponential sigmas between the config's ends."""
    spreads = {"karras": karras_ratios, "exponential": exponential_ratios}
    name, options = config["sigma_schedule"], {}
    if name not in spreads:
        raise UnsupportedError(f"sigma_schedule is {name!r}; supported: {', '.join(spreads)}.")
    if name == "karras":
        options["rho"] = config["rho"]
    ends = config["sigma_min"], config["sigma_max"]
    sigmas = spreads[name](num_steps, *ends, **options)
    if num_steps == 1 and name == "exponential":
        # a grid of one step begins at the lower end
        sigmas[0] = config["sigma_min"]
    if config["final_sigmas_type"] == "sigma_min":
        sigmas[-1] = sigmas[-2]
    times = np.append(config["clock"](sigmas[:-1]), -1.0)
    leaves = times, np.ones_like(sigmas), sigmas
    return NoiseLevel(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def vp_levels(times: np.ndarray, ratios: np.ndarray) -> NoiseLevel:
    """Variance-preserving levels in float32 from float64 ratios; -1 is the clock of the last."""
    alpha = 1.0 / np.sqrt(1.0 + ratios**2)
    times = np.append(times, -1.0)
    return NoiseLevel(*(jnp.asarray(leaf, jnp.float32) for leaf in (times, alpha, ratios * alpha)))


def distilled_levels(
    config,
    schedule: Table,
    num_steps: Any = None,
    *,
    timesteps=None,
    original_inference_steps=None,
    strength=1.0,
) -> NoiseLevel:
    """Levels of LCM and TCD: some of the steps that the model was distilled on."""
    total = config["num_train_timesteps"]
    original = original_inference_steps or config["original_inference_steps"]
    known = np.arange(1, int(original * strength) + 1) * (total // original) - 1
    if timesteps is None:
        if not 1 <= num_steps <= len(known):
            raise ValueError(
                f"num_steps is {num_steps}; the model was distilled on {original} steps, "
                f"of which strength {strength} leaves {len(known)}."
            )
        index = np.floor(np.linspace(0, len(known), num_steps, endpoint=False))
        timesteps = known[::-1][index.astype(int)]
    return schedule(jnp.asarray(np.append(timesteps, config["last_step"]).astype(np.int32)))


def consistency_levels(config, schedule: Schedule, num_steps: Any = None, *, timesteps=None):
    """Levels of consistency models: some of Karras' sigmas, down to the smallest."""
    total = config["num_train_timesteps"]
    if timesteps is None:
        if not 1 <= num_steps <= total:
            raise ValueError(f"num_steps is {num_steps}; it must be in [1, {total}].")
        timesteps = np.arange(num_steps)[::-1] * (total // num_steps)
    ramp = np.asarray(timesteps)[::-1] / (total - 1)
    root = 1.0 / config["rho"]
    low, high = config["sigma_min"] ** root, config["sigma_max"] ** root
    sigmas = np.append((high + ramp * (low - high)) ** config["rho"], config["sigma_min"])
    leaves = config["clock"](sigmas), np.ones_like(sigmas), sigmas
    return NoiseLevel(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def even_levels(config, schedule: Table, num_steps: Any = None) -> NoiseLevel:
    """UnCLIP's levels: both ends of the table and steps evenly between them, then the clean end."""
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; UnCLIPScheduler needs at least 2.")
    total = config["num_train_timesteps"]
    times = np.round(np.arange(num_steps) * ((total - 1) / (num_steps - 1)))[::-1]
    return schedule(jnp.asarray(from_times(list(times.astype(int)), total)))


def sine_levels(config, schedule: Schedule, num_steps: Any = None) -> NoiseLevel:
    """IPNDM's levels: sigma = sin^2(pi u / 2) for evenly spaced u."""
    return schedule(jnp.asarray(np.linspace(1.0, 0.0, num_steps + 1), jnp.float32))


def even_time_levels(config, schedule: Schedule, num_steps: Any = None, *, timesteps=None):
    """Wuerstchen's levels: times evenly from 1 to 0, or a list of one's own, its end included."""
    times = np.linspace(1.0, 0.0, num_steps + 1) if timesteps is None else timesteps
    return schedule(jnp.asarray(times, jnp.float32))


def exploding_levels(config, schedule: Schedule, num_steps: Any = None) -> NoiseLevel:
    """Score SDE's levels for VE: geometric sigmas, then clean data.

    Their clock is the sigma of another list, that of times from 1 to `sampling_eps`.
    """
    least, most = config["sigma_min"], config["sigma_max"]
    sigmas = np.geomspace(most, least, num_steps)
    clock = least * (most / least) ** np.linspace(1.0, config["sampling_eps"], num_steps)
    return _ve_levels(clock, sigmas)


def geometric_levels(config, schedule: Schedule, num_steps: Any = None) -> NoiseLevel:
    """KarrasVe's levels: geometric sigmas, told by their number, then clean data."""
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; KarrasVeScheduler needs at least 2.")
    sigmas = np.geomspace(config["sigma_max"], config["sigma_min"], num_steps)
    return _ve_levels(np.arange(num_steps)[::-1], sigmas)


def _ve_levels(times: np.ndarray, sigmas: np.ndarray) -> NoiseLevel:
    leaves = np.append(times, 0.0), np.ones(len(sigmas) + 1), np.append(sigmas, 0.0)
    return NoiseLevel(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def rate_levels(config, schedule: Schedule, num_steps: Any = None) -> NoiseLevel:
    """Score SDE's levels for VP: times evenly from 1 to `sampling_eps`, then clean data."""
    times = np.append(np.linspace(1.0, config["sampling_eps"], num_steps), 0.0)
    return schedule(jnp.asarray(times, jnp.float32))
