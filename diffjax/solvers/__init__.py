"""Solvers: a file for each family, and a table of their builders by name."""

from diffjax.solvers.ancestral import ancestral, ancestral_update
from diffjax.solvers.ddim import ddim, ddim_inversion, ddim_update

SOLVERS = {"ddpm": ancestral, "ddim": ddim}

__all__ = ["SOLVERS", "ancestral", "ancestral_update", "ddim", "ddim_inversion", "ddim_update"]
