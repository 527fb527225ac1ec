"""Fine-tune a saved model of diffusers' format.

    python experiments/finetune.py METHOD --model FOLDER --data.path PICTURES --workdir RUN

METHOD is full, lora, textual_inversion or controlnet; DreamBooth is full or lora with
    --prompt "a photo of sks dog" --prior.prompt "a photo of a dog"

The same command with the same workdir goes on where it stopped; SIGTERM or Ctrl-C saves a
checkpoint first.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from PIL import Image
from tqdm import tqdm

import diffjax as dj
from choices import build, choose
from cli import parse_args, run_script
from config import RunConfig
from diffjax import data, pipelines
from diffjax.core.keys import sample_keys
from diffjax.core.losses import WEIGHTS
from diffjax.data.folder import SUFFIXES
from diffjax.networks import count_parameters
from diffjax.pipelines.training import null_prompt, system_loss
from diffjax.pretrained import Scheduler, find_folder, load_components
from diffjax.training import (
    TrainState,
    batch_sharding,
    check_batch_size,
    filled_batch_size,
    fsdp,
    init_train_state,
    initialize_distributed,
    make_mesh,
    params_sharding,
    replicated,
    shard_state,
)
from diffjax.training.frozen import make_frozen_step
from diffjax.training.manifest import whole_file
from finetune_config import METHODS, FinetuneConfig
from finetune_data import (
    Both,
    encode_captions,
    encode_examples,
    open_pictures,
    open_prior,
    with_conditions,
)
from finetuning import Tuning, make_tuning
from loop import averaged_params, claim_workdir, run_steps
from model import to_uint8
from objective import make_optimizer
from pictures import save_grid

Draw = Callable[[Any, Any, list], np.ndarray]


@dataclass(frozen=True)
class Args:
    """What is trained, and how it is carried out."""

    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


def read_command_line(words: list[str]) -> tuple[FinetuneConfig, RunConfig, Path]:
    """The configuration, how to run it, and the run folder."""
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nEvery setting of a method: python experiments/finetune.py METHOD --help")
        sys.exit(0 if words else 2)
    name, *flags = words
    default = Args(choose("method", name, METHODS), RunConfig())
    whole = (tyro.conf.AvoidSubcommands,)
    args = parse_args(Args, args=flags, default=default, prog=f"finetune.py {name}", config=whole)
    config, run = args.config, args.run
    check_config(config)
    if run.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every is {run.checkpoint_every}; at least 1.")
    return config, run, Path("runs") / name if run.workdir is None else Path(run.workdir)


def check_config(config: FinetuneConfig) -> None:
    """Refuse before any work what cannot be done."""
    if not config.model:
        raise ValueError("--model is needed: a folder with model_index.json.")
    for name in ("num_steps", "batch_size", "accumulate"):
        if getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(config, name)}; it must be at least 1.")
    if config.prior.prompt is not None:
        if config.method not in ("full", "lora"):
            raise ValueError(f"--prior.prompt goes with full and lora, not with {config.method}.")
        if config.prompt is None:
            raise ValueError("--prior.prompt needs --prompt, that of the instance.")
    if config.train_text_encoder and config.method not in ("full", "lora"):
        raise ValueError(f"--train-text-encoder goes with full and lora, not with {config.method}.")
    token = config.word.token
    if config.method == "textual_inversion" and config.prompt and token not in config.prompt:
        raise ValueError(f"--prompt {config.prompt!r} lacks the word {token} that is learned.")


def make_loss(config: FinetuneConfig, scheduler: Scheduler, tuning: Tuning, size: tuple[int, int]):
    """The loss of the joined params on a batch of the data."""
    schedule = scheduler.schedule
    weight = null = None
    if config.weight is not None:
        weight = build("weight", config.weight, WEIGHTS, schedule=schedule)
    if config.cond_drop_prob:
        null = null_prompt(tuning.system, *size, config.cond_drop_prob)
    loss = system_loss(
        tuning.system, schedule, weight=weight, noise_offset=config.noise_offset, null=null
    )
    return lambda params, batch, keys: loss(params, tuning.see(batch), keys)


def make_draw(
    config: FinetuneConfig,
    scheduler: Scheduler,
    tuning: Tuning,
    size: tuple[int, int],
    mesh: Mesh,
    guidance_scale: float,
) -> Draw:
    """Compile `draw(trainable, first, conditions)`: pictures, the first of that number."""
    system = tuning.system
    steps = config.preview.num_steps
    plan = pipelines.make_plan(scheduler, steps, grid=system.grid(*size, steps))
    guided = partial(dj.classifier_free, guidance_scale=guidance_scale)

    # whole on every process; keys cannot be placed on several of them, so they are made here
    @partial(jax.jit, out_shardings=replicated(mesh))
    def run(trainable, frozen, positions, conditions, levels):
        keys = sample_keys(jax.random.key(config.seed), positions)
        return pipelines.txt2img(
            system, tuning.join(trainable, frozen), keys, conditions, solver=plan.solver,
            levels=levels, height=size[0], width=size[1], initial_scale=plan.initial_scale,
            guidance=guided if len(conditions) > 1 else None,
        )  # fmt: skip

    def draw(trainable: Any, first: int, conditions: list) -> np.ndarray:
        count = len(next(iter(conditions[0].values())))
        positions = np.arange(first, first + count, dtype=np.int32)
        placed = jax.device_put((positions, conditions), batch_sharding(mesh))
        levels = jax.device_put(plan.levels, replicated(mesh))
        return to_uint8(run(trainable, tuning.frozen, *placed, levels))

    return draw


def prepare(
    system: pipelines.System, prompts: list[str], size: tuple[int, int], guidance_scale: float
) -> list[pipelines.Inputs]:
    """What the network is told of prompts, and where it is guided, of none."""
    null = [None] * len(prompts) if guidance_scale != 1.0 else None
    return system.prepare(prompts, null, height=size[0], width=size[1])


def make_previewer(
    config: FinetuneConfig,
    scheduler: Scheduler,
    tuning: Tuning,
    source: data.Source,
    size: tuple[int, int],
    mesh: Mesh,
    workdir: Path,
):
    """`preview(state, suffix)` writes a grid of pictures of fixed prompts and noise."""
    options = config.preview
    count = filled_batch_size(options.num_images, mesh)
    examples = [source[i % len(source)] for i in range(count)]
    prompts = [options.prompt or example["caption"] for example in examples]
    conditions = prepare(tuning.system, prompts, size, options.guidance_scale)
    images = np.stack([example["image"] for example in examples]).astype(np.float32)
    conditions = tuning.steer(conditions, {"x0": images / 127.5 - 1.0})
    draw = make_draw(config, scheduler, tuning, size, mesh, options.guidance_scale)

    def preview(state: TrainState, suffix: str) -> None:
        pictures = draw(averaged_params(state, config), 0, conditions)[: options.num_images]
        if jax.process_index() == 0:
            save_grid(workdir / f"samples{suffix}.png", pictures, min(options.num_images, 8))

    return preview


def make_prior(
    config: FinetuneConfig, scheduler: Scheduler, tuning: Tuning, size: tuple[int, int], mesh: Mesh,
    folder: Path,
) -> None:  # fmt: skip
    """Let the model as it is make those pictures of the class that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))
    wanted = config.prior.num_images
    if there >= wanted:
        return
    if jax.process_count() > 1:
        raise ValueError(
            f"{folder} holds {there} of {wanted} pictures of the class; run this command in one "
            "process first, which makes them."
        )
    count = filled_batch_size(config.batch_size, mesh)
    scale = config.preview.guidance_scale
    conditions = prepare(tuning.system, [str(config.prior.prompt)] * count, size, scale)
    draw = make_draw(config, scheduler, tuning, size, mesh, scale)
    with tqdm(total=wanted, initial=there, desc="pictures of the class", unit="picture") as bar:
        for first in range(there, wanted, count):
            pictures = draw(tuning.trainable, first, conditions)
            for i, picture in enumerate(pictures[: wanted - first], start=first):
                with whole_file(folder / f"made_{i:05d}.png") as draft:
                    Image.fromarray(picture).save(draft)
                bar.update(1)


def open_source(
    config: FinetuneConfig, scheduler: Scheduler, tuning: Tuning, mesh: Mesh, workdir: Path
) -> data.Source:
    """The pictures to learn from, with those of the class and those that steer."""
    source = open_pictures(config, tuning.system)
    size = source.shape[:2]
    if config.prior.prompt is not None:
        folder = Path(config.prior.images or workdir / "prior")
        make_prior(config, scheduler, tuning, size, mesh, folder)
        source = Both(source, open_prior(config, folder, size[0]))
    if config.method == "controlnet" and config.control.images is not None:
        source = with_conditions(source, config.control.images)
    return source


def train(
    config: FinetuneConfig,
    run: RunConfig,
    workdir: Path,
    scheduler: Scheduler,
    tuning: Tuning,
    mesh: Mesh,
) -> TrainState:
    """Train from the newest checkpoint, if there is one, to the last step."""
    rules = fsdp() if config.fsdp else ()
    places = params_sharding(tuning.frozen, mesh, rules)
    tuning = tuning._replace(frozen=jax.device_put(tuning.frozen, places))
    source = open_source(config, scheduler, tuning, mesh, workdir)
    height, width = size = source.shape[:2]
    check_batch_size(config.batch_size, mesh)
    batches = data.batches(
        source, config.batch_size, seed=config.seed, flip=config.data.flip, labels=False,
        encode_captions=partial(encode_captions, tuning.system, height, width),
        encode_examples=partial(encode_examples, tuning.system, height, width),
        sharding=batch_sharding(mesh),
    )  # fmt: skip
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    state = init_train_state(tuning.trainable, optimizer, ema_decay=config.ema_decay)
    state = shard_state(state, mesh, rules)
    step = make_frozen_step(
        make_loss(config, scheduler, tuning, size), optimizer, tuning.join,
        ema_decay=config.ema_decay, accumulate=config.accumulate,
    )  # fmt: skip
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(layout, replicated(mesh)))
    preview = None
    if config.preview.num_images:
        preview = make_previewer(config, scheduler, tuning, source, size, mesh, workdir)
    trained, whole = (
        count_parameters(params) for params in (tuning.trainable, (tuning.trainable, tuning.frozen))
    )
    with contextlib.closing(batches):
        state = run_steps(
            lambda state, batch, key: step(state, tuning.frozen, batch, key),
            state, batches, jax.random.key(config.seed), config=config, run=run, workdir=workdir,
            title=f"Fine-tuning ({config.method})",
            size=f"{trained:,} parameters of {whole:,}", preview=preview,
        )  # fmt: skip
    if preview:
        preview(state, "")
    return state


def main() -> None:
    config, run, workdir = read_command_line(sys.argv[1:])
    initialize_distributed()
    mesh = make_mesh()
    folder = find_folder(config.model, variant=config.variant)
    parts = load_components(folder, dtype=config.dtype, variant=config.variant)
    tuning = make_tuning(config, parts, folder)
    claim_workdir(workdir, config)
    scheduler = parts.schedulers["scheduler"]
    del parts  # its params are the tuning's now
    state = train(config, run, workdir, scheduler, tuning, mesh)
    # whole on every process, of which the first writes it
    result = jax.device_put(averaged_params(state, config), replicated(mesh))
    if jax.process_index() == 0:
        print(tuning.save(result, workdir))


if __name__ == "__main__":
    run_script(main)
