"""The script for inverse problems, on priors that cost nothing."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import inverse
import jobs
from configs import CONFIGS
from diffjax.networks import Functional
from runs import Run


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a command; the picture it wrote and what it said."""
    few = partial(inverse.fit_patches, seed=0, num_components=2, num_patches=60)
    monkeypatch.setattr(inverse, "fit_patches", lambda seen, side, **_: few(seen, side))
    run = Run(CONFIGS["digits"], Functional(None, apply), jnp.array(0.3), 1)
    monkeypatch.setattr(jobs, "load_run", lambda *_, **__: run)

    def call(*words):
        output = tmp_path / "out.png"
        flags = ["--num-steps", "4", "--num-draws", "2", "--output", str(output)]
        flags = [words[0], *flags, *words[1:]]
        monkeypatch.setattr("sys.argv", ["inverse.py", *flags])
        inverse.main()
        return np.asarray(Image.open(output)), capsys.readouterr().out

    return call


def apply(params, x, t, *, labels):
    return params * x - 0.1 * labels[:, None, None, None].astype(x.dtype)


def rows_of(picture, size):
    """Truth, measurement, mean and uncertainty, enlarged as they were written."""
    scale = max(1, 32 // size)
    height = size * scale
    return [picture[row * (height + scale) :][:height] for row in range(4)]


@pytest.mark.slow
def test_photographs_are_coloured_anew(call):
    picture, said = call("photographs", "--size", "12", "--problem", "grey")
    truth, measured, _, spread = rows_of(picture, 12)
    assert picture.ndim == 3
    # grey: the channels of the measurement are equal, those of the photographs are not
    inside = (slice(0, 12), slice(0, 12))
    assert np.ptp(measured[inside].astype(int), axis=-1).max() == 0
    assert np.ptp(truth[inside].astype(int), axis=-1).max() > 20
    assert np.ptp(spread[inside].astype(int), axis=-1).max() == 0
    assert "error of the mean" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photographs", "--problem", "saturation"), "pigdm needs a linear operator"),
        (("photographs", "--problem", "motion(length=4)"), "motion has the length 4"),
        (("photographs", "--num-draws", "1"), "--num-draws is 1"),
        (("photographs", "--size", "200"), "--size is 200"),
        (("photographs", "--jump-length", "5"), "nothing is walked again"),
        (("phantom", "--sigma-y", "-1"), "--sigma-y is -1"),
        (("phantom", "--output", "out.npz"), r"expected FILE\.png"),
        (("phantom", "--output", "/dev/null/out.png"), "which cannot be written"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_fitted(call, monkeypatch, words, message):
    monkeypatch.setattr(inverse, "fit_patches", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises((ValueError, OSError), match=message):
        call(*words)


@pytest.mark.slow
def test_a_phantom_is_complex_for_the_fourier_transform_and_seen_as_its_magnitude(call):
    picture, _ = call("phantom", "--size", "16", "--problem", "fourier(share=0.5)")
    assert picture.ndim == 2
    # the skull of the phantom is bright, if thinner than these pixels; outside it is black
    truth = rows_of(picture, 16)[0]
    assert truth.max() > 100
    assert truth[0, 0] == 0


@pytest.mark.slow
def test_digits_are_restored_by_a_trained_run_and_particles_share_a_label(call):
    flags = ("digits", "--workdir", "run", "--num-images", "2", "--labels", "3")
    picture, _ = call(*flags, "--method", "twisted", "--num-particles", "4")
    assert picture.shape == ((4 * 9 - 1) * 4, (2 * 9 - 1) * 4)
    call(*flags, "--problem", "saturation", "--method", "dps", "--step-size", "0.1")
