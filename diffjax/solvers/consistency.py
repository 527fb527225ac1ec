"""Samplers of few-step models: jump to clean data, then noise it again.

    x_s = alpha_s x0 + sigma_s z

Consistency models, latent consistency models and the stochastic sampler of rectified flow are this
step, each with its own denoiser. Sources: Consistency Models, arXiv:2303.01469, Algorithm 1;
LCM, arXiv:2310.04378, Algorithm 3.
"""

from diffjax.core.keys import Normal, normal_each
from diffjax.core.levels import add_noise
from diffjax.core.sampling import Solver, stateless


def renoise(*, normal: Normal = normal_each) -> Solver:
    """Multistep consistency sampling: x0 from the denoiser, fresh noise for the next level.

    Args:
      normal: how noise is drawn; another function than the default may replay recorded draws.

    >>> solver = renoise()
    """

    def step(keys, x, denoise, current, next_):
        return add_noise(denoise(x, current), normal(keys, x.shape[1:], x.dtype), next_)

    return stateless(step)
