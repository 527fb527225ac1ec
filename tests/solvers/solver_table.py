"""The table of solvers, and how they are built and run. A new solver is a new row.

Each row is compiled once, in float32: levels, number of steps, distribution, guidance scale and
the solver's own numbers are data.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import solvers
from diffjax.core import exact, schedules
from diffjax.core.keys import normal_each, sample_keys
from diffjax.core.levels import NoiseLevel
from diffjax.core.parameterizations import LearnedVariance
from diffjax.core.sampling import Solver, sample
from diffjax.core.schedules import Schedule
from diffjax.solvers import Churn
from diffjax.transforms import classifier_free


class Row(NamedTuple):
    """What the battery has to know about a solver.

    Attributes:
      make: builds it; `schedule`, `num_steps` and `normal` are offered to it.
      order: of convergence to the probability-flow ODE; None for solvers that draw noise and for
        those that choose their steps.
      noisy: it draws noise.
      weak_order: of solvers that draw noise: of convergence of the moments to those of the exact
        marginals; None for those that do not get there by shorter steps.
      samples: a run of many steps draws from the distribution of the data.
      stirs: it changes x before it asks the network at the level of the step.
      inversion: it walks from the clean end to the noisy one.
      learned_variance: it wants a denoiser that chooses the variance as well.
      from_pure_noise: it can start where alpha = 0.
      differentiates: it takes the derivative of its schedule, which jumps at a table's steps, or
        needs a smooth one for its order.
      straight: what it holds over a step is constant for data that is a single point.
      settings: two values of each of its numbers that may be traced.
    """

    make: Callable[..., Solver]
    order: int | None = None
    noisy: bool = False
    weak_order: int | None = None
    samples: bool = False
    stirs: bool = False
    inversion: bool = False
    learned_variance: bool = False
    from_pure_noise: bool = True
    differentiates: bool = False
    straight: bool = True
    settings: dict[str, tuple[float, float]] = {}  # noqa: RUF012


def flowing(order: int, name: str | Callable[..., Solver], **more: Any) -> Row:
    """The row of a solver of the probability flow; named ones stand in `solvers.SOLVERS`."""
    return Row(solvers.SOLVERS[name] if isinstance(name, str) else name, order, **more)


def noisy(weak_order: int | None, name: str | Callable[..., Solver], **more: Any) -> Row:
    """The row of a solver that draws noise."""
    make = solvers.SOLVERS[name] if isinstance(name, str) else name
    row = Row(make, noisy=True, weak_order=weak_order, samples=weak_order is not None)
    return row._replace(**more)


def churned(builder, schedule, num_steps, normal, s_churn=2.0, s_tmin=0.0, s_tmax=50.0):
    churn = Churn(schedule, num_steps, s_churn, s_tmin, s_tmax)
    return builder(churn, normal=normal)


def corrected(snr=0.05, *, normal):
    """A weak corrector, whose bias is small."""
    corrector = solvers.langevin(snr, normal=normal)
    return solvers.predictor_corrector(solvers.reverse_diffusion(normal=normal), corrector)


ETA = {"eta": (0.3, 1.0)}
NOISE = {"eta": (0.3, 1.0), "s_noise": (1.0, 1.1)}
CHURN = {"s_churn": (8.0, 0.0), "s_tmin": (0.0, 0.5), "s_tmax": (2.0, 50.0)}

# the names of `solvers.SOLVERS`
NAMED = {
    "ddpm": noisy(1, "ddpm"),
    "ddim": flowing(1, "ddim"),
    "euler": flowing(1, "euler"),
    "euler_ancestral": noisy(1, "euler_ancestral", settings=NOISE),
    "heun": flowing(2, "heun"),
    "dpm2": flowing(2, "dpm2", from_pure_noise=False),
    "dpm2_ancestral": noisy(2, "dpm2_ancestral", from_pure_noise=False, settings=NOISE),
    "dpm_multistep": flowing(2, "dpm_multistep"),
    "dpm_singlestep": flowing(2, "dpm_singlestep"),
    "dpm_solver_2": flowing(2, "dpm_solver_2", from_pure_noise=False),
    "dpm_solver_3": flowing(3, "dpm_solver_3", from_pure_noise=False),
    "dpmpp_2s": flowing(2, "dpmpp_2s"),
    "dpmpp_2m": flowing(2, "dpmpp_2m"),
    "dpmpp_3m": flowing(3, "dpmpp_3m"),
    "dpmpp_2m_sde": noisy(2, "dpmpp_2m_sde"),
    "dpmpp_3m_sde": noisy(2, "dpmpp_3m_sde"),
    "dpm_sde": noisy(1, "dpm_sde", from_pure_noise=False, settings=NOISE),
    "dpm_adaptive": Row(
        solvers.dpm_adaptive,
        settings={"rtol": (0.05, 0.01), "atol": (0.0078, 0.001), "first_step": (0.05, 0.2)},
    ),
    "deis": flowing(3, "deis", from_pure_noise=False, differentiates=True),
    "exponential_adams": flowing(4, "exponential_adams"),
    "unipc": flowing(3, "unipc"),
    "sa_solver": noisy(2, "sa_solver", settings={"tau": (0.5, 1.0)}),
    "lms": flowing(4, "lms", from_pure_noise=False),
    "plms": flowing(2, lambda: solvers.plms()),
    "pndm": flowing(2, "pndm"),
    "ipndm": flowing(2, "ipndm"),
    "lcm": noisy(
        None,
        "lcm",
        settings={"fresh": (0.5, 1.0), "floor": (0.0, 0.002), "s_noise": (1.0, 1.1)},
    ),
    "tcd": noisy(None, "tcd", settings=ETA),
    "euler_maruyama": noisy(1, "euler_maruyama", from_pure_noise=False, differentiates=True),
    "stochastic_heun": noisy(2, "stochastic_heun", from_pure_noise=False, differentiates=True),
    "reverse_diffusion": noisy(1, "reverse_diffusion"),
    "predictor_corrector": noisy(None, corrected, stirs=True, settings={"snr": (0.05, 0.16)}),
    "annealed_langevin": noisy(
        None,
        partial(solvers.annealed_langevin, step_size=0.1, num_inner=2),
        stirs=True,
        settings={"step_size": (0.1, 0.2)},
    ),
    "consistent_annealed": noisy(
        None,
        partial(solvers.consistent_annealed, eta=0.02),
        samples=True,
        settings={"eta": (1.0, 0.3)},
    ),
    "adaptive_ode": Row(
        solvers.adaptive_ode, settings={"rtol": (1e-4, 1e-3), "atol": (1e-4, 1e-3)}
    ),
}

SOLVERS = {
    **NAMED,
    "ddpm fixed_large": noisy(1, partial(solvers.ancestral, "fixed_large")),
    "ddpm learned_range": noisy(
        1, partial(solvers.ancestral, "learned_range"), learned_variance=True
    ),
    "ddim with noise": noisy(1, partial(solvers.ddim, eta=0.5), settings=ETA),
    "ddim inversion": flowing(1, solvers.ddim_inversion, inversion=True),
    "ddim inversion of v": flowing(1, partial(solvers.ddim_inversion, "v"), inversion=True),
    "euler churn": noisy(1, partial(churned, solvers.euler), stirs=True, settings=CHURN),
    "heun churn": noisy(2, partial(churned, solvers.heun), stirs=True, settings=CHURN),
    "heun of velocity": flowing(2, partial(solvers.heun, slope="velocity")),
    "dpm multistep 2": flowing(
        2, partial(solvers.dpm_multistep, predict="eps"), from_pure_noise=False
    ),
    "deis in log-SNR": flowing(3, lambda: solvers.deis(3), from_pure_noise=False),
    "sa_solver without noise": flowing(2, partial(solvers.sa_solver, tau=0.0)),
    "plms of v": flowing(1, lambda: solvers.plms(slope="v"), straight=False),
}

ADAPTIVE = [name for name, row in SOLVERS.items() if "rtol" in row.settings]
PLANE = exact.mixture([0.4, 0.6], [[-0.8, 0.3], [0.7, 0.1]], [0.1, 0.2])
LINE = exact.mixture([0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
MAX_STEPS = 12
KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
X = jax.random.normal(jax.random.key(1), (8, 2))
TABLE = schedules.linear_betas(0.01, 0.4, num_steps=MAX_STEPS)
traces: list[str] = []


def accepts(row: Row, name: str) -> bool:
    return name in inspect.signature(row.make).parameters


def build(row: Row, schedule, num_steps=10, normal=normal_each, **settings) -> Solver:
    """The solver of a row, with what it wants of the arguments."""
    offered = {"schedule": schedule, "num_steps": num_steps, "normal": normal}
    wanted = {name: value for name, value in offered.items() if accepts(row, name)}
    return row.make(**wanted, **settings)


def as_wanted(row: Row, denoise):
    if not row.learned_variance:
        return denoise
    return lambda x, level: LearnedVariance(denoise(x, level), jnp.full_like(x, 0.3))


def denoiser_for(row: Row, distribution=PLANE):
    return as_wanted(row, exact.denoiser(distribution))


def schedule_for(row: Row) -> Schedule:
    """Both of its ends are singular if the solver can take it."""
    return schedules.zero_terminal_snr(TABLE) if row.from_pure_noise else TABLE


def levels_for(row: Row, grid, schedule=None) -> NoiseLevel:
    """The levels of a grid, in the solver's direction."""
    levels = (schedule or schedule_for(row))(grid)
    return jax.tree.map(lambda leaf: leaf[::-1], levels) if row.inversion else levels


@cache
def compiled(name):
    """One program for every grid up to MAX_STEPS, every mixture like PLANE and every number."""
    row = SOLVERS[name]

    @jax.jit
    def run(keys, x, distribution, levels, num_steps, settings, guidance_scale):
        traces.append(name)
        denoise = exact.denoiser(distribution)
        nothing = lambda x, level: 0.0 * x
        denoise = classifier_free(denoise, nothing, guidance_scale=guidance_scale)
        solver = build(row, schedule_for(row), num_steps, **settings)
        return sample(keys, x, as_wanted(row, denoise), solver, levels, num_steps=num_steps)

    return run


def arguments(
    name, levels, keys=KEYS, x=X, distribution=PLANE, number=0, guidance_scale=1.0
) -> tuple:
    """What the program of a solver is called with for a grid of up to MAX_STEPS."""
    num_steps = levels.t.shape[0] - 1
    levels = jax.tree.map(lambda leaf: np.pad(leaf, (0, MAX_STEPS - num_steps), "edge"), levels)
    if not accepts(SOLVERS[name], "schedule"):
        levels = levels._replace(t=levels.t.astype(np.float32))
    settings = {key: np.float32(pair[number]) for key, pair in SOLVERS[name].settings.items()}
    return keys, x, distribution, levels, num_steps, settings, guidance_scale


def run_padded(name, levels, *args, **kwargs):
    return compiled(name)(*arguments(name, levels, *args, **kwargs))
