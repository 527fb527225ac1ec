"""Train a diffusion model, or an autoencoder for one to diffuse the latents of.

    python experiments/train.py                          the digits, about 6 minutes on 2 CPU cores
    python experiments/train.py CONFIG --help            every setting of a configuration
    python experiments/train.py cifar10 --data.path DIR --batch-size 256
    python experiments/train.py photos_autoencoder
    python experiments/train.py photos_latent --autoencoder runs/photos_autoencoder

CONFIG is one of the names in experiments/configs (default: digits). The same command with the same
workdir goes on where it stopped; SIGTERM or Ctrl-C saves a checkpoint first.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from tqdm import tqdm

from autoencoding import autoencoder_losses, save_autoencoder
from choices import choose, read_choice
from cli import check_counts, parse_args, run_script
from config import Config, RunConfig
from configs import CONFIGS
from diffjax import data
from diffjax.core.conditioning import with_drops
from diffjax.core.latents import latent_loss
from diffjax.core.losses import Loss
from diffjax.data.captions import all_captions
from diffjax.data.sources import as_x0
from diffjax.networks import Functional, count_parameters
from diffjax.training import (
    TrainState,
    batch_sharding,
    check_batch_size,
    fsdp,
    init_train_state,
    initialize_distributed,
    make_mesh,
    make_train_step,
    read_metrics,
    replicated,
    shard_state,
)
from diffjax.training.autoencoder import each_part
from latent_space import LatentSpace, prepare_latents
from loop import averaged_params, claim_workdir, in_turn, run_steps
from model import sampling_defaults, to_uint8
from objective import make_loss, make_optimizer
from pictures import save_animation, save_grid, save_loss_curve
from runs import image_shape, make_network, open_source
from samplers import make_sampler
from text import EncodeTexts, prepare_text, text_condition

FRAMES = 51  # of an animation at most


@dataclass(frozen=True)
class Args:
    """A configuration and how to carry it out."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


def read_command_line(words: list[str]) -> tuple[Config, RunConfig, Path]:
    """The configuration, how to run it, and the run folder."""
    if words[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\nCONFIG: {', '.join(CONFIGS)}")
        sys.exit(0)
    name = "digits" if not words or words[0].startswith("-") else words[0]
    flags = words[1:] if words[:1] == [name] else words
    default = Args(choose("configuration", name, CONFIGS), RunConfig())
    # parts that a configuration lacks, such as its text encoder, are not asked for
    whole = (tyro.conf.AvoidSubcommands,)
    args = parse_args(Args, args=flags, default=default, prog=f"train.py {name}", config=whole)
    workdir = Path("runs") / name if args.run.workdir is None else Path(args.run.workdir)
    check_counts(args.config, "num_steps", "batch_size", "accumulate")
    check_counts(args.run, "checkpoint_every", "log_every", "keep")
    return args.config, args.run, workdir


def open_batches(
    config: Config, source: data.Source, mesh: Mesh, encode: EncodeTexts | None
) -> data.Batches:
    """The stream of training batches of images or latents, checked against the network."""
    if source.shape != image_shape(config):
        kind = "images" if config.latents is None else "latents"
        raise ValueError(
            f"The {kind} are {source.shape}, but the network is made for {image_shape(config)}: "
            "set network.sample_size and network.in_channels, or data.image_size."
        )
    classes = config.network.num_classes
    found = source.num_classes
    if classes is not None and found is None:
        raise ValueError(
            f"The data has no classes, but network.num_classes is {classes}; for a folder of "
            "images, classes are its subfolders."
        )
    if classes is not None and found is not None and found > classes:
        raise ValueError(f"The data has {found} classes, but network.num_classes is {classes}.")
    check_batch_size(config.batch_size, mesh)
    return data.batches(
        source, config.batch_size, seed=config.seed,
        # the mirror images of latents are among them
        flip=config.data.flip and config.latents is None,
        labels=classes is not None, encode_captions=encode,
        long_captions=config.data.long_captions, sharding=batch_sharding(mesh),
    )  # fmt: skip


def make_losses(
    config: Config, network: Functional, space: LatentSpace | None = None
) -> dict[int, Loss]:
    """The losses of a configuration, by the number of steps behind which each begins."""
    if config.autoencoding is not None:
        return autoencoder_losses(config.autoencoding)
    loss = make_loss(config, network.apply)
    return {0: loss if space is None else latent_loss(loss, shift=space.shift, scale=space.scale)}


def train(
    config: Config,
    run: RunConfig,
    workdir: Path,
    network: Functional,
    mesh: Mesh,
    encode: EncodeTexts | None = None,
    latents: tuple[LatentSpace, data.Latents] | None = None,
) -> TrainState:
    """Train from the newest checkpoint, if there is one, to the last step."""
    space, source = latents or (None, open_source(config.data))
    batches = open_batches(config, source, mesh, encode)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    if config.autoencoding is not None:
        optimizer = each_part(lambda: make_optimizer(config.optimizer, config.num_steps))
    params = network.init(init_key)
    state = init_train_state(params, optimizer, ema_decay=config.ema_decay)
    state = shard_state(state, mesh, fsdp() if config.fsdp else ())
    # without out_shardings the compiler might lay the new state out differently and compile again
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    steps = {
        begin: jax.jit(
            make_train_step(
                loss, optimizer, ema_decay=config.ema_decay, accumulate=config.accumulate
            ),
            donate_argnums=0, out_shardings=(layout, replicated(mesh)),
        )
        for begin, loss in make_losses(config, network, space).items()
    }  # fmt: skip
    preview = None
    if run.sample_every and config.task != "classify":
        draw = make_pictures(config, network, mesh, encode, space)
        preview = lambda state, suffix: draw(averaged_params(state, config), workdir, suffix)
    return run_steps(
        in_turn(steps), state, batches, key, config=config, run=run, workdir=workdir,
        title=f"Training {config.data.name}", size=f"{count_parameters(params):,} parameters",
        preview=preview,
    )  # fmt: skip


def make_pictures(
    config: Config,
    network: Functional,
    mesh: Mesh,
    encode: EncodeTexts | None = None,
    space: LatentSpace | None = None,
) -> Callable[..., None]:
    """Compile `preview(params, folder, suffix)`: samples, or reconstructions by an autoencoder."""
    if config.autoencoding is not None:
        return make_reconstructor(config, network)
    return make_previewer(config, network, mesh, encode, space)


def make_reconstructor(config: Config, network: Functional) -> Callable[..., None]:
    """Compile `preview(params, folder, suffix)`, which writes images over their reconstructions."""
    source = open_source(config.data)
    images = np.stack([source[i]["image"] for i in range(16)])
    reconstruct = jax.jit(network.apply)

    def preview(params, folder: Path, suffix: str = "") -> None:
        seen = to_uint8(reconstruct(params, as_x0(images)))
        if jax.process_index() == 0:
            save_grid(folder / f"reconstructions{suffix}.png", np.concatenate([images, seen]), 16)

    return preview


class Shown(NamedTuple):
    """What a picture of samples shows: in each row one class, or one caption.

    Attributes:
      number: of samples.
      columns: samples in a row.
      positions: [b] of the samples in the stream of a seed; some more, so that devices share them.
      labels: [b], or None.
      texts: arrays [b, ...] by name, or None.
    """

    number: int
    columns: int
    positions: np.ndarray
    labels: np.ndarray | None
    texts: dict[str, np.ndarray] | None


def what_to_show(
    config: Config, mesh: Mesh, encode: EncodeTexts | None, space: LatentSpace | None
) -> Shown:
    """A row for each class, at most 10, or for each of the first captions of the data."""
    classes = config.network.num_classes
    rows, columns = (8, 8) if classes is None else (min(classes, 10), 10)
    if image_shape(config)[0] * (1 if space is None else space.factor) > 64:
        rows, columns = min(rows, 4), 4
    number = rows * columns
    padded = -(-number // mesh.shape["data"]) * mesh.shape["data"]
    positions = np.arange(padded, dtype=np.int32)
    labels = None if classes is None else (positions // columns % classes).astype(np.int32)
    texts = None
    if encode is not None:
        source = open_source(config.data)
        told = lambda i: all_captions(source[int(i) // columns], config.data.long_captions)[-1]
        texts = encode([told(i) for i in positions])
    return Shown(number, columns, positions, labels, texts)


def make_previewer(
    config: Config,
    network: Functional,
    mesh: Mesh,
    encode: EncodeTexts | None = None,
    space: LatentSpace | None = None,
) -> Callable[..., None]:
    """Compile `preview(params, folder, suffix)`, which writes sample grids and an animation.

    A grid by each of the solvers in config.sampling.previews, of what `what_to_show` says.
    """
    shown = what_to_show(config, mesh, encode, space)
    inputs = shown.positions, shown.labels, shown.texts
    bars: list[tqdm] = []

    def count(_):
        if bars:
            bars[-1].update(1)

    def advance(i, x):
        jax.debug.callback(count, i)

    solvers = config.sampling.previews or (config.sampling.solver,)
    text = None if encode is None else text_condition(encode)
    build = partial(make_sampler, config, network, mesh=mesh, text=text, on_step=advance)
    asked = partial(sampling_defaults, config, candidates=1)
    *others, animated = [asked(solver=solver) for solver in solvers]
    samplers = [build(options=options) for options in others]
    trajectory = build(options=animated, keep_trajectory=True)
    names = [read_choice("previews", solver)[0] for solver in solvers]
    show = to_uint8 if space is None else lambda latents: to_uint8(space.decode(latents))

    def preview(params, folder: Path, suffix: str = "") -> None:
        key = jax.random.key(config.seed)
        with tqdm(desc="sampling", unit="step", disable=jax.process_index() != 0) as bar:
            bars.append(bar)
            steps = trajectory(params, key, *inputs).x
            kept = np.linspace(0, len(steps) - 1, min(len(steps), FRAMES)).round().astype(int)
            frames = list(show(steps[kept])[:, : shown.number])
            draws = [draw(params, key, *inputs) for draw in samplers]
            grids = [show(draw)[: shown.number] for draw in draws]
            jax.effects_barrier()
            bars.clear()
        if jax.process_index() == 0:
            for name, images in zip(names, [*grids, frames[-1]]):
                save_grid(folder / f"samples_{name}{suffix}.png", images, shown.columns)
            save_animation(folder / f"denoising{suffix}.gif", frames, shown.columns)

    return preview


def main() -> None:
    config, run, workdir = read_command_line(sys.argv[1:])
    initialize_distributed()
    mesh = make_mesh()
    claim_workdir(workdir, config)
    network, encode, latents = make_network(config), None, None
    source = open_source(config.data)
    if config.text is not None:
        encode = prepare_text(
            config.text, source, workdir, config.seed, long_captions=config.data.long_captions
        )
        empty = text_condition(encode, config.text.cond_drop_prob)
        network = network._replace(apply=with_drops(network.apply, [empty]))
    if config.latents is not None:
        shape = image_shape(config)
        latents = prepare_latents(config.latents, config.data, source, workdir, shape)
    state = train(config, run, workdir, network, mesh, encode, latents)
    if jax.process_index() == 0:
        lines = read_metrics(workdir)
        save_loss_curve(
            workdir / "loss.png", [line["step"] for line in lines], [line["loss"] for line in lines]
        )
    if config.task == "classify":
        return
    params, space = averaged_params(state, config), latents and latents[0]
    make_pictures(config, network, mesh, encode, space)(params, workdir)
    script = f"sample.py --workdir {workdir}"
    if config.autoencoding is not None:
        save_autoencoder(workdir, config.autoencoding, params["autoencoder"], source, mesh)
        script = f"reconstruct.py --workdir {workdir}"
    if jax.process_index() == 0:
        print(f"python {Path(sys.argv[0]).parent / script}")


if __name__ == "__main__":
    run_script(main)
