"""Two systems on the same latents: one at high noise, a refiner for the rest of the way.

    F(x, t) = F_system(x, t)  where t >= until,    F_refiner(x, t)  below

Together they are one system, so that every task, solver and guidance takes them as one:

    until = handover(parts.schedulers["scheduler"], refiner.schedulers["scheduler"], 0.8)
    second = make_system(refiner)
    system = refined(make_system(parts), second, until=until)
    params = {**parts.params, REFINER: refiner.params}
    conditions = with_refiner(system.prepare(...), second.prepare(...))

Source: SDXL, arXiv:2307.01952, section 2.5; eDiff-I, arXiv:2211.01324, section 4.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.networks.functional import Params
from diffjax.pipelines.plan import time_at
from diffjax.pipelines.system import Inputs, System
from diffjax.pretrained import Scheduler

# the entry of the refiner's params, inputs and conditioning
REFINER = "refiner"

# the predictions whose networks are told the time of the level, not its noise
_TOLD_TIMES = ("eps", "x0", "v", "velocity")

# what of a scheduler's configuration says how a network was trained
_TRAINED_ON = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)


def refined(system: System, refiner: System, *, until: ArrayLike) -> System:
    """A system whose last steps are those of a refiner; images are coded by the first.

    A step calls one of the two networks alone. All samples of a batch are at the same time.

    Args:
      system: for high noise; its inputs get the refiner's by `with_refiner`, and its params those
        of the refiner as the entry `REFINER`.
      refiner: on the same latents; its `encode` and `decode` are not used.
      until: the last time at which the first network is called, see `handover`.

    Raises:
      ValueError: the networks predict different things, or guidance looks at another network of
        the first, too.
    """
    _require_alike(system, refiner)

    def condition(params: Params, inputs: Inputs) -> dict[str, Any]:
        rest = {name: each for name, each in inputs.items() if name != REFINER}
        told = refiner.condition(params[REFINER], inputs[REFINER])
        return {**system.condition(params, rest), REFINER: told}

    def apply(params: Params, x: Array, t: Array, **told: Any) -> Array:
        of_refiner = told.pop(REFINER)
        return lax.cond(
            jnp.all(t >= until),
            lambda: system.apply(params, x, t, **told),
            lambda: refiner.apply(params[REFINER], x, t, **of_refiner),
        )

    return system._replace(condition=condition, apply=apply)


def with_refiner(conditions: Sequence[Inputs], others: Sequence[Inputs]) -> list[Inputs]:
    """Conditions that tell a refiner what it needs.

    Args:
      conditions: of the first system.
      others: of the refiner, for the same prompts.

    Raises:
      ValueError: one of the two is guided and the other is not.
    """
    if len(conditions) != len(others):
        raise ValueError(
            f"the system has {len(conditions)} conditions and its refiner {len(others)}; give "
            "both or neither what to keep away from"
        )
    return [{**each, REFINER: other} for each, other in zip(conditions, others)]


def handover(scheduler: Scheduler, refiner: Scheduler, share: float) -> float:
    """The last time at which the first of two networks is called, for `refined`.

    Args:
      scheduler, refiner: of the two folders.
      share: of the time from noise (0) to data (1), after which the refiner goes on.

    Raises:
      ValueError: the networks were trained on different noise levels, or are not told times.

    >>> from diffjax.pretrained import read_scheduler
    >>> scheduler = read_scheduler({"_class_name": "DDIMScheduler"})
    >>> handover(scheduler, scheduler, 0.8)
    200
    """
    if scheduler.parameterization.name not in _TOLD_TIMES:
        raise ValueError(f"{scheduler.name} tells its network no times; a refiner needs them")
    for name in _TRAINED_ON:
        # a class that lacks the setting has what the others have as a default
        here, there = (each.config.get(name) or None for each in (scheduler, refiner))
        if here != there:
            raise ValueError(
                f"the refiner was trained with {name} {there}, the model with {here}; a refiner "
                "goes on where the model stops, on the same noise levels"
            )
    return time_at(scheduler, share)


def _require_alike(system: System, refiner: System) -> None:
    kinds = [(each.parameterization.name, each.learned_variance) for each in (system, refiner)]
    if kinds[0] != kinds[1]:
        said = [f"{name}{' and a variance' if learned else ''}" for name, learned in kinds]
        raise ValueError(f"the model predicts {said[0]}, the refiner {said[1]}; both must be alike")
    if system.weaker is not None or system.attention is not None:
        raise ValueError("a system whose guidance looks at another network takes no refiner")
