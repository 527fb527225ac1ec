import json
import os
import shutil
from pathlib import Path

import numpy as np
import parity
import parity_cases
import pytest

HERE = Path(__file__).parent
REFERENCES = HERE / "references"
ORACLES = Path(os.environ.get("DIFFJAX_ORACLES", HERE.parents[1] / "shared" / "oracles"))
# whole systems take minutes to compile: they are run where the folder is named
LARGE = () if "DIFFJAX_ORACLES" in os.environ else ("pipelines",)


def network_of(case):
    """The class of the network that a case is of, None for cases of another kind."""
    settings = json.loads((case / "case.json").read_text())
    return settings["classes"][0].split(" ")[0] if settings.get("kind") == "model" else None


def cases_of(root, *, known=()):
    """All cases under a folder as test parameters, without those of which `known` has a copy.

    Unless the folder is named, networks that `known` has a case of are left out too.
    """
    cases = parity.find_cases(root) if root.is_dir() else []
    outputs = {path.read_bytes() for folder in known for path in folder.rglob("outputs.npz")}
    if known and "DIFFJAX_ORACLES" not in os.environ:
        there = {network_of(case) for folder in known for case in parity.find_cases(folder)}
        cases = [case for case in cases if network_of(case) not in there - {None}]
    return [
        pytest.param(case, id=str(case.relative_to(root)))
        for case in cases
        if not known
        or (case.parent.name not in LARGE and (case / "outputs.npz").read_bytes() not in outputs)
    ]


@pytest.mark.parametrize("folder", cases_of(REFERENCES))
def test_reference_case(folder):
    line = parity.check(folder)
    assert line["status"] in ("pass", "known_difference"), line


@pytest.mark.parametrize("folder", cases_of(ORACLES, known=[REFERENCES]))
def test_oracle_case(folder):
    line = parity.check(folder)
    if line["status"] == "unsupported":
        pytest.skip(line["reason"])
    assert line["status"] in ("pass", "known_difference"), line


@pytest.fixture
def case(tmp_path):
    folder = tmp_path / "models" / "unet2d_heads"
    shutil.copytree(REFERENCES / "models" / "unet2d_heads", folder)
    return folder


def test_a_case_of_its_own_needs_no_set_around_it(case, tmp_path):
    moved = case.rename(tmp_path / "alone")
    assert parity.check(moved)["status"] == "pass"


def test_wrong_weights_fail_with_their_error_and_tolerance(case, capsys):
    path = case / "model" / "config.json"
    path.write_text(path.read_text().replace('"freq_shift": 0', '"freq_shift": 1'))
    assert parity.main([str(case)]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line["status"] == "fail"
    assert line["error"] > line["tolerance"] == 2e-4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("case.json", "{", "JSONDecodeError"),
        ("case.json", "{}", "'kind'"),
        ("case.json", '{"kind": "model"}', "'classes'"),
        ("case.json", '{"kind": "model", "checkpoint": "models/other"}', "models/other"),
        ("inputs.npz", "", "inputs.npz"),
        ("outputs.npz", None, "outputs.npz"),
        ("model/config.json", None, "config.json"),
    ],
)
def test_a_malformed_case_fails_with_the_reason(case, name, content, reason):
    (case / name).unlink()
    if content is not None:
        (case / name).write_text(content)
    line = parity.check(case)
    assert line["status"] == "fail"
    assert reason in line["reason"]


def test_what_the_project_does_not_have_is_unsupported(case):
    path = case / "case.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"classes": ["NoSuchModel"]}))
    assert "NoSuchModel" in parity.check(case)["reason"]
    path.write_text(json.dumps(settings | {"kind": "novel"}))
    line = parity.check(case)
    assert (line["status"], line["error"]) == ("unsupported", None)


def test_no_difference_passes_unless_it_is_within_its_own_tolerance():
    loose, exact = parity.Comparison("a", 1e-3, 1e-2), parity.Comparison("b", 0.0, 0.0)
    assert parity.judge([loose, exact])["status"] == "pass"
    line = parity.judge([loose, parity.Comparison("b", 1e-6, 0.0)])
    assert (line["status"], line["error"], line["reason"]) == ("fail", 1e-6, "b is off")
    line = parity.judge([loose, parity.Comparison("c", float("inf"), 1.0)])
    assert (line["status"], line["error"], line["reason"]) == ("fail", None, "c is off")


def test_arrays_are_compared_relative_to_the_reference():
    compare = lambda a, b: parity_cases.compare("a", np.array(a), np.array(b), 0.1).error
    assert compare([2.0, 4.5], [2.0, 4.0]) == 0.125
    assert compare([0.5, 0.0], [0.0, 0.0]) == 0.5
    assert compare([np.nan, 1.0], [np.nan, 1.0]) == 0.0
    assert compare([np.nan, 1.0], [1.0, 1.0]) == np.inf
    assert compare([1.0, 1.0], [np.inf, 1.0]) == np.inf
    assert compare([1.0], [1.0, 1.0]) == np.inf


def test_a_folder_without_cases_ends_with_status_2(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 2
    assert "holds no case.json" in capsys.readouterr().err
    assert parity.main([]) == 2
