"""The documents tell the truth: code runs, commands parse, links lead somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import cli
from configs import CONFIGS

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "experiments/README.md"
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*ROOT.glob("*.md"), INDEX, *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"\bpython (experiments/\w+\.py[^`\n#]*)")

with_code = [name for name, text in DOCUMENTS.items() if BLOCK.search(text)]
# a command may go on in the next line, after a backslash
one_line = [text.replace("\\\n", " ") for text in DOCUMENTS.values()]
commands = {command.strip() for text in one_line for command in COMMAND.findall(text)}


def run_blocks(name):
    """Run the Python blocks of a document one after the other; what they leave behind."""
    namespace = {}
    for block in BLOCK.finditer(DOCUMENTS[name]):
        # empty lines in front: a traceback then names the line of the document
        before = "\n" * DOCUMENTS[name][: block.start(1)].count("\n")
        exec(compile(before + block[1], ROOT / name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", [name for name in with_code if name != "README.md"])
def test_the_python_blocks_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(name)


def test_the_python_blocks_of_the_readme_make_what_it_says():
    namespace = run_blocks("README.md")
    assert namespace["samples"].shape == namespace["flow"].shape == (8, 2)
    assert namespace["batch"]["x0"].shape == (32, 8, 8, 1)


@pytest.mark.parametrize("command", sorted(commands))
def test_the_commands_name_scripts_and_flags_that_exist(command, capsys):
    script, *words = shlex.split(command)
    assert (ROOT / script).is_file()
    if "--help" in words or "..." in words:
        return
    module = importlib.import_module(Path(script).stem)
    # three ways in which a script reads its command line
    if hasattr(module, "read_command_line"):
        module.read_command_line(words)
    elif hasattr(module, "Args"):
        cli.parse_args(module.Args, args=words)
    else:
        module.parse(words)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_links_lead_to_files(name):
    for link in re.findall(r"\]\(([^)#:]+)\)", DOCUMENTS[name]):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_the_index_names_every_script_and_configuration():
    named = set(re.findall(r"`([\w.]+)`", INDEX.read_text()))
    files = INDEX.parent.glob("*.py")
    scripts = {path.name for path in files if "__main__" in path.read_text()}
    assert scripts | set(CONFIGS) <= named


PLACE = re.compile(r"`([\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?")
places = list(PLACE.finditer(DOCUMENTS["docs/papers.md"]))


@pytest.mark.parametrize("path", sorted({place[1] for place in places}))
def test_what_a_paper_became_stands_where_the_page_says(path):
    source = (ROOT / "diffjax" / path).read_text()
    for place in places:
        for name in re.findall(r"\w+", place[2] or "") if place[1] == path else []:
            assert re.search(rf"^(def {name}\(|class {name}\b|{name}\b.* = )", source, re.M), name
