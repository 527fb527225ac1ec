"""The methods of fine-tuning: what of a system is trained, and what of it is saved.

    full                the denoising network, and the text encoders if asked
    lora                changes of low rank of their kernels              arXiv:2106.09685
    textual_inversion   the vectors of a new word                         arXiv:2208.01618
    controlnet          a network beside it that sees a picture           arXiv:2302.05543

All are the same training: `join(trainable, frozen)` gives the params of the system, and the loss is
that of the system. DreamBooth (arXiv:2208.12242) is `full` or `lora` with pictures of the class
besides.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.networks.clip import CLIPTextConfig
from diffjax.networks.controlnet import controlnet, controlnet_from_unet
from diffjax.networks.functional import Params
from diffjax.pipelines import Inputs, System, make_system, steered, with_control
from diffjax.pretrained import Components, Model, save_model
from diffjax.pretrained.controlnet import controlnet_of_unet
from diffjax.pretrained.folders import PICKLES
from diffjax.pretrained.lora_adapters import apply_adapters, init_adapters, save_adapters
from diffjax.pretrained.models import ARCHITECTURES
from diffjax.pretrained.textual_inversion import save_embedding, with_word
from diffjax.training.frozen import Join, union
from finetune_config import FinetuneConfig

Batch = dict[str, Any]


class Tuning(NamedTuple):
    """A method at work on a system.

    Attributes:
      system: with whatever the method adds to it.
      trainable, frozen: params; what is trained, and the rest.
      join: (trainable, frozen) -> params of all parts of the system.
      save: (trainable, workdir) -> the file or folder that it left there.
      see: a batch of the data -> a batch of the system's loss; under `jit`.
      steer: (conditions, batch) -> the conditions of a preview, one picture of the batch for each.
    """

    system: System
    trainable: Params
    frozen: Params
    join: Join
    save: Callable[[Params, Path], Path]
    see: Callable[[Batch], Batch] = lambda batch: batch
    steer: Callable[[list[Inputs], Batch], list[Inputs]] = lambda conditions, batch: conditions


def full(config: FinetuneConfig, parts: Components, folder: Path, key: Array) -> Tuning:
    """Train whole networks; a folder of the whole system is saved."""
    names = trained_parts(config, parts)
    configs = {name: parts.models[name].config for name in names}
    params = parts.params
    trainable = {name: params[name] for name in names}
    frozen = {name: params[name] for name in params if name not in names}

    def save(trained: Params, workdir: Path) -> Path:
        made = {name: (configs[name], trained[name]) for name in names}
        return save_system(folder, workdir / "model", made, config.variant)

    return Tuning(make_system(without_params(parts)), trainable, frozen, union, save)


def lora(config: FinetuneConfig, parts: Components, folder: Path, key: Array) -> Tuning:
    """Train changes of low rank; a file for `text_to_image.py --lora` and diffusers is saved."""
    shapes = without_params(parts)
    models = {name: shapes.models[name] for name in trained_parts(config, parts)}
    adapters = init_adapters(key, models, config.lora.rank, targets=config.lora.targets)
    alpha = config.lora.rank if config.lora.alpha is None else config.lora.alpha
    scale = alpha / config.lora.rank

    def save(trained: Params, workdir: Path) -> Path:
        path = workdir / "lora.safetensors"
        save_adapters(path, trained, models, scale)
        return path

    join = lambda trainable, frozen: apply_adapters(frozen, trainable, scale)
    return Tuning(make_system(shapes), adapters, parts.params, join, save)


def textual_inversion(
    config: FinetuneConfig, parts: Components, folder: Path, key: Array
) -> Tuning:
    """Train the vectors of a new word; a file for `text_to_image.py --embedding` is saved."""
    word, trainable = config.word, {}
    if word.num_vectors < 1:
        raise ValueError(f"--word.num-vectors is {word.num_vectors}; at least 1.")
    frozen = parts.params
    encoders = [
        name
        for name in text_encoders(parts)
        if isinstance(parts.models[name].config, CLIPTextConfig)
    ]
    if not encoders:
        raise ValueError(f"{parts.name} has no text encoder of CLIP, which could learn a word.")
    for encoder in encoders:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        ids = parts.tokenizers[tokenizer].encode(word.init)
        if not ids:
            raise ValueError(f"--word.init is {word.init!r}; it has no token to start from.")
        table = parts.models[encoder].params["token_embedding"]["embedding"]
        chosen = np.resize(np.array(ids), word.num_vectors)
        trainable[encoder] = np.asarray(table[chosen], np.float32)
        parts = with_word(parts, encoder, tokenizer, word.token, trainable[encoder])

    def join(vectors: Params, frozen: Params) -> Params:
        joined = dict(frozen)
        for encoder, learned in vectors.items():
            table = frozen[encoder]["token_embedding"]["embedding"].astype(learned.dtype)
            grown = {"embedding": jnp.concatenate([table, learned])}
            joined[encoder] = {**frozen[encoder], "token_embedding": grown}
        return joined

    def save(vectors: Params, workdir: Path) -> Path:
        path = workdir / f"{word.token.strip('<>')}.safetensors"
        save_embedding(path, word.token, vectors)
        return path

    return Tuning(make_system(without_params(parts)), trainable, frozen, join, save)


def controlnet_tuning(
    config: FinetuneConfig, parts: Components, folder: Path, key: Array
) -> Tuning:
    """Train a ControlNet that begins as the UNet's own way down; its folder is saved."""
    if "unet" not in parts.models:
        raise ValueError(f"{parts.name} has no UNet; ControlNets here steer UNets.")
    system = make_system(without_params(parts))
    unet = parts.models["unet"]
    halvings = round(math.log2(system.size[0] / system.latent_shape(*system.size)[0]))
    shape = controlnet_of_unet(unet.config, condition_widths=(16, 32, 96, 256)[: halvings + 1])
    encoder = dataclasses.replace(shape.encoder, remat=config.remat)
    made = dataclasses.replace(shape, encoder=encoder, dtype=config.dtype)
    params = controlnet_from_unet(key, shape, unet.params)
    model = Model(shape, controlnet(made), {})

    def see(batch: Batch) -> Batch:
        images, pictures = split_pictures(batch["x0"])
        inputs = {name: each for name, each in batch.items() if name != "x0"}
        return {"x0": images, **with_control([inputs], "controlnet", pictures)[0]}

    def steer(conditions: list[Inputs], batch: Batch) -> list[Inputs]:
        return with_control(conditions, "controlnet", split_pictures(batch["x0"])[1])

    def save(trained: Params, workdir: Path) -> Path:
        return save_folder(
            workdir / "controlnet",
            lambda draft: save_model(draft, shape, trained["controlnet"]),
        )

    told = steered(system, {"controlnet": model})
    return Tuning(told, {"controlnet": params}, parts.params, union, save, see, steer)


TUNINGS: dict[str, Callable[[FinetuneConfig, Components, Path, Array], Tuning]] = {
    "full": full,
    "lora": lora,
    "textual_inversion": textual_inversion,
    "controlnet": controlnet_tuning,
}


def make_tuning(config: FinetuneConfig, parts: Components, folder: Path) -> Tuning:
    """The method of a configuration; what is trained is float32, the rest as the configuration
    says."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    if config.remat:
        parts = with_remat(parts)
    tuning = TUNINGS[config.method](config, parts, folder, key)
    # copies: a step consumes its state, and what a ControlNet starts from is frozen as well
    copied = lambda leaf: jnp.array(leaf, "float32", copy=True)
    return tuning._replace(
        trainable=jax.tree.map(copied, tuning.trainable),
        frozen=jax.tree.map(lambda leaf: leaf.astype(config.dtype), tuning.frozen),
    )


def trained_parts(config: FinetuneConfig, parts: Components) -> list[str]:
    """The denoising network, and the text encoders if the configuration says so."""
    found = [name for name in ("unet", "transformer") if name in parts.models]
    if not found:
        raise ValueError(f"{parts.name} has neither unet nor transformer, which could be trained.")
    return [*found, *(text_encoders(parts) if config.train_text_encoder else ())]


def text_encoders(parts: Components) -> list[str]:
    return [name for name in parts.models if name.startswith("text_encoder")]


def without_params(parts: Components) -> Components:
    """Parts that know the shapes of their params alone: a system of them keeps no copy alive."""
    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    strip = lambda model: model._replace(params=jax.tree.map(abstract, model.params))
    return parts._replace(models={name: strip(model) for name, model in parts.models.items()})


def with_remat(parts: Components) -> Components:
    """Parts whose networks compute their activations again in the backward pass, if they can.

    The configurations stay as they were, because files know nothing of it.
    """

    def again(model: Model) -> Model:
        if not hasattr(model.config, "remat"):
            return model
        build = next(each.build for each in ARCHITECTURES if each.make is type(model.config))
        return model._replace(network=build(dataclasses.replace(model.config, remat=True)))

    return parts._replace(models={name: again(model) for name, model in parts.models.items()})


def split_pictures(x: Array) -> tuple[Array, Array]:
    """Images in [-1, 1], and the pictures in [0, 1] that steer: further channels, or edges."""
    if x.shape[-1] == 6:
        return x[..., :3], 0.5 * (x[..., 3:] + 1.0)
    return x, edges(x)


def edges(images: Array) -> Array:
    """How fast the brightness changes, by Sobel's filters: [B, H, W, 3] in [0, 1].

    images: [B, H, W, 3] in [-1, 1].
    """
    grey = jnp.pad(images.mean(axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth = lambda x, axis: _taps(x, axis, (1.0, 2.0, 1.0))
    change = lambda x, axis: _taps(x, axis, (-1.0, 0.0, 1.0))
    down, right = change(smooth(grey, 2), 1), change(smooth(grey, 1), 2)
    strength = jnp.clip(jnp.hypot(down, right) / 4.0, 0.0, 1.0)
    return jnp.repeat(strength[..., None], 3, axis=-1)


def _taps(x: Array, axis: int, taps: tuple[float, float, float]) -> Array:
    """A filter of three taps along an axis, which gets shorter by two."""
    size = x.shape[axis] - 2
    part = lambda start: jax.lax.slice_in_dim(x, start, start + size, axis=axis)
    return sum((tap * part(i) for i, tap in enumerate(taps) if tap), jnp.zeros(()))


def save_system(
    source: Path, target: Path, trained: dict[str, tuple[Any, Params]], variant: str | None
) -> Path:
    """Write a folder of a system: parts that were trained, all else as it is in another folder."""

    def write(draft: Path) -> None:
        unsafe = shutil.ignore_patterns(*(f"*{ending}" for ending in PICKLES))
        shutil.copytree(source, draft, ignore=unsafe, dirs_exist_ok=True)
        for name, (config, params) in trained.items():
            shutil.rmtree(draft / name)
            save_model(draft / name, config, params, variant=variant)

    return save_folder(target, write)


def save_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder that becomes `path` when it is whole."""
    draft = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write(draft)
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)
    return path
