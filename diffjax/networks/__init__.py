"""Networks: functions from a noisy array, a clock and conditioning to an array.

They know nothing of diffusion. This room is the only one that imports Flax.
"""

from diffjax.networks.classifier import classifier
from diffjax.networks.controlnet import ControlNetConfig, controlnet
from diffjax.networks.functional import Functional, count_parameters, functional
from diffjax.networks.t2i_adapter import T2IAdapterConfig, t2i_adapter
from diffjax.networks.unet import UNet, unet, unet_attention_map
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_frames import FramesConfig
from diffjax.networks.unet_latent_presets import sd1_unet, sd2_unet, sdxl_unet
from diffjax.networks.unet_presets import (
    ddpm_celeba64,
    ddpm_cifar10,
    ddpmpp_cifar10,
    edm_cifar10,
    ncsnpp_cifar10,
    vdm_cifar10,
)

__all__ = [
    "ContextConfig",
    "ControlNetConfig",
    "FramesConfig",
    "Functional",
    "T2IAdapterConfig",
    "UNet",
    "UNetConfig",
    "classifier",
    "controlnet",
    "count_parameters",
    "ddpm_celeba64",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "edm_cifar10",
    "functional",
    "ncsnpp_cifar10",
    "sd1_unet",
    "sd2_unet",
    "sdxl_unet",
    "t2i_adapter",
    "unet",
    "unet_attention_map",
    "vdm_cifar10",
]
