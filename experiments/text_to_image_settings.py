"""What text_to_image.py is told: its options, and the settings in a prompt's line."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from choices import build
from cli import prepare_output
from export_sampler import require_flatbuffers
from guidances import GUIDANCES
from pretrained_guidance import GuidanceArgs, check_guidance
from prompt_line import parse_prompt_line


@dataclass(frozen=True)
class Args(GuidanceArgs):
    """Images from prompts, with a saved model of diffusers' format."""

    model: str
    """a folder with model_index.json, or the name of a repository of the Hugging Face hub"""
    prompt: str = ""
    """what to show; (words:1.3) count more, (words:0.7) less; may end with --ar W:H, --seed N,
    --no THINGS, --iw SHARE, --stylize N, --chaos N"""
    negative_prompt: str | None = None
    """what not to show"""
    label: int | None = None
    """a class in the place of a prompt, for models of classes"""
    seed: int = 0
    """image i of a seed is always the same"""
    num_steps: int = 30
    """steps from noise to image"""
    solver: str | None = None
    """by default the model's own; the class of another scheduler (EulerDiscreteScheduler), or a
    solver of diffjax (dpmpp_2m, unipc, ddim(eta=0.5), ...) on the model's own grid"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of weights and computation"""
    height: int | None = None
    """by default the model's own"""
    width: int | None = None
    """by default the model's own"""
    num_images: int = 1
    """how many"""
    batch_size: int = 4
    """images computed at once"""
    image: Path | None = None
    """a picture to start from, or the one to vary"""
    mask: Path | None = None
    """a picture of its size, white where it is to be painted anew"""
    strength: float | None = None
    """how much of it is made anew, in (0, 1]; by default 0.6, and 1 under a mask"""
    chaos: float = 100.0
    """how unlike each other the images are: 100 for noise of their own, 0 for the same"""
    ip_adapter: Path | None = None
    """a file that lets the model see a picture beside the prompt"""
    image_prompt: Path | None = None
    """the picture that it sees, or FILE.npy with its embedding, as for adapters of faces"""
    image_scale: float = 1.0
    """how much that counts"""
    image_encoder: Path | None = None
    """folder of CLIP's image encoder; by default MODEL/image_encoder"""
    controlnet: tuple[str, ...] = ()
    """folders or repositories of ControlNets and T2I-Adapters"""
    control_image: tuple[Path, ...] = ()
    """what they see, a picture for each: edges, poses, depths"""
    controlnet_scale: tuple[float, ...] = (1.0,)
    """how much that counts, one number for all or one for each"""
    refiner: str | None = None
    """folder or repository of a model on the same latents that goes on where this one stops"""
    refiner_start: float = 0.8
    """which part of the way the model itself denoises, in (0, 1)"""
    prior_steps: int = 25
    """of unCLIP's prior, which makes embeddings of prompts"""
    prior_scale: float = 4.0
    """of its classifier-free guidance; 1 is off"""
    enlarger_steps: int = 7
    """of unCLIP's super-resolution"""
    lora: tuple[str, ...] = ()
    """LoRA files, each FILE or FILE:SCALE"""
    embedding: tuple[Path, ...] = ()
    """files of learned words (textual inversion); FILE is <FILE> in prompts, unless it names one"""
    emphasis: bool = True
    """whether parentheses in prompts give weights"""
    variant: str | None = None
    """which copy of the weights, such as fp16"""
    single_file: Path | None = None
    """the weights in one file of the layout of the first releases, in the place of the folder's"""
    tile: int | None = None
    """for large pictures: side of the tiles in which they are decoded, such as 512"""
    safety_model: Path | None = None
    """folder of a safety checker; pictures that it finds unsafe become black"""
    watermark: str | None = None
    """a short text, put into the pictures so that it is not seen; watermark.py reads it"""
    export: Path | None = None
    """FILE.npz: write the sampler, for --batch-size images, in the place of images"""
    output: Path = Path("images")
    """folder of the pictures"""


def merge_line(args: Args) -> Args:
    """The settings of a prompt's line in their places; only the aspect ratio is left for later."""
    line = parse_prompt_line(args.prompt)
    changes: dict[str, Any] = {"prompt": line.prompt}
    if line.seed is not None:
        changes["seed"] = line.seed
    if line.negative is not None:
        changes["negative_prompt"] = line.negative
    if line.image_weight is not None and args.image_prompt is not None:
        changes["image_scale"] = line.image_weight
    elif line.image_weight is not None:
        changes["strength"] = 1.0 - line.image_weight
    if line.chaos is not None:
        changes["chaos"] = line.chaos
    if line.stylize is not None:
        if not build("guidance", args.guidance, GUIDANCES).may_be_off:
            raise ValueError(f"--stylize does not go with --guidance {args.guidance}, never off")
        changes["guidance_scale"] = 1.0 + (args.guidance_scale - 1.0) * line.stylize / 100.0
    return dataclasses.replace(args, **changes)


def check_args(args: Args) -> None:
    """Refuse before any work what cannot be done."""
    check_guidance(args)
    for name in ("num_steps", "num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1")
    for name in ("image", "mask", "ip_adapter", "image_prompt", "single_file"):
        path = getattr(args, name)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"--{name.replace('_', '-')} {path} is not a file")
    pairs = ("mask", "image"), ("image_prompt", "ip_adapter"), ("ip_adapter", "image_prompt")
    for name, needed in (*pairs, ("controlnet", "control_image")):
        if getattr(args, name) and not getattr(args, needed):
            raise ValueError(f"--{name.replace('_', '-')} needs --{needed.replace('_', '-')}")
    for path in args.control_image:
        if not path.is_file():
            raise FileNotFoundError(f"--control-image {path} is not a file")
    if len(args.controlnet_scale) not in (1, len(args.control_image)):
        given = f"{len(args.controlnet_scale)} numbers for {len(args.control_image)} pictures"
        raise ValueError(f"--controlnet-scale has {given}")
    reads_attention = args.guidance.startswith("self_attention")
    if args.control_image and reads_attention:
        raise ValueError("--control-image does not go with --guidance self_attention")
    if not 0.0 <= args.chaos <= 100.0:
        raise ValueError(f"--chaos is {args.chaos}; it must be in [0, 100]")
    if not 0.0 < args.refiner_start < 1.0:
        raise ValueError(f"--refiner-start is {args.refiner_start}; it must be in (0, 1)")
    if args.watermark is not None and args.export is not None:
        raise ValueError("--watermark does not go with --export")
    if args.export is not None:
        prepare_output(args.export, ".npz", flag="--export")
        require_flatbuffers()
    args.output.mkdir(parents=True, exist_ok=True)
    if not os.access(args.output, os.W_OK):
        raise PermissionError(f"--output {args.output} cannot be written")


def strength(args: Args) -> float:
    """How much of the picture to start from is made anew."""
    if args.strength is not None:
        return args.strength
    return 1.0 if args.mask is not None else 0.6
