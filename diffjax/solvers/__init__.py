"""Solvers: a file for each family, and a table of their builders by name, for scripts."""

from functools import partial

from diffjax.solvers.adams import ipndm, lms, plms, pndm
from diffjax.solvers.adaptive import adaptive_ode, dpm_adaptive
from diffjax.solvers.ancestral import ancestral, ancestral_update
from diffjax.solvers.consistency import renoise, tcd
from diffjax.solvers.ddim import ddim, ddim_inversion, ddim_update
from diffjax.solvers.deis import deis, exponential_adams
from diffjax.solvers.dpm import (
    block_orders,
    dpm_multistep,
    dpm_singlestep,
    lower_final_orders,
)
from diffjax.solvers.euler import Churn, churn_update, euler, euler_ancestral
from diffjax.solvers.heun import heun, heun_update
from diffjax.solvers.langevin import (
    annealed_langevin,
    consistent_annealed,
    langevin,
    langevin_update,
    predictor_corrector,
)
from diffjax.solvers.midpoint import dpm2, dpm2_ancestral, dpm_sde
from diffjax.solvers.sa import sa_solver, tau_between
from diffjax.solvers.sde import (
    estimate_score,
    euler_maruyama,
    reverse_diffusion,
    stochastic_heun,
)
from diffjax.solvers.unipc import unipc

# builders whose arguments are all optional but for `schedule`; names of several libraries
SOLVERS = {
    "ddpm": ancestral,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "dpm_multistep": dpm_multistep,
    "dpm_singlestep": dpm_singlestep,
    "dpm_solver_2": partial(dpm_singlestep, 2, predict="eps"),
    "dpm_solver_3": partial(dpm_singlestep, 3, predict="eps", rule="exact"),
    "dpmpp_2s": partial(dpm_singlestep, 2),
    "dpmpp_2m": partial(dpm_multistep, 2),
    "dpmpp_3m": partial(dpm_multistep, 3),
    "dpmpp_2m_sde": partial(dpm_multistep, 2, stochastic=True),
    "dpmpp_3m_sde": partial(dpm_multistep, 3, stochastic=True),
    "dpm_sde": dpm_sde,
    "dpm_adaptive": dpm_adaptive,
    "deis": deis,
    "exponential_adams": exponential_adams,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "ipndm": ipndm,
    "lcm": renoise,
    "consistency": renoise,
    "tcd": tcd,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "reverse_diffusion": reverse_diffusion,
    "predictor_corrector": predictor_corrector,
    "annealed_langevin": annealed_langevin,
    "consistent_annealed": consistent_annealed,
    "adaptive_ode": adaptive_ode,
}

__all__ = [
    "SOLVERS",
    "Churn",
    "adaptive_ode",
    "ancestral",
    "ancestral_update",
    "annealed_langevin",
    "block_orders",
    "churn_update",
    "consistent_annealed",
    "ddim",
    "ddim_inversion",
    "ddim_update",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_multistep",
    "dpm_sde",
    "dpm_singlestep",
    "estimate_score",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "exponential_adams",
    "heun",
    "heun_update",
    "ipndm",
    "langevin",
    "langevin_update",
    "lms",
    "lower_final_orders",
    "plms",
    "pndm",
    "predictor_corrector",
    "renoise",
    "reverse_diffusion",
    "sa_solver",
    "stochastic_heun",
    "tau_between",
    "tcd",
    "unipc",
]
