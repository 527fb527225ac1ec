"""A denoiser without training: mixtures of Gaussians fitted to patches, in closed form.

The patches of pictures are fitted by a mixture (scikit-learn's EM); its perfect denoiser is known
(`diffjax.exact`), and `diffjax.tiled` averages the estimates of overlapping patches. That is no
generative model of whole pictures, but a local prior of edges and textures; classical restoration
works with it (Zoran & Weiss, From learning models of natural image patches to whole image
restoration, ICCV 2011).

Two worlds of pictures: the photographs that come with scikit-learn, and phantoms of ellipses.
"""

import warnings

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import diffjax as dj
from diffjax.core.exact import Mixture
from diffjax.core.parameterizations import Denoiser

# x and y of the centre, half axes, turn in degrees, brightness: Shepp & Logan, The Fourier
# reconstruction of a head section, 1974, with the contrasts of Toft, The Radon transform, 1996
SHEPP_LOGAN = np.array([
    [0.0, 0.0, 0.69, 0.92, 0.0, 1.0],
    [0.0, -0.0184, 0.6624, 0.874, 0.0, -0.8],
    [0.22, 0.0, 0.11, 0.31, -18.0, -0.2],
    [-0.22, 0.0, 0.16, 0.41, 18.0, -0.2],
    [0.0, 0.35, 0.21, 0.25, 0.0, 0.1],
    [0.0, 0.1, 0.046, 0.046, 0.0, 0.1],
    [0.0, -0.1, 0.046, 0.046, 0.0, 0.1],
    [-0.08, -0.605, 0.046, 0.023, 0.0, 0.1],
    [0.0, -0.606, 0.023, 0.023, 0.0, 0.1],
    [0.06, -0.605, 0.023, 0.046, 0.0, 0.1],
])  # fmt: skip

SMALLEST_VARIANCE = 1e-4  # of a patch along any axis, for pictures in [-1, 1]


def draw_ellipses(ellipses: np.ndarray, size: int, *, oversampling: int = 4) -> np.ndarray:
    """A picture [size, size, 1] of the square [-1, 1]^2, the brightness of ellipses added up.

    Args:
      ellipses: [E, 6], as in `SHEPP_LOGAN`.
      size: pixels a side.
      oversampling: points a pixel side that are averaged, so that edges are smooth.
    """
    fine = (2.0 * np.arange(size * oversampling) + 1.0) / (size * oversampling) - 1.0
    x, y = np.meshgrid(fine, -fine)
    picture = np.zeros_like(x)
    for x0, y0, a, b, turn, brightness in ellipses:
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        along, across = cos * (x - x0) + sin * (y - y0), cos * (y - y0) - sin * (x - x0)
        picture += brightness * ((along / a) ** 2 + (across / b) ** 2 <= 1.0)
    blocks = picture.reshape(size, oversampling, size, oversampling)
    return blocks.mean(axis=(1, 3))[..., None]


def random_head(rng: np.random.Generator) -> np.ndarray:
    """Ellipses somewhat like a head: a shell, and 4 to 10 of any place and brightness in it."""
    a, b = rng.uniform(0.55, 0.75), rng.uniform(0.75, 0.95)
    shell = [[0, 0, a, b, 0, 1.0], [0, 0, a - 0.04, b - 0.05, 0, -rng.uniform(0.7, 0.9)]]
    count = rng.integers(4, 11)
    inside = np.column_stack([
        rng.uniform(-0.4, 0.4, count), rng.uniform(-0.6, 0.6, count),
        *rng.uniform(0.02, 0.3, (2, count)), rng.uniform(-90, 90, count),
        rng.choice([-0.2, -0.1, 0.1, 0.2], count),
    ])  # fmt: skip
    return np.concatenate([shell, inside])


def with_phase(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Complex pictures [N, H, W, 2] of given magnitude [N, H, W, 1], their phase a smooth wave."""
    size = pictures.shape[1]
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    slopes, start = rng.normal(size=(2, len(pictures), 1, 1)), rng.uniform(0, 1, len(pictures))
    phase = slopes[0] * x + slopes[1] * y + start[:, None, None]
    return pictures * np.stack([np.cos(phase), np.sin(phase)], axis=-1)


def photographs(factor: int = 3) -> np.ndarray:
    """scikit-learn's two photographs, made smaller by a factor: [2, H, W, 3] in [-1, 1]."""
    whole = np.stack(load_sample_images().images) / 127.5 - 1.0
    count, height, width, channels = whole.shape
    height, width = height // factor, width // factor
    cut = whole[:, : height * factor, : width * factor]
    return cut.reshape(count, height, factor, width, factor, channels).mean(axis=(2, 4))


def fit_patches(
    pictures: list[np.ndarray], side: int, *, num_components: int, seed: int, num_patches: int
) -> Mixture:
    """Fit a mixture of Gaussians to random patches [side, side, C] of pictures [H, W, C]."""
    rng = np.random.default_rng(seed)
    patches = []
    for index in rng.integers(len(pictures), size=num_patches):
        picture = pictures[index]
        top, left = (rng.integers(size - side + 1) for size in picture.shape[:2])
        patches.append(picture[top : top + side, left : left + side].ravel())
    fitted = GaussianMixture(
        num_components, reg_covar=SMALLEST_VARIANCE, max_iter=10, tol=1e-2, random_state=seed
    )
    with warnings.catch_warnings():
        # ten rounds are enough for a prior, if not for a maximum of the likelihood
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(np.stack(patches))
    # their types in scikit-learn are those of an unfitted estimator
    weights, means, covariances = map(
        np.asarray, (fitted.weights_, fitted.means_, fitted.covariances_)
    )
    return dj.exact.mixture(weights / weights.sum(), means, covariances)


def patch_denoiser(prior: Mixture, side: int) -> Denoiser:
    """The denoiser of pictures of any size whose patches follow the prior."""
    return dj.tiled(dj.exact.denoiser(prior), (side, side), stride=2 * ((side + 1) // 2,))
