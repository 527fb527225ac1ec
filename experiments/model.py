"""From a configuration to functions: where schedule, network, loss, optimizer and solver meet."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

import diffjax as dj
from cli import choose
from config import Config, DiffusionConfig, OptimizerConfig
from diffjax import losses, schedules
from diffjax.core.parameterizations import PARAMETERIZATIONS
from diffjax.core.schedules import Schedule, num_train_steps
from diffjax.networks.functional import Functional
from diffjax.solvers import SOLVERS
from diffjax.training import batch_sharding, replicated
from runs import image_shape


def make_schedule(config: DiffusionConfig) -> Schedule:
    """The forward process of a configuration."""
    build = choose("schedule", config.schedule, schedules.SCHEDULES)
    if not config.schedule.endswith("_betas"):
        return build()
    table = build(num_steps=config.num_train_steps)
    return dj.zero_terminal_snr(table) if config.zero_terminal_snr else table


def make_loss(config: Config, apply: Callable[..., Array]) -> losses.Loss:
    """The training loss of a configuration."""
    diffusion = config.diffusion
    build: Any = dj.hybrid_loss if diffusion.learn_variance else dj.diffusion_loss
    return build(
        apply,
        make_schedule(diffusion),
        choose("prediction", diffusion.prediction, PARAMETERIZATIONS),
        weight=choose("weight", diffusion.weight, losses.WEIGHTS)(),
        times=choose("times", diffusion.times, losses.TIME_SAMPLERS),
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
      ValueError: optax has no such optimizer, or it has no weight decay and one is set.
    """
    build = getattr(optax, config.name, None)
    if build is None:
        raise ValueError(f"optax has no optimizer named {config.name!r}.")
    accepted = inspect.signature(build).parameters
    if config.weight_decay and "weight_decay" not in accepted:
        raise ValueError(
            f"optimizer.weight_decay is {config.weight_decay}, but optax.{config.name} has none. "
            f"Did you mean optimizer.name {config.name}w?"
        )
    wanted = {"b2": config.b2, "weight_decay": config.weight_decay}
    options = {name: value for name, value in wanted.items() if name in accepted}
    clip = optax.identity()
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, build(learning_rate(config, num_steps), **options))


@dataclass(frozen=True)
class SampleOptions:
    """How to sample from a trained network.

    Attributes:
      solver: a name of `diffjax.solvers.SOLVERS`.
      num_steps: network calls; None for the whole chain with ddpm, 50 otherwise.
      eta: share of noise, for solvers that have one; None for their default.
      guidance_scale: 1 is off.
      clip: clip the estimates of x0 to [-1, 1].
      spacing: of the time grid, a name of `diffjax.grids.SPACINGS`.
    """

    solver: str = "ddim"
    num_steps: int | None = None
    eta: float | None = None
    guidance_scale: float = 1.0
    clip: bool = True
    spacing: str = "trailing"


def make_solver(options: SampleOptions, schedule: Schedule, learned_variance: bool) -> dj.Solver:
    """The solver that the options name."""
    build = choose("solver", options.solver, SOLVERS)
    accepted = inspect.signature(build).parameters
    settings: dict[str, Any] = {"schedule": schedule} if "schedule" in accepted else {}
    if learned_variance and options.solver == "ddpm":
        settings["variance"] = "learned_range"
    if options.eta is not None:
        if "eta" not in accepted:
            raise ValueError(f"--eta is {options.eta}, but the solver {options.solver} has none.")
        settings["eta"] = options.eta
    return build(**settings)


def make_times(options: SampleOptions, schedule: Schedule) -> np.ndarray:
    """The time grid that the options ask for."""
    steps = num_train_steps(schedule)
    most = steps or 1000
    default = most if options.solver == "ddpm" else min(50, most)
    num_steps = default if options.num_steps is None else options.num_steps
    spacing = choose("spacing", options.spacing, dj.grids.SPACINGS)
    return spacing(num_steps) if steps is None else spacing(num_steps, steps)


def make_sampler(
    config: Config,
    network: Functional,
    options: SampleOptions,
    mesh: Mesh,
    *,
    on_step: Callable[[Array, Array], None] | None = None,
    keep_trajectory: bool = False,
) -> Callable[[Any, Array, ArrayLike, ArrayLike | None], Any]:
    """Compile `generate(params, key, positions, labels) -> images` for a mesh.

    Image i of a seed is a function of (params, key, i, its label) alone: positions and labels may
    be cut into batches, and the batches split over devices, in any way.

    Args:
      config: of the run.
      network: its network.
      options: solver, steps, guidance.
      mesh: the devices; positions [b] and labels [b] are split over its axis `data`.
      on_step: see `diffjax.sample`.
      keep_trajectory: return a `Trajectory` instead of the images.
    """
    schedule = make_schedule(config.diffusion)
    parameterization = PARAMETERIZATIONS[config.diffusion.prediction]
    learned = config.diffusion.learn_variance
    solver = make_solver(options, schedule, learned)
    levels = schedule(jnp.asarray(make_times(options, schedule)))
    dj.parameterizations.check_level(parameterization, levels)
    walk = dj.trajectory if keep_trajectory else dj.sample
    null_label = config.network.num_classes or 0

    def denoiser(params, labels) -> Any:
        conditioning = {} if labels is None else {"labels": labels}
        if not learned:
            return dj.make_denoiser(network.apply, params, parameterization, **conditioning)
        denoise = dj.make_learned_variance_denoiser(
            network.apply, params, parameterization, **conditioning
        )
        return denoise if options.solver == "ddpm" else lambda x, level: denoise(x, level).x0

    def generate(params, key, positions, labels):
        positions, labels = jax.lax.with_sharding_constraint((positions, labels), split)
        noise_keys, keys = (
            dj.sample_keys(jax.random.fold_in(key, purpose), positions) for purpose in (0, 1)
        )
        first = jax.tree.map(lambda leaf: leaf[0], levels)
        x = dj.initial_noise(noise_keys, (positions.shape[0], *image_shape(config)), first)
        denoise = denoiser(params, labels)
        if options.guidance_scale != 1.0:
            null = jnp.full_like(labels, null_label)
            denoise = dj.classifier_free(
                denoise, denoiser(params, null), guidance_scale=options.guidance_scale
            )
        if options.clip:
            denoise = dj.clip_denoised(denoise)
        return walk(keys, x, denoise, solver, levels, on_step=on_step)

    whole, split = replicated(mesh), batch_sharding(mesh)
    # whole on every process: each can pass what it has in memory, and write what it likes
    return jax.jit(generate, in_shardings=whole, out_shardings=whole)


def to_uint8(images: Array) -> np.ndarray:
    """Images in [-1, 1] as bytes, 0..255."""
    return np.asarray(jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5)).astype(np.uint8)
