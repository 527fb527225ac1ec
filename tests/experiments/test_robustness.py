"""The script on robustness, with classifiers and a diffusion model that cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import robustness
from configs import CONFIGS
from diffjax.networks import Functional
from runs import Run


def denoiser(params, x, t, *, labels):
    return params * x


def linear(params, x, t, *, keys=None):
    return x.reshape(len(x), -1) @ params


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a command in an empty folder; the numbers of its table, by the names of the rows."""
    run = Run(CONFIGS["digits"], Functional(None, denoiser), jnp.array(0.3), 1)
    monkeypatch.setattr(robustness, "load_run", lambda *_: run)
    network = Functional(lambda key: 0.01 * jax.random.normal(key, (64, 10)), linear)
    monkeypatch.setattr(robustness, "make_classifier", lambda: network)
    monkeypatch.chdir(tmp_path)

    def call(command, *words):
        monkeypatch.setattr("sys.argv", ["robustness.py", command, *words])
        robustness.main()
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split("|") for line in lines if line.startswith("|")][2:]
        return {row[1].strip(): float(row[2]) for row in rows}

    return call


QUICK = ("--num-seeds", "2", "--num-steps", "60", "--num-tested", "100")


@pytest.mark.slow
def test_an_attack_costs_accuracy_and_all_rows_are_there(call):
    call("split", "--num-train", "200")
    flags = ("--workdir", "run", *QUICK, "--grid-steps", "4", "--strength", "0.25")
    found = call("purify", *flags)
    assert list(found) == [
        "as they are", "attacked", "attacked and purified", "purified alone",
    ]  # fmt: skip
    assert found["as they are"] > 50.0
    assert found["attacked"] < found["as they are"] - 10.0
    picture = np.asarray(Image.open("purified.png").convert("RGB"))
    unharmed = call("purify", *flags, "--radius", "0.0", "--output", "unharmed.png")
    assert unharmed["attacked"] == unharmed["as they are"] == found["as they are"]
    # the attack is in the picture
    other = np.asarray(Image.open("unharmed.png").convert("RGB"))
    assert picture.shape == other.shape
    assert not np.array_equal(picture, other)


@pytest.mark.slow
def test_wrong_synthetic_digits_cost_accuracy_and_the_training_set_is_not_tested(call):
    call("split", "--num-train", "200", "--output", "few.npz")
    images, labels = robustness.all_digits()
    np.savez("wrong.npz", images=images[200:300], labels=9 - labels[200:300])
    found = call("augment", "--synthetic", "wrong.npz", *QUICK)
    real, augmented = found.values()
    assert list(found) == ["200 real digits", "and 100 synthetic ones"]
    assert augmented < real - 10.0
    assert Image.open("augmented.png").size[0] > 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("split", "--num-train", "3"), "--num-train is 3"),
        (("purify", "--workdir", "run", "--radius", "-1"), "--radius is -1"),
        (("augment", "--synthetic", "x.npz", "--num-seeds", "1"), "a spread needs at least 2"),
        (("augment", "--synthetic", "x.npz", "--share", "1.0"), "--share is 1.0"),
        (("augment", "--synthetic", "x.npz", "--output", "x.npz"), "expected FILE.png"),
    ],
)
def test_what_cannot_be_is_refused(call, words, message):
    with pytest.raises(ValueError, match=message):
        call(*words)


def test_none_to_test_on_and_a_run_of_other_images_are_refused(call, monkeypatch):
    images, labels = robustness.all_digits()
    np.savez("few.npz", images=images[:50], labels=labels[:50])
    np.savez("all.npz", images=images, labels=labels)
    for flag, value in (("--real", "all.npz"), ("--num-seen", "1797")):
        with pytest.raises(ValueError, match="None of the 1797 digits is left for testing"):
            call("augment", "--synthetic", "few.npz", flag, value)
    with pytest.raises(ValueError, match="--num-tested is 0"):
        call("augment", "--synthetic", "few.npz", "--num-tested", "0")
    run = Run(CONFIGS["cifar10"], Functional(None, denoiser), jnp.array(0.3), 1)
    monkeypatch.setattr(robustness, "load_run", lambda *_: run)
    with pytest.raises(ValueError, match=r"makes images \(32, 32, 3\); needed are 8x8 digits"):
        call("purify", "--workdir", "run")


def test_a_strength_is_refused_before_anything_is_trained(call, monkeypatch):
    call("split", "--num-train", "200")
    monkeypatch.setattr(robustness, "fit", None)
    with pytest.raises(ValueError, match="strength is 3"):
        call("purify", "--workdir", "run", "--strength", "3")


def test_pictures_that_are_no_digits_are_refused(call, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((2, 8, 9, 1), np.uint8))
    with pytest.raises(ValueError, match="needed are labelled 8x8 digits"):
        robustness.read_digits(tmp_path / "wide.npz")
    np.savez(tmp_path / "unknown.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) without labels; needed are labelled"):
        robustness.read_digits(tmp_path / "unknown.npz")
