"""Reference cases whose loops are their own: Score SDE's schedulers for VE and VP, and Karras'.

Each has a part that departs from the reference on purpose. The run is followed by our rules and, if
that is not what the reference did, by the reference's: then everything must agree, which proves
that nothing else differs.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from parity_cases import Case, Comparison, KnownDifference, compare, first, last

from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.parameterizations import estimate_x0
from diffjax.core.sampling import Solver
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.solvers import langevin, predictor_corrector, reverse_diffusion
from diffjax.solvers.langevin import norm_each

# (x, t, gain and soft of the formula) -> the reference's network
Network = Callable[..., jax.Array]


class Followed(NamedTuple):
    """A run: x before every step and at the end, and what each call gave and got."""

    samples: list[jax.Array]
    inputs: list[jax.Array]
    outputs: list[jax.Array]


def check_own_loop(case: Case, network: Network) -> list[Comparison]:
    """The comparisons of a case; raises `KnownDifference` if the reference's rule explains it."""
    name = class_of(case)
    scheduler = read_scheduler(case.settings["config"] | {"_class_name": name})
    levels = scheduler.levels(case.settings["steps"])
    row = OWN_LOOPS[name]
    comparisons = [*row.tables(case, scheduler, levels), *row.run(case, scheduler, levels, network)]
    if max(each.error / each.tolerance for each in comparisons) <= 1.0:
        return comparisons
    bridged = row.bridge(case, scheduler, levels, network)
    worst = max(each.error / each.tolerance for each in bridged)
    if worst > 1.0:
        return comparisons
    raise KnownDifference(
        f"{row.difference}: with the reference's rule in its place the largest error is "
        f"{worst:.1g} of its tolerance (docs/diffusers_differences.md)"
    )


def class_of(case: Case) -> str:
    """The scheduler's class, without the module that the case may name behind it."""
    return case.settings["classes"][0].split(" ")[0]


def _follow(
    case: Case,
    scheduler: Scheduler,
    solver: Callable[..., Solver],
    pairs: list[tuple[NoiseLevel, NoiseLevel]],
    network: Callable[[jax.Array, NoiseLevel], jax.Array],
) -> Followed:
    """Take the steps, drawing the recorded noises in their order."""
    draws = iter(case.inputs["noise"])
    normal = lambda keys, shape, dtype: jnp.asarray(last(next(draws)))
    followed = Followed([], [], [])

    def denoise(x, level):
        followed.inputs.append(x)
        followed.outputs.append(network(x, level))
        return estimate_x0(scheduler.parameterization, x, followed.outputs[-1], level)

    x = jnp.asarray(last(case.inputs["init_noise"])) * scheduler.initial_scale(pairs[0][0])
    step, keys = solver(normal).step, jax.random.split(jax.random.key(0), len(x))
    with jax.disable_jit():
        for current, next_ in pairs:
            followed.samples.append(x)
            x, _ = step(keys, x, (), denoise, current, next_)
    followed.samples.append(x)
    return followed


def _compare(case: Case, arrays: dict[str, Any]) -> list[Comparison]:
    tolerance = case.settings["tolerance"]["rtol"]
    computed = {name: first(jnp.stack(list(values))) for name, values in arrays.items()}
    return [compare(name, each, case.outputs[name], tolerance) for name, each in computed.items()]


def _pairs(levels: NoiseLevel) -> list[tuple[NoiseLevel, NoiseLevel]]:
    rows = [jax.tree.map(lambda leaf, at=at: leaf[at], levels) for at in range(len(levels.t))]
    return list(itertools.pairwise(rows))


def _ve_tables(case, scheduler, levels):
    times = np.linspace(1.0, scheduler.config["sampling_eps"], case.settings["steps"])
    yield compare("timesteps", times, case.outputs["timesteps"], 1e-5)
    yield compare("sigmas", levels.t[:-1], case.outputs["sigmas"], 1e-5)
    rising = levels.sigma[:-1][::-1]
    yield compare("discrete_sigmas", rising, case.outputs["discrete_sigmas"], 1e-5)
    if "add_noise" in case.outputs:
        level = NoiseLevel(*(leaf[:-1][::-1] for leaf in levels))
        at = NoiseLevel(*(leaf[case.outputs["add_noise_timesteps"]] for leaf in level))
        noised = add_noise(last(case.inputs["x0"]), last(case.inputs["add_noise_noise"]), at)
        yield compare("add_noise", first(noised), case.outputs["add_noise"], 2e-4)


def _ve(case, scheduler, levels, network, norm=norm_each):
    """A run ends with the mean of its last step, as the reference's pipeline has it."""
    config = scheduler.config

    def solver(normal):
        corrector = langevin(config["snr"], config["correct_steps"], norm=norm, normal=normal)
        return predictor_corrector(reverse_diffusion(normal=normal), corrector)

    output = lambda x, level: network(x, level.t, gain=1.0 / level.t, soft=level.t)
    run = _follow(case, scheduler, solver, _pairs(levels), output)
    compared = _compare(case, {"model_outputs": run.outputs})
    # the reference lists the noisy end too, and the mean of it besides
    reference = np.concatenate([case.outputs["samples"][:-1], case.outputs["means"][-1:]])
    tolerance = case.settings["tolerance"]["rtol"]
    return [*compared, compare("samples", first(jnp.stack(run.samples)), reference, tolerance)]


def _ve_bridge(case, scheduler, levels, network):
    mean = lambda values: jnp.mean(norm_each(values))
    return _ve(case, scheduler, levels, network, norm=mean)


def _vp_tables(case, scheduler, levels):
    yield compare("timesteps", levels.t[:-1], case.outputs["timesteps"], 1e-5)


def _vp(case, scheduler, levels, network, pairs=None):
    solver = lambda normal: scheduler.solver(levels, normal=normal)
    output = lambda x, level: network(x, 1000.0 * np.float64(level.t))
    run = _follow(case, scheduler, solver, pairs or _pairs(levels), output)
    return _compare(case, {"samples": run.samples, "model_outputs": run.outputs})


def _vp_bridge(case, scheduler, levels, network):
    """Every step has the length 1 / N, the last one too, which is not to clean data."""
    length = 1.0 / case.settings["steps"]
    pairs = [(current, current._replace(t=current.t - length)) for current, _ in _pairs(levels)]
    return _vp(case, scheduler, levels, network, pairs)


def _karras_tables(case, scheduler, levels):
    yield compare("timesteps", levels.t[:-1], case.outputs["timesteps"], 1e-7)
    yield compare("schedule", levels.sigma[:-1][::-1], case.outputs["schedule"], 1e-5)


def _karras(case, scheduler, levels, network):
    solver = lambda normal: scheduler.solver(levels, normal=normal)

    def output(x, level):
        sigma = np.float32(level.sigma)
        half = sigma / np.float32(2.0)
        return half * network((x + 1.0) / 2.0, half, soft=sigma)

    run = _follow(case, scheduler, solver, _pairs(levels), output)
    # two calls in each step: at the raised level, and at the end of all steps but the last
    return _compare(
        case,
        {"samples": run.samples, "sample_hats": run.inputs[::2], "model_outputs": run.outputs},
    )


def _karras_bridge(case, scheduler, levels, network):
    """The reference lists sigma^2 and takes it for sigma."""
    squared = levels._replace(sigma=levels.sigma**2)
    tables = _karras_tables(case, scheduler, squared)
    return [*tables, *_karras(case, scheduler, squared, network)]


class OwnLoop(NamedTuple):
    """How one of these classes is checked, and the named difference that it may have."""

    tables: Callable
    run: Callable
    bridge: Callable
    difference: str


OWN_LOOPS = {
    "ScoreSdeVeScheduler": OwnLoop(_ve_tables, _ve, _ve_bridge, "batch-norms"),
    "ScoreSdeVpScheduler": OwnLoop(_vp_tables, _vp, _vp_bridge, "fixed-length"),
    "KarrasVeScheduler": OwnLoop(_karras_tables, _karras, _karras_bridge, "squared-sigmas"),
}
