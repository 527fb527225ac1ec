"""A run's compiled sampler, for any mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

import diffjax as dj
from config import Config
from denoisers import NO_GUIDES, sampling_denoiser
from diffjax.core.conditioning import Condition
from diffjax.core.learned_schedule import LearnedLogsnr
from diffjax.networks import Functional
from diffjax.training import batch_sharding, replicated
from model import SampleOptions, make_levels, make_parameterization, make_schedule, make_solver
from runs import image_shape


def make_sampler(
    config: Config,
    network: Functional,
    options: SampleOptions,
    mesh: Mesh,
    *,
    text: Condition | None = None,
    classifier: Functional | None = None,
    on_step: Callable[[Array, Array], None] | None = None,
    keep_trajectory: bool = False,
) -> Callable[..., Any]:
    """Compile `generate(params, key, positions, labels, texts, guides) -> images` for a mesh.

    Image i of a seed is a function of (params, key, i, its label and text) alone: positions, labels
    and texts may be cut into batches, and the batches split over devices, in any way.

    Args:
      config: of the run.
      network: its network; a schedule that is learned is read from the params.
      options: solver, steps, guidance.
      mesh: the devices; positions [b], labels [b] and texts are split over its axis `data`.
      text: for runs with text, see `sampling_denoiser`; texts are then rows of `text.load_text`.
      classifier: see `sampling_denoiser`.
      on_step: see `diffjax.sample`.
      keep_trajectory: return a `Trajectory` instead of the images.
    """

    plan = make_plan(config, options)
    walk = dj.trajectory if keep_trajectory else dj.sample
    denoiser = sampling_denoiser(config, network, options, text, classifier)
    whole, split = replicated(mesh), batch_sharding(mesh)

    def generate(params, key, positions, labels, texts=None, guides=NO_GUIDES):
        positions, labels, texts = jax.lax.with_sharding_constraint(
            (positions, labels, texts), split
        )
        noise_keys, keys = (
            dj.sample_keys(jax.random.fold_in(key, purpose), positions) for purpose in (0, 1)
        )
        solver, levels = plan(params)
        x = dj.initial_noise(noise_keys, (positions.shape[0], *image_shape(config)), levels)
        denoise = denoiser(params, labels, texts, guides)
        return walk(keys, x, denoise, solver, levels, on_step=on_step)

    # whole on every process: each can pass what it has in memory, and write what it likes
    return jax.jit(generate, in_shardings=whole, out_shardings=whole)


def make_plan(
    config: Config, options: SampleOptions
) -> Callable[[Any], tuple[dj.Solver, dj.NoiseLevel]]:
    """The function of a run's params that tells the solver and the levels to visit.

    They are known before any params are, but for a schedule that is learned.

    Raises:
      ValueError: the prediction does not tell x0 at the first level.
    """

    def plan(schedule):
        solver = make_solver(options, schedule, config.diffusion.learn_variance)
        return solver, make_levels(options, schedule)

    schedule = make_schedule(config.diffusion)
    fixed = plan(schedule)
    dj.parameterizations.check_level(make_parameterization(config.diffusion), fixed[1])
    if isinstance(schedule, LearnedLogsnr):
        return lambda params: plan(make_schedule(config.diffusion, params))
    return lambda params: fixed
