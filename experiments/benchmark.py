"""How fast the networks of the experiments train and sample, as one line of JSON.

    python experiments/benchmark.py
    python experiments/benchmark.py --networks cifar10 --batch-size 128 --dtype bfloat16
    python experiments/benchmark.py --compare                 # beside torch; extra `bench`

Progress goes to stderr. The line on stdout holds where it ran, the packages' versions, and `rows`,
one for each network and task:

    train     one optimizer step: noise, forward, backward, clipping, Adam, weight average
    sample    deterministic DDIM from noise to images
    scan      gradients of 4 batches summed in a lax.scan, against 4 calls that each compute one;
              `ratio` well below 1 means that the compiler slows gradients down inside loops
    overhead  a row for each of several solvers: the sampling loop around a network that costs
              nothing, against the same steps written by hand (bare_loops.py); `ratio` near 1
              means that loop and solver cost nothing. On cores that others use too, compare them
              by --processor-time

`median_s` is the time of one call, the median over `repeats` after two calls to warm up, apart
from `trace_s` and `compile_s`. `flops` are those of the compiled program, which may need fewer
than the formula (loops counted as often as they run); `program_bytes` is the memory that it needs
at once, arguments included. Where two things are compared, `ratio` is the other's time over ours
(above 1: ours is faster), of medians of calls that took turns in this one process, and `min_ratio`
that of the shortest times, which other processes on the machine disturb less.

Needs jax, flax, optax, chex and numpy alone.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from bare_loops import bares, denoise, grid_of
from config import Config
from configs import CONFIGS
from diffjax.core.grids import trailing
from diffjax.core.losses import TIME_SAMPLERS, WEIGHTS, diffusion_loss
from diffjax.core.parameterizations import PARAMETERIZATIONS, make_denoiser
from diffjax.core.sampling import initial_noise, sample
from diffjax.core.schedules import SCHEDULES
from diffjax.networks import Functional, count_parameters, unet
from diffjax.solvers.ddim import ddim
from diffjax.training.state import init_train_state
from diffjax.training.step import make_train_step
from runs import image_shape

NETWORKS = ("digits", "cifar10")
TASKS = ("train", "sample", "scan", "overhead")
# small enough for two cores; a batch that fills a GPU is an argument away
BATCH_SIZES = {"digits": 128, "cifar10": 4}
ACCELERATOR_BATCH_SIZE = 128
MICROBATCHES = 4

Row = dict[str, Any]


class Program(NamedTuple):
    """A compiled program, ready to be timed: `run` returns when the device has finished."""

    run: Callable[[], None]
    trace_s: float
    compile_s: float
    flops: float
    program_bytes: int


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    baseline = load_baseline() if options.compare else None
    rows = []
    for name in options.networks:
        for task in options.tasks:
            if task not in ("train", "sample") and name != options.networks[0]:
                continue  # one network shows it
            say(f"{name} {task}")
            for timed in TIMINGS[task](name, options, baseline):
                row = {"network": name, "task": task, **timed}
                say("  " + ", ".join(f"{key} {show(value)}" for key, value in row.items()))
                rows.append(row)
    result = {**environment(baseline), "arguments": vars(options), "rows": rows}
    print(json.dumps(result))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; what is wrong with it goes to stderr, and the status is 2."""
    parser = argparse.ArgumentParser(
        description="Time training and sampling; prints one line of JSON.",
        epilog="What is measured is explained at the top of this file.",
    )
    several = lambda known: lambda text: names(text, known)
    parser.add_argument("--networks", type=several(NETWORKS), default=list(NETWORKS),
                        help="of digits,cifar10 (default: both)")  # fmt: skip
    parser.add_argument("--tasks", type=several(TASKS), default=list(TASKS),
                        help="of train,sample,scan,overhead (default: all)")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=None,
                        help="default: digits 128, cifar10 4; 128 on a GPU or TPU")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="of the computation inside the networks")  # fmt: skip
    parser.add_argument("--steps", type=positive, default=50,
                        help="DDIM steps of a sampling run, up to 1000 (default: 50)")  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=10,
                        help="timed calls; the median is reported (default: 10)")  # fmt: skip
    parser.add_argument("--processor-time", action="store_true",
                        help="overhead by the processor's time, not the clock's")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="3 repeats, 5 DDIM steps: to see that it runs")  # fmt: skip
    parser.add_argument("--compare", action="store_true",
                        help="also time diffusers' UNet2DModel on torch, taking turns")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats, options.steps = min(options.repeats, 3), min(options.steps, 5)
    if options.steps > 1000:
        parser.error(f"argument --steps: {options.steps} is more than the 1000 that are trained")
    return options


def names(text: str, known: tuple[str, ...]) -> list[str]:
    """A comma-separated list of known names."""
    given = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        what = f"unknown name {unknown[0]!r}" if unknown else "no name given"
        raise argparse.ArgumentTypeError(f"{what}; choose from {', '.join(known)}")
    return list(dict.fromkeys(given))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def load_baseline() -> Any:
    try:
        import torch_baseline
    except ImportError as error:
        sys.exit(f"benchmark.py: error: --compare needs the extra bench ({error}); "
                 "install it with: pip install 'diffjax[bench]'")  # fmt: skip
    return torch_baseline


def environment(baseline: Any) -> Row:
    """Where the numbers were made."""
    device = jax.devices()[0]
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {
        "benchmark": "diffjax",
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else platform.machine(),
        "num_devices": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "versions": packages | (baseline.versions() if baseline else {}),
    }


def time_train(name: str, options: argparse.Namespace, baseline: Any) -> Iterator[Row]:
    """One training step on one device."""
    config, network, batch, key = problem(name, options)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))
    state = init_train_state(network.init(jax.random.key(0)), optimizer)
    parameters = count_parameters(state.params)
    step = make_train_step(make_loss(config, network), optimizer)
    states = [state]

    def advance(program: Any) -> Any:
        states[0], metrics = program(states[0], batch, key)
        return metrics

    program = compile_program(jax.jit(step, donate_argnums=0), (state, batch, key), advance)
    runs = {"ours": program.run}
    size = batch["x0"].shape[0]
    if baseline:
        other = baseline.build(config.network)
        require_same_size(parameters, baseline.count_parameters(other))
        runs["torch"] = baseline.train_step(config, other, size, options.dtype)
    times = take_turns(runs, options.repeats)
    yield describe(program, times, batch["x0"].shape, options, parameters, size)


def time_sample(name: str, options: argparse.Namespace, baseline: Any) -> Iterator[Row]:
    """A DDIM run of `--steps` steps."""
    config, network, batch, key = problem(name, options)
    params = network.init(jax.random.key(0))
    schedule = SCHEDULES[config.diffusion.schedule]()
    levels = schedule(trailing(options.steps, config.diffusion.num_train_steps))
    prediction = PARAMETERIZATIONS[config.diffusion.prediction]
    shape = batch.pop("x0").shape

    def generate(params, key, conditioning):
        x = initial_noise(key, shape, jax.tree.map(lambda leaf: leaf[0], levels))
        trained = make_denoiser(network.apply, params, prediction, **conditioning)
        return sample(key, x, trained, ddim(), levels)

    arguments = (params, key, batch)
    program = compile_program(jax.jit(generate), arguments, lambda run: run(*arguments))
    # the compiler counts the body of a loop once
    program = program._replace(flops=program.flops * options.steps)
    runs = {"ours": program.run}
    if baseline:
        other = baseline.build(config.network)
        runs["torch"] = baseline.ddim_sampler(config, other, shape[0], options.dtype, levels)
    times = take_turns(runs, options.repeats)
    row = describe(program, times, shape, options, count_parameters(params), shape[0])
    yield {**row, "num_steps": options.steps}


def time_scan(name: str, options: argparse.Namespace, baseline: Any) -> Iterator[Row]:
    """Gradients inside a loop, against the same number of gradients outside."""
    config, network, batch, key = problem(name, options)
    params = network.init(jax.random.key(0))
    loss = make_loss(config, network)
    gradient = jax.grad(lambda params, key: loss(params, batch, key)[0].mean())

    def accumulated(params, key):
        add = lambda total, key: (jax.tree.map(jnp.add, total, gradient(params, key)), None)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return lax.scan(add, zeros, jax.random.split(key, MICROBATCHES))[0]

    call = lambda run: run(params, key)
    looped = compile_program(jax.jit(accumulated), (params, key), call)
    alone = compile_program(
        jax.jit(gradient), (params, key), lambda run: [call(run) for _ in range(MICROBATCHES)]
    )
    looped = looped._replace(flops=looped.flops * MICROBATCHES)
    times = take_turns({"ours": looped.run, "alone": alone.run}, options.repeats)
    shape = batch["x0"].shape
    images = MICROBATCHES * shape[0]
    row = describe(looped, times, shape, options, count_parameters(params), images)
    yield {**row, "microbatches": MICROBATCHES}


def time_overhead(name: str, options: argparse.Namespace, baseline: Any) -> Iterator[Row]:
    """The sampling loop and its solver by themselves, against loops written by hand."""
    config, _, batch, key = problem(name, options)
    schedule = SCHEDULES[config.diffusion.schedule]()
    levels = schedule(trailing(options.steps, config.diffusion.num_train_steps))
    shape = batch["x0"].shape
    x = jax.random.normal(key, shape)
    call = lambda run: run(key, x)
    for solver, bare in bares(schedule, options.steps).items():
        ours = lambda key, x, bare=bare: sample(key, x, denoise, bare.solver, levels)
        programs = {title: compile_program(jax.jit(function), (key, x), call)
                    for title, function in (("ours", ours), ("bare", bare.make(grid_of(levels))))
                    }  # fmt: skip
        # so short that only many repeats tell the two apart
        runs = {title: program.run for title, program in programs.items()}
        clock = time.process_time if options.processor_time else time.perf_counter
        times = take_turns(runs, 20 * options.repeats, clock)
        program = programs["ours"]._replace(flops=programs["ours"].flops * options.steps)
        row = describe(program, times, shape, options, 0, shape[0])
        yield {**row, "solver": solver, "num_steps": options.steps}


TIMINGS: dict[str, Callable[[str, argparse.Namespace, Any], Iterator[Row]]] = {
    "train": time_train,
    "sample": time_sample,
    "scan": time_scan,
    "overhead": time_overhead,
}


def problem(
    name: str, options: argparse.Namespace
) -> tuple[Config, Functional, dict[str, Array], Array]:
    """The configuration, its network, a batch of random images, and a key."""
    config = CONFIGS[name]
    on_cpu = jax.default_backend() == "cpu"
    size = options.batch_size or (BATCH_SIZES[name] if on_cpu else ACCELERATOR_BATCH_SIZE)
    network = dataclasses.replace(config.network, dtype=options.dtype)
    images = np.random.default_rng(0).uniform(-1, 1, (size, *image_shape(config)))
    batch = {"x0": jnp.asarray(images, jnp.float32)}
    if network.num_classes is not None:
        batch["labels"] = jnp.arange(size) % network.num_classes
    return config, unet(network), batch, jax.random.key(0)


def make_loss(config: Config, network: Functional) -> Callable[..., Any]:
    return diffusion_loss(
        network.apply,
        SCHEDULES[config.diffusion.schedule](),
        PARAMETERIZATIONS[config.diffusion.prediction],
        weight=WEIGHTS[config.diffusion.weight](),
        times=TIME_SAMPLERS[config.diffusion.times],
    )


def compile_program(jitted: Any, arguments: tuple, call: Callable[[Any], Any]) -> Program:
    """Trace and compile, both timed. `call(compiled)` is what `run` does and waits for."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    needed = (memory.argument_size_in_bytes + memory.output_size_in_bytes
              - memory.alias_size_in_bytes + memory.temp_size_in_bytes)  # fmt: skip

    def run() -> None:
        jax.block_until_ready(call(compiled))

    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return Program(run, traced - start, done - traced, float(flops), int(needed))


def take_turns(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each, one after the other in turns, after two to warm up."""
    times: dict[str, list[float]] = {title: [] for title in runs}
    for turn in range(repeats + 2):
        for title, run in runs.items():
            start = clock()
            run()
            if turn >= 2:
                times[title].append(clock() - start)
    return times


def describe(
    program: Program,
    times: dict[str, list[float]],
    shape: tuple[int, ...],
    options: argparse.Namespace,
    parameters: int,
    images: int,
) -> Row:
    """The columns that all rows share; `images` and `flops` are those of one call."""
    median = statistics.median(times["ours"])
    row: Row = {
        "shape": list(shape),
        "dtype": options.dtype,
        "parameters": parameters,
        "repeats": len(times["ours"]),
        **compare_times(times),
        "images_per_s": images / median,
        "trace_s": program.trace_s,
        "compile_s": program.compile_s,
        "flops": program.flops,
        "flops_per_s": program.flops / median,
        "program_bytes": program.program_bytes,
    }
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        row["device_peak_bytes"] = peak
    return row


def compare_times(times: dict[str, list[float]]) -> Row:
    """Median and least of the times of "ours" and of another, and their ratios."""
    median, least = statistics.median(times["ours"]), min(times["ours"])
    row: Row = {"median_s": median, "min_s": least}
    for title in times.keys() - {"ours"}:
        other, fastest = statistics.median(times[title]), min(times[title])
        row |= {f"{title}_median_s": other, f"{title}_min_s": fastest,
                "ratio": other / median, "min_ratio": fastest / least}  # fmt: skip
    return row


def require_same_size(ours: int, theirs: int) -> None:
    if ours != theirs:
        sys.exit(f"benchmark.py: error: our network has {ours} parameters and torch's {theirs}; "
                 "they are not the same network")  # fmt: skip


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
