"""Networks: functions from a noisy array, a clock and conditioning to an array.

They know nothing of diffusion. This room is the only one that imports Flax. A network is a frozen
configuration and a builder, `init, apply = unet(UNetConfig(...))`; presets are functions that make
the configuration of a published one, such as `ddpm_cifar10()` or `dit_xl_2()`.

    images           unet, dit, pixart, mmdit (Stable Diffusion 3), flux
    sequences        unet with spatial_dims=1; those of checkpoints: unet1d, unet_waveform
    volumes, videos  unet with spatial_dims=3; unet with frames=FramesConfig(...)
    latents          autoencoder_kl, autoencoder_tiny, vq_autoencoder
    texts            clip_text, t5_encoder
    steering         controlnet, t2i_adapter, classifier
    several in one   experts, each for a part of the way from data to noise
    evaluation       inception, by which FID is measured
"""

from diffjax.networks.autoencoder_kl import AutoencoderKLConfig, autoencoder_kl
from diffjax.networks.autoencoder_tiny import AutoencoderTinyConfig, autoencoder_tiny
from diffjax.networks.classifier import classifier
from diffjax.networks.clip import CLIPTextConfig, clip_text
from diffjax.networks.controlnet import ControlNetConfig, controlnet
from diffjax.networks.dit import DiTConfig, dit, dit_s_2, dit_xl_2
from diffjax.networks.experts import experts
from diffjax.networks.flux import FluxConfig, flux
from diffjax.networks.functional import Functional, count_parameters, functional
from diffjax.networks.inception import inception
from diffjax.networks.mmdit import MMDiTConfig, mmdit
from diffjax.networks.pixart import PixArtConfig, pixart
from diffjax.networks.t2i_adapter import T2IAdapterConfig, t2i_adapter
from diffjax.networks.t5 import T5Config, t5_encoder
from diffjax.networks.unet import UNet, unet, unet_attention_map
from diffjax.networks.unet1d import UNet1DConfig, unet1d
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
from diffjax.networks.unet_waveform import WaveformUNetConfig, unet_waveform
from diffjax.networks.vq import VQConfig, vq_autoencoder

__all__ = [
    "AutoencoderKLConfig",
    "AutoencoderTinyConfig",
    "CLIPTextConfig",
    "ContextConfig",
    "ControlNetConfig",
    "DiTConfig",
    "FluxConfig",
    "FramesConfig",
    "Functional",
    "MMDiTConfig",
    "PixArtConfig",
    "T2IAdapterConfig",
    "T5Config",
    "UNet",
    "UNet1DConfig",
    "UNetConfig",
    "VQConfig",
    "WaveformUNetConfig",
    "autoencoder_kl",
    "autoencoder_tiny",
    "classifier",
    "clip_text",
    "controlnet",
    "count_parameters",
    "ddpm_celeba64",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "dit",
    "dit_s_2",
    "dit_xl_2",
    "edm_cifar10",
    "experts",
    "flux",
    "functional",
    "inception",
    "mmdit",
    "ncsnpp_cifar10",
    "pixart",
    "sd1_unet",
    "sd2_unet",
    "sdxl_unet",
    "t2i_adapter",
    "t5_encoder",
    "unet",
    "unet1d",
    "unet_attention_map",
    "unet_waveform",
    "vdm_cifar10",
    "vq_autoencoder",
]
