"""The benchmark runs as a command, on networks shrunk to compile quickly."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import diffjax as dj

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import bare_loops  # noqa: E402
import benchmark  # noqa: E402

SCHEDULE = dj.linear_betas()
BARE = bare_loops.bares(SCHEDULE, 6)


@pytest.fixture
def tiny_digits(monkeypatch):
    """The digits configuration with the narrowest network of its kind."""
    config = benchmark.CONFIGS["digits"]
    network = dataclasses.replace(
        config.network, block_out_channels=(8, 8), num_groups=2, layers_per_block=1
    )
    tiny = dataclasses.replace(config, network=network)
    monkeypatch.setitem(benchmark.CONFIGS, "digits", tiny)


def run_main(capsys, *arguments):
    benchmark.main([*arguments, "--networks", "digits", "--quick", "--batch-size", "2"])
    return capsys.readouterr()


@pytest.mark.slow
def test_every_task_is_a_row_of_one_line_of_json(tiny_digits, capsys):
    output = run_main(capsys)
    (line,) = output.out.splitlines()
    result = json.loads(line)
    assert {"platform", "device", "versions", "arguments"} <= result.keys()
    train, sample, scan, *overheads = result["rows"]
    assert [row["task"] for row in result["rows"][:4]] == list(benchmark.TASKS)
    assert [row["solver"] for row in overheads] == list(BARE)
    for row in result["rows"]:
        assert row["network"] == "digits"
        assert row["shape"] == [2, 8, 8, 1]
        assert row["median_s"] >= row["min_s"] > 0
        assert row["compile_s"] > 0
        assert row["flops"] > 0
        assert row["program_bytes"] > 0
        assert row["images_per_s"] == pytest.approx(
            row.get("microbatches", 1) * 2 / row["median_s"]
        )
        assert row["flops_per_s"] == pytest.approx(row["flops"] / row["median_s"])
    assert train["parameters"] == sample["parameters"] == scan["parameters"] > 1000
    assert sample["num_steps"] == overheads[0]["num_steps"] == 5
    assert scan["ratio"] == pytest.approx(scan["alone_median_s"] / scan["median_s"])
    for row in overheads:
        assert row["ratio"] == pytest.approx(row["bare_median_s"] / row["median_s"])
        assert row["min_ratio"] == pytest.approx(row["bare_min_s"] / row["min_s"])
    assert "digits train" in output.err


@pytest.mark.parametrize("name", list(BARE))
def test_a_loop_by_hand_ends_where_the_solver_does(name):
    levels = SCHEDULE(dj.trailing(6, 1000))
    solver, make = BARE[name]
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 4))
    ours = jax.jit(lambda x: dj.sample(key, x, bare_loops.denoise, solver, levels))(x)
    by_hand = jax.jit(lambda x: make(bare_loops.grid_of(levels))(key, x))(x)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_the_network_on_torch_is_the_same_one(tiny_digits, capsys):
    pytest.importorskip("diffusers")
    result = json.loads(run_main(capsys, "--compare", "--tasks", "train,sample").out)
    assert {"torch", "diffusers"} <= result["versions"].keys()
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["torch_median_s"] / row["median_s"])


def test_the_cifar10_network_on_torch_has_as_many_parameters():
    pytest.importorskip("diffusers")
    import torch_baseline

    network = torch_baseline.build(benchmark.CONFIGS["cifar10"].network)
    assert torch_baseline.count_parameters(network) == 35_746_307


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "digits,mnist"], "unknown name 'mnist'; choose from digits, cifar10"),
        (["--tasks", ""], "no name given"),
        (["--batch-size", "0"], "'0' is not a whole number of at least 1"),
        (["--steps", "1001"], "1001 is more than the 1000"),
        (["--repeats", "ten"], "'ten' is not a whole number"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--batchsize", "3"], "unrecognized arguments: --batchsize"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_comparison_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_baseline", None)
    with pytest.raises(SystemExit, match=r"pip install 'diffjax\[bench\]'"):
        benchmark.load_baseline()


@pytest.mark.slow
def test_the_script_needs_only_the_packages_it_names():
    """A machine that is lent for a benchmark has no more than jax, flax, optax and chex."""
    hidden = ["tyro", "grain", "orbax", "tensorflow_datasets", "matplotlib", "torch", "sklearn"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden})); "
        f"sys.path.insert(0, {str(EXPERIMENTS)!r}); import benchmark; benchmark.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--compare" in done.stdout
