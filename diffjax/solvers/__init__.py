"""Solvers: a file for each family, and a table of their builders by name, for scripts."""

from diffjax.solvers.adams import lms, plms
from diffjax.solvers.ancestral import ancestral, ancestral_update
from diffjax.solvers.consistency import renoise, tcd
from diffjax.solvers.ddim import ddim, ddim_inversion, ddim_update
from diffjax.solvers.dpm import (
    block_orders,
    dpm_multistep,
    dpm_singlestep,
    lower_final_orders,
)
from diffjax.solvers.euler import Churn, churn_update, euler, euler_ancestral
from diffjax.solvers.heun import heun, heun_update
from diffjax.solvers.midpoint import dpm2, dpm_sde
from diffjax.solvers.unipc import unipc

SOLVERS = {
    "ddpm": ancestral,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "dpm_multistep": dpm_multistep,
    "dpm_singlestep": dpm_singlestep,
    "dpm_sde": dpm_sde,
    "unipc": unipc,
    "lms": lms,
    "plms": plms,
}

__all__ = [
    "SOLVERS",
    "Churn",
    "ancestral",
    "ancestral_update",
    "block_orders",
    "churn_update",
    "ddim",
    "ddim_inversion",
    "ddim_update",
    "dpm2",
    "dpm_multistep",
    "dpm_sde",
    "dpm_singlestep",
    "euler",
    "euler_ancestral",
    "heun",
    "heun_update",
    "lms",
    "lower_final_orders",
    "plms",
    "renoise",
    "tcd",
    "unipc",
]
