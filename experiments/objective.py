"""What training minimises, and how: the loss and the optimizer of a configuration."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import optax
from jax import Array

import diffjax as dj
from choices import DENSITIES, build, choose
from config import Config, OptimizerConfig
from diffjax import losses, schedules
from diffjax.core.learned_schedule import LearnedLogsnr
from model import make_parameterization, make_schedule


def make_loss(config: Config, apply: Callable[..., Array]) -> losses.Loss:
    """The training loss of a configuration, of the params of `runs.make_network`."""
    parts = training_parts(config)
    if len(parts) == 1:
        return make_part_loss(config, apply)
    weights = config.experts.weights or (config.diffusion.weight,) * len(parts)
    every = config.experts.every or (1,) * len(parts)

    def of_expert(i: int) -> losses.Loss:
        diffusion = dataclasses.replace(config.diffusion, weight=weights[i])
        own = dataclasses.replace(config, diffusion=diffusion)
        return losses.thinned(make_part_loss(own, partial(apply, part=i), parts[i]), every[i])

    return losses.total([of_expert(i) for i in range(len(parts))])


def training_parts(config: Config) -> list[tuple[float, float]]:
    """The part of the times [0, 1) that each network of a run is trained on."""
    overlap, ends = config.experts.overlap, (0.0, *config.experts.boundaries, 1.0)
    return [(max(low - overlap, 0.0), min(high + overlap, 1.0)) for low, high in pairwise(ends)]


def make_part_loss(
    config: Config, apply: Callable[..., Array], part: Sequence[float] = (0.0, 1.0)
) -> losses.Loss:
    """The loss of one network.

    Args:
      config: of the run.
      apply: of its network.
      part: of the times [0, 1) that is trained on.
    """
    diffusion = config.diffusion
    schedule = make_schedule(diffusion)
    times = losses.within(choose("times", diffusion.times, losses.TIME_SAMPLERS), *part)
    if config.task == "classify":
        return dj.classifier_loss(apply, schedule, times=times)
    if isinstance(schedule, LearnedLogsnr):
        return learned_loss(config, apply, schedule)
    if diffusion.density is not None:
        schedule = schedules.resampled(schedule, build("density", diffusion.density, DENSITIES))
    make: Any = dj.hybrid_loss if diffusion.learn_variance else dj.diffusion_loss
    return make(
        apply,
        schedule,
        make_parameterization(diffusion),
        weight=build("weight", diffusion.weight, losses.WEIGHTS, schedule=schedule),
        times=times,
    )


def learned_loss(
    config: Config, apply: Callable[..., Array], schedule: LearnedLogsnr
) -> losses.Loss:
    """The variational bound, which trains a schedule and the network together."""
    diffusion = config.diffusion
    if diffusion.weight != "likelihood" or diffusion.density or diffusion.learn_variance:
        raise ValueError(
            f"The schedule {diffusion.schedule} is learned, on the variational bound: set "
            "diffusion.weight to likelihood, and neither density nor learn_variance."
        )
    return dj.learned_bound_loss(
        lambda network, *inputs, **rest: apply({"network": network}, *inputs, **rest),
        schedule,
        make_parameterization(diffusion),
        times=choose("times", diffusion.times, losses.TIME_SAMPLERS),
        num_bins=config.data.num_bins,
    )


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or down to 0 at the last step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(num_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
    }
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, choose("decay", config.decay, after)], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optax optimizer of a configuration, behind the clipping of gradients.

    Raises:
      ValueError: optax has no such optimizer, or it has no weight decay and one is set; or the
        learning rate is not positive.
    """
    if not config.learning_rate > 0:
        raise ValueError(f"optimizer.learning_rate is {config.learning_rate}; it must be positive.")
    build = getattr(optax, config.name, None)
    if build is None:
        raise ValueError(f"optax has no optimizer named {config.name!r}.")
    accepted = inspect.signature(build).parameters
    if config.weight_decay and "weight_decay" not in accepted:
        raise ValueError(
            f"optimizer.weight_decay is {config.weight_decay}, but optax.{config.name} has none. "
            f"Did you mean optimizer.name {config.name}w?"
        )
    # a schedule that is learned does not decay
    mask = lambda params: {name: name != "schedule" for name in params}
    wanted = {"b1": config.b1, "b2": config.b2, "weight_decay": config.weight_decay, "mask": mask}
    options = {name: value for name, value in wanted.items() if name in accepted}
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, build(learning_rate(config, num_steps), **options))
