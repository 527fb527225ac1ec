"""Runs of whole systems: compiled whole, their noise replayed, what they pass through recorded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from parity_cases import last
from parity_schedulers import REFERENCES, Reference

from diffjax.core.sampling import Solver
from diffjax.pipelines import System, make_plan, txt2img
from diffjax.pipelines.plan import Plan
from diffjax.pretrained import Components
from diffjax.pretrained.schedulers import Scheduler
from diffjax.transforms import classifier_free, rescaled

# the sections of docs/diffusers_differences.md on what whole systems do otherwise
DIFFERENCES = {
    "clip-skip-in-negatives",
    "ipndm-first-step",
    "pndm-image-to-image",
    "sizes-of-negatives",
    "unclip-cancellation",
}


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
        if "audio_length_in_s" in self.call:
            return round(self.call["audio_length_in_s"] * (self.system.rate or 0)), 1
        height, width = self.system.size
        return self.call.get("height", height), self.call.get("width", width)

    def draws(self, step: int) -> list[np.ndarray]:
        """What was drawn in a step, -1 for in front of all; channels last."""
        tags = self.inputs.get("noise_tag", np.array([], int))
        return [noise for noise, tag in zip(self.draws_in_order(), tags) if tag == step]

    def draws_in_order(self) -> list[np.ndarray]:
        """All that was drawn."""
        noises = self.inputs.get("noise")
        if noises is None:
            noises = [self.inputs[name] for name in sorted(self.inputs) if "noise_0" in name]
        return [np.moveaxis(noise, 1, -1) if noise.ndim > 2 else noise for noise in noises]


def channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


class Recorder:
    """Keeps the latents behind each step, in the reference's units, and what prompts became.

    `differs` says what in a run follows the reference where diffjax does not.
    """

    def __init__(self):
        self.latents: list[np.ndarray] = []
        self.encodings: dict[str, np.ndarray] = {}
        self.differs = ""

    def differ(self, name: str) -> None:
        """Say that a run follows the reference where diffjax does not."""
        if name not in DIFFERENCES:
            raise ValueError(f"{name} is none of {', '.join(sorted(DIFFERENCES))}")
        self.differs = f"{name}, see docs/diffusers_differences.md"

    def solver(self, run: Run, make: Callable[..., Plan], layout=channels_first) -> Plan:
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
        silent = run.scheduler.name == "IPNDMScheduler"
        if silent:
            self.differ("ipndm-first-step")
        keep = lambda x: self.latents.append(np.asarray(x))

        def step(keys, x, state, denoise, current, next_):
            now.append(state[1])
            # what IPNDM's scheduler does not use is zero
            used = lambda x, level: jnp.where(level.alpha > 0, denoise(x, level), 0.0)
            x, inner = plan.solver.step(
                keys, x, state[0], used if silent else denoise, current, next_
            )
            io_callback(keep, None, layout(x * unit(next_)), ordered=True)
            return x, (inner, state[1] + 1)

        return plan._replace(solver=Solver(lambda x: (plan.solver.init(x), 0), step))


def plan_of(run: Run, recorder: Recorder, *, layout=channels_first, **options: Any) -> Plan:
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


def keys_of(run: Run) -> jax.Array:
    return jax.random.split(jax.random.key(0), len(run.outputs["result"]))


def make_images(
    run: Run,
    recorder: Recorder,
    conditions: list,
    task: Callable = txt2img,
    *,
    draws: tuple | None = None,
    told: Callable = lambda params, keys, conditions, normal: conditions,
    guidance: Callable | None = None,
    layout: Callable = channels_first,
    **options: Any,
) -> jax.Array:
    """A task under the conditions of a run, compiled whole.

    Args:
      task: (system, params, keys, conditions, **options) -> images.
      draws: what is drawn in front of the steps, in our order; by default in the reference's.
      told: adds what else the network is told to the conditions.
      guidance: in the place of the classifier-free one of the call.
      layout: of the latents that are compared with the reference's.
      options: of the task, and of the plan.
    """
    shares = {name: options.pop(name) for name in ("strength", "part") if name in options}
    plan = plan_of(run, recorder, layout=layout, **shares)
    draws = tuple(run.draws(-1)) if draws is None else draws
    if task is txt2img:
        height, width = run.size
        options = {"height": height, "width": width, "initial_scale": plan.initial_scale, **options}

    @jax.jit
    def generate(params, keys, conditions):
        normal = replay(*draws)
        encoded = [run.system.condition(params, each) for each in conditions]
        conditions = told(params, keys, conditions, normal)
        images = task(
            run.system,
            params,
            keys,
            conditions,
            solver=plan.solver,
            levels=plan.levels,
            guidance=guidance or (guidance_of(run) if len(conditions) > 1 else None),
            normal=normal,
            **options,
        )
        return images, encoded

    images, encoded = generate(run.parts.params, keys_of(run), conditions)
    recorder.encodings.update(_encodings(run, encoded))
    return images


# class -> for each tensor of its encode_prompt: the conditions that it joins, and the entry's name
_BOTH = [((0,), "context"), ((1,), "context")]
_WITH_POOLED = [*_BOTH, ((0,), "pooled"), ((1,), "pooled")]
ENCODINGS = {
    "AnimateDiffPipeline": _BOTH,
    "AudioLDMPipeline": [((1, 0), "labels")],
    "FluxPipeline": [((0,), "context"), ((0,), "pooled")],
    "IFPipeline": _BOTH,
    "IFSuperResolutionPipeline": _BOTH,
    "LatentConsistencyModelPipeline": _BOTH,
    "PixArtAlphaPipeline": [
        ((0,), "context"),
        ((0,), "context_mask"),
        ((1,), "context"),
        ((1,), "context_mask"),
    ],
    "StableDiffusion3Pipeline": _WITH_POOLED,
    "StableDiffusionAdapterPipeline": _BOTH,
    "StableDiffusionControlNetPipeline": _BOTH,
    "StableDiffusionInpaintPipeline": _BOTH,
    "StableDiffusionPAGPipeline": _BOTH,
    "StableDiffusionPipeline": _BOTH,
    "StableDiffusionUpscalePipeline": _BOTH,
    "StableDiffusionXLImg2ImgPipeline": _WITH_POOLED,
    "StableDiffusionXLPipeline": _WITH_POOLED,
    "TextToVideoSDPipeline": _BOTH,
}


def _encodings(run: Run, told: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    places = ENCODINGS.get(run.parts.name, [])
    return {
        f"prompt_encoding_{i}": np.concatenate([told[number][name] for number in numbers])
        for i, (numbers, name) in enumerate(places)
        if max(numbers) < len(told)
    }


def image_of(run: Run, name: str = "image") -> jax.Array:
    """A picture of the call in [0, 1], channels last."""
    return jnp.asarray(last(run.inputs[name]))


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
