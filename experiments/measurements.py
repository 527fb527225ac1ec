"""The measurements of inverse.py by name: what is done to pictures, and how to look at the result.

Each builder is given the shape of a picture, (H, W, C), and a seed for what is random.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.transforms import operators


class Measurement(NamedTuple):
    """How pictures are measured.

    Attributes:
      operator: [B, H, W, C] -> [B, ...].
      show: measurement -> something to look at, [B, h, w, 1 or 3] in the units of the pictures.
      linear: whether the operator is.
    """

    operator: Callable[[Array], Array]
    show: Callable[[Array], Array] = lambda y: y
    linear: bool = True


def masking(shape: tuple[int, ...], seed: int, *, share: float = 0.5) -> Measurement:
    """Pixels at random, all channels of each."""
    _check_share("masking", share)
    keep = np.random.default_rng(seed).random(shape[:2]) < share
    return Measurement(operators.mask(np.broadcast_to(keep[..., None], shape)))


def blur(shape: tuple[int, ...], *, std: float = 1.0) -> Measurement:
    """A Gaussian blur, as many pixels wide."""
    kernel = operators.gaussian_kernel(std)
    return Measurement(operators.separable_blur(kernel, (shape[0], shape[1])))


def motion(shape: tuple[int, ...], *, length: int = 5) -> Measurement:
    """A blur along the diagonal, whose singular values are not known."""
    if length < 1 or length % 2 == 0 or length > min(shape[:2]):
        raise ValueError(f"motion has the length {length}; it must be odd and fit into {shape}.")
    return Measurement(operators.blur(np.eye(length) / length))


def downsampling(shape: tuple[int, ...], *, factor: int = 2, method: str = "area") -> Measurement:
    """Fewer pixels, by area or cubic."""
    larger = lambda y: jnp.repeat(jnp.repeat(y, factor, axis=1), factor, axis=2)
    return Measurement(operators.downsample((shape[0], shape[1]), factor, method=method), larger)


def grey(shape: tuple[int, ...]) -> Measurement:
    """The luminance of a colour picture."""
    if shape[2] != 3:
        raise ValueError(f"grey needs colour pictures; these have {shape[2]} channels.")
    return Measurement(operators.grey(), lambda y: jnp.repeat(y, 3, axis=-1))


def fourier(
    shape: tuple[int, ...], seed: int, *, share: float = 0.25, centre: float = 0.08
) -> Measurement:
    """Lines of the Fourier transform: a share of them, those of low frequency among them (MRI)."""
    _check_share("fourier", share)
    _check_share("fourier's centre", centre)
    height, width, channels = shape
    if channels > 2:
        raise ValueError(
            f"fourier measures real (1) or complex pictures (2 channels); these have {channels}."
        )
    frequencies = np.abs(np.fft.fftfreq(width))
    others = np.random.default_rng(seed).random(width)
    # the lowest frequencies first, then the others as they are drawn
    order = np.where(frequencies <= 0.5 * centre, frequencies - 1.0, others)
    lines = np.argsort(np.argsort(order)) < round(share * width)
    transform = operators.fourier(np.broadcast_to(lines, (height, width)))
    show = lambda y: magnitude(transform.rotate_back(y))
    if channels == 2:
        return Measurement(transform, show)
    return Measurement(lambda x: transform(jnp.concatenate([x, jnp.zeros_like(x)], -1)), show)


def radon(shape: tuple[int, ...], *, num_angles: int = 30) -> Measurement:
    """Projections from several sides (CT)."""
    angles = np.linspace(0.0, 180.0, num_angles, endpoint=False)

    def sinogram(y: Array) -> Array:
        return jax.image.resize(y, (len(y), *shape[:2], y.shape[-1]), "nearest") / 2.0

    return Measurement(operators.radon(angles), sinogram)


def heat(shape: tuple[int, ...], *, time: float = 1.0) -> Measurement:
    """Heat that has spread for a while."""
    return Measurement(operators.heat((shape[0], shape[1]), time))


def saturation(shape: tuple[int, ...], *, gain: float = 3.0) -> Measurement:
    """Over-exposure, tanh(gain x): nonlinear."""
    return Measurement(lambda x: jnp.tanh(gain * x), linear=False)


PROBLEMS: dict[str, Callable[..., Measurement]] = {
    "masking": masking,
    "blur": blur,
    "motion": motion,
    "downsampling": downsampling,
    "grey": grey,
    "fourier": fourier,
    "radon": radon,
    "heat": heat,
    "saturation": saturation,
}


def magnitude(x: Array) -> Array:
    """[..., 2], real and imaginary part -> [..., 1]; pictures of other channels as they are."""
    return jnp.linalg.norm(x, axis=-1, keepdims=True) if x.shape[-1] == 2 else x


def _check_share(name: str, share: Any) -> None:
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name} is given the share {share}; it must be in (0, 1].")
