"""The programs of text_to_image.py: from prompts to the first latents, one step, the pictures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffjax import pipelines
from diffjax.core.keys import fold_in_each
from diffjax.core.levels import add_noise
from diffjax.core.sampling import Solver
from diffjax.networks.functional import Params
from diffjax.pipelines import Inputs, Plan, System
from diffjax.pipelines.tasks import Guidance, shrink_mask
from diffjax.transforms import replace_known


class Canvas(NamedTuple):
    """What the pictures are made on.

    Attributes:
      size: height and width.
      image: [H, W, 3] in [-1, 1], a picture to start from; None for noise.
      mask: [H, W, 1], 1 where the picture is painted anew; None for everywhere.
      told_hole: whether the network itself is told what is around the hole.
      from_noise: whether what is painted in the hole starts from noise alone.
    """

    size: tuple[int, int]
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    told_hole: bool = False
    from_noise: bool = False


class Mix(NamedTuple):
    """How alike the initial noises are: sqrt(1 - share) common + sqrt(share) own.

    Attributes:
      key: [1], that of the common noise.
      share: of each sample's own, in [0, 1].
    """

    key: Array
    share: Array


class Known(NamedTuple):
    """What is put back after every step where the mask is 0: latents, with their noise."""

    latents: Array
    noise: Array
    mask: Array


def to_pictures(images: Array) -> Array:
    """Images in [-1, 1] as uint8."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


class Stages:
    """The three programs, to be compiled apart, so that a bar can show the steps between them."""

    def __init__(self, system: System, plan: Plan, canvas: Canvas, guidance: Guidance | None):
        self.system, self.plan, self.canvas, self.guidance = system, plan, canvas, guidance
        self.functions: tuple[Callable, ...] = self.start, self.advance, self.finish
        self.levels, self.num_steps = plan.levels, len(plan.levels.t) - 1

    def start(self, params: Params, keys: Array, conditions: Sequence[Inputs], mix: Mix) -> tuple:
        """What the network is told, what stays known, the latents, and the solver's state."""
        system, plan, canvas = self.system, self.plan, self.canvas
        draw = lambda keys: pipelines.start_noise(system, keys, *canvas.size)
        noise = jnp.sqrt(mix.share) * draw(keys) + jnp.sqrt(1.0 - mix.share) * draw(mix.key)
        x, known = jnp.asarray(plan.initial_scale) * noise, None
        if canvas.image is not None:
            images = jnp.broadcast_to(canvas.image, (len(keys), *canvas.image.shape))
            latents = pipelines.encode(system, params, keys, images)
            level = jax.tree.map(lambda leaf: leaf[0], plan.levels)
            x = x if canvas.from_noise else add_noise(latents, noise, level)
            if canvas.mask is not None:
                mask = jnp.broadcast_to(canvas.mask, (len(keys), *canvas.mask.shape))
                known = Known(latents, noise, shrink_mask(mask, latents.shape[1:3]) > 0)
                if canvas.told_hole:
                    conditions = pipelines.with_hole(system, params, keys, conditions, images, mask)
                    known = None
        told = pipelines.conditioning(system, params, conditions)
        return told, known, x, plan.solver.init(x)

    def advance(
        self,
        params: Params,
        keys: Array,
        told: Sequence[dict[str, Any]],
        known: Known | None,
        x: Array,
        state: Any,
        i: Any,
        levels: Any,
    ) -> tuple[Array, Any]:
        """One step."""
        denoise = pipelines.denoiser(self.system, params, told, self.guidance)
        at = lambda j: jax.tree.map(lambda leaf: leaf[j], levels)
        solver = self._solver(known)
        return solver.step(fold_in_each(keys, i), x, state, denoise, at(i), at(i + 1))

    def finish(self, params: Params, known: Known | None, x: Array) -> Array:
        """The pictures, [B, H, W, 3] uint8."""
        # the last level of some grids is not quite clean
        x = x if known is None else jnp.where(known.mask, x, known.latents)
        return to_pictures(self.system.decode(params, x))

    def whole(
        self, params: Params, keys: Array, conditions: Sequence[Inputs], mix: Mix, levels: Any
    ) -> Array:
        """All stages as one function."""
        told, known, x, state = self.start(params, keys, conditions, mix)

        def step(i: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            x, state = carry
            return self.advance(params, keys, told, known, x, state, i, levels)

        x, _ = lax.fori_loop(0, len(levels.t) - 1, step, (x, state))
        return self.finish(params, known, x)

    def compile(self, params: Any, keys: Any, conditions: list, mix: Mix) -> "Stages":
        """Make the programs, without running them."""
        first = jax.jit(self.start).lower(params, keys, conditions, mix).compile()
        places = first.output_shardings
        given = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(self.start, params, keys, conditions, mix),
            places,
        )
        # a step leaves its results where it found them, for the next one
        step = jax.jit(self.advance, out_shardings=places[2:])
        step = step.lower(params, keys, *given, 0, self.levels).compile()
        last = jax.jit(self.finish).lower(params, *given[1:3]).compile()
        self.functions = first, step, last
        return self

    def run(self, params: Any, keys: Any, conditions: list, mix: Mix, *, bar: Any) -> np.ndarray:
        """The pictures, [B, H, W, 3] uint8."""
        start, advance, finish = self.functions
        told, known, x, state = start(params, keys, conditions, mix)
        for i in range(self.num_steps):
            x, state = advance(params, keys, told, known, x, state, i, self.levels)
            # wait for it, or the bar would run ahead of the devices
            jax.block_until_ready(x)
            bar.update(1)
        return np.asarray(finish(params, known, x))

    def _solver(self, known: Known | None) -> Solver:
        if known is None:
            return self.plan.solver
        # one noise for the whole walk, as `pipelines.inpaint` has it
        draw = lambda *_: known.noise
        return replace_known(self.plan.solver, known.latents, known.mask, normal=draw)


class OneProgram:
    """A sampler that is one program, where the three of `Stages` would be.

    Args:
      whole: (params, keys, conditions, mix, levels) -> pictures [B, H, W, 3] uint8, or what the
        model makes else.
      levels: the noise levels, a tree of arrays.
      num_steps: how many steps it takes.
    """

    def __init__(self, whole: Callable[..., Array], levels: Any, num_steps: int):
        self.whole, self.levels, self.num_steps = whole, levels, num_steps
        self.function: Callable[..., Array] = whole

    def compile(self, params: Any, keys: Any, conditions: Any, mix: Mix) -> "OneProgram":
        """Make the program, without running it."""
        given = params, keys, conditions, mix, self.levels
        self.function = jax.jit(self.whole).lower(*given).compile()
        return self

    def run(self, params: Any, keys: Any, conditions: Any, mix: Mix, *, bar: Any) -> np.ndarray:
        """What `whole` makes, once it is there."""
        made = np.asarray(self.function(params, keys, conditions, mix, self.levels))
        bar.update(self.num_steps)
        return made


class Work(NamedTuple):
    """What is compiled and run, and on what.

    Attributes:
      program: makes the pictures.
      params, conditions: its inputs; conditions hold a row for each picture of a batch.
      size: height and width of the pictures.
    """

    program: Stages | OneProgram
    params: Any
    conditions: Any
    size: tuple[int, int]
