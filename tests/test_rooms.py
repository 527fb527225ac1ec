"""Folders are rooms: who may import whom, and what `import diffjax` may load."""

import ast
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import diffjax as dj

ROOT = Path(__file__).parent.parent

# a room imports only itself and the rooms named here
ALLOWED = {
    "core": set(),
    "solvers": {"core"},
    "transforms": {"core"},
    "training": {"core", "solvers", "transforms"},
    "networks": {"core", "solvers", "transforms"},
    "data": {"core", "solvers", "transforms"},
    "metrics": {"core", "solvers", "transforms"},
    "pretrained": {
        "core", "solvers", "transforms", "training", "networks", "data", "metrics",
    },
    "pipelines": {"core", "solvers", "transforms", "networks", "pretrained"},
}  # fmt: skip

HEAVY = ["tensorflow", "tensorflow_datasets", "torch", "matplotlib", "flax", "orbax", "grain"]


def imported_rooms(path: Path) -> set[str]:
    """The rooms of diffjax that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            # `from diffjax import core` names the room after the import
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "diffjax" and len(part) > 1}


def test_every_room_imports_only_rooms_to_its_left():
    for path in sorted((ROOT / "diffjax").rglob("*.py")):
        room = path.relative_to(ROOT / "diffjax").parts[0]
        if room == "__init__.py":
            continue
        assert room in ALLOWED, f"{path}: the room {room!r} is not in the table"
        strangers = imported_rooms(path) - ALLOWED[room] - {room}
        assert not strangers, f"{path} imports {sorted(strangers)}"


def test_the_library_does_not_import_experiments_or_tests():
    for path in (ROOT / "diffjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert not {name.split(".")[0] for name in names} & {"experiments", "tests"}, path


def test_import_of_diffjax_loads_nothing_heavy():
    code = f"import sys, diffjax; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_importing_scripts_and_configurations_leaves_the_devices_alone():
    """Processes of several hosts must meet before any array is made; imports come first."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    code = f"""
import jax, sample, train
jax.distributed.initialize({address!r}, num_processes=1, process_id=0)
print(jax.process_count())
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "experiments")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.stdout.strip() == "1", result.stderr[-2000:]


@pytest.mark.parametrize("room", ["solvers", "transforms"])
def test_every_function_of_these_rooms_is_a_public_name(room):
    module = importlib.import_module(f"diffjax.{room}")
    functions = {name for name in module.__all__ if not name.isupper()}
    assert functions <= set(dj.__all__)
    assert all(getattr(dj, name) is getattr(module, name) for name in functions)
