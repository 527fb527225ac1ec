"""How many prompts a text-to-image run meets, by measuring its pictures.

    python experiments/check_shapes.py --workdir runs/shapes_text

Each prompt is one that the data set would use: of combinations of colour and shape that training
showed (seen) and of those that it never did (held_out). A prompt meets

    colour     if the picture holds the colours asked for and no other
    shape      if every object of a colour has the shape asked for in that colour
    size       likewise; of prompts that name one
    count      if each colour has as many objects as asked for
    position   if the object is in the corner asked for; of prompts that name one
    relation   if all objects of the first group are on the side asked for of all of the second
    all        if it meets everything that it says

Objects are found and measured by diffjax/metrics/objects.py. The column `real` is what the pictures
of the data set itself reach.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cli import parse_args, prepare_output, run_script
from diffjax import data
from diffjax.data.shapes import COLOURS, SIDE, SIZES, Group, Scene, Shapes
from diffjax.metrics.objects import Found, find_objects
from diffjax.training import filled_batch_size, make_mesh
from diffjax.training.manifest import write_atomically
from model import sampling_defaults
from pictures import save_grid
from runs import load_run
from sample import generate_all
from samplers import make_sampler
from text import load_text, text_condition

SPLITS = ("seen", "held_out")
HALFWAY = sum(SIZES.values()) / 2


@dataclass(frozen=True)
class Args:
    """Measure how many prompts a text-to-image run meets."""

    workdir: Path
    """the run folder"""
    num_prompts: int = 500
    """prompts of each kind"""
    guidance_scale: float | None = None
    """of the guidance of the run's configuration; 1 is off; by default as there"""
    num_steps: int | None = None
    """steps; by default as the run's configuration says"""
    solver: str | None = None
    """by default the run's"""
    candidates: int | None = None
    """pictures drawn for each prompt, of which the likeliest is measured; by default
    as the run's configuration says"""
    checkpoint: int | None = None
    """step of the checkpoint; by default the newest"""
    seed: int = 0
    """of the noise"""
    batch_size: int = 128
    """images computed at once"""
    output: Path | None = None
    """FILE.json for the figures; by default WORKDIR/check_shapes.json. Beside it FILE.png has 32
    pictures of seen and 32 of held-out combinations"""


def check(scene: Scene, objects: Sequence[Found]) -> dict[str, bool]:
    """What of a prompt a picture meets: the quantities of which the prompt says something."""
    groups = [
        [thing for thing in objects if thing.colour == group.colour] for group in scene.groups
    ]
    pairs = list(zip(scene.groups, groups))
    met = {
        "colour": {thing.colour for thing in objects} == {group.colour for group in scene.groups},
        "shape": all(things and _all_have(group, things) for group, things in pairs),
        "count": all(group.number == len(things) for group, things in pairs),
    }
    if named := [pair for pair in pairs if pair[0].named]:
        met["size"] = all(things and _all_measure(group, things) for group, things in named)
    if scene.position is not None:
        met["position"] = len(objects) == 1 and _is_in(scene.position, objects[0])
    if scene.relation is not None:
        met["relation"] = all(groups) and _are_apart(scene.relation, *groups)
    return {**met, "all": all(met.values())}


def _all_have(group: Group, things: Sequence[Found]) -> bool:
    return all(thing.shape == group.shape for thing in things)


def _all_measure(group: Group, things: Sequence[Found]) -> bool:
    return all((thing.size > HALFWAY) == (group.size == "large") for thing in things)


def _is_in(position: str, thing: Found) -> bool:
    left, top = thing.x < SIDE / 2, thing.y < SIDE / 2
    return left == ("left" in position) and top == ("top" in position)


def _are_apart(relation: str, first: Sequence[Found], second: Sequence[Found]) -> bool:
    """Whether the middles of all of the first are on the right side of all of the second."""
    axis = "x" if relation in ("left of", "right of") else "y"
    one, other = ([getattr(thing, axis) for thing in things] for things in (first, second))
    if relation in ("left of", "above"):
        return max(one) < min(other)
    return min(one) > max(other)


def shares(scenes: Sequence[Scene], images: np.ndarray) -> dict[str, dict[str, float]]:
    """For each quantity the share of prompts that meet it, its standard error and their number."""
    results = defaultdict(list)
    for scene, image in zip(scenes, images):
        for name, met in check(scene, find_objects(image, COLOURS)).items():
            results[name].append(bool(met))
    figures = {}
    for name, met in results.items():
        share = float(np.mean(met))
        error = float(np.sqrt(share * (1 - share) / len(met)))
        figures[name] = {"share": share, "stderr": error, "prompts": len(met)}
    return figures


def draw_all(args: Args, sources: Sequence[Shapes]) -> Iterator[np.ndarray]:
    """The run's pictures of the first captions of each source."""
    mesh = make_mesh()
    run = load_run(args.workdir, mesh, step=args.checkpoint)
    if run.config.text is None or run.config.data.name != "shapes":
        raise ValueError(f"{args.workdir} is a run on {run.config.data.name}; needed is one on "
                         "captioned shapes, as train.py shapes_text makes.")  # fmt: skip
    encode = load_text(args.workdir)
    options = sampling_defaults(
        run.config, guidance_scale=args.guidance_scale, num_steps=args.num_steps,
        solver=args.solver, candidates=args.candidates,
    )  # fmt: skip
    generate = make_sampler(run.config, run.network, options, mesh, text=text_condition(encode))
    size = filled_batch_size(min(args.batch_size, args.num_prompts), mesh)
    for source in sources:
        texts = encode([str(source.scene(index)) for index in range(args.num_prompts)])
        parts = generate_all(generate, run.params, args.seed, None, args.num_prompts, size, texts)
        yield np.concatenate(list(parts))


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each quantity, a column for each kind of prompts."""
    kinds = list(figures)
    lines = [f"{'':10}" + "".join(f"{kind:>22}" for kind in kinds)]
    for name in ("colour", "shape", "size", "count", "position", "relation", "all"):
        cells = [figures[kind].get(name) for kind in kinds]
        texts = [
            "" if cell is None else f"{cell['share']:.3f} +- {cell['stderr']:.3f}" for cell in cells
        ]
        lines.append(f"{name:10}" + "".join(f"{text:>22}" for text in texts))
    return "\n".join(lines)


def main() -> None:
    args = parse_args(Args, description=__doc__)
    if args.num_prompts < 1:
        raise ValueError(f"--num-prompts is {args.num_prompts}; at least 1.")
    output = prepare_output(args.output or args.workdir / "check_shapes.json", ".json")
    sources = [data.shapes(split) for split in SPLITS]
    figures, shown = {}, []
    for split, source, images in zip(SPLITS, sources, draw_all(args, sources)):
        scenes = [source.scene(index) for index in range(args.num_prompts)]
        figures[split] = shares(scenes, images)
        real = np.stack([source[index]["image"] for index in range(args.num_prompts)])
        figures[f"real, {split}"] = shares(scenes, real)
        shown.append(images[:32])
    if jax.process_index() == 0:
        write_atomically(output, json.dumps(figures, indent=2) + "\n")
        save_grid(output.with_suffix(".png"), np.concatenate(shown), columns=16)
        print(table(figures))
        print(f"Wrote {output} and {output.with_suffix('.png')}")


if __name__ == "__main__":
    run_script(main)
