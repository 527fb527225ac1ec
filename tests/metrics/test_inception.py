"""The inception score between its bounds."""

import numpy as np
import pytest

from diffjax.metrics import inception_score


def test_score_is_one_where_all_images_look_alike():
    assert inception_score(np.tile([0.7, 0.2, 0.1, 0.0], (9, 1))) == pytest.approx(1)


def test_score_counts_the_classes_that_appear():
    assert inception_score(np.eye(10)[[0, 3, 3, 0, 7, 7]]) == pytest.approx(3)


def test_score_is_the_exponential_of_the_mutual_information():
    joint = np.array([[0.3, 0.2], [0.1, 0.4]])  # p(image, class) with two equally likely images
    entropy = lambda p: -np.sum(p * np.log(p))
    information = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1)) - entropy(joint)
    assert inception_score(joint / joint.sum(axis=1, keepdims=True)) == pytest.approx(
        np.exp(information)
    )


def test_logits_are_refused():
    with pytest.raises(ValueError, match="are these logits"):
        inception_score(np.array([[2.0, -1.0], [0.5, 3.0]]))
    with pytest.raises(ValueError, match=r"expected \[N, K\]"):
        inception_score(np.zeros([0, 4]))
