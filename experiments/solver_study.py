"""Error against the number of network calls, of every named solver.

    python experiments/solver_study.py --output runs/solver_study
    python experiments/solver_study.py --workdir runs/digits --output runs/study_of_digits

Without a run the data are a mixture of two normals in one dimension, whose denoiser is exact. A
solver without noise is judged by the root mean squared distance to where the exact flow carries the
same noise, one with noise by the Wasserstein distance of its samples to the distribution; the floor
is that of exact samples. With a run the flow is what many steps of Heun's method make of the noise,
and solvers with noise are left out: evaluate.py judges them.

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
from choices import RATIOS, SCHEDULES, build, listed
from cli import parse_args, prepare_output, run_script
from diffjax import exact
from diffjax.core.schedules import levels_at
from diffjax.solvers import SOLVERS
from diffjax.training import make_mesh
from model import SampleOptions, make_schedule, sampling_denoiser
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
    spacing: Annotated[str, listed("levels to visit", RATIOS)] = "karras"
    smallest: float = 0.002
    """ratio sigma / alpha of the last level before clean data"""
    largest: float = 80.0
    """ratio sigma / alpha to begin at, or that of the noisiest level if it is less"""
    num_samples: int = 4096
    """of the mixture; of a run 16 images are made for each 4096"""
    reference_steps: int = 100
    """steps of Heun's method that tell where the flow of a run leads"""
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
      distance: samples with noise in them -> distance to the data; None if it is not known.
    """

    schedule: Callable[..., dj.NoiseLevel]
    denoiser: Callable[[Any], Any]
    inputs: Any
    x: jax.Array
    target: jax.Array
    distance: Callable[[np.ndarray], float] | None


class Point(NamedTuple):
    """One run of a solver: how many calls it made, and how far it ended from the target."""

    calls: int
    error: float


def levels_of(args: Args, schedule, num_steps: int) -> dj.NoiseLevel:
    """The grid of a number of steps."""
    steps = dj.schedules.num_train_steps(schedule)
    top = schedule(jnp.asarray(1.0 if steps is None else steps - 1))
    largest = min(args.largest, float(top.sigma / jnp.maximum(top.alpha, 1e-9)))
    ends = {"smallest": args.smallest, "largest": largest}
    return levels_at(schedule, build("spacing", args.spacing, RATIOS, num_steps=num_steps, **ends))


def wasserstein(samples: np.ndarray, quantiles: np.ndarray) -> float:
    """The mean distance of sorted numbers to quantiles."""
    return float(np.mean(np.abs(np.sort(np.ravel(samples)) - quantiles)))


def mixture_problem(args: Args) -> Problem:
    """Numbers that begin as the quantiles of the noisy distribution."""
    schedule = build("schedule", args.schedule, SCHEDULES)
    first = jax.tree.map(lambda leaf: leaf[0], levels_of(args, schedule, 1))
    pure, clean = (dj.NoiseLevel(*map(jnp.float32, level)) for level in ((1, 0, 1), (0, 1, 0)))
    ranks = (np.arange(args.num_samples) + 0.5) / args.num_samples
    normal = jnp.asarray(jax.scipy.special.ndtri(ranks)[:, None], jnp.float32)
    x, target = (exact.probability_flow(MIXTURE, normal, pure, end) for end in (first, clean))
    quantiles = np.ravel(target)
    denoiser = lambda inputs: exact.denoiser(MIXTURE)
    return Problem(
        schedule, denoiser, (), x, target, lambda samples: wasserstein(samples, quantiles)
    )


def run_problem(args: Args, workdir: Path) -> Problem:
    """Noise of the shape of a run's images, its classes in turn."""
    run = load_run(workdir, make_mesh())
    sampling = run.config.sampling
    options = SampleOptions(guidance_scale=sampling.guidance_scale, clip=sampling.clip)
    schedule = make_schedule(run.config.diffusion, run.params)
    make_denoiser = sampling_denoiser(run.config, run.network, options)
    levels = levels_of(args, schedule, args.reference_steps)
    count = max(16 * args.num_samples // 4096, 1)
    classes, key = run.config.network.num_classes, jax.random.key(args.seed)
    labels = None if classes is None else jnp.arange(count, dtype=jnp.int32) % classes
    x = dj.initial_noise(key, (count, *image_shape(run.config)), levels)
    denoiser = lambda inputs: make_denoiser(*inputs)
    inputs = run.params, labels

    @jax.jit
    def follow(inputs, x, levels):
        return dj.sample(key, x, denoiser(inputs), dj.heun(), levels)

    return Problem(schedule, denoiser, inputs, x, follow(inputs, x, levels), None)


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


def study(args: Args, problem: Problem, name: str, budgets: list[int]) -> tuple[bool, list[Point]]:
    """Whether a solver draws noise, and its error with each number of calls that it can spend."""
    run = compile_solver(args, problem, name, max(*budgets, 4))

    def point(levels, settings, noisy) -> Point:
        x, calls = run(args.seed, levels, settings)
        if noisy and problem.distance is not None:
            return Point(calls, problem.distance(x))
        return Point(calls, float(np.sqrt(np.mean(np.square(x - problem.target)))))

    if name in ADAPTIVE:
        ends = levels_of(args, problem.schedule, 2)
        return False, [
            point(ends, {"rtol": tolerance, "atol": 0.1 * tolerance}, False)
            for tolerance in TOLERANCES
        ]
    _, calls = run(args.seed, levels_of(args, problem.schedule, 4), {})
    # some draw noise where steps are short enough only
    many = levels_of(args, problem.schedule, max(budgets))
    x, again = (run(args.seed + i, many, {})[0] for i in (0, 1))
    noisy = not np.array_equal(x, again)
    if noisy and problem.distance is None:
        return True, []
    # the step to clean data may take fewer calls than the others
    counts = sorted({max(round(4 * budget / calls), 1) for budget in budgets})
    grids = [levels_of(args, problem.schedule, count) for count in counts if count <= max(budgets)]
    return noisy, [point(levels, {}, noisy) for levels in grids]


def floor_of(args: Args, problem: Problem) -> float | None:
    """The distance of exact samples to the distribution, the mean of ten sets."""
    if problem.distance is None:
        return None
    keys = jax.random.split(jax.random.key(args.seed), 10)
    draws = [exact.draw(key, MIXTURE, args.num_samples) for key in keys]
    return float(np.mean([problem.distance(np.asarray(each)) for each in draws]))


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
    """Error against calls on logarithmic axes, a panel for each group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {title: lines for title, lines in groups.items() if lines}
    figure, panels = plt.subplots(
        1, len(shown), figsize=(7 * len(shown), 6), constrained_layout=True, squeeze=False
    )
    for axes, (title, lines) in zip(panels[0], shown.items()):
        for i, (name, points) in enumerate(lines.items()):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(*zip(*points), style, marker=".", color=f"C{i % 10}", label=name)
        if floor is not None and title == "with noise":
            axes.axhline(floor, color="black", linewidth=0.8, label="exact samples")
        axes.set(xlabel="network calls", ylabel="error", xscale="log", yscale="log", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
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
    groups: dict[str, dict[str, list[Point]]] = {"without noise": {}, "with noise": {}}
    for name in tqdm(names, desc="solvers"):
        noisy, points = study(args, problem, name, budgets)
        if points:
            groups["with noise" if noisy else "without noise"][name] = points
    floor = floor_of(args, problem)
    tables = [
        f"Solvers {title}:\n\n{as_table(results, budgets)}"
        for title, results in groups.items()
        if results
    ]
    if floor is not None:
        tables.append(f"Exact samples: {floor:.2g}.")
    result = {"floor": floor, "spacing": args.spacing, **groups}
    (output / "study.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "study.md").write_text("\n\n".join(tables) + "\n")
    save_plot(output / "study.png", groups, floor)
    print("\n\n".join(tables), f"\n\nWrote {output}")


if __name__ == "__main__":
    run_script(main)
