"""IP-Adapters: images as prompts, for UNets that were trained on texts alone.

    y = Attention(q, text W_k, text W_v) + scale Attention(q, image W'_k, image W'_v)

in every attention to the context. A file holds the new projections, and the network that makes
tokens of what an image encoder sees, of the embedding alone or (IP-Adapter Plus) of all states, or
of the embedding of a face (FaceID), and then changes of low rank of all attentions:

    image_proj.proj.weight, image_proj.norm.weight, ...
    image_proj.latents, image_proj.proj_in.weight, image_proj.layers.0. ...
    image_proj.proj.0.weight, image_proj.proj.2.weight, image_proj.norm.weight, ...
    ip_adapter.1.to_k_ip.weight, ip_adapter.1.to_v_ip.weight, ip_adapter.3. ...
    ip_adapter.0.to_q_lora.down.weight, ip_adapter.0.to_q_lora.up.weight, ...

The numbers count all attentions of the UNet, those on the way up before those in the middle.
Source: IP-Adapter, arXiv:2308.06721, section 3.2.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from diffjax.networks.functional import Functional, Params, flatten, unflatten
from diffjax.networks.image_tokens import (
    ImageTokensConfig,
    ResamplerConfig,
    image_tokens,
    resampler,
)
from diffjax.pretrained.added_layers import Route, with_layers
from diffjax.pretrained.components import Components
from diffjax.pretrained.lora import lora_of, merge_lora, module_names
from diffjax.pretrained.models import Model
from diffjax.pretrained.tensor_files import read_tensor_file
from diffjax.pretrained.weights import UnsupportedError, renamer, to_params

# the name of the new network among the parts
IMAGE_TOKENS = "image_tokens"

# of every published resampler
_HEAD_DIM = 64

# a layer's parts in files -> ours
_RESAMPLER = {
    "0.norm1": "norm1",
    "0.norm2": "norm2",
    "0.to_q": "attn.to_q",
    "0.to_k": "attn.to_k",
    "0.to_v": "attn.to_v",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff_norm",
    "1.1": "ff.linear_1",
    "1.3": "ff.linear_2",
}

# other adapters hold one of these
_OTHER_KINDS = {
    "image_proj.proj.3.weight": "an IP-Adapter that makes a token of every state",
    "image_proj.perceiver_resampler.proj_in.weight": "an IP-Adapter of faces and their pictures "
    "(FaceID Plus)",
}


def load_ip_adapter(path: str | Path, parts: Components, *, scale: float = 1.0) -> Components:
    """The parts of a system whose UNet sees an image beside the text.

        parts = load_ip_adapter("ip-adapter_sd15.safetensors", parts, scale=0.6)
        system = image_prompted(make_system(parts), parts)

    Args:
      path: a safetensors file.
      parts: of a system with a conditional UNet.
      scale: how much the image counts; the changes of low rank of adapters of faces always do.

    Returns:
      The parts with another "unet" and with "image_tokens".

    Raises:
      UnsupportedError: the file holds another kind of adapter.
      ValueError: the file is damaged, or for another UNet.
    """
    stored = read_tensor_file(path)
    if IMAGE_TOKENS in parts.models:
        raise ValueError(f"the parts hold an IP-Adapter already; {path} needs parts without one")
    _require_known(path, stored)
    if "unet" not in parts.models:
        raise UnsupportedError(f"{parts.name} has no UNet that {path} could join")
    old = parts.models["unet"]
    kinds = {"dtype": old.config.dtype, "param_dtype": old.config.param_dtype}
    seen = {
        name.removeprefix("image_proj."): each
        for name, each in stored.items()
        if name.startswith("image_proj.")
    }
    read = _read_resampler if "latents" in seen else _read_projection
    model = read(seen, old.config.context.width, kinds)
    old = _with_changes(path, old, stored)
    unet_model = _with_projections(old, stored, model.config.count)
    unet_model = unet_model._replace(params=scale_image(unet_model.params, scale))
    return parts._replace(models={**parts.models, "unet": unet_model, IMAGE_TOKENS: model})


def scale_image(params: Params, scale: ArrayLike) -> Params:
    """The params of a UNet in which an image counts `scale` times as much; the scale may be traced.

    The values of an image's tokens are scaled, and so is all that attention finds there.
    """
    flat = flatten(params)
    scaled = lambda route, leaf: (leaf * scale).astype(leaf.dtype) if "to_v_ip" in route else leaf
    return unflatten({route: scaled(route, leaf) for route, leaf in flat.items()})


def _read_projection(tensors: Mapping[str, Any], width: int, kinds: dict[str, str]) -> Model:
    """The layer, or both layers, of an adapter that sees an embedding."""
    if "proj.0.weight" in tensors:
        hidden, embedding = tensors["proj.0.weight"].shape
        rows = tensors["proj.2.bias"].shape[0] if "proj.2.bias" in tensors else width
        names = {"proj.0": "ff.linear_1", "proj.2": "ff.linear_2"}
    else:
        hidden, (rows, embedding) = None, tensors["proj.weight"].shape
        names = {"proj": "image_embeds"}
    config = ImageTokensConfig(embedding, width, max(rows // width, 1), hidden, **kinds)
    return _loaded(config, image_tokens(config), tensors, renamer(names))


def _read_resampler(tensors: Mapping[str, Any], width: int, kinds: dict[str, str]) -> Model:
    """The network of an adapter that sees all states."""
    needed = "proj_in.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight"
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(f"the IP-Adapter lacks image_proj.{', image_proj.'.join(missing)}")
    states, inner, hidden = (tensors[name].shape for name in needed)
    config = ResamplerConfig(
        state_features=states[1],
        features=width,
        count=tensors["latents"].shape[1],
        width=tensors["latents"].shape[2],
        depth=len({name.split(".")[1] for name in tensors if name.startswith("layers.")}),
        heads=max(inner[0] // _HEAD_DIM, 1),
        head_dim=_HEAD_DIM,
        hidden=hidden[0],
        **kinds,
    )
    apart: dict[str, Any] = {}
    for name, each in tensors.items():
        # keys and values are one matrix there
        names = [name.replace("to_kv", kind) for kind in ("to_k", "to_v")]
        pair = np.split(np.asarray(each), 2) if ".to_kv." in name else (each, each)
        apart.update(zip(names, pair))
    return _loaded(config, resampler(config), apart, _resampler_name)


def _loaded(
    config: Any, network: Functional, tensors: Mapping[str, Any], rename: Callable[[str], str]
) -> Model:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return Model(config, network, to_params(tensors, shapes, rename=rename))


def _resampler_name(name: str) -> str:
    found = re.fullmatch(r"(layers\.\d+)\.(\d\.\w+)\.(\w+)", name)
    if found is None:
        return name
    return f"{found[1]}.{_RESAMPLER.get(found[2], found[2])}.{found[3]}"


def _with_projections(old: Model, stored: Mapping[str, Any], count: int) -> Model:
    config = replace(old.config, context=replace(old.config.context, image_tokens=count))
    mine = _of_attentions(stored, low_rank=False)

    def rename(routes: list[Route]) -> Callable[[str], str]:
        numbers = {n: ".".join(each) for n, each in _numbered(route[:-2] for route in routes)}

        def named(name: str) -> str:
            _, number, rest = name.split(".", 2)
            return f"{numbers.get(number, number)}.{rest}"

        return named

    return with_layers(old, config, mine, rename)


def _with_changes(path: str | Path, old: Model, stored: Mapping[str, Any]) -> Model:
    """The UNet with the changes of low rank that adapters of faces hold."""
    mine = _of_attentions(stored, low_rank=True)
    if not mine:
        return old
    queries = {route[:-2]: name for route, name in module_names(old).items() if "to_q" in route}
    numbers = {n: queries.get(each, "") for n, each in _numbered(queries)}
    changes = {}
    for name, each in mine.items():
        _, number, rest = name.split(".", 2)
        module = numbers.get(number, number).removesuffix(".to_q")
        changes[f"unet.{module}.{rest}"] = each
    lora = lora_of(changes, {"unet": old}, source=path)
    return old._replace(params=merge_lora({"unet": old.params}, lora)["unet"])


def _of_attentions(stored: Mapping[str, Any], *, low_rank: bool) -> dict[str, Any]:
    """The tensors of attentions: their changes of low rank, or all others."""
    return {
        name: each
        for name, each in stored.items()
        if name.startswith("ip_adapter.") and ("_lora." in name) == low_rank
    }


def _numbered(modules: Iterable[Route]) -> list[tuple[str, Route]]:
    """Attentions as files number them: those of the image to itself even, those to a text odd."""
    pairs = sorted({each[:-1] for each in modules if each[-1] in ("attn1", "attn2")}, key=_place)
    ends = (0, "attn1"), (1, "attn2")
    return [(f"{2 * i + n}", (*pair, end)) for i, pair in enumerate(pairs) for n, end in ends]


def _place(module: tuple[str, ...]) -> tuple:
    """The order in which an adapter counts the attentions of a UNet."""
    first = ("down_blocks", "up_blocks", "mid_block").index(module[0])
    return first, [int(part) for part in module if part.isdecimal()]


def _require_known(path: str | Path, stored: Mapping[str, Any]) -> None:
    for name, kind in _OTHER_KINDS.items():
        if name in stored:
            raise UnsupportedError(
                f"{path} is {kind}; supported are those of one embedding, of faces too, and those "
                "that resample"
            )
    needed = "image_proj.proj.weight", "image_proj.proj.0.weight", "image_proj.latents"
    if not set(needed) & stored.keys():
        raise UnsupportedError(f"{path} holds no IP-Adapter: none of {', '.join(needed)} is in it")
