"""Settings and fixtures for every room."""

import os
from importlib.metadata import version

# compiling dominates the tests: XLA skips its costly passes and emitters, which takes a third of
# the time; newer ones have no other emitters, and end the process at a flag that they do not know
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
