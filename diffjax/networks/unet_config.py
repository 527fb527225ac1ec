"""The shape of a UNet as a frozen dataclass."""

from dataclasses import dataclass

from diffjax.networks.activations import ACTIVATIONS
from diffjax.networks.layers import require_divisible, require_heads
from diffjax.networks.unet_context import HINT_CHANNELS, ContextConfig, PerLevel, at_level
from diffjax.networks.unet_frames import FramesConfig

# how a level is halved or doubled: inside a residual block, or between the blocks
INSIDE = ("resnet", "biggan", "fir")
BETWEEN = ("conv", "plain")

# what follows the residual blocks of a level; see `UNetConfig.attention`
ATTENTIONS = (False, True, "transformer", "extended")

CHOICES = {
    "time_embedding": ("sinusoidal", "fourier", "learned"),
    "class_embedding": ("table", "timestep", "identity", "projection", "linear"),
    "identity_attention": ("none", "middle", "all"),
    "progressive_input": ("none", "sum", "cat", "residual"),
    "activation": tuple(ACTIVATIONS),
    "outer_activation": tuple(ACTIVATIONS),
    "mid_attention": ATTENTIONS,
    "dtype": ("float32", "bfloat16", "float16"),
    "param_dtype": ("float32", "bfloat16", "float16"),
    "spatial_dims": (1, 2, 3),
    "downsample_padding": (0, 1),
}


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a UNet; the defaults are DDPM's network for CIFAR-10 without dropout.

    Levels are counted from the finest; each but the last halves the resolution.

    Attributes:
      sample_size: side of the images that the network was made for, or one for each axis; a note
        for samplers; without `positions` the network takes every size that it can halve often
        enough.
      in_channels: of the images.
      out_channels: likewise; 2 x in_channels come out with a learned variance.
      block_out_channels: channels of each level.
      stem_channels: of the first convolution, and waves of the clock; None for
        block_out_channels[0].
      layers_per_block: residual blocks of a level on the way down, one number or one for each
        level; one more on the way up.
      attention: for each level, what follows its residual blocks: False for nothing, True for
        self-attention, "transformer" for blocks of self-attention and attention to a context,
        "extended" for self-attention in which the tokens of a context are further positions.
      up_attention: the same on the way up, or "last" for self-attention behind the last block
        alone; None to mirror `attention`.
      mid_block: whether there is a middle block.
      mid_attention: whether there is attention in it, or which kind, as of `attention`.
      mid_layers: attentions, each with a residual block behind it, of the middle block.
      identity_attention: where attention maps are replaced by the identity: "none", "middle" or
        "all". The parameters stay the same; for perturbed-attention guidance.
      head_dim: channels of an attention head, of which as many as fit are taken, one number or one
        for each level; None for a single head. Transformers have `context.num_heads`.
      num_groups: of every GroupNorm; None for as many as have 4 channels, 32 at most.
      end_groups: the same in the middle block and in front of the output; None as num_groups.
      attention_groups: of the norm in front of attention; None as the residual blocks beside it.
      mid_attention_groups: the same in the middle block; 0 for no norm.
      joined_groups: of the first norm in the residual blocks on the way up of levels with
        attention; None as num_groups.
      norm_eps: added to the variance in every GroupNorm.
      activation: of the residual blocks, a name of `diffjax.networks.activations`.
      outer_activation: of the embedding of the time and in front of the output.
      plain_time: the blocks take the embedding of the time without an activation.
      scale_shift: the time scales and shifts the second norm's output instead of being added
        in front of it.
      residual_scale: factor on every sum with a residual branch; 1 / sqrt(2) keeps the variance.
      mid_residual_scale: the same in the middle block; None as residual_scale.
      downsample: how to halve, one for all levels or one for each: "conv" (strided), "plain"
        (average pairs), or inside a residual block: "resnet" as "plain" does it, "biggan" with a
        convolution in the shortcut besides, "fir" as "biggan" behind the filter `fir_kernel`.
      upsample: how to double, likewise; "conv" repeats the nearest element in front of a
        convolution, "plain" repeats it.
      downsample_padding: 0 pads the convolution of "conv" by one element at the high side, 1 at
        both sides.
      fir_kernel: taps of the filter of "fir".
      progressive_input: how the halved image joins the features of each level: "none", "sum",
        "cat", "residual"; see `diffjax.networks.pyramids`.
      progressive_output: the output is a sum of images of all levels.
      dropout: probability in every residual block, in training.
      time_features: size of the time embedding; None for 4 x stem_channels.
      time_embedding: "sinusoidal" (fixed frequencies), "fourier" (random ones, `GaussianFourier`)
        or "learned" (a table of num_times steps).
      time_scale: the clock t is multiplied by it; 1000 for a clock in [0, 1].
      sigma_clock: the clock is a sigma: its logarithm is embedded, and the output is divided by it.
      flip_sin_to_cos: cosines stand in front of sines, of random frequencies too.
      freq_shift: of the sinusoidal features, see `sinusoidal_features`.
      fourier_scale: standard deviation of the random frequencies.
      num_times: rows of the learned table.
      num_classes: number of labels; None for a network without labels.
      class_embedding: "table" for labels that are integers; "timestep" for numbers, embedded as
        the clock is; "identity" for vectors of time_features, added as they are; "projection" for
        vectors of class_features behind two layers, "linear" behind one.
      class_features: of the vectors that are projected.
      class_concat: put the label's embedding beside the time's instead of adding it.
      cond_drop_prob: probability of the null label, num_classes, in training. If positive, the
        label table has a row for it.
      patch_size: side of the blocks of pixels that are moved into the channels before the first
        convolution and back after the last; 2 quarters the work.
      center_input: map inputs from [0, 1] to [-1, 1] first.
      input_waves: exponents of `binary_waves` of the input, which join it as further channels.
      positions: add a table of positions, which is learned, to the first convolution's output. The
        network takes images of `sample_size` alone.
      add_input: add the input to the output.
      end_windows: of the first and the last convolution, odd numbers.
      context: what else the network is told, and how it attends to it; None for nothing.
      frames: how the frames of a video are mixed; None for a network of images.
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
    stem_channels: int | None = None
    layers_per_block: PerLevel = 2
    attention: tuple[bool | str, ...] = (False, True, False, False)
    up_attention: tuple[bool | str, ...] | None = None
    mid_block: bool = True
    mid_attention: bool | str = True
    mid_layers: int = 1
    identity_attention: str = "none"
    head_dim: PerLevel | None = None
    num_groups: int | None = 32
    end_groups: int | None = None
    attention_groups: int | None = None
    mid_attention_groups: int | None = None
    joined_groups: int | None = None
    norm_eps: float = 1e-6
    activation: str = "silu"
    outer_activation: str = "silu"
    plain_time: bool = False
    scale_shift: bool = False
    residual_scale: float = 1.0
    mid_residual_scale: float | None = None
    downsample: str | tuple[str, ...] = "conv"
    upsample: str | tuple[str, ...] = "conv"
    downsample_padding: int = 0
    fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    progressive_input: str = "none"
    progressive_output: bool = False
    dropout: float = 0.0
    time_features: int | None = None
    time_embedding: str = "sinusoidal"
    time_scale: float = 1.0
    sigma_clock: bool = False
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    fourier_scale: float = 16.0
    num_times: int | None = None
    num_classes: int | None = None
    class_embedding: str = "table"
    class_features: int | None = None
    class_concat: bool = False
    cond_drop_prob: float = 0.0
    patch_size: int = 1
    center_input: bool = False
    input_waves: tuple[int, ...] = ()
    positions: bool = False
    add_input: bool = False
    end_windows: tuple[int, int] = (3, 3)
    context: ContextConfig | None = None
    frames: FramesConfig | None = None
    spatial_dims: int = 2
    zero_init: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        _check_levels(self)
        _check_ranges(self)
        _check_conditioning(self)

    @property
    def time_embedding_features(self) -> int:
        """The size of the time embedding."""
        return self.time_features or 4 * self.first_channels

    @property
    def block_time_features(self) -> int:
        """The size of what the blocks are told of time and label."""
        return self.time_embedding_features * (1 + self.class_concat)

    @property
    def given_channels(self) -> int:
        """Channels of the images that the network is given."""
        hinted = self.context is not None and self.context.added == "image_hint"
        return self.in_channels - HINT_CHANNELS * hinted

    @property
    def first_channels(self) -> int:
        """Channels behind the first convolution."""
        return self.stem_channels or self.block_out_channels[0]

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the images that the network was made for; 0 where none is told."""
        size = self.sample_size
        return tuple(size) if isinstance(size, tuple | list) else (size or 0,) * self.spatial_dims

    @property
    def takes_labels(self) -> bool:
        """Whether the network has a label besides the clock."""
        return self.num_classes is not None or self.class_embedding != "table"

    def patch_channels(self, channels: int) -> int:
        """Channels of an image whose patches have been moved into them."""
        return channels * self.patch_size**self.spatial_dims

    def entering_channels(self, level: int) -> int:
        """Channels with which a level begins on the way down, kept for its end on the way up."""
        if level == 0:
            return self.first_channels
        return self.block_out_channels[level - 1] * (1 + (self.progressive_input == "cat"))


def _check_levels(config: UNetConfig) -> None:
    levels = len(config.block_out_channels)
    if levels == 0:
        raise ValueError("block_out_channels is empty; give the channels of at least one level")
    per_level = ("attention", "up_attention", "downsample", "upsample", "layers_per_block")
    for name in (*per_level, "head_dim"):
        value = getattr(config, name)
        if isinstance(value, tuple | list) and len(value) != levels:
            raise ValueError(
                f"{name} has {len(value)} entries for the {levels} levels of block_out_channels"
            )
    for name in ("downsample", "upsample"):
        value = getattr(config, name)
        for kind in (value,) if isinstance(value, str) else value:
            _require_choice(name, kind, BETWEEN + INSIDE)
    for channels in config.block_out_channels:
        if config.num_groups is not None:
            require_divisible(channels, config.num_groups, "block_out_channels", "num_groups")
    _check_attention(config)


def _check_attention(config: UNetConfig) -> None:
    up_attention = config.up_attention or config.attention
    for level, channels in enumerate(config.block_out_channels):
        kinds = config.attention[level], up_attention[level]
        _require_choice("attention", kinds[0], ATTENTIONS)
        _require_choice("up_attention", kinds[1], (*ATTENTIONS, "last"))
        head_dim = at_level(config.head_dim, level)
        if head_dim is not None and set(kinds) - {False, "transformer"}:
            require_heads(channels, head_dim)
    told = {*config.attention, *up_attention, config.mid_attention} & {"transformer", "extended"}
    if told and config.context is None:
        raise ValueError(
            f"attention {', '.join(map(repr, sorted(told)))} needs a context: give a ContextConfig"
        )


def _check_ranges(config: UNetConfig) -> None:
    for name in ("in_channels", "out_channels", "layers_per_block", "patch_size"):
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if config.frames is not None and config.spatial_dims != 2:
        raise ValueError(f"frames are of 2 axes; spatial_dims is {config.spatial_dims}")
    if any(window % 2 == 0 for window in config.end_windows):
        raise ValueError(f"end_windows is {config.end_windows}; the windows must be odd")
    for name in ("dropout", "cond_drop_prob"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be in [0, 1)")
    for name, choices in CHOICES.items():
        _require_choice(name, getattr(config, name), choices)
    if len(config.fir_kernel) < 2 or not sum(config.fir_kernel):
        raise ValueError(
            f"fir_kernel is {config.fir_kernel}; it must have 2 taps or more, whose sum is not 0"
        )
    if config.positions and any(n < 1 or n % config.patch_size for n in config.sides):
        raise ValueError(
            f"positions are those of the patches of a picture: sample_size, {config.sample_size}, "
            f"must be multiples of patch_size ({config.patch_size})"
        )
    if config.add_input and config.in_channels != config.out_channels:
        raise ValueError(
            f"add_input adds {config.in_channels} channels to {config.out_channels}; "
            "set out_channels to in_channels"
        )


def _check_conditioning(config: UNetConfig) -> None:
    if (config.num_times is None) == (config.time_embedding == "learned"):
        raise ValueError(
            f"time_embedding is {config.time_embedding!r} and num_times {config.num_times}; "
            "'learned', and it alone, needs the number of times"
        )
    if config.class_embedding != "table" and config.num_classes is not None:
        raise ValueError(
            f"class_embedding {config.class_embedding!r} takes no integers; leave num_classes out"
        )
    if (config.class_features is None) == (config.class_embedding in ("projection", "linear")):
        raise ValueError(
            f"class_embedding is {config.class_embedding!r} and class_features "
            f"{config.class_features}; 'projection' and 'linear', and they alone, need a number"
        )
    if config.num_classes is None and config.cond_drop_prob > 0:
        raise ValueError("cond_drop_prob drops labels; give num_classes as well")
    few = config.first_channels // 2 <= config.freq_shift
    if config.time_embedding == "sinusoidal" and few:
        raise ValueError(
            f"the first convolution has {config.first_channels} channels; sinusoidal features with "
            f"freq_shift {config.freq_shift} need more than {2 * config.freq_shift:g} channels"
        )


def _require_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
