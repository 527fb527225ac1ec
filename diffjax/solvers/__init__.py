"""Solvers: a file for each family."""

from diffjax.solvers.ancestral import ancestral, ancestral_update
from diffjax.solvers.ddim import ddim, ddim_inversion, ddim_update

__all__ = ["ancestral", "ancestral_update", "ddim", "ddim_inversion", "ddim_update"]
