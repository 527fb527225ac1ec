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

import text_to_image
from cli import parse_args, run_script
from diffjax import pipelines
from diffjax.core.keys import sample_keys
from diffjax.pipelines import System
from diffjax.pretrained import Components, find_folder
from diffjax.pretrained.motion_adapter import load_motion_adapter, on_linear_betas
from diffjax.training import batch_sharding, make_mesh, replicated
from text_to_image import keep_compiled, load_parts, told


@dataclass(frozen=True)
class Args:
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
    guidance_scale: float = 7.0
    """classifier-free guidance; 1 is off, and sounds are best near 2.5"""
    solver: str | None = None
    """as of text_to_image.py: by default the model's own"""
    dtype: Literal["float32", "bfloat16"] = "float32"
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
    motion_adapter: Path | None = None
    """folder of AnimateDiff's layers, with which a Stable Diffusion makes videos"""
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


def make_conditions(args: Args, system: System, size: tuple[int, int], count: int) -> list:
    """What the network is told, for `count` results."""
    parameters = inspect.signature(system.prepare).parameters
    if not args.prompt and parameters["prompts"].default is None:
        return system.prepare()
    options = {"emphasis": True, "chunks": None} if "chunks" in parameters else {}
    negative = None if args.guidance_scale == 1.0 else [args.negative_prompt] * count
    return system.prepare([args.prompt] * count, negative, height=size[0], width=size[1], **options)


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


def main() -> None:
    args = parse_args(Args, description=__doc__)
    shared = shared_args(args, num_images=args.count)
    text_to_image.check_args(shared)
    keep_compiled()
    folder, mesh = find_folder(args.model), make_mesh()
    with told("loading"):
        parts = load_parts(shared, folder)
        if args.motion_adapter is not None:
            parts = load_motion_adapter(args.motion_adapter, parts)
    system = make_system(args, parts)
    size = choose_size(args, system)
    scheduler = text_to_image.choose_scheduler(shared, folder, parts)
    scheduler = scheduler if args.motion_adapter is None else on_linear_betas(scheduler)
    plan = text_to_image.make_steps(shared, scheduler, system, size)

    # every batch is filled up to a multiple of the devices
    devices = mesh.shape["data"]
    count = -(-min(args.batch_size, args.count) // devices) * devices
    place = partial(jax.device_put, device=batch_sharding(mesh))
    conditions = place(make_conditions(args, system, size, count))
    params, levels = jax.device_put((parts.params, plan.levels), replicated(mesh))
    keys = lambda first: place(sample_keys(jax.random.key(args.seed), first + np.arange(count)))
    run = jax.jit(
        partial(
            pipelines.txt2img,
            system,
            solver=plan.solver,
            height=size[0],
            width=size[1],
            guidance=text_to_image.make_guidance(shared, system) if len(conditions) > 1 else None,
            initial_scale=plan.initial_scale,
        )
    )
    with told("compiling"):
        run = run.lower(params, keys(0), conditions, levels=levels).compile()
    for first in range(0, args.count, count):
        with told(f"sampling {first + 1} of {args.count}"):
            results: Any = np.asarray(run(params, keys(first), conditions, levels=levels))
        for i, result in enumerate(results[: args.count - first], start=first):
            settings = json.dumps({**dataclasses.asdict(args), "index": i}, default=str)
            name = args.output / f"{args.seed:06d}_{i:04d}"
            if result.ndim == 4:
                save_video(name.with_suffix(".gif"), result, system.rate or 0, settings)
            else:
                save_sound(name.with_suffix(".wav"), result[: size[0]], system.rate or 0, settings)
    print(f"Wrote {args.count} files to {args.output}")


if __name__ == "__main__":
    run_script(main)
