"""Pictures as conditions: what is around a hole, what to edit, what to enlarge, what to follow.

Each function adds entries to the inputs of `System.prepare`, whose network must have been trained
to take them; the result goes to `txt2img` or `img2img` like any other conditions:

    conditions = with_hole(system, params, keys, conditions, images, mask)
    images = txt2img(system, params, keys, conditions, ...)

`steered` makes of a system one that a ControlNet or a T2I-Adapter steers.
"""

from collections.abc import Sequence
from typing import Any

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


def steered(system: System, steering: Model, name: str, *, guess: bool = False) -> System:
    """A system whose UNet is steered by a picture through a ControlNet or a T2I-Adapter.

    The inputs of its conditions need the entries of `with_control`.
    Sources: ControlNet, arXiv:2302.05543; T2I-Adapter, arXiv:2302.08453.

    Args:
      system: around a conditional UNet.
      steering: the network.
      name: of the entry of params that holds its params.
      guess: for ControlNets, see there; then the scale of the unconditional inputs is 0.
    """
    if isinstance(steering.config, ControlNetConfig):
        return _controlled(system, steering, name, guess)

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        features = steering.network.apply(params[name], inputs["control"])
        scale = inputs["control_scale"][:, None, None, None]
        told = system.condition(params, inputs)
        return {**told, "features": [each * scale for each in features]}

    return system._replace(condition=condition)


def with_control(
    conditions: Sequence[Inputs],
    pictures: Array,
    *,
    scales: Sequence[ArrayLike] | ArrayLike = 1.0,
    times: tuple[ArrayLike, ArrayLike] = (jnp.inf, -jnp.inf),
) -> list[Inputs]:
    """What a steered system is told.

    Args:
      pictures: [B, H, W, 3] in [0, 1]: edges, poses, depths.
      scales: how much they count, one number or one for each condition.
      times: first and last clock at which they do, see `control_times`; for ControlNets.
    """
    count = len(pictures)
    each_scale = list(scales) if isinstance(scales, Sequence) else [scales] * len(conditions)
    full = lambda value: jnp.full(count, value, jnp.float32)
    first, last = map(full, times)
    return [
        {
            **each,
            "control": pictures,
            "control_scale": full(scale),
            "control_from": first,
            "control_to": last,
        }
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


def _controlled(system: System, steering: Model, name: str, guess: bool) -> System:
    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        control = {key: value for key, value in inputs.items() if key.startswith("control")}
        return {**system.condition(params, inputs), **control}

    def apply(
        params: Params,
        x: Array,
        t: Array,
        *,
        control: Array,
        control_scale: Array,
        control_from: Array,
        control_to: Array,
        channels: Array | None = None,
        **told: Any,
    ) -> Array:
        kept, middle = steering.network.apply(
            params[name], x, t, condition=control, guess=guess, **told
        )
        active = (control_to <= t) & (t <= control_from)
        scale = jnp.where(active, control_scale, 0.0)[:, None, None, None]
        residuals = [each * scale for each in kept], middle * scale
        more = {} if channels is None else {"channels": channels}
        return system.apply(params, x, t, residuals=residuals, **more, **told)

    return system._replace(condition=condition, apply=apply)
