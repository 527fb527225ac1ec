"""The folders of HiFi-GAN vocoders, as transformers writes them."""

from diffjax.networks.hifigan import HiFiGANConfig, hifigan
from diffjax.pretrained.architecture import Architecture, Key

HIFIGAN = Architecture(
    class_name="SpeechT5HifiGan",
    make=HiFiGANConfig,
    build=hifigan,
    stem="model",
    keys={
        "model_in_dim": Key(80, "mels"),
        "sampling_rate": Key(16000, "sampling_rate"),
        "upsample_initial_channel": Key(512, "channels"),
        "upsample_rates": Key((4, 4, 4, 4), "upsample_rates"),
        "upsample_kernel_sizes": Key((8, 8, 8, 8), "upsample_windows"),
        "resblock_kernel_sizes": Key((3, 7, 11), "block_windows"),
        "resblock_dilation_sizes": Key(((1, 3, 5),) * 3, "block_dilations"),
        "leaky_relu_slope": Key(0.1, "leaky_slope"),
        "normalize_before": Key(True, "normalize"),
        "model_type": Key("speecht5_hifigan", only=("speecht5_hifigan", "hifigan")),
    },
    # "scale" is what the factors of norms are called here
    names={"scale": "std"},
)
