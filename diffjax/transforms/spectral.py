"""Linear operators whose singular value decomposition is known.

    A = U diag(s) V^T

with V^T a rotation of the data and U one of the measurement, both as functions. Masks, matrices
along the axes of an array (scaling, separable blur, colour, heat) and Fourier sampling are of this
kind; any small operator becomes one by `decompose`. `ddrm` and `ddnm_plus` need the decomposition;
for the others it replaces conjugate gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpy.typing import ArrayLike

# singular values below this share of the largest are what rounding left of 0
SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class Spectral:
    """The linear operator A = U diag(s) V^T. It is called like any operator: A(x).

    Attributes:
      singular_values: s >= 0, broadcast with `rotate(x)`; 0 where a direction is not measured.
      rotate: x -> V^T x, [B, ...] -> [B, ...], preserves norms.
      rotate_back: its inverse, V.
      place: U, coefficients in the shape of `rotate(x)` -> [B, ...] measurement.
      coefficients: y -> U^T y, in the shape of `rotate(x)`.
    """

    singular_values: Array
    rotate: Callable[[Array], Array]
    rotate_back: Callable[[Array], Array]
    place: Callable[[Array], Array]
    coefficients: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return self.place(self.singular_values * self.rotate(x))


def mask(keep: ArrayLike) -> Spectral:
    """Keep some pixels: y = keep x. What is not kept is 0 in y, whose shape is that of x.

    Args:
      keep: 1 where a pixel is measured and 0 where it is missing; broadcast with x.

    Raises:
      ValueError: other values than 0 and 1; when it is called, a shape that does not fit.

    >>> mask([1, 0])(jnp.array([[3.0, 4.0]]))
    Array([[3., 0.]], dtype=float32)
    """
    if not isinstance(keep, Tracer) and not np.all(np.isin(np.asarray(keep), (0, 1))):
        raise ValueError(
            "mask takes 1 for a measured pixel and 0 for a missing one, no other values: "
            f"it holds {np.min(np.asarray(keep)):g} to {np.max(np.asarray(keep)):g}."
        )
    keep = jnp.asarray(keep, jnp.float32)

    def same(values: Array) -> Array:
        # a larger mask would make more pixels of them
        if keep.ndim > values.ndim or any(
            size not in (1, whole) for size, whole in zip(keep.shape[::-1], values.shape[::-1])
        ):
            raise ValueError(
                f"A mask of shape {keep.shape} does not fit an array of shape {values.shape}; it "
                "must broadcast to that."
            )
        return values

    return Spectral(keep, same, same, same, lambda y: keep * same(y))


def separable(matrices: Sequence[ArrayLike | None]) -> Spectral:
    """A matrix along each axis of a sample: for an image, y = R x C^T in every channel.

    Made in float64 on the host, so the matrices are concrete numbers, not traced ones.

    Args:
      matrices: for each axis behind the batch, [m, n] with n its size, or None to leave it.

    Raises:
      ValueError: something else than matrices.

    >>> total = separable([np.ones((1, 3))])
    >>> total(jnp.array([[1.0, 2.0, 3.0]])).round(4).tolist()
    [[6.0]]
    """
    lefts, spectra, rights = zip(*(_decompose_axis(matrix) for matrix in matrices))
    count = len(matrices)
    s = np.ones((1,) * count)
    for axis, values in enumerate(spectra):
        s = s * values.reshape([-1 if other == axis else 1 for other in range(count)])
    s = np.where(s > SMALLEST_SHARE * s.max(), s, 0.0)
    turned = lambda factors: [None if factor is None else factor.T for factor in factors]
    return Spectral(
        jnp.asarray(s, jnp.float32),
        rotate=lambda x: _along_axes(rights, x),
        rotate_back=lambda x: _along_axes(turned(rights), x),
        place=lambda x: _along_axes(lefts, x),
        coefficients=lambda y: _along_axes(turned(lefts), y),
    )


def fourier(keep: ArrayLike) -> Spectral:
    """Undersampled Fourier measurements, as in magnetic resonance imaging: y = keep F x.

    F is the unitary two-dimensional transform, its zero frequency at [0, 0].

    Args:
      keep: 1 where a frequency is measured and 0 where it is not, [H, W].

    Returns:
      An operator on complex images [B, H, W, 2], whose two channels are real and imaginary part;
      y has the same form, with 0 where nothing was measured.

    Raises:
      ValueError: `keep` has other than two axes; when it is called, x is no such image.

    >>> fourier(np.ones((2, 2)))(jnp.ones((1, 2, 2, 2)))[0, 0, 0].tolist()
    [2.0, 2.0]
    """
    keep = np.asarray(keep)
    if keep.ndim != 2:
        raise ValueError(f"keep has shape {keep.shape}; fourier needs [H, W].")
    sampled = mask(keep[..., None])

    def transform(fft: Callable[..., Array]) -> Callable[[Array], Array]:
        def apply(x: Array) -> Array:
            if x.shape[1:] != (*keep.shape, 2):
                raise ValueError(
                    f"x has shape {x.shape}; fourier needs [B, {keep.shape[0]}, {keep.shape[1]}, "
                    "2], real and imaginary part in two channels."
                )
            values = fft(jax.lax.complex(x[..., 0], x[..., 1]), axes=(1, 2), norm="ortho")
            return jnp.stack([values.real, values.imag], axis=-1)

        return apply

    rotate, rotate_back = transform(jnp.fft.fft2), transform(jnp.fft.ifft2)
    return Spectral(
        sampled.singular_values, rotate, rotate_back, sampled.place, sampled.coefficients
    )


def decompose(operator: Callable[[Array], Array], shape: tuple[int, ...]) -> Spectral:
    """The singular value decomposition of any small linear operator, by its matrix.

    Args:
      operator: [B, *shape] -> [B, ...], linear.
      shape: of one sample; its size D costs a decomposition of D columns.

    Raises:
      ValueError: the operator is not linear.

    >>> double = decompose(lambda x: 2.0 * x, (2,))
    >>> double.singular_values.tolist()
    [2.0, 2.0]
    """
    measured = jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]
    matrix = matrix_of(operator, shape)
    _check_matrix(operator, matrix, shape)
    flat = separable([matrix])
    flatten = lambda x: x.reshape(x.shape[0], -1)
    return Spectral(
        flat.singular_values,
        rotate=lambda x: flat.rotate(flatten(x)),
        rotate_back=lambda x: flat.rotate_back(x).reshape(-1, *shape),
        place=lambda x: flat.place(x).reshape(-1, *measured),
        coefficients=lambda y: flat.coefficients(flatten(y)),
    )


def matrix_of(operator: Callable[[Array], Array], shape: tuple[int, ...]) -> np.ndarray:
    """The matrix [M, D] of a linear operator on single samples of `shape`, D = prod(shape).

    >>> matrix_of(lambda x: 3.0 * x[:, :1], (2,))
    array([[3., 0.]])
    """
    with jax.ensure_compile_time_eval():
        columns = operator(jnp.eye(math.prod(shape)).reshape(-1, *shape))
        return np.asarray(columns, np.float64).reshape(len(columns), -1).T


def refuse_nonlinear(found: ArrayLike, expected: ArrayLike, *, tolerance: float) -> None:
    """Refuse an operator whose values are not what linearity makes of other values of it.

    Args:
      found: the values.
      expected: the same as linear combinations of others.
      tolerance: largest difference, relative to what is expected.

    Raises:
      ValueError: says by how much they differ.
    """
    gap, size = (
        np.linalg.norm(np.ravel(np.asarray(each, np.float64)))
        for each in (np.subtract(found, expected), expected)
    )
    # one that measures nothing is linear too
    if not gap <= tolerance * size:
        raise ValueError(
            "The operator is not linear: at a random point it differs by a share of "
            f"{gap / max(size, 1e-30):.2g} from what its other values make there. For nonlinear "
            "ones there is dps."
        )


def _check_matrix(
    operator: Callable[[Array], Array], matrix: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Refuse an operator that is not what it does to the unit vectors."""
    x = np.random.default_rng(0).normal(size=(2, *shape))
    with jax.ensure_compile_time_eval():
        found = operator(jnp.asarray(x, jnp.float32))
    # accelerators may multiply with few digits
    refuse_nonlinear(found, (x.reshape(2, -1) @ matrix.T).reshape(found.shape), tolerance=1e-2)


def _decompose_axis(matrix: ArrayLike | None):
    """U [m, n], filled up with zeros, n singular values and V^T [n, n]; None is the identity."""
    if matrix is None:
        return None, np.ones(1), None
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"A matrix has shape {matrix.shape}; separable needs [m, n] or None.")
    m, n = matrix.shape
    u, s, vt = np.linalg.svd(matrix, full_matrices=m < n)
    rank = len(s)
    left = np.zeros((m, n))
    left[:, :rank] = u[:, :rank]
    return left, np.pad(s, (0, n - rank)), vt


def _along_axes(factors: Sequence[np.ndarray | None], x: Array) -> Array:
    if x.ndim != len(factors) + 1:
        raise ValueError(
            f"An array of shape {x.shape} does not fit an operator of {len(factors)} matrices, "
            "one for each axis behind the batch."
        )
    for axis, factor in enumerate(factors, start=1):
        if factor is None:
            continue
        if x.shape[axis] != factor.shape[1]:
            raise ValueError(
                f"Axis {axis} of an array of shape {x.shape} has the size {x.shape[axis]}; the "
                f"operator was made for {factor.shape[1]}."
            )
        # all digits: accelerators would round the factors to ten bits
        product = jnp.tensordot(
            x, jnp.asarray(factor, x.dtype), ((axis,), (1,)), precision="highest"
        )
        x = jnp.moveaxis(product, -1, axis)
    return x
