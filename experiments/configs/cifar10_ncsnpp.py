"""CIFAR-10 by NCSN++ under the VE SDE in continuous time, arXiv:2011.13456, appendix H.

python experiments/train.py cifar10_ncsnpp --data.path TFDS_DATA_DIR          62.8 M parameters
python experiments/train.py cifar10_ncsnpp_deep --data.path TFDS_DATA_DIR    107.6 M parameters

The paper's sigmas, 0.01 to 50, are those of images in [0, 1]; here images are in [-1, 1]. Its
sampler is predictor-corrector with 1000 steps of two network calls. Expected: FID 2.38 and 2.20
(deep). Measured: not measured.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.cifar10 import cifar10
from diffjax.networks import ncsnpp_cifar10

cifar10_ncsnpp = replace(
    cifar10,
    network=ncsnpp_cifar10(),
    diffusion=DiffusionConfig(
        schedule="variance_exploding(sigma_min=0.02, sigma_max=100)",
        prediction="ncsn",
        weight="score_matching",
    ),
    sampling=SamplingConfig(
        solver="predictor_corrector", num_steps=1000, previews=("predictor_corrector", "ddim")
    ),
    num_steps=1_300_000,
    ema_decay=(0.999,),
)
cifar10_ncsnpp_deep = replace(cifar10_ncsnpp, network=ncsnpp_cifar10(deep=True), num_steps=950_000)
