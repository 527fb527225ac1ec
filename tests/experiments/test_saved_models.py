"""What text_to_image.py says of models and settings that do not go together."""

import sys
from pathlib import Path

import pytest
import tiny_systems

import text_to_image

PICTURE = next(map(str, Path(__file__).parents[2].glob("docs/pictures/*.png")))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the script in this process with the words of a command line."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))

    def main(model, *words):
        output = "--output", str(tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["script", "--model", str(model), *output, *words])
        text_to_image.main()

    return main


@pytest.mark.slow
@pytest.mark.parametrize("command", tiny_systems.EDITORS)
def test_models_that_need_a_picture_say_so(run, tmp_path, command):
    model = tiny_systems.save_editor(tmp_path / "model", command)
    prompt = () if command == "vary" else ("--prompt", "a cat")
    with pytest.raises(ValueError, match=r"pictures of a picture.*--mask.*edit\.py"):
        run(model, *prompt)


@pytest.mark.slow
def test_settings_that_do_not_fit_the_model_are_refused_by_name(run, tmp_path):
    model = tiny_systems.save_stable_diffusion(tmp_path / "model")
    kind = "StableDiffusionXLPipeline"
    larger = tiny_systems.save_stable_diffusion(tmp_path / "xl", kind=kind)
    control, _ = tiny_systems.save_steering(tmp_path / "steering", larger)
    lora = tmp_path / "lora.safetensors"
    lora.touch()
    sees = ("--controlnet", str(control), "--control-image", PICTURE)
    for words, reason in (
        (("--label", "3"), "takes a --prompt, no --label"),
        (("--height", "0"), "sides must be multiples"),
        (("--height", "9"), "sides must be multiples"),
        (("--lora", f"{lora}:much"), "'much' is no number"),
        (("--export", "sampler.onnx"), r"--export is sampler\.onnx"),
        (sees, "was made for another model: it is told 16 features"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(model, "--prompt", "a", *words)


@pytest.mark.slow
def test_sounds_and_videos_are_left_to_the_other_script(run, tmp_path):
    model = tiny_systems.save_dance_diffusion(tmp_path / "model")
    with pytest.raises(ValueError, match=r"use experiments/generate\.py"):
        run(model, "--guidance-scale", "1")
