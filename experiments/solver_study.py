"""Error against the number of network calls, of every named solver.

    python experiments/solver_study.py --output runs/solver_study
    python experiments/solver_study.py --workdir runs/digits --output runs/study_of_digits

Solvers without noise are judged by the root mean squared distance to where the flow carries the
same noise; samples by their distance to the data, beside that of exact samples.

Without a run the data are a mixture of two normals in one dimension, whose denoiser and flow are
exact, and the distance is Wasserstein's, of solvers with noise; the others carry evenly spread
noise to evenly spread samples. With a run the flow is what many steps of UniPC make of the
noise; of digits, the distance is Fréchet's (`diffjax/metrics/digits.py`), of all solvers, in units
of that between two halves of the real ones.

The calls are counted while the sampler runs. One program serves all budgets of a solver.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import diffjax as dj
from choices import RATIOS, SCHEDULES, SPACINGS, build, listed
from cli import parse_args, prepare_output, run_script
from denoisers import sampling_denoiser
from diffjax import exact
from diffjax.metrics.digits import distance_to_digits, round_to_levels
from diffjax.solvers import SOLVERS
from diffjax.training import make_mesh
from model import SampleOptions, make_levels, make_schedule, to_uint8
from runs import image_shape, load_run

MIXTURE = exact.mixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), np.array([0.04, 0.09]))
# those whose defaults are for other work: as many inner steps as a budget can hold
ARGUMENTS = {"annealed_langevin": "annealed_langevin(num_inner=4)"}
ADAPTIVE = ("dpm_adaptive", "adaptive_ode")
TOLERANCES = (0.3, 0.03, 3e-3, 3e-4)


@dataclass(frozen=True)
class Args:
    """Error against the number of network calls, of every named solver."""

    output: Path = Path("runs/solver_study")
    """folder for study.json, study.md and study.png"""
    workdir: Path | None = None
    """a run folder; by default a mixture with an exact denoiser"""
    solvers: str = "all"
    """names, such as ddim,heun, or all"""
    calls: str = "5,10,20,40,80"
    """numbers of network calls to spend"""
    schedule: Annotated[str, listed("of the mixture", SCHEDULES)] = "linear"
    spacing: Annotated[str, listed("levels to visit", {**SPACINGS, **RATIOS})] = (
        "karras(smallest=0.002, largest=80)"
    )
    num_samples: int | None = None
    """how many; by default 4096 numbers of the mixture, 1000 digits, 16 images of other runs"""
    reference_steps: int = 400
    """steps of UniPC, of order 3, that tell where the flow of a run leads"""
    seed: int = 0
    """of the noise"""


class Problem(NamedTuple):
    """What is sampled.

    Attributes:
      schedule: of the levels.
      denoiser: inputs -> denoiser; called inside the compiled function.
      inputs: arrays, such as the network's weights.
      x: [B, ...] at the first level.
      target: [B, ...] where the exact flow leads from there.
      distance: samples -> distance to the data; None if it is not known.
      floor: the distance of exact samples.
      judges_all: the distance says something of solvers without noise too.
    """

    schedule: Callable[..., dj.NoiseLevel]
    denoiser: Callable[[Any], Any]
    inputs: Any
    x: jax.Array
    target: jax.Array
    distance: Callable[[np.ndarray], float] | None
    floor: float | None
    judges_all: bool


class Point(NamedTuple):
    """One run of a solver: how many calls it made, and how far it ended from the target."""

    calls: int
    error: float


class Points(NamedTuple):
    """The runs of a solver, judged by the exact flow, and as samples; none where that is empty."""

    flow: list[Point]
    samples: list[Point]


TITLES = {"flow": "distance to the exact flow", "samples": "distance of samples to the data"}


def levels_of(args: Args, schedule, num_steps: int) -> dj.NoiseLevel:
    """The grid of a number of steps."""
    return make_levels(SampleOptions(num_steps=num_steps, spacing=args.spacing), schedule)


def wasserstein(samples: np.ndarray, quantiles: np.ndarray) -> float:
    """The mean distance of sorted numbers to quantiles."""
    return float(np.mean(np.abs(np.sort(np.ravel(samples)) - quantiles)))


def mixture_problem(args: Args) -> Problem:
    """Numbers that begin as the quantiles of the noisy distribution."""
    schedule = build("schedule", args.schedule, SCHEDULES)
    first = jax.tree.map(lambda leaf: leaf[0], levels_of(args, schedule, 2))
    pure, clean = (dj.NoiseLevel(*map(jnp.float32, level)) for level in ((1, 0, 1), (0, 1, 0)))
    count = args.num_samples or 4096
    ranks = (np.arange(count) + 0.5) / count
    normal = jnp.asarray(jax.scipy.special.ndtri(ranks)[:, None], jnp.float32)
    x, target = (exact.probability_flow(MIXTURE, normal, pure, end) for end in (first, clean))
    distance = lambda samples: wasserstein(samples, np.ravel(target))
    keys = jax.random.split(jax.random.key(args.seed), 10)
    floor = np.mean([distance(exact.draw(key, MIXTURE, count)) for key in keys])
    denoiser = lambda inputs: exact.denoiser(MIXTURE)
    return Problem(schedule, denoiser, (), x, target, distance, float(floor), False)


def run_problem(args: Args, workdir: Path) -> Problem:
    """Noise of the shape of a run's images, its classes in turn."""
    run = load_run(workdir, make_mesh())
    sampling = run.config.sampling
    options = SampleOptions(guidance_scale=sampling.guidance_scale, clip=sampling.clip)
    schedule = make_schedule(run.config.diffusion, run.params)
    make_denoiser = sampling_denoiser(run.config, run.network, options)
    levels = levels_of(args, schedule, args.reference_steps)
    digits = run.config.data.name == "digits"
    count = args.num_samples or (1000 if digits else 16)
    classes, key = run.config.network.num_classes, jax.random.key(args.seed)
    labels = None if classes is None else jnp.arange(count, dtype=jnp.int32) % classes
    x = dj.initial_noise(key, (count, *image_shape(run.config)), levels)
    denoiser = lambda inputs: make_denoiser(*inputs)
    inputs = run.params, labels

    @jax.jit
    def follow(inputs, x, levels):
        return dj.sample(key, x, denoiser(inputs), dj.unipc(order=3), levels)

    distance, floor = digits_ratio() if digits else (None, None)
    target = follow(inputs, x, levels)
    return Problem(schedule, denoiser, inputs, x, target, distance, floor, True)


def digits_ratio() -> tuple[Callable[[np.ndarray], float], float]:
    """The Fréchet distance of images to the real digits over that of two halves, and its floor."""
    real = distance_to_digits()
    return lambda images: real.of(round_to_levels(to_uint8(images))) / real.floor, 1.0


def counting(denoise, counts: list[int]):
    """The denoiser, telling the host of each call."""

    def counted(x, level):
        jax.debug.callback(lambda _: counts.append(1), jnp.zeros(()))
        return denoise(x, level)

    return counted


def compile_solver(args: Args, problem: Problem, name: str, most: int):
    """`run(seed, levels, settings) -> (x, calls)`: one program for grids of up to `most` steps."""
    counts: list[int] = []

    @jax.jit
    def sampled(key, inputs, x, levels, num_steps, settings):
        text = ARGUMENTS.get(name, name)
        solver = build("solver", text, SOLVERS, schedule=problem.schedule, **settings)
        denoise = counting(problem.denoiser(inputs), counts)
        return dj.sample(key, x, denoise, solver, levels, num_steps=num_steps)

    def run(seed: int, levels: dj.NoiseLevel, settings: dict[str, float]):
        counts.clear()
        num_steps = len(levels.t) - 1
        padded = dj.pad_levels(levels, most)
        key = jax.random.key(seed)
        x = sampled(key, problem.inputs, problem.x, padded, jnp.asarray(num_steps), settings)
        x = np.asarray(x)
        jax.effects_barrier()
        return x, len(counts)

    return run


def study(args: Args, problem: Problem, name: str, budgets: list[int]) -> Points:
    """What a solver makes of each number of calls that it can spend."""
    most = max(*budgets, 4)
    run = compile_solver(args, problem, name, most)

    def judged(ends: list[tuple[np.ndarray, int]], noisy: bool) -> Points:
        points = Points([], [])
        for x, calls in ends:
            if not noisy:
                error = np.sqrt(np.mean(np.square(x - problem.target)))
                points.flow.append(Point(calls, float(error)))
            if problem.distance is not None and (noisy or problem.judges_all):
                points.samples.append(Point(calls, problem.distance(x)))
        return points

    if name in ADAPTIVE:
        whole = levels_of(args, problem.schedule, 2)
        settings = [{"rtol": each, "atol": 0.1 * each} for each in TOLERANCES]
        return judged([run(args.seed, whole, each) for each in settings], noisy=False)
    # some draw noise where steps are short enough only
    many = levels_of(args, problem.schedule, most)
    ends = {most: run(args.seed, many, {})}
    noisy = not np.array_equal(ends[most][0], run(args.seed + 1, many, {})[0])
    if noisy and problem.distance is None:
        return Points([], [])
    # the step to clean data may take fewer calls than the others
    _, calls = run(args.seed, levels_of(args, problem.schedule, 4), {})
    counts = sorted({max(round(4 * budget / calls), 1) for budget in budgets})
    for count in (count for count in counts if count < most):
        ends[count] = run(args.seed, levels_of(args, problem.schedule, count), {})
    return judged([ends[count] for count in counts if count in ends], noisy)


def error_at(points: list[Point], budget: int) -> float | None:
    """The error of the longest run with about so many calls, half of them to a fifth more."""
    inside = [point for point in points if budget / 2 <= point.calls <= 1.2 * budget]
    return max(inside).error if inside else None


def as_table(results: dict[str, list[Point]], budgets: list[int]) -> str:
    """Markdown: a row for each solver, the best at the middle budget first."""

    def rank(name: str) -> float:
        error = error_at(results[name], sorted(budgets)[len(budgets) // 2])
        return np.inf if error is None else error

    lines = [
        "| solver | " + " | ".join(f"{budget} calls" for budget in budgets) + " |",
        "| --- |" + " --- |" * len(budgets),
    ]
    for name in sorted(results, key=rank):
        errors = (error_at(results[name], budget) for budget in budgets)
        cells = ("" if error is None else f"{error:.2g}" for error in errors)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_plot(path: Path, groups: dict[str, dict[str, list[Point]]], floor: float | None) -> None:
    """Error against calls on logarithmic axes, a panel for each of the TITLES."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {kind: lines for kind, lines in groups.items() if lines}
    figure, panels = plt.subplots(
        1, len(shown), figsize=(8 * len(shown), 6), constrained_layout=True, squeeze=False
    )
    for axes, (kind, lines) in zip(panels[0], shown.items()):
        for i, (name, points) in enumerate(lines.items()):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(*zip(*points), style, marker=".", color=f"C{i % 10}", label=name)
        if floor is not None and kind == "samples":
            axes.axhline(floor, color="black", linewidth=0.8, label="exact samples")
        axes.set(
            xlabel="network calls", ylabel="error", xscale="log", yscale="log", title=TITLES[kind]
        )
        # what broke would press all others together
        worst = [max(point.error for point in points) for points in lines.values()]
        axes.set_ylim(top=min(axes.get_ylim()[1], 10 * np.median(worst)))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    args = parse_args(Args, description=__doc__)
    names = list(SOLVERS) if args.solvers == "all" else args.solvers.split(",")
    unknown = [name for name in names if name not in SOLVERS]
    if unknown:
        raise ValueError(f"--solvers names {unknown}; there are {', '.join(SOLVERS)}.")
    budgets = sorted(int(part) for part in args.calls.split(","))
    output = prepare_output(args.output / "study.json", ".json").parent
    problem = mixture_problem(args) if args.workdir is None else run_problem(args, args.workdir)
    groups: dict[str, dict[str, list[Point]]] = {kind: {} for kind in TITLES}
    for name in tqdm(names, desc="solvers"):
        for kind, points in study(args, problem, name, budgets)._asdict().items():
            if points:
                groups[kind][name] = points
        # hours of work: what there is by now is not lost when it is stopped
        report = write_report(output, args, problem, groups, budgets)
    print(report, f"\n\nWrote {output}")


def write_report(output: Path, args: Args, problem: Problem, groups, budgets: list[int]) -> str:
    """study.json, study.md and study.png of the solvers so far; returns the text."""
    tables = [
        f"{TITLES[kind].capitalize()}:\n\n{as_table(results, budgets)}"
        for kind, results in groups.items()
        if results
    ]
    floor = [] if problem.floor is None else [f"Exact samples: {problem.floor:.2g}."]
    report = "\n\n".join(tables + floor)
    result = {"floor": problem.floor, "spacing": args.spacing, **groups}
    (output / "study.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "study.md").write_text(report + "\n")
    if tables:
        save_plot(output / "study.png", groups, problem.floor)
    return report


if __name__ == "__main__":
    run_script(main)
