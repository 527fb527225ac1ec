"""Pictures as conditions: what is around a hole, what to edit, what to enlarge, what to follow.

Each function adds entries to the inputs of `System.prepare`, whose network must have been trained
to take them; the result goes to `txt2img` or `img2img` like any other conditions:

    conditions = with_hole(system, params, keys, conditions, images, mask)
    images = txt2img(system, params, keys, conditions, ...)

`steered` makes of a system one that ControlNets and T2I-Adapters steer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.networks.controlnet import ControlNetConfig
from diffjax.networks.functional import Params
from diffjax.pipelines.system import Inputs, System
from diffjax.pipelines.tasks import encode, shrink_mask
from diffjax.pretrained import Model

_BLUR = 2**30 + 3  # what the keys of the noise in small pictures are folded with


def with_hole(
    system: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    images: Array,
    mask: Array,
    *,
    normal: Normal = normal_each,
) -> list[Inputs]:
    """What inpainting networks (of nine channels) are told: the mask, and the rest of the image.

    Args:
      images: [B, H, W, 3] in [-1, 1].
      mask: [B, H, W, 1], 1 where to paint.
    """
    known = encode(system, params, keys, jnp.where(mask > 0.5, 0.0, images), normal=normal)
    small = shrink_mask((mask > 0.5).astype(known.dtype), known.shape[1:3])
    channels = jnp.concatenate([small, known], axis=-1)
    return [{**each, "channels": channels} for each in conditions]


def with_original(
    system: System, params: Params, conditions: Sequence[Inputs], images: Array
) -> list[Inputs]:
    """What InstructPix2Pix is told: an image beside the instruction, and neither for comparison.

        x0 = none + s_image (image - none) + s_text (both - image)

    is the guidance of its authors, for the three conditions that are returned:

        lambda both, image, none: composed(
            none, [both, image], guidance_scales=[s_text, s_image - s_text]
        )

    Source: arXiv:2211.09800, Eq. 3.

    Args:
      conditions: of the instruction, and of the null prompt.
      images: [B, H, W, 3] in [-1, 1].
    """
    instruction, null = conditions
    channels = system.features(params, images)
    return [
        {**instruction, "channels": channels},
        {**null, "channels": channels},
        {**null, "channels": jnp.zeros_like(channels)},
    ]


def with_small(
    system: System,
    keys: Array,
    conditions: Sequence[Inputs],
    pictures: Array,
    *,
    noise_level: int,
    level: NoiseLevel,
    height: int,
    width: int,
    normal: Normal = normal_each,
) -> list[Inputs]:
    """What super-resolution is told: a small picture, noised a little, and how much.

    Source: Cascaded Diffusion Models, arXiv:2106.15282, section 4.2.

    Args:
      pictures: [B, h, w, 3] in [-1, 1].
      noise_level: the time step of the noise, as the network is told it.
      level: of the noise.
      height, width: of the images to be made.
    """
    shape = system.latent_shape(height, width)
    large = resize_linear(pictures, shape[0], shape[1])
    noise = normal(fold_in_each(keys, _BLUR), large.shape[1:], large.dtype)
    told = {
        "channels": add_noise(large, noise, level),
        "labels": jnp.full(len(pictures), noise_level),
    }
    return [{**each, **told} for each in conditions]


def steered(
    system: System, steering: Mapping[str, Model], *, guess: bool = False, image_tokens: int = 0
) -> System:
    """A system whose UNet is steered by pictures through ControlNets and T2I-Adapters.

    What several of them tell the UNet is added up. The inputs of its conditions need an entry of
    `with_control` for each.
    Sources: ControlNet, arXiv:2302.05543; T2I-Adapter, arXiv:2302.08453.

    Args:
      system: around a conditional UNet.
      steering: the networks, by the names of the entries of params that hold their params.
      guess: for ControlNets, see there; then the scale of the unconditional inputs is 0.
      image_tokens: how many tokens at the end of the context are those of an image
        (`image_prompted`); ControlNets, which know words alone, are not told them.
    """
    nets = {k: each for k, each in steering.items() if isinstance(each.config, ControlNetConfig)}
    adapters = {name: each for name, each in steering.items() if name not in nets}

    def see(params: Params, name: str, given: Inputs) -> list[Array]:
        features = adapters[name].network.apply(params[name], given["picture"])
        return [each * _wide(given["scale"]) for each in features]

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        control = inputs.get("control", {})
        _require_pictures(control, steering)
        told = system.condition(params, inputs)
        if nets:
            told["control"] = {name: control[name] for name in nets}
        if adapters:
            told["features"] = _added_up([see(params, name, control[name]) for name in adapters])
        return told

    def apply(
        params: Params,
        x: Array,
        t: Array,
        *,
        control: Mapping[str, Inputs],
        context: Array,
        channels: Array | None = None,
        features: Sequence[Array] = (),
        **told: Any,
    ) -> Array:
        words = {"context": context[:, : context.shape[1] - image_tokens], "guess": guess, **told}
        seen = [
            _residuals(model, params[name], x, t, control[name], words)
            for name, model in nets.items()
        ]
        more = {} if channels is None else {"channels": channels}
        more |= {"features": features} if features else {}
        more |= {"context": context, "residuals": _added_up(seen)}
        return system.apply(params, x, t, **more, **told)

    return system._replace(condition=condition, **({"apply": apply} if nets else {}))


def _residuals(
    model: Model, params: Params, x: Array, t: Array, given: Inputs, words: dict[str, Any]
) -> Any:
    """What one ControlNet adds to a UNet: what it says of its picture, scaled, within its times."""
    found = model.network.apply(params, x, t, condition=given["picture"], **words)
    active = (given["last"] <= t) & (t <= given["first"])
    scale = _wide(jnp.where(active, given["scale"], 0.0))
    return jax.tree.map(lambda part: part * scale, found)


def with_control(
    conditions: Sequence[Inputs],
    name: str,
    pictures: Array,
    *,
    scales: Sequence[ArrayLike] | ArrayLike = 1.0,
    times: tuple[ArrayLike, ArrayLike] = (jnp.inf, -jnp.inf),
) -> list[Inputs]:
    """What one of the networks that steer a system is told.

    Args:
      name: of the network, as in `steered`.
      pictures: [B, H, W, 3] in [0, 1]: edges, poses, depths.
      scales: how much they count, one number or one for each condition.
      times: first and last clock at which they do, see `control_times`; for ControlNets.
    """
    count = len(pictures)
    each_scale = list(scales) if isinstance(scales, Sequence) else [scales] * len(conditions)
    full = lambda value: jnp.full(count, value, jnp.float32)
    first, last = map(full, times)
    given = {"picture": pictures, "first": first, "last": last}
    return [
        {**each, "control": {**each.get("control", {}), name: {**given, "scale": full(scale)}}}
        for each, scale in zip(conditions, each_scale, strict=True)
    ]


def control_times(levels: NoiseLevel, start: float, stop: float) -> tuple[Array, Array]:
    """The clocks of the first and of the last step that lie whole in a part of the steps.

    >>> levels = NoiseLevel(*jnp.arange(5, -1, -1)[None].repeat(3, 0))
    >>> [int(t) for t in control_times(levels, 0.2, 0.7)]
    [4, 3]
    """
    count = len(levels.t) - 1
    active = [i for i in range(count) if i / count >= start and (i + 1) / count <= stop]
    if not active:
        raise ValueError(f"no step of {count} lies in the part from {start} to {stop}")
    return levels.t[active[0]], levels.t[active[-1]]


def resize_linear(pictures: Array, height: int, width: int) -> Array:
    """Resize [B, h, w, C] linearly, the corners of both laid upon each other."""
    for axis, size in ((1, height), (2, width)):
        old = pictures.shape[axis]
        places = jnp.linspace(0.0, old - 1.0, size)
        weights = jnp.maximum(0.0, 1.0 - jnp.abs(places[:, None] - jnp.arange(old)))
        pictures = jnp.moveaxis(jnp.tensordot(weights, pictures, (1, axis)), 0, axis)
    return pictures


def _require_pictures(control: Mapping[str, Inputs], names: Collection[str]) -> None:
    missing = [name for name in names if name not in control]
    if missing:
        raise ValueError(f"the conditions hold no picture for {missing[0]!r}; see with_control")


def _wide(scale: Array) -> Array:
    """[B] as a factor on [B, h, w, channels]."""
    return scale[:, None, None, None]


def _added_up(trees: Sequence[Any]) -> Any:
    """The sum of trees of the same shape."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
