import json
import sys
from pathlib import Path

import pytest

import benchmark_pipelines

MODEL = Path(__file__).parents[1] / "references" / "pipelines" / "pixart_alpha" / "pipeline"


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark_pipelines.py", *map(str, words)])
    benchmark_pipelines.main()


@pytest.mark.slow
def test_a_folder_is_a_row_of_one_line_of_json(monkeypatch, capsys):
    pytest.importorskip("diffusers")
    main(monkeypatch, MODEL, "--num-steps", 2, "--repeats", 3)
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    (row,) = result["rows"]
    assert (row["system"], row["shape"]) == ("PixArtAlphaPipeline", [2, 16, 16, 3])
    assert row["ratio"] == pytest.approx(row["diffusers_median_s"] / row["median_s"])
    assert row["first_s"] > row["median_s"] >= row["min_s"] > 0
    assert result["versions"].keys() >= {"jax", "torch", "diffusers"}


def test_runs_without_guidance_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="guidance above 1"):
        main(monkeypatch, MODEL, "--guidance-scale", 1)
