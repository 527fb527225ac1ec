"""Networks: functions from a noisy array, a clock and conditioning to an array.

They know nothing of diffusion. This room is the only one that imports Flax.
"""

from diffjax.networks.classifier import classifier
from diffjax.networks.functional import Functional, count_parameters, functional
from diffjax.networks.unet import UNet, unet
from diffjax.networks.unet_config import UNetConfig
from diffjax.networks.unet_presets import (
    ddpm_celeba64,
    ddpm_cifar10,
    ddpmpp_cifar10,
    edm_cifar10,
    ncsnpp_cifar10,
    vdm_cifar10,
)

__all__ = [
    "Functional",
    "UNet",
    "UNetConfig",
    "classifier",
    "count_parameters",
    "ddpm_celeba64",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "edm_cifar10",
    "functional",
    "ncsnpp_cifar10",
    "unet",
    "vdm_cifar10",
]
