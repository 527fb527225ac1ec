"""Measure generated images: digits against the real ones, or any set against a reference.

    python experiments/sample.py --workdir runs/digits --num-samples 1000 --output digits.npz
    python experiments/evaluate.py --samples digits.npz
    python experiments/evaluate.py --samples MADE --reference PICTURES --features FILE.safetensors

The first form measures agreement of an independent classifier with the requested labels, Fréchet
distance relative to that between two halves of the real digits, precision, recall, density,
coverage, memorised images and duplicates (diffjax/metrics/digits.py). The second measures Fréchet
and kernel distance, precision, recall, density, coverage, memorised images, duplicates and, where
the features are those of a classifier, the inception score (diffjax/metrics/sets.py). All come with
their standard errors; docs/metrics.md says what they mean.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cli import parse_args, prepare_output, run_script
from diffjax import data
from diffjax.data.sources import Source
from diffjax.metrics import compare_sets, evaluate_digits
from diffjax.training.manifest import write_atomically
from features import load_features, read_features, save_features, see_all


@dataclass(frozen=True)
class Args:
    """Measure generated images."""

    samples: Path
    """FILE.npz with images [N, H, W, C] and, for digits, labels [N], as sample.py writes it, or a
    folder of pictures"""
    reference: str | None = None
    """a folder of pictures, FILE.npz, or a data set such as cifar10, to compare with: as a rule the
    training set; by default the samples are measured as digits"""
    features: str = "pixels"
    """what to compare by: pixels, Inception's FILE.safetensors, the folder of an image encoder of
    CLIP, or the run of a classifier"""
    data_path: Path | None = None
    """where a data set is that --reference names"""
    image_size: int | None = None
    """pixels a side to which pictures of folders are brought; by default those of the first"""
    neighbour: int = 5
    """which one the balls of precision, recall, density and coverage reach to"""
    batch_size: int = 100
    """images that a network sees at once"""
    save_features: Path | None = None
    """FILE.npz for the features of the reference, to be given as --reference the next time"""
    output: Path | None = None
    """FILE.json for the figures; by default beside the samples"""


def table(figures: dict[str, float]) -> str:
    """A line for each figure, with its standard error where there is one."""
    lines = []
    for name, value in figures.items():
        if not name.endswith("_stderr"):
            error = figures.get(f"{name}_stderr")
            lines.append(f"{name:18} {value:8.4g}" + ("" if error is None else f" +- {error:.2g}"))
    return "\n".join(lines)


def measure_digits(args: Args) -> dict[str, float]:
    source = data.npz(args.samples)
    if source.shape != (8, 8, 1) or source.labels is None:
        raise ValueError(
            f"{args.samples} holds images {source.shape}"
            f"{'' if source.labels is not None else ' without labels'}; what is measured without "
            "--reference is defined for labelled 8x8 digits only."
        )
    return evaluate_digits(source.images, source.labels, k=args.neighbour)


def measure_set(args: Args, reference: str) -> dict[str, float]:
    features = load_features(args.features)
    samples = open_images(args.samples, args.image_size)
    known = read_features(Path(reference), features)
    if known is None:
        source = open_reference(args, reference, samples.shape)
        if source.shape != samples.shape:
            raise ValueError(
                f"{args.samples} holds images {samples.shape} and {reference} {source.shape}; "
                "both must be alike. Folders take --image-size."
            )
        seen = see_all(features, source, args.batch_size)
        known = seen.features
        if args.save_features is not None:
            save_features(args.save_features, features, seen)
    made = see_all(features, samples, args.batch_size)
    figures = compare_sets(
        made.features, known, made.probabilities, k=args.neighbour, kernel=features.kernel
    )
    return figures | {"duplicates": float(made.duplicates)}


def open_images(path: Path, size: int | None, channels: int = 3) -> Source:
    """Images of an archive or a folder."""
    if not path.is_dir():
        return data.npz(path)
    if size is None:
        with Image.open(data.image_folder(path, 1).paths[0]) as first:
            size = min(first.size)
    return data.image_folder(path, size, channels=channels)


def open_reference(args: Args, reference: str, shape: tuple[int, int, int]) -> Source:
    """The images to compare with: those of a path, or of a data set by its name."""
    if Path(reference).exists():
        return open_images(Path(reference), args.image_size or shape[0], shape[2])
    return data.load(reference, path=args.data_path, image_size=args.image_size)


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if args.neighbour < 1 or args.batch_size < 1:
        raise ValueError(
            f"--neighbour is {args.neighbour} and --batch-size {args.batch_size}; both must be at "
            "least 1."
        )
    beside = args.samples.with_name(f"{args.samples.stem}.json")
    output = prepare_output(args.output or beside, ".json")
    if args.save_features is not None:
        if args.reference is None:
            raise ValueError("--save-features is given, but no --reference whose they are.")
        prepare_output(args.save_features, ".npz", flag="--save-features")
    reference = args.reference
    measured = measure_digits(args) if reference is None else measure_set(args, reference)
    figures = {name: float(value) for name, value in measured.items()}
    write_atomically(output, json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"Wrote {output}")


if __name__ == "__main__":
    run_script(main)
