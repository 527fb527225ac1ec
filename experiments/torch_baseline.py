"""The networks of the benchmark on torch: diffusers' UNet2DModel, trained and sampled eagerly.

Only `benchmark.py --compare` imports this file; it needs the extra `bench` (torch, diffusers).
"""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch.nn import functional

from config import Config
from diffjax.core.levels import NoiseLevel
from diffjax.networks import UNetConfig

Run = Callable[[], None]


def versions() -> dict[str, str]:
    """Of the packages that the comparison adds."""
    return {"torch": torch.__version__, "diffusers": diffusers.__version__}


def build(config: UNetConfig) -> torch.nn.Module:
    """diffusers' network of the same topology, on the GPU if there is one.

    Patches are moved into the channels outside of it, the null label is a row of its label table.
    """
    patch = config.patch_size
    down = ["AttnDownBlock2D" if attended else "DownBlock2D" for attended in config.attention]
    up = ["AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(config.attention)]
    labels = None if config.num_classes is None else config.num_classes + 1
    network = diffusers.UNet2DModel(
        sample_size=config.sample_size // patch,  # type: ignore[operator]
        in_channels=config.in_channels * patch**2,
        out_channels=config.out_channels * patch**2,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_padding=config.downsample_padding,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,  # type: ignore[arg-type]
        attention_head_dim=config.head_dim,
        norm_num_groups=config.num_groups,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        num_class_embeds=labels,
        add_attention=config.mid_attention,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
    )
    _resize_plainly(network, config)
    return network.to(_device())


def _resize_plainly(network: Any, config: UNetConfig) -> None:
    """Take out the convolutions of resizing, as UNet2DModel's arguments cannot."""
    channels = config.block_out_channels
    if config.downsample == "plain":
        for block, width in zip(network.down_blocks[:-1], channels):
            block.downsamplers = torch.nn.ModuleList([Downsample2D(width, use_conv=False)])
    if config.upsample == "plain":
        for block, width in zip(network.up_blocks[:-1], reversed(channels)):
            block.upsamplers = torch.nn.ModuleList([Upsample2D(width, use_conv=False)])


def count_parameters(network: torch.nn.Module) -> int:
    """The number of scalars that are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def train_step(config: Config, network: torch.nn.Module, batch_size: int, dtype: str) -> Run:
    """One training step: noise, forward, backward, clipping, Adam, weight average."""
    device, unet = _device(), config.network
    alphas, sigmas = _table(config, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    x0 = torch.rand(batch_size, *_shape(unet), device=device) * 2 - 1
    labels = _labels(unet, batch_size)

    def run() -> None:
        network.train()
        steps = torch.randint(0, len(alphas), (batch_size,), device=device)
        alpha, sigma = (table[steps].view(-1, 1, 1, 1) for table in (alphas, sigmas))
        eps = torch.randn_like(x0)
        target = eps if config.diffusion.prediction == "eps" else alpha * eps - sigma * x0
        kept = labels
        if labels is not None:
            dropped = torch.rand(batch_size, device=device) < unet.cond_drop_prob
            kept = torch.where(dropped, unet.num_classes, labels)
        with _autocast(device, dtype):
            output = _apply(network, unet, alpha * x0 + sigma * eps, steps, kept)
        loss = functional.mse_loss(output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)
        _wait(device)

    return run


def ddim_sampler(
    config: Config, network: torch.nn.Module, batch_size: int, dtype: str, levels: NoiseLevel
) -> Run:
    """Deterministic DDIM over the given levels, from fresh noise."""
    device, unet = _device(), config.network
    times, alphas, sigmas = (np.asarray(leaf).tolist() for leaf in levels)
    labels = _labels(unet, batch_size)

    @torch.inference_mode()
    def run() -> None:
        network.eval()
        x = torch.randn(batch_size, *_shape(unet), device=device)
        for i in range(len(times) - 1):
            t = torch.full((batch_size,), times[i], device=device)
            with _autocast(device, dtype):
                output = _apply(network, unet, x, t, labels).float()
            if config.diffusion.prediction == "eps":
                eps, x0 = output, (x - sigmas[i] * output) / alphas[i]
            else:
                x0 = alphas[i] * x - sigmas[i] * output
                eps = (x - alphas[i] * x0) / sigmas[i]
            x = alphas[i + 1] * x0 + sigmas[i + 1] * eps
        _wait(device)

    return run


def _apply(network: Any, config: UNetConfig, x, t, labels):
    if config.patch_size > 1:
        x = functional.pixel_unshuffle(x, config.patch_size)
    output = network(x, t, class_labels=labels).sample
    return functional.pixel_shuffle(output, config.patch_size) if config.patch_size > 1 else output


def _table(config: Config, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    from diffjax.core.schedules import SCHEDULES

    level = SCHEDULES[config.diffusion.schedule]()(np.arange(config.diffusion.num_train_steps))
    alpha, sigma = (torch.from_numpy(np.array(leaf)) for leaf in (level.alpha, level.sigma))
    return alpha.to(device), sigma.to(device)


def _shape(config: UNetConfig) -> tuple[int, ...]:
    return (config.in_channels, config.sample_size, config.sample_size)  # type: ignore[return-value]


def _labels(config: UNetConfig, batch_size: int) -> torch.Tensor | None:
    if config.num_classes is None:
        return None
    return torch.arange(batch_size, device=_device()) % config.num_classes


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _autocast(device: str, dtype: str):
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if torch.cuda.is_available():
    # as XLA does by default, so that both multiply float32 on the tensor cores
    torch.set_float32_matmul_precision("high")
