"""Settings and fixtures for every room."""

import os

# compiling dominates the tests: XLA skips its costly passes and emitters, which takes a third of
# the time; what is set outside stands
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
