"""Reference cases of kind "pipeline": a saved system, prompts, and the images that it made.

Each run of a case is compiled whole. Noise is not drawn but replayed, and the latents behind every
step are compared as well as the images.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from parity_cases import Case, Comparison, KnownDifference, Unsupported, compare, first, last
from parity_schedulers import REFERENCES, Reference

from diffjax.core.sampling import Solver
from diffjax.networks.flux import pack
from diffjax.pipelines import (
    SYSTEMS,
    System,
    beside,
    control_times,
    img2img,
    inpaint,
    make_plan,
    make_system,
    perturbed_attention,
    steered,
    txt2img,
    walk,
    with_control,
    with_hole,
    with_original,
    with_small,
    without_attention_maps,
)
from diffjax.pipelines.plan import Plan
from diffjax.pipelines.unclip import enlarged, unclip, with_embedding
from diffjax.pretrained import Components, UnsupportedError, load_components
from diffjax.pretrained import scheduler_tables as tables
from diffjax.pretrained.lora import load_lora, merge_lora
from diffjax.pretrained.schedulers import Scheduler, read_scheduler
from diffjax.transforms import classifier_free, composed, rescaled

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


def check_pipeline(case: Case) -> list[Comparison]:
    """Make the images of every run of a case and compare them, and the latents on their way."""
    name = case.settings["classes"][0]
    if name not in TASKS:
        raise Unsupported(f"there is no system for the class {name}")
    found, differences = [], []
    try:
        parts = _parts(str(case.checkpoint))
        for run_name, settings in case.settings["runs"].items():
            recorder = Recorder()
            run = _run(case, settings, _with_lora(case, settings["call"], parts))
            found += _check_run(run, TASKS[name], run_name, recorder)
            differences += [f"{run_name}: {recorder.differs}"] if recorder.differs else []
    except UnsupportedError as error:
        raise Unsupported(str(error)) from error
    if differences and all(each.error <= each.tolerance for each in found):
        raise KnownDifference("; ".join(differences))
    return found


@functools.lru_cache(maxsize=2)
def _parts(checkpoint: str) -> Components:
    return load_components(checkpoint)


def _with_lora(case: Case, call: dict[str, Any], parts: Components) -> Components:
    """The parts with the LoRA of the case merged into them, where it has one."""
    if "lora" not in case.settings:
        return parts
    lora = load_lora(case.folder / case.settings["lora"]["file"], parts.models)
    scale = call.get("cross_attention_kwargs", {}).get("scale", 1.0)
    params = merge_lora(parts.params, lora, scale)
    models = {name: model._replace(params=params[name]) for name, model in parts.models.items()}
    return parts._replace(models=models)


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
    # unCLIP is three systems
    builder = make_system if parts.name in SYSTEMS else lambda parts: unclip(parts).decoder
    system = builder(parts, **_options(settings["call"]))
    if settings["call"].get("output_type") == "latent":
        system = system._replace(decode=lambda params, latents: latents)
    return Run(
        call=settings["call"],
        inputs=mine(case.inputs),
        outputs=mine(case.outputs),
        parts=parts,
        system=system,
        scheduler=parts.schedulers.get("scheduler", next(iter(parts.schedulers.values()))),
        tolerance=case.settings["tolerance"]["rtol"],
    )


def _options(call: dict[str, Any]) -> dict[str, Any]:
    names = {"clip_skip": "skip", "num_frames": "num_frames"}
    return {ours: call[name] for name, ours in names.items() if name in call}


def _check_run(run: Run, task: Callable, name: str, recorder: "Recorder") -> list[Comparison]:
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
    """Images as the reference shows them; latents and sounds as they are."""
    if run.call.get("output_type") == "latent":
        return first(images)
    if images.ndim == 3:
        sounds = np.clip(_channels_first(images)[..., : run.size[0]], -1, 1)
        return sounds.reshape(run.outputs["result"].shape)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)


def _channels_first(x: jax.Array) -> jax.Array:
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
    layout: Callable = _channels_first,
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


def _unconditional(run: Run, recorder: Recorder) -> jax.Array:
    return make_images(run, recorder, run.system.prepare(run.call.get("class_labels")))


def _dit(run: Run, recorder: Recorder) -> jax.Array:
    labels = run.call["class_labels"]
    return make_images(run, recorder, run.system.prepare(labels, [None] * len(labels)))


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


def _sound(run: Run, recorder: Recorder) -> jax.Array:
    silent = run.call.get("prompt") is None
    return make_images(run, recorder, run.system.prepare() if silent else prompts_of(run))


def _text_to_video(run: Run, recorder: Recorder) -> jax.Array:
    # the scheduler of the reference is shown each frame by itself
    frames = lambda x: _channels_first(x.reshape(-1, *x.shape[2:]))
    return make_images(run, recorder, prompts_of(run), layout=frames)


def _latent_diffusion(run: Run, recorder: Recorder) -> jax.Array:
    # the reference divides by 8, whatever the autoencoder does
    height, width = run.outputs["result"].shape[1:3]
    run = run._replace(call={**run.call, "height": height, "width": width})
    return make_images(run, recorder, prompts_of(run))


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


def _stable_diffusion(run: Run, recorder: Recorder) -> jax.Array:
    return make_images(*_skipping(run, recorder, prompts_of(run)))


def _skipping(run: Run, recorder: Recorder, conditions: list) -> tuple[Run, Recorder, list]:
    """The reference leaves layers of CLIP out for the prompts alone, not for negative ones."""
    if "clip_skip" not in run.call or len(conditions) == 1:
        return run, recorder, conditions
    whole = make_system(run.parts)

    def condition(params, inputs):
        inputs = dict(inputs)
        skips = inputs.pop("skips")[:, None, None]
        told = run.system.condition(params, inputs)
        context = whole.condition(params, inputs)["context"]
        return {**told, "context": jnp.where(skips > 0, told["context"], context)}

    count = len(run.outputs["result"])
    marked = [{**each, "skips": np.full(count, float(i == 0))} for i, each in enumerate(conditions)]
    recorder.differ("clip-skip-in-negatives")
    return run._replace(system=run.system._replace(condition=condition)), recorder, marked


def _sdxl(run: Run, recorder: Recorder) -> jax.Array:
    names = {
        "prompt_2": "prompts_2",
        "original_size": "original_size",
        "crops_coords_top_left": "crop",
        "target_size": "target_size",
    }
    told = {ours: run.call[name] for name, ours in names.items() if name in run.call}
    sizes = ("original_size", "crops_coords_top_left", "target_size")
    if "negative_original_size" in run.call:
        told["negative_sizes"] = [run.call[f"negative_{name}"] for name in sizes]
    part = (0.0, run.call.get("denoising_end", 1.0))
    conditions = prompts_of(run, **told)
    if "negative_sizes" in told and len(run.call["prompt"]) > 1:
        # the reference repeats the pair of both, where each of the two should be repeated
        count = len(conditions[0]["time_ids"])
        rows = np.tile([each["time_ids"][0] for each in conditions[::-1]], (count, 1))
        halves = rows[count:], rows[:count]
        conditions = [{**each, "time_ids": half} for each, half in zip(conditions, halves)]
        recorder.differ("sizes-of-negatives")
    return make_images(*_skipping(run, recorder, conditions), part=part)


def _distilled(run: Run, recorder: Recorder) -> jax.Array:
    height, width = run.size
    scale = {"embedded_guidance": run.call["guidance_scale"]}
    conditions = run.system.prepare(run.call["prompt"], height=height, width=width, **scale)
    return make_images(run, recorder, conditions)


def _img2img(run: Run, recorder: Recorder) -> jax.Array:
    names = ("aesthetic_score", "negative_aesthetic_score")
    scores = {name: run.call[name] for name in names if name in run.call}
    conditions = prompts_of(run, **scores)
    if "denoising_start" in run.call:
        return _refine(run, recorder, conditions)
    if run.scheduler.name == "PNDMScheduler":
        return _pndm_img2img(run, recorder, conditions)
    change = partial(img2img, images=2.0 * image_of(run) - 1.0)
    return make_images(run, recorder, conditions, change, strength=run.call["strength"])


def _refine(run: Run, recorder: Recorder, conditions: list) -> jax.Array:
    """Latents of another run are taken further, without noise in front."""

    def task(system, params, keys, conditions, *, normal, levels, **options):
        # the scheduler of the run keeps x / alpha
        x = levels.alpha[0] * image_of(run)
        return system.decode(
            params, walk(system, params, keys, conditions, x, levels=levels, **options)
        )

    return make_images(run, recorder, conditions, task, part=(run.call["denoising_start"], 1.0))


def _pndm_img2img(run: Run, recorder: Recorder, conditions: list) -> jax.Array:
    """The reference's walk, for it skips a level: x at the second is told that it is at the third.

    Its list of times has the second one twice, and is cut without regard to that.
    """
    steps = run.call["num_inference_steps"]
    walked = int(steps * run.call["strength"])
    whole = make_plan(run.scheduler, steps)
    at = lambda i: jax.tree.map(lambda leaf: leaf[i], whole.levels)
    first = steps - walked - 1
    starts = jnp.array([first, *range(first + 2, steps)])
    ends = jnp.array([first + 1, *range(first + 3, steps + 1)])

    def step(keys, x, state, denoise, current, next_):
        inner, i = state
        x, inner = whole.solver.step(keys, x, inner, denoise, at(starts[i]), at(ends[i]))
        return x, (inner, i + 1)

    def task(system, params, keys, conditions, *, solver, levels, **options):
        skipping = Solver(lambda x: (whole.solver.init(x), 0), step)
        levels = jax.tree.map(lambda leaf: leaf[first:][: walked + 1], whole.levels)
        return img2img(
            system,
            params,
            keys,
            conditions,
            2.0 * image_of(run) - 1.0,
            solver=skipping,
            levels=levels,
            **options,
        )

    recorder.differ("pndm-image-to-image")
    return make_images(run, recorder, conditions, task)


def _inpaint(run: Run, recorder: Recorder) -> jax.Array:
    image, mask = 2.0 * image_of(run) - 1.0, image_of(run, "mask_image")
    strength, drawn = run.call["strength"], run.draws(-1)
    if run.parts.models["unet"].config.in_channels == 9:
        hole = lambda params, keys, conditions, normal: with_hole(
            run.system, params, keys, conditions, image, mask, normal=normal
        )
        # noise first there, the known part first here
        return make_images(run, recorder, prompts_of(run), told=hole, draws=tuple(drawn[::-1]))
    fill = partial(inpaint, images=image, mask=mask, from_noise=strength == 1.0)
    return make_images(run, recorder, prompts_of(run), fill, strength=strength)


def _variation(run: Run, recorder: Recorder) -> jax.Array:
    # the reference is given what the image encoder takes
    pixels = image_of(run)
    guided = run.call["guidance_scale"] > 1.0
    kept = [np.full(len(pixels), each, np.float32) for each in ([1.0, 0.0] if guided else [1.0])]
    return make_images(run, recorder, [{"pixels": pixels, "kept": each} for each in kept])


def _perturbed(run: Run, recorder: Recorder) -> jax.Array:
    system = beside(run.system, make_system(without_attention_maps(run.parts)))
    guidance = perturbed_attention(run.call["guidance_scale"], run.call["pag_scale"])
    run = run._replace(system=system)
    return make_images(run, recorder, prompts_of(run), guidance=guidance)


def _instruct(run: Run, recorder: Recorder) -> jax.Array:
    text, image = run.call["guidance_scale"], run.call["image_guidance_scale"]
    original = lambda params, keys, conditions, normal: with_original(
        run.system, params, conditions, 2.0 * image_of(run) - 1.0
    )
    guidance = lambda both, picture, none: composed(
        none, [both, picture], guidance_scales=[text, image - text]
    )
    return make_images(run, recorder, prompts_of(run), told=original, guidance=guidance)


def _enlarge(run: Run, recorder: Recorder) -> jax.Array:
    """Super-resolution by four through latents, or on pixels to the size of the call."""
    latent = "low_res_scheduler" in run.parts.schedulers
    name = "low_res_scheduler" if latent else "image_noising_scheduler"
    pictures, amount = image_of(run), run.call["noise_level"]
    height, width = run.size
    if latent:
        factor = run.system.size[0] // run.parts.models["unet"].config.sample_size
        height, width = (side * factor for side in pictures.shape[1:3])
    small = lambda params, keys, conditions, normal: with_small(
        run.system,
        keys,
        conditions,
        pictures,
        noise_level=amount,
        level=run.parts.schedulers[name].schedule(amount),
        height=height,
        width=width,
        normal=normal,
    )
    drawn = run.draws(-1)
    run = run._replace(call={**run.call, "height": height, "width": width})
    # on pixels, the reference draws the noise of the image first
    draws = tuple(drawn if latent else drawn[::-1])
    return make_images(run, recorder, prompts_of(run), told=small, draws=draws)


def _steered(run: Run, recorder: Recorder) -> jax.Array:
    name = "controlnet" if "controlnet" in run.parts.models else "adapter"
    guess = run.call.get("guess_mode", False)
    system = steered(run.system, {name: run.parts.models[name]}, guess=guess)
    conditions = prompts_of(run)
    times = (jnp.inf, -jnp.inf)
    if "control_guidance_start" in run.call:
        levels = run.scheduler.levels(run.call["num_inference_steps"])
        share = run.call["control_guidance_start"], run.call["control_guidance_end"]
        times = control_times(levels, *share)
    scales = [1.0, 0.0 if guess else 1.0][: len(conditions)]
    conditions = with_control(conditions, name, image_of(run), scales=scales, times=times)
    return make_images(run._replace(system=system), recorder, conditions)


def _rounded_level(current, next_):
    """A level as UnCLIPScheduler's float32 subtractions leave it."""
    beta = 1.0 - (current.alpha / next_.alpha) ** 2
    return current._replace(alpha=next_.alpha * jnp.sqrt(1.0 - beta))


def _rounded_weight(scheduler: Scheduler) -> np.float32:
    """The weight of x0 in its last step, one but for rounding."""
    beta = tables.betas(scheduler.config)[0]
    return beta / (np.float32(1.0) - (np.float32(1.0) - beta))


def _unclip(run: Run, recorder: Recorder) -> jax.Array:
    """Prior, decoder and enlarger, each recorded by itself and compared under its scheduler."""
    stages = unclip(run.parts)
    drawn = iter(run.draws_in_order())
    prompts = run.call["prompt"]
    if stages.prior is None:
        raise Unsupported("there is no prior in the folder")
    conditions = stages.prior.prepare(prompts, [None] * len(prompts), height=1, width=1)
    scales = {
        "prior": run.call.get("prior_guidance_scale", 4.0),
        "decoder": run.call.get("decoder_guidance_scale", 8.0),
    }

    def stage(name: str, count: int, conditions: list) -> jax.Array:
        system = getattr(stages, "enlarger" if name == "super_res" else name)
        scheduler = run.parts.schedulers[f"{name}_scheduler"]
        plan = make_plan(scheduler, count)
        # the last step draws nothing
        start, *noises = [next(drawn) for _ in range(count)]
        noises = jnp.stack([*noises, np.zeros_like(start)])
        held: list[Any] = []
        solver = scheduler.solver(plan.levels, normal=lambda *_: noises[held[-1]])
        kept: list[np.ndarray] = []

        weight = _rounded_weight(scheduler)

        def step(keys, x, i, denoise, current, next_):
            held.append(i)
            told = lambda x, level: denoise(x, current)
            x, _ = solver.step(keys, x, (), told, _rounded_level(current, next_), next_)
            x = jnp.where(i == count - 1, weight * x, x)
            io_callback(lambda x: kept.append(np.asarray(x)), None, x, ordered=True)
            return x, i + 1

        images = jax.jit(
            lambda params, keys, conditions: txt2img(
                system,
                params,
                keys,
                conditions,
                solver=Solver(lambda x: 0, step),
                levels=plan.levels,
                height=system.size[0],
                width=system.size[1],
                guidance=(
                    partial(classifier_free, guidance_scale=scales[name])
                    if len(conditions) > 1
                    else None
                ),
                normal=replay(start),
            )
        )(run.parts.params, keys_of(run), conditions)
        jax.effects_barrier()
        theirs = run.outputs[f"{name}_scheduler_step_samples_out"]
        layout = first if theirs.ndim == 5 else np.asarray
        recorder.encodings.update({f"{name} step {i}": layout(x) for i, x in enumerate(kept)})
        run.outputs.update({f"{name} step {i}": x for i, x in enumerate(theirs)})
        return images

    recorder.differ("unclip-cancellation")
    embedding = stage("prior", run.call["prior_num_inference_steps"], conditions)
    told = with_embedding(conditions, embedding)
    small = stage("decoder", run.call["decoder_num_inference_steps"], told)
    large = enlarged(small, *stages.enlarger.size)
    return stage("super_res", run.call["super_res_num_inference_steps"], large)


# class in case.json -> function from a run to its images
TASKS: dict[str, Callable[[Run, Recorder], jax.Array]] = {
    "AnimateDiffPipeline": _stable_diffusion,
    "AudioLDMPipeline": _sound,
    "ConsistencyModelPipeline": _unconditional,
    "DDIMPipeline": _unconditional,
    "DDPMPipeline": _unconditional,
    "DanceDiffusionPipeline": _sound,
    "DiTPipeline": _dit,
    "FluxPipeline": _flux,
    "IFPipeline": _stable_diffusion,
    "IFSuperResolutionPipeline": _enlarge,
    "LDMPipeline": _unconditional,
    "LDMTextToImagePipeline": _latent_diffusion,
    "LatentConsistencyModelPipeline": _distilled,
    "PixArtAlphaPipeline": _texts,
    "StableDiffusion3Pipeline": _texts,
    "StableDiffusionAdapterPipeline": _steered,
    "StableDiffusionControlNetPipeline": _steered,
    "StableDiffusionImageVariationPipeline": _variation,
    "StableDiffusionImg2ImgPipeline": _img2img,
    "StableDiffusionInpaintPipeline": _inpaint,
    "StableDiffusionInstructPix2PixPipeline": _instruct,
    "StableDiffusionPAGPipeline": _perturbed,
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionUpscalePipeline": _enlarge,
    "StableDiffusionXLImg2ImgPipeline": _img2img,
    "StableDiffusionXLInpaintPipeline": _inpaint,
    "StableDiffusionXLPipeline": _sdxl,
    "TextToVideoSDPipeline": _text_to_video,
    "UnCLIPPipeline": _unclip,
}
