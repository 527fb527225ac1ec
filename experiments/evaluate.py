"""Measure generated digits against the real ones.

    python experiments/sample.py --workdir runs/digits --num-samples 1000 --output digits.npz
    python experiments/evaluate.py --samples digits.npz

Agreement of an independent classifier with the requested labels, Fréchet distance relative to that
between two halves of the real digits, precision, recall, density, coverage, memorised images and
duplicates, each with its standard error. What they are stands in diffjax/metrics/digits.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from cli import parse_args, prepare_output, run_script
from diffjax import data
from diffjax.metrics import evaluate_digits
from diffjax.training.manifest import write_atomically


@dataclass(frozen=True)
class Args:
    """Measure generated digits against the real ones."""

    samples: Path
    """FILE.npz with images [N, 8, 8, 1] and labels [N], as sample.py writes it"""
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


def main() -> None:
    args = parse_args(Args, description=__doc__)
    source = data.npz(args.samples)
    if source.shape != (8, 8, 1) or source.labels is None:
        raise ValueError(
            f"{args.samples} holds images {source.shape}"
            f"{'' if source.labels is not None else ' without labels'}; what is measured here is "
            "defined for labelled 8x8 digits only."
        )
    output = prepare_output(args.output or args.samples.with_suffix(".json"), ".json")
    figures = {
        name: float(value) for name, value in evaluate_digits(source.images, source.labels).items()
    }
    write_atomically(output, json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"Wrote {output}")


if __name__ == "__main__":
    run_script(main)
