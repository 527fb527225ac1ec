"""The inception score: a measure of class probabilities alone."""

import numpy as np


def inception_score(probabilities: np.ndarray) -> float:
    """How certain a classifier is of each image and how varied its answers are.

        exp( mean over images of KL( p(y | x) || p(y) ) ),    p(y) = mean over images of p(y | x)

    Between 1 and the number of classes. The published figures are means over 10 parts of 5,000
    images each; call it on each part for those.

    Source: Salimans et al., "Improved techniques for training GANs", arXiv:1606.03498, section 4.

    Args:
      probabilities: [N, K], the classifier's p(y | x); rows sum to 1.

    Raises:
      ValueError: another shape, or rows that are no probabilities.

    >>> round(inception_score(np.eye(10)), 6)
    10.0
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"Probabilities have shape {p.shape}; expected [N, K].")
    if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            "Probabilities must be 0 or more and sum to 1 for each image; are these logits?"
        )
    marginal = p.mean(axis=0)
    # 0 log 0 = 0; where the marginal is 0, so is every p.
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp(np.sum(p * np.log(ratio), axis=1).mean()))
