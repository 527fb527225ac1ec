"""What an autoencoder keeps of images: their peak signal-to-noise ratio, and a picture.

    python experiments/reconstruct.py --workdir runs/photos_autoencoder --split test
    python experiments/reconstruct.py --autoencoder FOLDER --workdir runs/photos_autoencoder
    python experiments/reconstruct.py --workdir runs/digits_autoencoder --output seen.npz

The second line looks at the same images through another autoencoder, such as a downloaded one. What
the third writes can be measured by evaluate.py, as samples can: better than that no diffusion model
gets through this autoencoder.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoencoding import load_autoencoder, reconstruct_all
from cli import parse_args, prepare_output, run_script
from config import load_config
from model import to_uint8
from pictures import save_archive, save_grid
from runs import CONFIG_FILE, open_source

COLUMNS = 16


@dataclass(frozen=True)
class Args:
    """What an autoencoder keeps of images."""

    workdir: Path
    """folder of a run of the task autoencode; its configuration names the images"""
    autoencoder: Path | None = None
    """folder of another autoencoder, a run or one that diffusers saved"""
    split: str | None = None
    """split of the images; by default that of the run"""
    num_images: int = 1000
    """how many images, the first of the split"""
    output: Path | None = None
    """FILE.png, images above their reconstructions (by default in the run folder), or FILE.npz, all
    reconstructions and the labels of their images"""


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if args.num_images < 2:
        raise ValueError(f"--num-images is {args.num_images}; expected 2 or more.")
    config = load_config(args.workdir / CONFIG_FILE)
    model = load_autoencoder(args.autoencoder or args.workdir)
    given = config.data if args.split is None else replace(config.data, split=args.split)
    source = open_source(given)
    images = given.name if given.split is None else f"{given.name} {given.split}"
    default = args.workdir / f"reconstructions_{images.replace(' ', '_').replace('/', '_')}.png"
    output = prepare_output(args.output or default, ".png", ".npz")
    count = min(args.num_images, len(source))
    seen, decibels = reconstruct_all(model, source, count)
    kept = to_uint8(seen)
    if output.suffix == ".npz":
        examples = [source[i] for i in range(count)]
        labelled = "label" in examples[0]
        labels = np.array([each["label"] for each in examples]) if labelled else None
        save_archive(output, kept, labels)
    else:
        shown = np.stack([source[i]["image"] for i in range(min(COLUMNS, count))])
        save_grid(output, np.concatenate([shown, kept[: len(shown)]]), len(shown))
    error = decibels.std(ddof=1) / np.sqrt(count)
    print(f"PSNR {decibels.mean():.2f} +- {error:.2f} dB over {count} images of {images}")
    print(f"scaling factor {model.config.scaling_factor:.4f}; wrote {output}")


if __name__ == "__main__":
    run_script(main)
