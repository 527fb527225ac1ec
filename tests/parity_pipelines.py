"""Reference cases of kind "pipeline": a saved system, prompts, and the images that it made.

Each run of a case is compiled whole. Noise is not drawn but replayed, and the latents behind every
step are compared as well as the images.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from parity_cases import Case, Comparison, Unsupported, compare, first, last
from parity_schedulers import REFERENCES, Reference

from diffjax.core.sampling import Solver
from diffjax.networks.flux import pack
from diffjax.pipelines import System, make_plan, make_system, txt2img
from diffjax.pipelines.plan import Plan
from diffjax.pretrained import Components, UnsupportedError, load_components
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.transforms import classifier_free, rescaled


class Run(NamedTuple):
    """One run of a case.

    Attributes:
      call: what the pipeline was called with.
      inputs, outputs: its arrays, under their names without the run's.
      parts, system, scheduler: with the scheduler of the run.
      tolerance: relative to the largest absolute value.
    """

    call: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    parts: Components
    system: System
    scheduler: Scheduler
    tolerance: float

    @property
    def size(self) -> tuple[int, int]:
        return self.call.get("height", self.system.size[0]), self.call.get(
            "width", self.system.size[1]
        )

    def draws(self, step: int) -> list[np.ndarray]:
        """What was drawn in a step, -1 for in front of all; channels last."""
        tags = self.inputs.get("noise_tag", np.array([], int))
        noises = self.inputs.get("noise")
        if noises is None:
            noises = [self.inputs[f"noise_{i:03d}"] for i in range(len(tags))]
        return [last(noise) for noise, tag in zip(noises, tags) if tag == step]


def check_pipeline(case: Case) -> list[Comparison]:
    """Make the images of every run of a case and compare them, and the latents on their way."""
    name = case.settings["classes"][0]
    if name not in TASKS:
        raise Unsupported(UNSUPPORTED.get(name, f"there is no system for the class {name}"))
    try:
        parts = _parts(str(case.checkpoint))
        found = [
            each
            for run_name, settings in case.settings["runs"].items()
            for each in _check_run(_run(case, settings, parts), TASKS[name], run_name)
        ]
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    return found


@functools.lru_cache(maxsize=2)
def _parts(checkpoint: str) -> Components:
    return load_components(checkpoint)


def _run(case: Case, settings: dict[str, Any], parts: Components) -> Run:
    prefix = settings["prefix"]
    mine = lambda arrays: {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }
    schedulers = {
        name: read_scheduler({**config, "_class_name": kind})
        for name, (kind, config) in settings["scheduler"].items()
    }
    parts = parts._replace(schedulers={**parts.schedulers, **schedulers})
    return Run(
        call=settings["call"],
        inputs=mine(case.inputs),
        outputs=mine(case.outputs),
        parts=parts,
        system=make_system(parts),
        scheduler=parts.schedulers.get("scheduler", next(iter(parts.schedulers.values()))),
        tolerance=case.settings["tolerance"]["rtol"],
    )


def _check_run(run: Run, task: Callable, name: str) -> list[Comparison]:
    recorder = Recorder()
    result = jax.block_until_ready(task(run, recorder))
    jax.effects_barrier()
    found = [compare(f"{name} result", _shown(run, result), run.outputs["result"], run.tolerance)]
    theirs = run.outputs.get("step_samples_out", ())
    if len(theirs) == len(recorder.latents):
        # the reference may carry the samples of both conditions
        found += [
            compare(f"{name} step {i}", here, there[: len(here)], run.tolerance)
            for i, (here, there) in enumerate(zip(recorder.latents, theirs))
        ]
    return found + [
        compare(f"{name} {key}", value, run.outputs[key], run.tolerance)
        for key, value in recorder.encodings.items()
        if key in run.outputs
    ]


def _shown(run: Run, images: jax.Array) -> np.ndarray:
    """Images as the reference shows them; latents as they are."""
    if run.call.get("output_type") == "latent":
        return first(images)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)


def _channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, -3)


class Recorder:
    """Keeps the latents behind each step, in the reference's units, and what prompts became."""

    def __init__(self):
        self.latents: list[np.ndarray] = []
        self.encodings: dict[str, np.ndarray] = {}

    def solver(self, run: Run, make: Callable[..., Plan], layout=_channels_first) -> Plan:
        """A plan whose solver replays the draws of the steps and records what they lead to."""
        plan = make()
        count = len(plan.levels.t) - 1
        drawn = [run.draws(step) for step in range(count)]
        now: list[Any] = []
        if any(drawn):
            some = next(each for each in drawn if each)[0]
            noises = jnp.stack([each[0] if each else np.zeros_like(some) for each in drawn])
            plan = make(normal=lambda keys, shape, dtype: noises[now[-1]])
        unit = REFERENCES.get(run.scheduler.name, Reference()).unit
        keep = lambda x: self.latents.append(np.asarray(x))

        def step(keys, x, state, denoise, current, next_):
            now.append(state[1])
            x, inner = plan.solver.step(keys, x, state[0], denoise, current, next_)
            io_callback(keep, None, layout(x * unit(next_)), ordered=True)
            return x, (inner, state[1] + 1)

        return plan._replace(solver=Solver(lambda x: (plan.solver.init(x), 0), step))


def plan_of(run: Run, recorder: Recorder, *, layout=_channels_first, **options: Any) -> Plan:
    """The steps of a run with its own scheduler."""
    call = run.call
    steps = call.get("num_inference_steps")
    grid = run.system.grid(*run.size, steps) if steps else {"timesteps": call["timesteps"]}
    # the options of a step reach it only where they made it draw
    if "eta" in call and run.draws(0):
        options["eta"] = call["eta"]
    for name in ("use_clipped_model_output",):
        if name in call:
            options[name] = call[name]
    make = lambda **more: make_plan(run.scheduler, steps, grid=grid, **options, **more)
    return recorder.solver(run, make, layout)


def replay(*draws: np.ndarray) -> Callable:
    """A way to draw noise that gives recorded draws, in their order."""
    remaining = list(draws)
    return lambda keys, shape, dtype: jnp.asarray(remaining.pop(0))


def guidance_of(run: Run) -> Callable | None:
    scale = run.call.get("guidance_scale", 1.0)
    amount = run.call.get("guidance_rescale", 0.0)

    def guidance(denoise, unconditional):
        guided = classifier_free(denoise, unconditional, guidance_scale=scale)
        if not amount:
            return guided
        row = run.system.parameterization
        return rescaled(guided, denoise, amount=amount, parameterization=row)

    return guidance


def keys_of(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def make_images(
    run: Run, recorder: Recorder, conditions: list, *, layout=_channels_first
) -> jax.Array:
    """txt2img under the conditions of a run, compiled whole."""
    plan = plan_of(run, recorder, layout=layout)
    (noise,) = run.draws(-1)
    height, width = run.size

    @jax.jit
    def generate(params, keys, conditions):
        told = [run.system.condition(params, each) for each in conditions]
        images = txt2img(
            run.system,
            params,
            keys,
            conditions,
            solver=plan.solver,
            levels=plan.levels,
            height=height,
            width=width,
            guidance=guidance_of(run) if len(conditions) > 1 else None,
            initial_scale=plan.initial_scale,
            normal=replay(noise),
        )
        return images, told

    images, told = generate(run.parts.params, keys_of(len(noise)), conditions)
    recorder.encodings.update(_encodings(run, told))
    return images


# class -> for each tensor of its encode_prompt: number of the condition, and name of the entry
ENCODINGS = {
    "FluxPipeline": [(0, "context"), (0, "pooled")],
    "PixArtAlphaPipeline": [
        (0, "context"),
        (0, "context_mask"),
        (1, "context"),
        (1, "context_mask"),
    ],
    "StableDiffusion3Pipeline": [(0, "context"), (1, "context"), (0, "pooled"), (1, "pooled")],
}


def _encodings(run: Run, told: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    places = ENCODINGS.get(run.parts.name, [])
    return {
        f"prompt_encoding_{i}": told[number][name]
        for i, (number, name) in enumerate(places)
        if number < len(told)
    }


def _unconditional(run: Run, recorder: Recorder) -> jax.Array:
    return make_images(run, recorder, run.system.prepare(run.call.get("class_labels")))


def _dit(run: Run, recorder: Recorder) -> jax.Array:
    labels = run.call["class_labels"]
    return make_images(run, recorder, run.system.prepare(labels, [None] * len(labels)))


def prompts_of(run: Run, **options: Any) -> list:
    """The conditions of a run: its prompts, and the negative ones where it is guided."""
    height, width = run.size
    prompts, negative = run.call["prompt"], run.call.get("negative_prompt")
    if isinstance(prompts, str):
        count = run.call.get("num_images_per_prompt", 1)
        prompts, negative = [prompts] * count, None if negative is None else [negative] * count
    if run.call.get("guidance_scale", 1.0) > 1.0:
        negative = negative or [None] * len(prompts)
    else:
        negative = None
    return run.system.prepare(prompts, negative, height=height, width=width, **options)


def _texts(run: Run, recorder: Recorder) -> jax.Array:
    length = {"max_length": run.call["max_sequence_length"]}
    return make_images(run, recorder, prompts_of(run, **length))


def _flux(run: Run, recorder: Recorder) -> jax.Array:
    conditions = run.system.prepare(
        run.call["prompt"],
        height=run.size[0],
        width=run.size[1],
        embedded_guidance=run.call["guidance_scale"],
        max_length=run.call["max_sequence_length"],
    )
    # the reference keeps its latents as tokens
    return make_images(run, recorder, conditions, layout=pack)


# class in case.json -> function from a run to its images
TASKS: dict[str, Callable[[Run, Recorder], jax.Array]] = {
    "ConsistencyModelPipeline": _unconditional,
    "DDIMPipeline": _unconditional,
    "DDPMPipeline": _unconditional,
    "DiTPipeline": _dit,
    "FluxPipeline": _flux,
    "LDMPipeline": _unconditional,
    "PixArtAlphaPipeline": _texts,
    "StableDiffusion3Pipeline": _texts,
}

# class -> why it cannot be followed
UNSUPPORTED = {
    "AnimateDiffPipeline": "there is no motion UNet",
    "AudioLDMPipeline": "there is no vocoder",
    "DanceDiffusionPipeline": "the UNet of waveforms is not read",
    "TextToVideoSDPipeline": "there is no UNet3DConditionModel",
}
