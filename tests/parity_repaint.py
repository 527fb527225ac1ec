"""Reference cases of RePaint's scheduler: the order of its walk, and a walk followed step by step.

Where n steps of the table make one of the grid, the reference goes up by n betas for each step of a
jump, starting from the time below; it ends with the noise of t + n - 1 where the network is next
told t. We go to t. With the reference's levels in the place of ours the walk must agree, which
proves that nothing else differs.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parity_cases import Case, Comparison, KnownDifference, compare, first, last

from diffjax.core.parameterizations import estimate_x0
from diffjax.pretrained.schedulers import read_scheduler
from diffjax.solvers import ddim
from diffjax.transforms import repaint, resampling

DIFFERENCE = "jump-above"


def check_repaint(case: Case, network: Any) -> list[Comparison]:
    """The comparisons of a case; raises `KnownDifference` if only the ends of jumps differ.

    Args:
      case: of kind "scheduler", class RePaintScheduler.
      network: (x, t) -> the reference's network, its noise.
    """
    settings = case.settings
    options = settings["set_timesteps"]
    num_steps, jump = options["num_inference_steps"], options["jump_length"]
    walk = resampling(num_steps, jump_length=jump, num_resamples=options["jump_n_sample"])
    scheduler = read_scheduler(settings["config"] | {"_class_name": "DDPMScheduler"})
    stride = scheduler.config["num_train_timesteps"] // num_steps
    times = (num_steps - walk[1:]) * stride
    listed = case.outputs["table0_timesteps"]
    comparisons = [compare("table0_timesteps", times, listed, 1e-7)]
    levels = {t: scheduler.schedule(jnp.asarray(t)) for t in range(-1, int(times.max()) + 1)}
    comparisons += _follow(case, scheduler.parameterization, levels, stride, network)
    if stride == 1 or max(each.error / each.tolerance for each in comparisons) > 1.0:
        return comparisons
    raise KnownDifference(
        f"{DIFFERENCE}: with the reference's ends of the steps up everything agrees "
        "(docs/diffusers_differences.md)"
    )


def _follow(case: Case, parameterization, levels, stride: int, network) -> list[Comparison]:
    """The recorded part of the walk, with the reference's transitions."""
    draws = iter(case.inputs["noise"])
    noise = []

    def normal(keys, shape, dtype):  # the last draw: the reference uses each of a step down twice
        return noise[-1]

    def denoise(x, level):
        return estimate_x0(parameterization, x, network(x, level.t), level)

    known, mask = last(case.inputs["x0"]), 1.0 - last(case.inputs["mask"])
    limited = ddim(eta=1.0, limit=lambda x0: jnp.clip(x0, -1.0, 1.0), normal=normal)
    solver = repaint(limited, jnp.asarray(known), mask, normal=normal)
    x = jnp.asarray(last(case.inputs["init_noise"]))
    samples, keys = [x], jax.random.split(jax.random.key(0), len(x))
    times = case.outputs["timesteps"].astype(int)
    for before, t in itertools.pairwise([times[0] + 1, *times]):
        rises = range(before, before + stride) if t > before else []
        pairs = [(s - 1, s) for s in rises] or [(t, max(t - stride, -1))]
        for current, next_ in pairs:
            noise.append(jnp.asarray(last(next(draws))))
            with jax.disable_jit():
                x, _ = solver.step(keys, x, (), denoise, levels[current], levels[next_])
        samples.append(x)
    computed = first(np.stack(samples))
    return [
        compare("samples", computed, case.outputs["samples"], case.settings["tolerance"]["rtol"])
    ]
