"""Worse networks beside that of a system, away from which guidance leads.

    worse = make_system(without_attention_maps(parts))
    system = beside(make_system(parts), worse)
    images = txt2img(system, ..., guidance=perturbed_attention(7.0, 3.0))

A guidance is then given one more denoiser behind those of the conditions: what the worse network
says under the first of them.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from diffjax.networks import UNetConfig, unet
from diffjax.pipelines.system import System
from diffjax.pipelines.tasks import Guidance
from diffjax.pretrained import Components, UnsupportedError
from diffjax.transforms import autoguidance, composed


def beside(system: System, weaker: System) -> System:
    """A system whose guidance is shown the estimate of a worse one, too.

    Args:
      system: the better one.
      weaker: told the same, with the same params: of an earlier checkpoint among them, by a system
        whose `apply` takes that (autoguidance), or of the same network (perturbed attention).
    """
    return system._replace(weaker=weaker.apply)


def without_attention_maps(parts: Components, *, where: str = "middle") -> Components:
    """The parts with the identity for the attention maps of the UNet, and the same params.

    Source: Perturbed-Attention Guidance, arXiv:2403.17377, section 4.1.

    Args:
      parts: with a UNet.
      where: "middle" or "all".

    Raises:
      UnsupportedError: the network is no UNet.
    """
    model = parts.models.get("unet")
    if model is None or not isinstance(model.config, UNetConfig):
        raise UnsupportedError(f"attention maps are replaced in UNets; {parts.name} has none")
    config = dataclasses.replace(model.config, identity_attention=where)
    perturbed = model._replace(config=config, network=unet(config))
    return parts._replace(models={**parts.models, "unet": perturbed})


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
