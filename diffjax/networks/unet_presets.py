"""The shapes of published UNets."""

from diffjax.networks.unet_config import UNetConfig


def ddpm_cifar10(**changes) -> UNetConfig:
    """DDPM's network for 32x32 images, 35,746,307 parameters (arXiv:2006.11239, appendix B).

    >>> ddpm_cifar10(num_classes=10).dropout
    0.1
    """
    return UNetConfig(**{"dropout": 0.1, **changes})


def ddpm_celeba64(**changes) -> UNetConfig:
    """DDPM's network for 64x64 faces: one more halving than for CIFAR-10, attention at 16x16.

    Source: DDIM, arXiv:2010.02502, appendix D.1, which trained DDPM's architecture on CelebA.

    >>> ddpm_celeba64().block_out_channels
    (128, 256, 256, 256, 512)
    """
    faces = {
        "sample_size": 64,
        "block_out_channels": (128, 256, 256, 256, 512),
        "attention": (False, False, True, False, False),
        "dropout": 0.1,
    }
    return UNetConfig(**{**faces, **changes})


def ddpmpp_cifar10(*, deep: bool = False, **changes) -> UNetConfig:
    """DDPM++ for 32x32 images with a clock in [0, 1].

    DDPM's network with residual blocks that resize, scaled sums, twice the depth (deep: four
    times) and one attention a level on the way up.
    Source: score SDEs, arXiv:2011.13456, appendix H.

    >>> ddpmpp_cifar10(dropout=0.15).layers_per_block
    4
    """
    shape = {
        "layers_per_block": 8 if deep else 4,
        "up_attention": (False, "last", False, False),
        "num_groups": None,
        "residual_scale": 0.5**0.5,
        "downsample": "biggan",
        "upsample": "biggan",
        "dropout": 0.1,
        "time_scale": 1000.0,
    }
    return UNetConfig(**{**shape, **changes})


def ncsnpp_cifar10(*, deep: bool = False, **changes) -> UNetConfig:
    """NCSN++ for 32x32 images, for the prediction `ncsn`: told log(sigma), and sigma x score out.

    DDPM++ with filtered resizing, the image joined into every level, and random Fourier features.
    With sigma_clock the same network is told sigma and returns the score itself, as its published
    weights have it. Source: score SDEs, arXiv:2011.13456, appendix H.

    >>> ncsnpp_cifar10(deep=True).layers_per_block
    8
    """
    differences = {
        "downsample": "fir",
        "upsample": "fir",
        "progressive_input": "residual",
        "time_embedding": "fourier",
        "time_scale": 1.0,
    }
    return ddpmpp_cifar10(deep=deep, **{**differences, **changes})


def edm_cifar10(**changes) -> UNetConfig:
    """EDM's DDPM++ for 32x32 images: three levels of 256 channels, without its augmentation inputs.

    Source: EDM, arXiv:2206.00364, appendix F.2 and table 8. The clock is that of the prediction
    `edm`, log(sigma) / 4.

    >>> edm_cifar10().block_out_channels
    (256, 256, 256)
    """
    shape = {
        "stem_channels": 128,
        "block_out_channels": (256, 256, 256),
        "attention": (False, True, False),
        "up_attention": (False, "last", False),
        "dropout": 0.13,
        "time_scale": 1.0,
    }
    return ddpmpp_cifar10(**{**shape, **changes})


def vdm_cifar10(**changes) -> UNetConfig:
    """VDM's network for 32x32 images: 32 blocks down and 33 up, all at the full resolution.

    Its input has waves that show the last bits, and is added to the output. The clock runs from 0
    at the cleanest level to 1. Source: VDM, arXiv:2107.00630, appendix C.

    >>> vdm_cifar10(layers_per_block=8).input_waves
    (7, 8)
    """
    shape = {
        "block_out_channels": (128,),
        "layers_per_block": 32,
        "attention": (False,),
        "input_waves": (7, 8),
        "add_input": True,
        "dropout": 0.1,
        "time_scale": 1000.0,
    }
    return UNetConfig(**{**shape, **changes})
