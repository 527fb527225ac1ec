"""The script that measures sets, on sets whose worth is known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from inception_file import write_inception
from PIL import Image

import evaluate
import features
from configs import CONFIGS
from diffjax.networks import Functional
from runs import Run

RNG = np.random.default_rng(0)


def draw(count, shape=(8, 8, 3), low=0):
    return RNG.integers(low, 256, (count, *shape)).astype(np.uint8)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run the script in an empty folder; the figures that it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, words)])
        evaluate.main()
        assert "kernel_distance" in capsys.readouterr().out
        return json.loads((tmp_path / "made.json").read_text())

    return call


def test_archives_and_folders_of_the_same_images_give_the_same_figures(call, tmp_path):
    made, real = draw(60), draw(50)
    made[1] = made[0]
    for name, images in (("made", made), ("real", real)):
        np.savez(tmp_path / f"{name}.npz", images=images)
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03}.png")
    found = call("--samples", "made.npz", "--reference", "real.npz", "--batch-size", 16)
    assert found["num_samples"] == 60
    assert found["num_reference"] == 50
    assert found["duplicates"] == 1
    assert "inception_score" not in found
    by_files = call(
        "--samples", "made", "--reference", "real", "--save-features", "seen.npz"
    )  # fmt: skip
    assert by_files == pytest.approx(found, rel=1e-4, abs=1e-6)
    # a reference that was seen before
    assert call("--samples", "made", "--reference", "seen.npz") == by_files


def test_a_classifier_of_the_users_run_tells_how_many_classes_there_are(
    call, monkeypatch, tmp_path
):
    """Of images of one colour in three, by a classifier that names it."""
    colours = 255 * np.eye(3, dtype=np.uint8)[np.arange(60) % 3]
    images = np.broadcast_to(colours[:, None, None], (60, 8, 8, 3))
    np.savez(tmp_path / "made.npz", images=images)
    np.savez(tmp_path / "real.npz", images=draw(60))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    apply = lambda params, x, t: params * x.mean(axis=(1, 2))
    config = CONFIGS["cifar10"]

    def load_run(*_, task):
        assert task == "classify"
        return Run(config, Functional(None, apply), jnp.array(30.0), 1)

    monkeypatch.setattr(features, "load_run", load_run)
    monkeypatch.setattr(features, "image_shape", lambda _: (8, 8, 3))
    found = call("--samples", "made.npz", "--reference", "real.npz", "--features", "run")
    assert found["inception_score"] == pytest.approx(3.0, rel=1e-3)
    assert found["duplicates"] == 57
    for name in ("made", "real"):
        np.savez(tmp_path / f"{name}.npz", images=draw(30, (4, 4, 3)))
    with pytest.raises(ValueError, match=r"run classifies images \(8, 8, 3\); these are \(4, 4, 3"):
        call("--samples", "made.npz", "--reference", "real.npz", "--features", "run")


@pytest.mark.slow
def test_inception_of_a_users_file_tells_a_set_from_one_of_other_images(call, tmp_path):
    """Made-up weights see that images of few levels are unlike noise, and other noise like it."""
    file = write_inception(tmp_path / "inception.safetensors")
    noise, few = draw(48), draw(24) // 64 * 80
    np.savez(tmp_path / "real.npz", images=noise[:24])
    keep = ("--save-features", "seen.npz", "--features", file, "--batch-size", 12)
    found = {}
    for name, images, reference, more in (
        ("alike", noise[24:], "real.npz", keep),
        ("other", few, "seen.npz", keep[2:]),
    ):
        np.savez(tmp_path / "made.npz", images=images)
        found[name] = call("--samples", "made.npz", "--reference", reference, *more)
    alike, other = found["alike"], found["other"]
    assert other["frechet_distance"] > alike["frechet_distance"] > 0.0
    floor = 4 * alike["kernel_distance_stderr"]
    assert abs(alike["kernel_distance"]) < floor
    assert other["kernel_distance"] > floor
    assert 1.0 <= alike["inception_score"] < 1008


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--features", "nowhere", "--reference", "made.npz"),
            "must be pixels, or a file or folder",
        ),
        (("--reference", "wide.npz"), r"holds images \(8, 8, 3\) and wide.npz \(8, 9, 3\)"),
        (("--reference", "seen.npz"), "features of inception.safetensors, not of pixels"),
        (("--save-features", "seen.npz"), "no --reference whose they are"),
        (("--neighbour", "0"), "--neighbour is 0"),
        ((), "without --reference is defined for labelled 8x8 digits only"),
        (("--reference", "mnist-digits"), "mnist-digits"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, tmp_path, words, message):
    np.savez(tmp_path / "made.npz", images=draw(30))
    np.savez(tmp_path / "wide.npz", images=draw(30, (8, 9, 3)))
    np.savez(tmp_path / "seen.npz", features=np.ones((30, 4)), of="inception.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call("--samples", "made.npz", *words)
