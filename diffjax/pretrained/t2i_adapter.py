"""The folders of diffusers' T2IAdapter."""

from diffjax.networks.t2i_adapter import T2IAdapterConfig, t2i_adapter
from diffjax.pretrained.architecture import Architecture, Key

T2I_ADAPTER = Architecture(
    class_name="T2IAdapter",
    make=T2IAdapterConfig,
    build=t2i_adapter,
    keys={
        "in_channels": Key(3, "in_channels"),
        "channels": Key((320, 640, 1280, 1280), "channels"),
        "num_res_blocks": Key(2, "num_blocks"),
        "downscale_factor": Key(8, "factor"),
        "adapter_type": Key(
            "full_adapter",
            "kind",
            only=("full_adapter", "full_adapter_xl", "light_adapter"),
            read=lambda kind: kind.replace("_adapter", ""),
            write=lambda kind: kind.replace("full", "full_adapter").replace(
                "light", "light_adapter"
            ),
        ),
    },
    names={"adapter.conv_in": "conv_in", "adapter.body": "body"},
)
