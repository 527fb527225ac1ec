"""The folders of Diffuser's temporal UNet, as diffusers writes them."""

from collections.abc import Sequence

from diffjax.networks.unet1d import UNet1DConfig, unet1d
from diffjax.pretrained.architecture import Architecture, Key
from diffjax.pretrained.weights import UnsupportedError


def _count(kinds: Sequence[str], known: str) -> int:
    unknown = sorted(set(kinds) - {known})
    if unknown:
        raise UnsupportedError(
            f"config.json: there are blocks {', '.join(map(repr, unknown))}; supported: {known!r}"
        )
    return len(kinds)


UNET_1D = Architecture(
    class_name="UNet1DModel",
    make=UNet1DConfig,
    build=unet1d,
    keys={
        "sample_size": Key(65536, "sample_size"),
        "in_channels": Key(2, "in_channels"),
        "out_channels": Key(2, "out_channels"),
        "extra_in_channels": Key(0, only=(0,)),
        "time_embedding_type": Key("fourier", only=("positional",)),
        "use_timestep_embedding": Key(False, only=(True,)),
        "flip_sin_to_cos": Key(True, "flip_sin_to_cos"),
        "freq_shift": Key(0.0, "freq_shift"),
        "block_out_channels": Key((32, 32, 64), "block_out_channels"),
        "act_fn": Key(None, "act", only=("mish", "silu", "swish", "gelu", "relu")),
        "norm_num_groups": Key(8, "num_groups"),
        "layers_per_block": Key(1, "layers_per_block"),
        "down_block_types": Key(
            ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            "num_levels",
            read=lambda kinds: _count(kinds, "DownResnetBlock1D"),
            write=lambda count: ["DownResnetBlock1D"] * count,
            derived=True,
        ),
        "mid_block_type": Key("UNetMidBlock1D", only=("MidResTemporalBlock1D",)),
        "up_block_types": Key(
            ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
            "num_levels",
            read=lambda kinds: _count(kinds, "UpResnetBlock1D") + 1,
            write=lambda count: ["UpResnetBlock1D"] * (count - 1),
            derived=True,
        ),
        "out_block_type": Key(None, only=("OutConv1DBlock",)),
        "downsample_each_block": Key(False, only=(False,)),
    },
)
