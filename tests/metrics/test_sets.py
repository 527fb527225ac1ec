"""All figures of a set, on sets of Gaussian features whose worth is known."""

import numpy as np
import pytest

from diffjax.metrics import compare_sets, sets

RNG = np.random.default_rng(0)
REFERENCE, FRESH = RNG.normal(size=(2, 400, 3))
ERRORS = (
    "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
    "memorised",
)  # fmt: skip


def test_fresh_samples_of_the_reference_are_as_good_as_it_is():
    found = compare_sets(FRESH, REFERENCE)
    assert abs(found["kernel_distance"]) < 4 * found["kernel_distance_stderr"]
    # a few times what a perfect generator has, whose expectation is (3 + 3) (1/400 + 1/400)
    assert found["frechet_distance"] < 4 * 6 * (2 / 400)
    assert found["precision"] > 0.9
    assert found["recall"] > 0.9
    # the expectation for as many of both, k = 5
    assert found["coverage"] == pytest.approx(1 - 0.5**5, abs=4 * found["coverage_stderr"] + 0.02)
    assert found["memorised"] < 0.05
    assert found["num_samples"] == found["num_reference"] == 400
    assert all(found[f"{name}_stderr"] >= 0 for name in ERRORS)


def test_errors_are_what_the_figures_vary_by_between_sets():
    measured = [compare_sets(RNG.normal(size=(100, 3)) + 0.5, REFERENCE) for _ in range(40)]
    for name in ("frechet_distance", "kernel_distance", "precision"):
        spread = np.std([each[name] for each in measured])
        typical = np.mean([each[f"{name}_stderr"] for each in measured])
        # a jackknife of ten groups is rough
        assert 0.5 < typical / spread < 2.0


def test_copies_of_the_reference_are_memorised_and_a_shift_is_seen():
    copies = compare_sets(REFERENCE + 1e-9, REFERENCE)
    assert copies["memorised"] == copies["recall"] == 1.0
    shifted = compare_sets(FRESH + np.array([2.0, 0.0, 0.0]), REFERENCE)
    assert shifted["frechet_distance"] == pytest.approx(4.0, rel=0.15)
    assert shifted["coverage"] < 0.8
    assert shifted["kernel_distance"] > 10 * shifted["kernel_distance_stderr"]


def test_neither_the_order_of_the_samples_nor_their_number_beyond_a_limit_changes_pairs(
    monkeypatch,
):
    monkeypatch.setattr(sets, "MOST_PAIRED", 50)
    found = compare_sets(FRESH, REFERENCE[:100])
    # 50 against 50, the expectation for as many of both
    steps = np.arange(5)
    expected = 1 - np.prod((49 - steps) / (99 - steps))
    assert found["coverage"] == pytest.approx(expected, abs=5 * found["coverage_stderr"])
    assert found["num_samples"] == 400


def test_the_inception_score_is_that_of_the_probabilities_with_its_error():
    probabilities = np.eye(4)[np.arange(400) % 4]
    found = compare_sets(FRESH, REFERENCE, probabilities)
    assert found["inception_score"] == pytest.approx(4.0, rel=1e-2)
    assert found["inception_score_stderr"] < 0.05


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (FRESH[:10], r"generated features have shape \(10, 3\); expected \[N, D\] of 20"),
        (FRESH[:, :2], "have 2 numbers and those of the reference 3"),
        (FRESH * np.inf, "not all finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(generated, message):
    with pytest.raises(ValueError, match=message):
        compare_sets(generated, REFERENCE)
