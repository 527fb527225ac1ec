"""IP-Adapters: images as prompts, for UNets that were trained on texts alone.

    y = Attention(q, text W_k, text W_v) + scale Attention(q, image W'_k, image W'_v)

in every attention to the context. A file holds the new projections, and the layer that makes tokens
of the embedding of an image:

    image_proj.proj.weight, image_proj.norm.weight, ...
    ip_adapter.1.to_k_ip.weight, ip_adapter.1.to_v_ip.weight, ip_adapter.3. ...

The numbers count all attentions of the UNet, those on the way up before those in the middle.
Source: IP-Adapter, arXiv:2308.06721, section 3.2.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.typing import ArrayLike

from diffjax.networks.functional import Params, flatten, unflatten
from diffjax.networks.image_tokens import ImageTokensConfig, image_tokens
from diffjax.pretrained.added_layers import Route, with_layers
from diffjax.pretrained.components import Components
from diffjax.pretrained.models import Model
from diffjax.pretrained.tensor_files import read_tensor_file
from diffjax.pretrained.weights import UnsupportedError, to_params

# the name of the new network among the parts
IMAGE_TOKENS = "image_tokens"

# other adapters hold one of these
_OTHER_KINDS = {
    "image_proj.latents": "an IP-Adapter Plus, which resamples all states of the image encoder",
    "image_proj.proj.0.weight": "an IP-Adapter of whole states or of faces",
}


def load_ip_adapter(path: str | Path, parts: Components, *, scale: float = 1.0) -> Components:
    """The parts of a system whose UNet sees an image beside the text.

        parts = load_ip_adapter("ip-adapter_sd15.safetensors", parts, scale=0.6)
        system = image_prompted(make_system(parts), parts)

    Args:
      path: a safetensors file.
      parts: of a system with a conditional UNet.
      scale: how much the image counts.

    Returns:
      The parts with another "unet" and with "image_tokens".

    Raises:
      UnsupportedError: the file holds another kind of adapter.
      ValueError: the file is damaged, or for another UNet.
    """
    stored = read_tensor_file(path)
    _require_plain(path, stored)
    old = parts.models["unet"]
    rows, embedding = stored["image_proj.proj.weight"].shape
    kinds = {"dtype": old.config.dtype, "param_dtype": old.config.param_dtype}
    width = old.config.context.width
    tokens = ImageTokensConfig(embedding, width, count=max(rows // width, 1), **kinds)
    network = image_tokens(tokens)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    mine = {name: each for name, each in stored.items() if name.startswith("image_proj.")}
    params = to_params(mine, shapes, rename=_token_name)
    model = Model(tokens, network, params)
    unet_model = _with_projections(old, stored, tokens.count)
    unet_model = unet_model._replace(params=scale_image(unet_model.params, scale))
    return parts._replace(models={**parts.models, "unet": unet_model, IMAGE_TOKENS: model})


def scale_image(params: Params, scale: ArrayLike) -> Params:
    """The params of a UNet in which an image counts `scale` times as much; the scale may be traced.

    The values of an image's tokens are scaled, and so is all that attention finds there.
    """
    flat = flatten(params)
    scaled = lambda route, leaf: (leaf * scale).astype(leaf.dtype) if "to_v_ip" in route else leaf
    return unflatten({route: scaled(route, leaf) for route, leaf in flat.items()})


def _with_projections(old: Model, stored: Mapping[str, Any], count: int) -> Model:
    config = replace(old.config, context=replace(old.config.context, image_tokens=count))
    mine = {name: each for name, each in stored.items() if name.startswith("ip_adapter.")}

    def rename(routes: list[Route]) -> Callable[[str], str]:
        modules = sorted({route[:-2] for route in routes}, key=_place)
        # between two attentions to the context there is one of the image to itself
        numbers = {f"{2 * i + 1}": ".".join(module) for i, module in enumerate(modules)}

        def named(name: str) -> str:
            _, number, rest = name.split(".", 2)
            return f"{numbers.get(number, number)}.{rest}"

        return named

    return with_layers(old, config, mine, rename)


def _place(module: tuple[str, ...]) -> tuple:
    """The order in which an adapter counts the attentions of a UNet."""
    first = ("down_blocks", "up_blocks", "mid_block").index(module[0])
    return first, [int(part) for part in module if part.isdecimal()]


def _token_name(name: str) -> str:
    return re.sub(r"^proj\.", "image_embeds.", name.removeprefix("image_proj."))


def _require_plain(path: str | Path, stored: Mapping[str, Any]) -> None:
    for name, kind in _OTHER_KINDS.items():
        if name in stored:
            raise UnsupportedError(f"{path} is {kind}; supported are those of one embedding")
    if "image_proj.proj.weight" not in stored:
        raise UnsupportedError(f"{path} holds no IP-Adapter: image_proj.proj.weight is not in it")
