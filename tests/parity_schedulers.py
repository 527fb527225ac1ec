"""Reference cases of kind "scheduler": tables, noising, and a run followed step by step.

The network of these cases is a formula. Every call of it in a run is recorded: what it was given,
when, what it returned and which x0 that stands for, and each is compared with the reference, which
records the same calls. Noise is not drawn but replayed.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from parity_bridges import BRIDGES
from parity_cases import Case, Comparison, KnownDifference, Unsupported, compare

from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.parameterizations import (
    Denoiser,
    LearnedVariance,
    estimate_x0,
    split_learned_variance,
    v,
)
from diffjax.core.parameterizations import target as regression_target
from diffjax.pretrained import UnsupportedError
from diffjax.pretrained.schedulers import Scheduler, read_scheduler

EXACT_RELATIVE = 1e-5  # tolerance of time steps and sigmas that are not whole numbers


class Reference(NamedTuple):
    """How the reference writes down what is one thing here.

    Attributes:
      unit: level -> factor from our x to the reference's.
      sigma: level -> what it lists as sigma, None where it lists none.
      repeats: levels -> for each entry of the reference's list of time steps, its index in ours.
      x_at_current: whether x0 is told from the level that the step starts at, not from the one
        that the network is told.
    """

    unit: Callable[[NoiseLevel], Any] = lambda level: 1.0
    sigma: Callable[[NoiseLevel], Any] | None = None
    repeats: Callable[[NoiseLevel], np.ndarray] = lambda levels: np.arange(len(levels.t) - 1)
    x_at_current: bool = False


def _ratio(level: NoiseLevel):
    return level.sigma / level.alpha


REFERENCES: dict[str, Reference] = {
    "DDIMInverseScheduler": Reference(
        repeats=lambda levels: np.arange(1, len(levels.t)), x_at_current=True
    ),
}


class Call(NamedTuple):
    """One call of the network: what it was given, its output, and the x0 that this stands for."""

    x: jax.Array
    level: NoiseLevel
    output: jax.Array
    x0: jax.Array


def check_scheduler(case: Case) -> list[Comparison]:
    """Every comparison of a case; raises `KnownDifference` if a named bridge closes the gap."""
    settings = case.settings
    try:
        config = settings["config"] | {"_class_name": settings["classes"][0]}
        scheduler = read_scheduler(config)
        levels = scheduler.levels(**_grid_options(settings["set_timesteps"]))
        step_options = settings["step_kwargs"]
        scheduler.solver(levels, **step_options)
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    reference = REFERENCES.get(scheduler.name, Reference())
    tables = [*_probes(case, scheduler), *_tables(case, scheduler, reference)]
    tables += _noising(case, scheduler, reference, levels)
    run = Run(case, scheduler, reference, levels, step_options)
    comparisons = run.compare(run.follow())
    if _worst(comparisons) > 1.0 and _worst(tables) <= 1.0:
        for name, bridge in BRIDGES.items():
            calls = bridge(run)
            if calls is not None and _worst(bridged := run.compare(calls)) <= 1.0:
                error = max(each.error for each in bridged)
                raise KnownDifference(
                    f"{name}: with the reference's rule in its place the largest error is "
                    f"{error:.1e} (docs/diffusers_differences.md)"
                )
    return tables + comparisons


def _worst(comparisons: list[Comparison]) -> float:
    return max((each.error / each.tolerance for each in comparisons), default=0.0)


def _grid_options(options: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(options)
    if "num_inference_steps" in renamed:
        renamed["num_steps"] = renamed.pop("num_inference_steps")
    return renamed


def _probes(case: Case, scheduler: Scheduler) -> Iterator[Comparison]:
    """The schedule's variances at some steps."""
    if "probe_index" not in case.outputs:
        return
    probe, tolerance = case.outputs["probe_index"], case.settings["tolerance"]["rtol"]
    signal = scheduler.schedule.alpha[1:] ** 2
    betas = 1.0 - signal / np.concatenate([[1.0], signal[:-1]])
    for name, values in (("alphas_cumprod", signal), ("betas", betas)):
        yield compare(f"{name}_probe", values[probe], case.outputs[f"{name}_probe"], tolerance)


def _tables(case: Case, scheduler: Scheduler, reference: Reference) -> Iterator[Comparison]:
    """The grids of several numbers of steps; those that the reference refuses must be refused."""
    for k, run in enumerate(case.settings.get("table_runs", [])):
        options = _grid_options(run["set_timesteps"])
        if "raises" in run:
            yield _refusal(f"table{k}", scheduler, options)
            continue
        levels = scheduler.levels(**options)
        yield from _table(case, f"table{k}_", levels, reference)
        name = f"table{k}_init_noise_sigma"
        if name in case.outputs:
            first = NoiseLevel(*(leaf[0] for leaf in levels))
            scale = scheduler.initial_scale(levels) * reference.unit(first)
            yield compare(name, scale, case.outputs[name], EXACT_RELATIVE)
    yield from _table(
        case, "", scheduler.levels(**_grid_options(case.settings["set_timesteps"])), reference
    )


def _refusal(name: str, scheduler: Scheduler, options: dict[str, Any]) -> Comparison:
    try:
        scheduler.levels(**options)
    except ValueError:
        return Comparison(f"{name} is refused", 0.0, 1.0)
    return Comparison(f"{name} should be refused", np.inf, 1.0)


def _table(
    case: Case, prefix: str, levels: NoiseLevel, reference: Reference
) -> Iterator[Comparison]:
    index = reference.repeats(levels)
    times = case.outputs[f"{prefix}timesteps"]
    begin = case.settings["begin_index"] or 0 if prefix == "" else 0
    whole = np.array_equal(times, np.round(times))
    computed = np.asarray(levels.t, np.float64)[index][begin:]
    yield compare(f"{prefix}timesteps", computed, times, 1e-12 if whole else EXACT_RELATIVE)
    if reference.sigma is not None:
        sigmas = np.asarray(reference.sigma(levels))[np.append(index, len(levels.t) - 1)]
        yield compare(f"{prefix}sigmas", sigmas, case.outputs[f"{prefix}sigmas"], EXACT_RELATIVE)


def _noising(
    case: Case, scheduler: Scheduler, reference: Reference, levels: NoiseLevel
) -> Iterator[Comparison]:
    """`add_noise` and, where the reference has it, the target of v-prediction."""
    if "add_noise_timesteps" not in case.outputs:
        return
    tolerance = case.settings["tolerance"]["rtol"]
    times = np.asarray(levels.t, np.float64)
    wanted = case.outputs["add_noise_timesteps"].astype(np.float64)
    index = np.argmin(np.abs(times[:, None] - wanted), axis=0)
    level = jax.tree.map(lambda leaf: leaf[index], levels)
    x0, noise = _last(case.inputs["x0"]), _last(case.inputs["add_noise_noise"])
    if "add_noise" in case.outputs:
        unit = jnp.broadcast_to(reference.unit(level), level.t.shape)[:, None, None, None]
        noised = unit * add_noise(x0, noise, level)
        yield compare("add_noise", _first(noised), case.outputs["add_noise"], tolerance)
    if "velocity" in case.outputs:
        # the reference looks the velocity up in its table, at the whole part of the time
        level = scheduler.schedule(jnp.asarray(wanted, jnp.int32))
        velocity = regression_target(v, x0, noise, level)
        yield compare("velocity", _first(velocity), case.outputs["velocity"], tolerance)


class Run(NamedTuple):
    """The trajectory of a case, to be followed by this project's rules or by a bridge's."""

    case: Case
    scheduler: Scheduler
    reference: Reference
    levels: NoiseLevel
    step_options: dict[str, Any]

    def start(self) -> jax.Array:
        """The first x, in our units."""
        noise = _last(self.case.inputs["init_noise"])
        begin = self.case.settings["begin_index"]
        if begin is None:
            return self.scheduler.initial_scale(self.levels) * noise
        level = jax.tree.map(lambda leaf: leaf[begin], self.levels)
        return add_noise(_last(self.case.inputs["x0"]), noise, level)

    def pairs(self) -> list[tuple[NoiseLevel, NoiseLevel]]:
        """The transitions of the grid, from the level that the run begins with."""
        begin = self.case.settings["begin_index"] or 0
        rows = [
            jax.tree.map(lambda leaf, at=at: leaf[at], self.levels)
            for at in range(begin, len(self.levels.t))
        ]
        return list(itertools.pairwise(rows))

    def output(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """The reference's network: a formula, in float64 from the float32 x."""
        x, t = np.asarray(x, np.float64), float(t)
        mix, bias = self.case.inputs["mix"], self.case.inputs["bias"]
        gain, soft = (self.case.settings.get(name, value) for name, value in PLAIN.items())
        inner = np.einsum("ck,b...k->b...c", mix.astype(np.float64), x) / (1.0 + soft)
        inner += np.moveaxis(bias.astype(np.float64), 0, -1) * np.cos(t / 300.0)
        return jnp.asarray((gain * 2.0 * np.tanh(inner / 2.0)).astype(np.float32))

    def follow(
        self,
        *,
        pairs: list | None = None,
        solver: Any = None,
        denoiser: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
    ) -> tuple[list[Call], jax.Array]:
        """Take every step, recording the calls; bridges change the pairs, solver or denoiser."""
        replay = Replay(self.case)
        solver = solver or self.scheduler.solver(self.levels, **self.step_options, **replay.option)
        x, calls = self.start(), []
        state = solver.init(x)
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        for i, (current, next_) in enumerate(pairs or self.pairs()):
            replay.step = i
            denoise = denoiser(self._recording(calls, current))
            x, state = solver.step(keys, x, state, denoise, current, next_)
        return calls, x

    def _recording(self, calls: list[Call], current: NoiseLevel) -> Denoiser:
        prediction, learned = self.scheduler.parameterization, self.scheduler.learned_variance

        def denoise(x, level):
            scaled = prediction.in_scale(level) * x
            output = self.output(scaled, prediction.clock(level))
            predicted, values = split_learned_variance(output, x) if learned else (output, None)
            estimate = estimate_x0(prediction, x, predicted, level)
            at = current if self.reference.x_at_current else level
            x0 = self.scheduler.limit(estimate_x0(prediction, x, predicted, at))
            calls.append(Call(x, level, output, x0))
            return LearnedVariance(estimate, 0.5 * (values + 1.0)) if learned else estimate

        return denoise

    def compare(self, followed: tuple[list[Call], jax.Array]) -> list[Comparison]:
        """The recorded calls and the result, against the reference's."""
        calls, result = followed
        outputs, tolerance = self.case.outputs, self.case.settings["tolerance"]["rtol"]
        unit, prediction = self.reference.unit, self.scheduler.parameterization
        computed = {
            "samples": [unit(call.level) * call.x for call in calls] + [result],
            "model_inputs": [prediction.in_scale(call.level) * call.x for call in calls],
            "model_outputs": [call.output for call in calls],
            "pred_original_samples": [call.x0 for call in calls],
        }
        return [
            compare(name, _first(jnp.stack(arrays)), outputs[name], tolerance)
            for name, arrays in computed.items()
            if name in outputs
        ]


PLAIN = {"gain": 1.0, "soft": 0.0}


class Replay:
    """Gives the recorded draws of a step instead of new ones, and zeros where there are none."""

    def __init__(self, case: Case):
        self.step = 0
        self.draws: dict[int, list[np.ndarray]] = {}
        for tag, noise in zip(case.inputs.get("noise_tag", ()), case.inputs.get("noise", ())):
            self.draws.setdefault(int(tag), []).append(noise)
        self.option = {"normal": self.normal} if self.draws else {}

    def normal(self, keys, shape, dtype):
        draws = self.draws.get(self.step)
        return _last(draws.pop(0)) if draws else jnp.zeros((keys.shape[0], *shape), dtype)


def _last(array: np.ndarray) -> jax.Array:
    """Channels last."""
    return jnp.asarray(np.moveaxis(np.asarray(array), -3, -1))


def _first(array: jax.Array) -> np.ndarray:
    """Channels first."""
    return np.moveaxis(np.asarray(array), -1, -3)
