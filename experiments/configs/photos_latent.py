"""Photo patches in the latent space of their autoencoder; the class is the photograph.

python experiments/train.py photos_autoencoder
python experiments/train.py photos_latent --autoencoder runs/photos_autoencoder

Patches of 2x2 leave 4x4 and 2x2 positions of the 8x8 latents. One CPU core, about 9 minutes, two of
which encode 20,000 patches and their mirror images. Pictures: docs/latent_diffusion.md.
"""

from dataclasses import replace

from config import DataConfig, LatentsConfig, SamplingConfig
from configs.digits import digits

photos_latent = replace(
    digits,
    data=DataConfig(name="photos", flip=True),
    latents=LatentsConfig(autoencoder="runs/photos_autoencoder"),
    network=replace(digits.network, sample_size=8, in_channels=4, out_channels=4, num_classes=2),
    sampling=SamplingConfig(previews=("ddim",), clip=False),
    num_steps=2400,
)
