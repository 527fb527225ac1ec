import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
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


def test_a_model_of_pictures_is_sent_to_the_script_of_pictures(monkeypatch, tmp_path):
    words = ["--model", str(PICTURES), "--prompt", "a cat", "--output", str(tmp_path)]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    with pytest.raises(ValueError, match=r"makes pictures; use experiments/text_to_image\.py"):
        generate.main()
