"""The shape of a UNet as a frozen dataclass, and the shapes of published networks."""

from dataclasses import dataclass

from diffjax.networks.layers import require_divisible


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet; the defaults are DDPM's network for CIFAR-10 without dropout.

    Levels are counted from the finest; each but the last halves the resolution.

    Attributes:
      sample_size: side of the images that the network was made for, or one for each axis; a note
        for samplers, the network itself takes every size that it can halve often enough.
      in_channels, out_channels: of the images; 2 x in_channels come out with a learned variance.
      block_out_channels: channels of each level.
      layers_per_block: residual blocks of a level on the way down; one more on the way up.
      attention: for each level, whether self-attention follows its residual blocks.
      up_attention: the same on the way up; None to mirror `attention`.
      mid_block, mid_attention: whether there is a middle block, and attention in it.
      head_dim: channels of an attention head; None for a single head.
      num_groups: of every GroupNorm.
      mid_attention_groups: of the middle attention's GroupNorm; None as num_groups, 0 for none.
      norm_eps: added to the variance in every GroupNorm.
      scale_shift: the time scales and shifts the second norm's output instead of being added
        in front of it.
      downsample, upsample: "conv", "resnet" (inside a residual block) or "plain" (average pairs,
        repeat the nearest element), one for all levels or one for each.
      downsample_padding: 0 pads the convolution of "conv" by one element at the high side, 1 at
        both sides.
      dropout: probability in every residual block, in training.
      time_features: size of the time embedding; None for 4 x block_out_channels[0].
      time_scale: the clock t is multiplied by it; 1000 for a clock in [0, 1].
      flip_sin_to_cos, freq_shift: of the sinusoidal features, see `sinusoidal_features`.
      num_classes: number of labels; None for a network without labels.
      cond_drop_prob: probability of the null label, num_classes, in training. If positive, the
        label table has a row for it.
      patch_size: side of the blocks of pixels that are moved into the channels before the first
        convolution and back after the last; 2 quarters the work.
      center_input: map inputs from [0, 1] to [-1, 1] first.
      spatial_dims: 1, 2 or 3 spatial axes.
      zero_init: start the residual branches and the output at zero.
      dtype: of the computation, "float32" or "bfloat16"; params, time embedding, normalisation
        statistics, softmax and the output are float32 all the same.
      param_dtype: of the parameters that `init` makes.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    sample_size: int | tuple[int, ...] | None = 32
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 256)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, False, False)
    up_attention: tuple[bool, ...] | None = None
    mid_block: bool = True
    mid_attention: bool = True
    head_dim: int | None = None
    num_groups: int = 32
    mid_attention_groups: int | None = None
    norm_eps: float = 1e-6
    scale_shift: bool = False
    downsample: str | tuple[str, ...] = "conv"
    upsample: str | tuple[str, ...] = "conv"
    downsample_padding: int = 0
    dropout: float = 0.0
    time_features: int | None = None
    time_scale: float = 1.0
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    num_classes: int | None = None
    cond_drop_prob: float = 0.0
    patch_size: int = 1
    center_input: bool = False
    spatial_dims: int = 2
    zero_init: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        _check_levels(self)
        _check_ranges(self)

    @property
    def time_embedding_features(self) -> int:
        """The size of the time embedding."""
        return self.time_features or 4 * self.block_out_channels[0]


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


def _check_levels(config: UNetConfig) -> None:
    levels = len(config.block_out_channels)
    if levels == 0:
        raise ValueError("block_out_channels is empty; give the channels of at least one level")
    for name in ("attention", "up_attention", "downsample", "upsample"):
        value = getattr(config, name)
        if isinstance(value, tuple | list) and len(value) != levels:
            raise ValueError(
                f"{name} has {len(value)} entries for the {levels} levels of block_out_channels"
            )
    for name in ("downsample", "upsample"):
        value = getattr(config, name)
        for kind in (value,) if isinstance(value, str) else value:
            if kind not in ("conv", "resnet", "plain"):
                raise ValueError(f"{name} is {kind!r}; it must be 'conv', 'resnet' or 'plain'")
    for channels in config.block_out_channels:
        require_divisible(channels, config.num_groups, "block_out_channels", "num_groups")
    head_dim, up_attention = config.head_dim, config.up_attention or config.attention
    for channels, down, up in zip(config.block_out_channels, config.attention, up_attention):
        if head_dim is not None and (down or up):
            require_divisible(channels, head_dim, "block_out_channels with attention", "head_dim")


def _check_ranges(config: UNetConfig) -> None:
    for name in ("in_channels", "out_channels", "layers_per_block", "patch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in ("dropout", "cond_drop_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be in [0, 1)")
    for name in ("dtype", "param_dtype"):
        if str(getattr(config, name)) not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; "
                "it must be 'float32', 'bfloat16' or 'float16'"
            )
    if config.spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims is {config.spatial_dims}; it must be 1, 2 or 3")
    if config.downsample_padding not in (0, 1):
        raise ValueError(f"downsample_padding is {config.downsample_padding}; it must be 0 or 1")
    if config.num_classes is None and config.cond_drop_prob > 0:
        raise ValueError("cond_drop_prob drops labels; give num_classes as well")
    if config.block_out_channels[0] // 2 <= config.freq_shift:
        raise ValueError(
            f"block_out_channels[0] is {config.block_out_channels[0]}; sinusoidal features with "
            f"freq_shift {config.freq_shift} need more than {2 * config.freq_shift:g} channels"
        )
