"""Neighbour scores against brute force, hand-made cases and their expectations."""

import numpy as np
import pytest

from diffjax.metrics import duplicates, memorised, neighbours, prdc, radii


def brute_force(real, generated, k):
    """The four scores from their definitions, a point at a time."""

    def radius(points, i):
        others = [np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, i) for i in range(len(generated))]

    def near(i, j):
        return np.linalg.norm(real[i] - generated[j])

    rows, columns = range(len(real)), range(len(generated))
    precision = np.mean([any(near(i, j) <= real_radii[i] for i in rows) for j in columns])
    recall = np.mean([any(near(i, j) <= generated_radii[j] for j in columns) for i in rows])
    density = np.mean([sum(near(i, j) <= real_radii[i] for i in rows) for j in columns]) / k
    coverage = np.mean([any(near(i, j) <= real_radii[i] for j in columns) for i in rows])
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [7, 1024])
def test_scores_are_those_of_the_definitions(monkeypatch, k, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rng = np.random.default_rng(k)
    real, generated = rng.normal(size=(25, 2)), 1.5 * rng.normal(size=(18, 2)) + 0.3
    np.testing.assert_allclose(prdc(real, generated, k=k), brute_force(real, generated, k))


def test_a_mode_that_is_missing_costs_recall_and_coverage_only():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0, 0.0], [100.0, 0.0]])
    real = modes[np.arange(400) % 2] + rng.normal(size=(400, 2))
    generated = rng.normal(size=(400, 2))
    scores = prdc(real, generated)
    assert scores.precision > 0.9
    assert scores.recall <= 0.5
    assert scores.coverage <= 0.5


def test_a_mode_that_is_invented_costs_precision_only():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0, 0.0], [100.0, 0.0]])
    real = rng.normal(size=(400, 2))
    generated = modes[np.arange(800) % 2] + rng.normal(size=(800, 2))
    scores = prdc(real, generated)
    assert scores.precision <= 0.5
    assert scores.recall > 0.9
    assert scores.coverage > 0.9


def test_coverage_and_density_of_a_perfect_generator_have_their_expectations():
    n, m, k, trials = 60, 40, 3, 200
    rng = np.random.default_rng(0)
    scores = np.array(
        [prdc(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k=k) for _ in range(trials)]
    )
    # A ball is empty if its k neighbours are all real, among n - 1 real and m generated points.
    steps = np.arange(k)
    coverage = 1 - np.prod((n - 1 - steps) / (n - 1 + m - steps))
    errors = 4 * scores.std(axis=0) / np.sqrt(trials)
    assert abs(scores[:, 3].mean() - coverage) < errors[3]
    # n balls of probability k / n each, over k
    assert abs(scores[:, 2].mean() - 1) < errors[2]


def test_radii_do_not_count_the_point_itself():
    points = np.array([[0.0], [1.0], [3.0], [3.0]])
    np.testing.assert_array_equal(radii(points, 1), [1, 1, 0, 0])
    np.testing.assert_array_equal(radii(points, 2), [3, 2, 2, 2])


def test_memorised_is_what_lies_nearer_than_training_points_to_each_other():
    training = np.array([[0.0], [1.0], [10.0], [30.0]])  # 1, 1, 9 and 20 from the nearest other
    generated = np.array([[4.9], [6.5], [5.2], [21.0], [-6.0]])
    found = memorised(generated, training, share=0.5)  # nearer than (1 + 9) / 2
    np.testing.assert_array_equal(found, [True, True, True, False, False])


def test_copies_are_memorised_and_fresh_data_at_about_the_share():
    rng = np.random.default_rng(0)
    training, fresh = rng.normal(size=(2, 2000, 3))
    assert memorised(training + 1e-6, training).all()
    share = memorised(fresh, training, share=0.05).mean()
    # binomial error of the share itself and of the quantile that it is compared with
    assert abs(share - 0.05) < 4 * np.sqrt(2 * 0.05 * 0.95 / 2000)


def test_duplicates_are_counted_beyond_the_first():
    images = np.zeros([6, 2, 2, 1], np.uint8)
    images[[1, 4]] = 7
    images[2, 0, 0] = 1
    assert duplicates(images) == 3
    assert duplicates(np.arange(12).reshape(6, 2)) == 0


def test_what_does_not_fit_is_refused():
    points = np.zeros([4, 2])
    with pytest.raises(ValueError, match="k is 4; with 4 points expected 1 to 3"):
        radii(points, 4)
    with pytest.raises(ValueError, match="differ in length"):
        prdc(points, np.zeros([9, 3]), k=1)
    with pytest.raises(ValueError, match=r"expected \[N, D\]"):
        memorised(np.zeros([4, 2, 2]), points)
