"""A classifier of noisy digits, for guiding the run `digits`, whose levels it shares.

python experiments/train.py digits_classifier
python experiments/sample.py --workdir runs/digits --classifier runs/digits_classifier

Two CPU cores, about a minute. It is right about 67 % of the training digits, averaged over all
levels, at many of which noise hides the digit. What guidance by it reaches stands in
docs/guidance.md.
"""

import dataclasses

from config import OptimizerConfig
from configs.digits import digits

digits_classifier = dataclasses.replace(
    digits,
    task="classify",
    network=dataclasses.replace(
        digits.network, block_out_channels=(32, 64), cond_drop_prob=0.0, dropout=0.1
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, decay="cosine", b2=0.99),
    num_steps=2000,
    ema_decay=(0.99,),
)
