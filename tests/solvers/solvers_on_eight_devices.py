"""Every solver with its batch split over eight devices; run by `test_eight_devices.py`.

By hand, with XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment:
pytest tests/solvers/solvers_on_eight_devices.py
"""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from solver_table import KEYS, MAX_STEPS, SOLVERS, X, arguments, compiled, levels_for

from diffjax.core import grids
from diffjax.training.sharding import make_mesh

MOVES = ("all-gather", "all-to-all", "collective-permute")
# diffrax maps over samples, which are gathered for each call of the network; rounding errors change
# the steps, and with them the result within its tolerance of 1e-4
GATHERING = ["adaptive_ode"]


@pytest.mark.parametrize("name", SOLVERS)
def test_eight_devices_sample_what_one_does_and_move_no_sample(name):
    split = NamedSharding(make_mesh(), PartitionSpec("data"))
    levels = levels_for(SOLVERS[name], grids.trailing(5, MAX_STEPS))
    args = arguments(name, levels, *jax.device_put((KEYS, X), split))
    program = compiled(name).lower(*args).compile()
    x = program(*args)
    assert x.sharding.is_equivalent_to(split, x.ndim)
    alone = compiled(name)(*arguments(name, levels))
    if name in GATHERING:
        np.testing.assert_allclose(x, alone, atol=1e-4)
        return
    assert not any(move in program.as_text() for move in MOVES)
    np.testing.assert_allclose(x, alone, rtol=1e-5, atol=1e-6)
