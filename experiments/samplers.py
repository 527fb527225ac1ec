"""A run's compiled sampler, for any mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import diffjax as dj
from config import Config
from denoisers import NO_GUIDES, conditional, conditioning_of, sampling_denoiser
from diffjax.core.conditioning import Condition
from diffjax.core.learned_schedule import LearnedLogsnr
from diffjax.networks import Functional
from diffjax.training import batch_sharding, replicated
from model import SampleOptions, make_levels, make_parameterization, make_schedule, make_solver
from runs import image_shape

# what is drawn from the key of a seed: the start, the steps, the noise under which candidates are
# compared, and behind these the seeds of further candidates
START, STEPS, COMPARISON, FURTHER = range(4)
# sigma / alpha where candidates are compared: from the places of things to their outlines
COMPARED = np.geomspace(10.0, 0.3, 16)


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
    and texts may be cut into batches, and the batches split over devices, in any way. The first of
    several candidates is the image that would be drawn without them.

    Args:
      config: of the run.
      network: its network; a schedule that is learned is read from the params.
      options: solver, steps, guidance.
      mesh: the devices; positions [b], labels [b] and texts are split over its axis `data`.
      text: for runs with text, see `sampling_denoiser`; texts are then rows of `text.load_text`.
      classifier: see `sampling_denoiser`.
      on_step: see `diffjax.sample`.
      keep_trajectory: return a `Trajectory` instead of the images.

    Raises:
      ValueError: a trajectory of several candidates is asked for.
    """
    if keep_trajectory and options.candidates > 1:
        raise ValueError(f"A trajectory is of one image; candidates is {options.candidates}.")
    plan = make_plan(config, options)
    walk = dj.trajectory if keep_trajectory else dj.sample
    denoiser = sampling_denoiser(config, network, options, text, classifier)
    cost = make_cost(config, network, options, text)
    whole, split = replicated(mesh), batch_sharding(mesh)

    def generate(params, key, positions, labels, texts=None, guides=NO_GUIDES):
        positions, labels, texts = jax.lax.with_sharding_constraint(
            (positions, labels, texts), split
        )
        keys_of = lambda key, use: dj.sample_keys(jax.random.fold_in(key, use), positions)
        solver, levels = plan(params)
        denoise = denoiser(params, labels, texts, guides)

        def draw(key):
            shape = positions.shape[0], *image_shape(config)
            x = dj.initial_noise(keys_of(key, START), shape, levels)
            return walk(keys_of(key, STEPS), x, denoise, solver, levels, on_step=on_step)

        if options.candidates == 1:
            return draw(key)
        further = [jax.random.fold_in(key, FURTHER + i) for i in range(options.candidates - 1)]
        draws = jax.lax.map(draw, jnp.stack([key, *further]))
        told = lambda x0: cost(params, keys_of(key, COMPARISON), x0, labels, texts)
        best = jnp.argmin(jax.lax.map(told, draws), axis=0)
        return draws[best, jnp.arange(len(best))]

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


def make_cost(
    config: Config, network: Functional, options: SampleOptions, text: Condition | None
) -> Callable[..., Array]:
    """`cost(params, keys, x0, labels, texts) -> [b]`: how unlikely images are for what was told.

    In nats, see `denoising_cost`; of the network without guidance.
    """
    told = conditional(config, options, text)

    def cost(params, keys, x0, labels, texts=None) -> Array:
        levels = dj.levels_at(make_schedule(config.diffusion, params), COMPARED)
        denoise = told(network, params, conditioning_of(labels, texts))
        return dj.denoising_cost(keys, x0, denoise, levels)

    return cost
