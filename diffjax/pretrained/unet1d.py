"""The folders of UNet1DModel of diffusers: Diffuser's temporal UNet, and the one of waveforms."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffjax.networks.unet1d import UNet1DConfig, unet1d
from diffjax.networks.unet_waveform import WaveformUNetConfig, unet_waveform
from diffjax.pretrained.architecture import Architecture, Key
from diffjax.pretrained.weights import UnsupportedError


def _count(name: str, kinds: Sequence[str], known: str) -> int:
    unknown = sorted(set(kinds) - {known})
    if unknown:
        raise UnsupportedError(
            f"config.json: {name} has {', '.join(map(repr, unknown))}; supported: {known!r}"
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
            read=lambda kinds: _count("down_block_types", kinds, "DownResnetBlock1D"),
            write=lambda count: ["DownResnetBlock1D"] * count,
            derived=True,
        ),
        "mid_block_type": Key("UNetMidBlock1D", only=("MidResTemporalBlock1D",)),
        "up_block_types": Key(
            ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
            "num_levels",
            read=lambda kinds: _count("up_block_types", kinds, "UpResnetBlock1D") + 1,
            write=lambda count: ["UpResnetBlock1D"] * (count - 1),
            derived=True,
        ),
        "out_block_type": Key(None, only=("OutConv1DBlock",)),
        "downsample_each_block": Key(False, only=(False,)),
    },
)


# of all levels but the first, which halves nothing: block type -> whether it attends
_DOWN = {"DownBlock1D": False, "AttnDownBlock1D": True}
_UP = {"UpBlock1D": False, "AttnUpBlock1D": True}
_FIRST, _LAST = "DownBlock1DNoSkip", "UpBlock1DNoSkip"


def _attention(kinds: Sequence[str], first: str, known: Mapping[str, bool]) -> tuple[bool, ...]:
    """Which levels attend, the finest first."""
    unknown = sorted(set(kinds[1:]) - known.keys())
    if kinds[0] != first or unknown:
        raise UnsupportedError(
            f"config.json: there are blocks {', '.join(map(repr, kinds))}; supported: {first!r} at "
            f"the finest level, and {', '.join(map(repr, known))} at all others"
        )
    return (False, *(known[kind] for kind in kinds[1:]))


def _kinds(attends: Sequence[bool], first: str, known: Mapping[str, bool]) -> list[str]:
    names = {value: name for name, value in known.items()}
    return [first, *(names[each] for each in attends[1:])]


def _read_waveform(saved: Mapping[str, Any]) -> dict[str, Any]:
    waves, given = saved["extra_in_channels"], saved["time_embedding_dim"]
    # older files do not say how many waves there are, but they join the channels
    if given not in (None, waves):
        raise UnsupportedError(
            f"config.json: time_embedding_dim is {given} and extra_in_channels {waves}; supported: "
            "the same"
        )
    return {
        "attention": _attention(saved["down_block_types"], _FIRST, _DOWN),
        "up_attention": _attention(saved["up_block_types"][::-1], _LAST, _UP),
    }


def _write_waveform(config: WaveformUNetConfig) -> dict[str, Any]:
    down, up = config.attends
    return {
        "time_embedding_dim": config.time_features,
        "down_block_types": _kinds(down, _FIRST, _DOWN),
        "up_block_types": _kinds(up, _LAST, _UP)[::-1],
    }


UNET_WAVEFORM = Architecture(
    class_name="UNet1DModel",
    make=WaveformUNetConfig,
    build=unet_waveform,
    keys={
        "sample_size": Key(65536, "sample_size"),
        "sample_rate": Key(None, "sample_rate"),
        "in_channels": Key(2, "in_channels"),
        "out_channels": Key(2, "out_channels"),
        "extra_in_channels": Key(0, "time_features"),
        "time_embedding_type": Key("fourier", only=("fourier",)),
        "time_embedding_dim": Key(None),
        "use_timestep_embedding": Key(False, only=(False,)),
        "flip_sin_to_cos": Key(True, "flip_sin_to_cos"),
        "block_out_channels": Key((32, 32, 64), "block_out_channels"),
        "down_block_types": Key((_FIRST, *_DOWN)),
        "mid_block_type": Key("UNetMidBlock1D", only=("UNetMidBlock1D",)),
        "up_block_types": Key((*reversed(_UP), _LAST)),
        "out_block_type": Key(None, only=(None,)),
        "downsample_each_block": Key(False, only=(False,)),
    },
    names={
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "proj_attn": "to_out.0",
        "down.kernel": "down.taps",
        "up.kernel": "up.taps",
    },
    read=_read_waveform,
    write=_write_waveform,
)

UNETS_1D = [UNET_1D, UNET_WAVEFORM]
