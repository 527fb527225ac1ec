import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny_systems
from PIL import Image, ImageSequence

import generate

PICTURES = Path(__file__).parents[1] / "references" / "pipelines" / "pixart_alpha" / "pipeline"


def test_a_sound_is_read_back_with_its_comment(tmp_path):
    sound = np.linspace(-1.5, 1.5, 14).reshape(7, 2)
    settings = json.dumps({"prompt": "rain", "seed": 3})
    generate.save_sound(tmp_path / "rain.wav", sound, 16000, settings)
    with wave.open(str(tmp_path / "rain.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16000, 7)
        read = np.frombuffer(file.readframes(7), "<i2").reshape(7, 2)
    np.testing.assert_allclose(read / 32767, np.clip(sound, -1, 1), atol=1 / 32767)
    assert settings.encode() in (tmp_path / "rain.wav").read_bytes()


def test_a_video_is_read_back_with_its_settings(tmp_path):
    # colours that a palette of a GIF holds
    video = np.ones((3, 8, 8, 3)) * np.array([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    settings = json.dumps({"prompt": "a cat"})
    generate.save_video(tmp_path / "cat.gif", video, 10.0, settings)
    picture = Image.open(tmp_path / "cat.gif")
    assert (picture.info["duration"], json.loads(picture.info["comment"])["prompt"]) == (
        100,
        "a cat",
    )
    frames = [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(picture)]
    np.testing.assert_allclose(np.stack(frames) / 127.5 - 1.0, video, atol=0.02)


@pytest.mark.slow
def test_sounds_belong_to_their_seed_and_last_as_long_as_is_asked(monkeypatch, tmp_path):
    model = tiny_systems.save_dance_diffusion(tmp_path / "model")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))

    def run(name, *words):
        given = ["--model", str(model), "--num-steps", "3", "--output", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["generate.py", *given, *words])
        generate.main()
        return [wav_samples(path) for path in sorted((tmp_path / name).glob("*.wav"))]

    three = run("a", "--count", "3", "--batch-size", "2")
    two = run("b", "--count", "2", "--batch-size", "1")
    assert len(three) == 3
    for one, other in zip(two, three):
        # the batch size may change the rounding of float32
        np.testing.assert_allclose(one, other, atol=2)
    assert np.abs(three[0] - three[1]).max() > 100
    assert run("c", "--seconds", "0.5")[0].shape == (16, 2)
    with pytest.raises(ValueError, match="takes no --prompt"):
        run("d", "--prompt", "rain")
    with pytest.raises(ValueError, match="no estimate without a prompt"):
        run("e", "--guidance", "apg")


def wav_samples(path):
    """What a WAV of two channels holds, [L, 2]."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2).astype(int)


def test_a_model_of_pictures_is_sent_to_the_script_of_pictures(monkeypatch, tmp_path):
    words = ["--model", str(PICTURES), "--prompt", "a cat", "--output", str(tmp_path)]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    with pytest.raises(ValueError, match=r"makes pictures; use experiments/text_to_image\.py"):
        generate.main()
