"""The README tells the truth: its code runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import cli
import evaluate
import sample
import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_blocks_run_one_after_the_other():
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["samples"].shape == namespace["flow"].shape == (8, 2)
    assert namespace["batch"]["x0"].shape == (32, 8, 8, 1)


COMMANDS = re.findall(r"`python (experiments/\w+\.py[^`]*)`", README)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_the_commands_name_scripts_and_flags_that_exist(command, capsys):
    script, *words = shlex.split(command)
    assert (ROOT / script).is_file()
    if "--help" in words:
        return
    match Path(script).stem:
        case "train":
            train.read_command_line(words)
        case "sample":
            cli.parse_args(sample.Args, args=words)
        case "evaluate":
            cli.parse_args(evaluate.Args, args=words)
        case "benchmark":
            assert not words
        case other:
            raise AssertionError(f"{other}.py is not tested here")


def test_the_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
