"""Videos and sounds, with a saved model of diffusers' format; pictures are text_to_image.py's.

    python experiments/generate.py --model FOLDER --prompt "a cat walks" --num-frames 16
    python experiments/generate.py --model FOLDER --motion-adapter ADAPTER --prompt "a cat walks"
    python experiments/generate.py --model FOLDER --prompt "rain on a roof" --seconds 5

A model of videos writes GIF files, one of sounds WAV files, with prompt, seed and settings in them.
A seed gives the same, whatever the batch size and the number of devices.
"""

import dataclasses
import inspect
import json
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import saved_models
import text_to_image
from cli import parse_args, run_script
from diffjax import pipelines
from diffjax.pipelines import System
from diffjax.pretrained import Components, find_folder
from diffjax.pretrained.motion_adapter import load_motion_adapter
from diffjax.training import make_mesh, replicated
from pretrained_guidance import GuidanceArgs, guided_system, make_guidance
from saved_models import load_parts
from stages import OneProgram, Work
from text_to_image import keep_compiled, told


@dataclass(frozen=True)
class Args(GuidanceArgs):
    """Videos and sounds, with a saved model of diffusers' format."""

    model: str
    """a folder with model_index.json, or the name of a repository of the Hugging Face hub"""
    prompt: str = ""
    """what to show, or what is to be heard"""
    negative_prompt: str | None = None
    """what not"""
    seed: int = 0
    """video or sound i of a seed is always the same"""
    num_steps: int = 30
    """steps from noise to the result"""
    solver: str | None = None
    """as of text_to_image.py: by default the model's own"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of weights and computation"""
    num_frames: int = 16
    """of a video"""
    height: int | None = None
    """of a video; by default the model's own"""
    width: int | None = None
    """of a video; by default the model's own"""
    seconds: float | None = None
    """of a sound; by default the model's own"""
    count: int = 1
    """how many"""
    batch_size: int = 1
    """computed at once"""
    motion_adapter: str | None = None
    """folder or repository of AnimateDiff's layers, for videos by a Stable Diffusion"""
    variant: str | None = None
    """which copy of the weights, such as fp16"""
    output: Path = Path("generated")
    """folder of the files"""


def shared_args(args: Any, **more: Any) -> text_to_image.Args:
    """What the pieces of text_to_image.py are told: settings that both scripts have, and more."""
    known = {field.name for field in dataclasses.fields(text_to_image.Args)}
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    shared = {name: value for name, value in given.items() if name in known}
    return text_to_image.Args(**{**shared, **more})


def make_system(args: Args, parts: Components) -> System:
    """The system of a folder, refused if it makes pictures."""
    of_frames = (
        "num_frames" in inspect.signature(pipelines.SYSTEMS.get(parts.name, make_system)).parameters
    )
    options = {"num_frames": args.num_frames} if of_frames else {}
    system = pipelines.make_system(parts, **options)
    if system.rate is None:
        raise ValueError(
            f"{args.model} makes pictures; use experiments/text_to_image.py, or --motion-adapter"
        )
    return system


def choose_size(args: Args, system: System) -> tuple[int, int]:
    """Height and width of the frames, or number of samples and 1."""
    height, width = system.size
    if width > 1:
        return args.height or height, args.width or width
    return height if args.seconds is None else round(args.seconds * (system.rate or 0)), 1


def save_video(path: Path, video: np.ndarray, rate: float, settings: str) -> None:
    """Write frames [F, H, W, 3] in [-1, 1] as a GIF that goes on forever."""
    frames = np.round(np.clip(video * 127.5 + 127.5, 0, 255)).astype(np.uint8)
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        comment=settings.encode(),
    )


def save_sound(path: Path, sound: np.ndarray, rate: float, settings: str) -> None:
    """Write samples [L, channels] in [-1, 1] as a WAV of 16 bits, with a comment in it."""
    samples = np.round(np.clip(sound, -1, 1) * 32767).astype("<i2")
    channels, text = samples.shape[1], settings.encode() + b"\0"
    form = struct.pack(
        "<HHIIHH", 1, channels, round(rate), round(rate) * channels * 2, channels * 2, 16
    )
    info = b"INFO" + _chunk(b"ICMT", text)
    parts = _chunk(b"fmt ", form), _chunk(b"LIST", info), _chunk(b"data", samples.tobytes())
    path.write_bytes(_chunk(b"RIFF", b"WAVE" + b"".join(parts)))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def make_work(args: Args, shared: text_to_image.Args, parts: Components, system: System) -> Work:
    """What is compiled and run: the sampler as one program, and its inputs."""
    size, count = choose_size(args, system), text_to_image.count_at_once(shared)
    scheduler = saved_models.choose_scheduler(shared, parts.schedulers["scheduler"])
    plan = saved_models.make_steps(shared, scheduler, system, size)
    conditions = saved_models.make_conditions(shared, system, size, count)
    guidance = make_guidance(shared, system, len(conditions))

    def whole(params, keys, conditions, mix, levels):
        return pipelines.txt2img(
            system,
            params,
            keys,
            conditions,
            solver=plan.solver,
            levels=levels,
            height=size[0],
            width=size[1],
            guidance=guidance,
            initial_scale=plan.initial_scale,
        )

    levels = jax.device_put(plan.levels, replicated(make_mesh()))
    program = OneProgram(whole, levels, len(levels.t) - 1)
    return Work(program, parts.params, conditions, size)


def save_results(args: Args, results: np.ndarray, first: int, length: int, rate: float) -> None:
    """Write videos, or sounds of so many samples, that are numbered from the first."""
    for i, result in enumerate(results[: args.count - first], start=first):
        settings = json.dumps({**dataclasses.asdict(args), "index": i}, default=str)
        name = args.output / f"{args.seed:06d}_{i:04d}"
        if result.ndim == 4:
            save_video(name.with_suffix(".gif"), result, rate, settings)
        else:
            save_sound(name.with_suffix(".wav"), result[:length], rate, settings)


def main() -> None:
    args = parse_args(Args, description=__doc__)
    shared = shared_args(args, num_images=args.count)
    text_to_image.check_args(shared)
    keep_compiled()
    folder = find_folder(args.model, variant=args.variant)
    with told("loading"):
        parts = load_parts(shared, folder)
        if args.motion_adapter is not None:
            parts = load_motion_adapter(find_folder(args.motion_adapter), parts)
    system = guided_system(shared, parts, partial(make_system, args))
    work = make_work(args, shared, parts, system)
    count = text_to_image.count_at_once(shared)
    inputs = text_to_image.place_inputs(shared, work.params, work.conditions, count)
    with told("compiling"):
        work.program.compile(*inputs(0))
    batches = range(0, args.count, count)
    steps = len(batches) * work.program.num_steps
    with tqdm(total=steps, desc="sampling", unit="step") as bar:
        for first in batches:
            results = work.program.run(*inputs(first), bar=bar)
            save_results(args, results, first, work.size[0], system.rate or 0.0)
    print(f"Wrote {args.count} files to {args.output}")


if __name__ == "__main__":
    run_script(main)
