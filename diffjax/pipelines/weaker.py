"""What guidance leads away from, beside the estimates of a system, and where it counts.

    worse = make_system(without_attention_maps(parts))
    system = beside(make_system(parts), worse)
    images = txt2img(system, ..., guidance=perturbed_attention(7.0, 3.0))

A guidance is then given one more denoiser behind those of the conditions: what the worse network
says under the first of them. Self-attention guidance asks where the network attends instead,

    system = attentive(make_system(parts), make_system(showing_attention(parts)))

and `guided_within` limits any guidance to an interval of noise levels.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.networks import UNetConfig, unet, unet_attention_map
from diffjax.networks.functional import Params
from diffjax.pipelines.system import System
from diffjax.pipelines.tasks import Guidance
from diffjax.pretrained import Components, UnsupportedError
from diffjax.transforms import autoguidance, composed

# the entry of params that holds the weights of a worse network
WEAKER = "weaker"


def beside(system: System, weaker: System, *, network: str | None = None) -> System:
    """A system whose guidance is shown the estimate of a worse one, too.

    Args:
      system: the better one.
      weaker: told the same, with the same params (perturbed attention), but for `network`.
      network: name of the part of which the worse one has weights of its own, such as "unet"; they
        are the entry `WEAKER` of params (autoguidance).
    """
    if network is None:
        return system._replace(weaker=weaker.apply)

    def apply(params: Params, x: Array, t: Array, **told: Any) -> Array:
        return weaker.apply({**params, network: params[WEAKER]}, x, t, **told)

    return system._replace(weaker=apply)


def attentive(system: System, shown: System) -> System:
    """A system whose guidance is shown where the network attends.

    Args:
      system: of images.
      shown: made of `showing_attention(parts)`.
    """
    return system._replace(attention=shown.apply)


def guided_within(system: System, low: ArrayLike, high: ArrayLike) -> System:
    """A system that is guided where low < sigma / alpha <= high alone.

    Elsewhere its network is called for the first condition only, which halves the work there.
    Source: arXiv:2404.07724; see `diffjax.guidance_interval`.
    """
    return system._replace(interval=(low, high))


def without_attention_maps(parts: Components, *, where: str = "middle") -> Components:
    """The parts with the identity for the attention maps of the UNet, and the same params.

    Source: Perturbed-Attention Guidance, arXiv:2403.17377, section 4.1.

    Args:
      parts: with a UNet.
      where: "middle" or "all".

    Raises:
      UnsupportedError: the network is no UNet, or attends nowhere there.
    """
    config = _unet_config(parts)
    if not (config.mid_attention or (where == "all" and any(config.attention))):
        raise UnsupportedError(f"the UNet of {parts.name} has no attention to replace ({where})")
    config = dataclasses.replace(config, identity_attention=where)
    return _with_unet(parts, config=config, network=unet(config))


def showing_attention(parts: Components) -> Components:
    """The parts with a UNet that says where it attends in its middle, and the same params.

    Source: Self-Attention Guidance, arXiv:2210.00939.

    Args:
      parts: with a UNet.

    Raises:
      UnsupportedError: the network is no UNet, or does not attend there.
    """
    try:
        return _with_unet(parts, network=unet_attention_map(_unet_config(parts)))
    except ValueError as error:
        raise UnsupportedError(f"the UNet of {parts.name} shows no attention: {error}") from None


def perturbed_attention(
    guidance_scale: ArrayLike = 1.0, perturbed_scale: ArrayLike = 3.0
) -> Guidance:
    """Away from the null prompt and from the worse network.

        x0 = null + s (prompt - null) + p (prompt - worse)

    For one condition, s is not used. Source: arXiv:2403.17377, Eq. 14 and 16.

    Args:
      guidance_scale: s, 1 for none.
      perturbed_scale: p, 0 for none.
    """

    def guidance(prompt: Any, *others: Any) -> Any:
        *null, worse = others
        if not null:
            return autoguidance(prompt, worse, guidance_scale=1.0 + perturbed_scale)
        scales = [guidance_scale + perturbed_scale, -jnp.asarray(perturbed_scale)]
        return composed(null[0], [prompt, worse], guidance_scales=scales)

    return guidance


def _unet_config(parts: Components) -> UNetConfig:
    model = parts.models.get("unet")
    if model is None or not isinstance(model.config, UNetConfig):
        raise UnsupportedError(f"attention is changed and read in UNets; {parts.name} has none")
    return model.config


def _with_unet(parts: Components, **changes: Any) -> Components:
    changed = parts.models["unet"]._replace(**changes)
    return parts._replace(models={**parts.models, "unet": changed})
