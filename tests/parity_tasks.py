"""What the pipelines of the reference do, class by class, as runs of systems."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from parity_runs import Recorder, Run, channels_first, image_of, make_images, prompts_of
from parity_unclip import run_unclip

from diffjax.core.sampling import Solver
from diffjax.networks.flux import pack
from diffjax.pipelines import (
    beside,
    control_times,
    img2img,
    inpaint,
    make_plan,
    make_system,
    perturbed_attention,
    steered,
    walk,
    with_control,
    with_hole,
    with_original,
    with_small,
    without_attention_maps,
)
from diffjax.transforms import composed


def _unconditional(run: Run, recorder: Recorder) -> jax.Array:
    return make_images(run, recorder, run.system.prepare(run.call.get("class_labels")))


def _dit(run: Run, recorder: Recorder) -> jax.Array:
    labels = run.call["class_labels"]
    return make_images(run, recorder, run.system.prepare(labels, [None] * len(labels)))


def _sound(run: Run, recorder: Recorder) -> jax.Array:
    silent = run.call.get("prompt") is None
    return make_images(run, recorder, run.system.prepare() if silent else prompts_of(run))


def _text_to_video(run: Run, recorder: Recorder) -> jax.Array:
    # the scheduler of the reference is shown each frame by itself
    frames = lambda x: channels_first(x.reshape(-1, *x.shape[2:]))
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
    "UnCLIPPipeline": run_unclip,
}
