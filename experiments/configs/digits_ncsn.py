"""The digits by a noise-conditional score network, as in NCSN, arXiv:1907.05600 and 2006.09011.

python experiments/train.py digits_ncsn

Noise reaches to the largest distance between two digits, 9.6, and its levels follow each other
closely enough for each to begin where the last one ends: by the rule of NCSNv2's section 3.2 a
ratio of 1.36 does for 64 dimensions, 20 levels. Langevin steps of size a shrink what noise there is
too much by (1 - a / 2)^2 each: 20 of them forget the level before, of 5 a third would remain, and x
would lag behind by a whole level. Measured: docs/likelihood.md.
"""

from dataclasses import replace

from config import DiffusionConfig, SamplingConfig
from configs.digits import digits

digits_ncsn = replace(
    digits,
    # log(sigma) runs from -3.9 to 2.3
    network=replace(digits.network, time_scale=100.0),
    diffusion=DiffusionConfig(
        schedule="geometric_sigmas(sigma_min=0.02, sigma_max=10)",
        num_train_steps=20,
        prediction="ncsn",
        weight="score_matching",
        times="stratified",
    ),
    sampling=SamplingConfig(
        solver="annealed_langevin(num_inner=20)",
        previews=("annealed_langevin(num_inner=20)", "ddim"),
    ),
)
