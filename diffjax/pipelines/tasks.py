"""What one does with a system: make images from prompts, change images, fill holes.

    walk       latents at one noise level -> latents at the last
    txt2img    noise -> walk -> images
    img2img    images -> latents, noised part of the way -> walk -> images
    inpaint    the same, with what is known put back after every step

All are pure functions of params and of arrays [B, ...], to be compiled whole:

    conditions = system.prepare(prompts, negative, height=512, width=512)
    run = jax.jit(partial(txt2img, system, solver=solver, height=512, width=512, guidance=...))
    images = run(parts.params, keys, conditions, levels=levels)

Keys belong to samples: an image is the same in any batch, on any number of devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.core.keys import Normal, fold_in_each, normal_each
from diffjax.core.levels import NoiseLevel, add_noise
from diffjax.core.parameterizations import (
    Denoiser,
    make_denoiser,
    make_learned_variance_denoiser,
    run_network,
)
from diffjax.core.sampling import OnStep, Solver, sample
from diffjax.networks.functional import Params
from diffjax.pipelines.system import Inputs, System
from diffjax.transforms import guidance_interval, guide, in_one_call, one_by_one, replace_known

# what the keys of draws before the first step are folded with; steps fold small numbers
_START, _ENCODE = 2**30 + 1, 2**30 + 2

# from a denoiser for each condition to one
Guidance = Callable[..., Denoiser]


def walk(
    system: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    x: Array,
    *,
    solver: Solver,
    levels: NoiseLevel,
    guidance: Guidance | None = None,
    on_step: OnStep | None = None,
) -> Array:
    """Walk latents through a grid of noise levels under conditions.

    Args:
      system: see `make_system`.
      params: of all its parts.
      keys: [B] keys, one for each sample.
      conditions: inputs from `system.prepare`; the network is called once for all of them.
      x: [B, h, w, channels] at the first level.
      solver, levels: as in `sample`; a checkpoint's own come from its scheduler.
      guidance: from a denoiser for each of the conditions to one, such as
        `partial(classifier_free, guidance_scale=7.5)` for two; None for one condition, or for
        solvers that guide on their own. A system with a worse network gives it one more, and one
        that shows its attention that, at last.
      on_step: as in `sample`.

    Returns:
      [B, h, w, channels] at the last level.
    """
    told = conditioning(system, params, conditions)
    denoise = denoiser(system, params, told, guidance)
    return sample(keys, x, denoise, solver, levels, on_step=on_step)


def conditioning(
    system: System, params: Params, conditions: Sequence[Inputs]
) -> list[dict[str, Any]]:
    """What the network is told under each condition, from one call of the encoders for all."""
    count = len(conditions)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)
    told = system.condition(params, joined)
    return [jax.tree.map(lambda leaf, i=i: jnp.split(leaf, count)[i], told) for i in range(count)]


def denoiser(
    system: System,
    params: Params,
    told: Sequence[dict[str, Any]],
    guidance: Guidance | None = None,
) -> Any:
    """The denoiser of a system under conditions, guided; its network is called once for all.

    Outside of the system's interval it is called for the first condition alone.

    Args:
      told: from `conditioning`.
      guidance: see `walk`; without it, the estimates of several conditions are for a solver that
        guides on its own.

    Raises:
      ValueError: the system has an interval, and it is the solver that guides.
    """
    make: Any = make_learned_variance_denoiser if system.learned_variance else make_denoiser
    row = system.parameterization
    joined = in_one_call(partial(make, system.apply, params, row), *told)
    alone = [make(system.apply, params, row, **each) for each in told]
    worse = [] if system.weaker is None else [make(system.weaker, params, row, **told[0])]
    estimates = lambda x, level: (*joined(x, level), *one_by_one(*worse)(x, level))
    if guidance is not None:
        attends = _attends(system, params, told[0])
        combine = lambda *denoisers: guidance(*denoisers, *attends)
        guided = guide(estimates, combine, elsewhere=[*alone, *worse])
        return _in_interval(system, guided, alone[0])
    if len(alone) + len(worse) == 1:
        return alone[0]
    if system.interval is not None:
        raise ValueError("guidance in an interval is no matter of solvers; give a guidance")
    return estimates


def txt2img(
    system: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    *,
    solver: Solver,
    levels: NoiseLevel,
    height: int,
    width: int,
    guidance: Guidance | None = None,
    initial_scale: ArrayLike = 1.0,
    normal: Normal = normal_each,
    on_step: OnStep | None = None,
) -> Array:
    """Make images from conditions: prompts, class labels, or none.

    Args:
      system, params, keys, conditions, solver, levels, guidance, on_step: see `walk`.
      height, width: of the images.
      initial_scale: factor of unit noise at the first level, see `Scheduler.initial_scale`.
      normal: how noise is drawn; another function may replay recorded draws.

    Returns:
      [B, height, width, 3] float32, about in [-1, 1].
    """
    x = jnp.asarray(initial_scale) * start_noise(system, keys, height, width, normal=normal)
    x = walk(
        system,
        params,
        keys,
        conditions,
        x,
        solver=solver,
        levels=levels,
        guidance=guidance,
        on_step=on_step,
    )
    return system.decode(params, x)


def img2img(
    system: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    images: Array,
    *,
    solver: Solver,
    levels: NoiseLevel,
    guidance: Guidance | None = None,
    normal: Normal = normal_each,
    on_step: OnStep | None = None,
) -> Array:
    """Change images as conditions say: noise them to the first level, and walk from there.

    With a grid that starts in its middle (`tail`, `Plan`) the images are kept in part.
    Source: SDEdit, arXiv:2108.01073, Algorithm 1.

    Args:
      images: [B, H, W, 3] in [-1, 1].
      others: as in `txt2img`.
    """
    latents = encode(system, params, keys, images, normal=normal)
    noise = normal(fold_in_each(keys, _START), latents.shape[1:], latents.dtype)
    x = walk(
        system,
        params,
        keys,
        conditions,
        add_noise(latents, noise, _first(levels)),
        solver=solver,
        levels=levels,
        guidance=guidance,
        on_step=on_step,
    )
    return system.decode(params, x)


def inpaint(
    system: System,
    params: Params,
    keys: Array,
    conditions: Sequence[Inputs],
    images: Array,
    mask: Array,
    *,
    solver: Solver,
    levels: NoiseLevel,
    from_noise: bool = True,
    initial_scale: ArrayLike = 1.0,
    guidance: Guidance | None = None,
    normal: Normal = normal_each,
    on_step: OnStep | None = None,
) -> Array:
    """Paint a part of images anew, with any network: the rest is put back after every step.

        x <- mask x + (1 - mask) (alpha latents + sigma eps),    with one eps for the whole walk

    Source: Blended Latent Diffusion, arXiv:2206.02779, section 3.1.

    Args:
      images: [B, H, W, 3] in [-1, 1].
      mask: [B, H, W, 1], 1 where to paint.
      from_noise: whether what is painted starts from noise alone; otherwise from the noised image.
      others: as in `txt2img`.
    """
    latents = encode(system, params, keys, images, normal=normal)
    noise = normal(fold_in_each(keys, _START), latents.shape[1:], latents.dtype)
    mask = shrink_mask(mask, latents.shape[1:3])
    known = replace_known(solver, latents, mask > 0, normal=lambda *_: noise)
    noised = add_noise(latents, noise, _first(levels))
    start = jnp.asarray(initial_scale) * noise if from_noise else noised
    x = walk(
        system,
        params,
        keys,
        conditions,
        start,
        solver=known,
        levels=levels,
        guidance=guidance,
        on_step=on_step,
    )
    # the last level of some grids is not quite clean
    return system.decode(params, jnp.where(mask > 0, x, latents))


def encode(
    system: System, params: Params, keys: Array, images: Array, *, normal: Normal = normal_each
) -> Array:
    """The latents of images, [B, h, w, channels]; the draw from an autoencoder's posterior."""
    return system.encode(params, fold_in_each(keys, _ENCODE), images, normal)


def start_noise(
    system: System, keys: Array, height: int, width: int, *, normal: Normal = normal_each
) -> Array:
    """Unit noise in the shape of the latents of an image, [B, h, w, channels]."""
    shape = system.latent_shape(height, width)
    return normal(fold_in_each(keys, _START), shape, jnp.float32)


def shrink_mask(mask: Array, shape: tuple[int, ...]) -> Array:
    """A mask [B, H, W, 1] at the size of latents, [B, h, w, 1]: the first pixel of each block."""
    rows, columns = mask.shape[1] // shape[0], mask.shape[2] // shape[1]
    return mask[:, ::rows, ::columns]


def _first(levels: NoiseLevel) -> NoiseLevel:
    return jax.tree.map(lambda leaf: leaf[0], levels)


def _attends(system: System, params: Params, told: dict[str, Any]) -> list[Callable[..., Array]]:
    """Where a system attends, (x, level) -> [B, *coarse], if it shows that."""
    if system.attention is None:
        return []
    return [partial(run_network, system.attention, params, system.parameterization, **told)]


def _in_interval(system: System, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """The guided denoiser in the system's interval, if it has one, and the plain one elsewhere."""
    if system.interval is None:
        return guided
    low, high = system.interval
    return guidance_interval(guided, plain, low=low, high=high)
