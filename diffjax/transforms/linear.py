"""Linear measurements y = A x0 + sigma_y n, with A any function.

A is a function of a batch, [B, ...] -> [B, ...], that treats the samples apart. Its adjoint A^T
comes from JAX, which transposes what it traced; systems in A are solved by conjugate gradients, or
directly where A is a `Spectral` operator, whose singular values are known. An operator that JAX
cannot transpose brings its own adjoint by `jax.custom_derivatives.linear_call`; `check_operator`
tells whether the two fit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from diffjax.core.keys import normal_each
from diffjax.core.levels import expand
from diffjax.core.sampling import per_sample
from diffjax.transforms.spectral import Spectral, refuse_nonlinear

Operator = Callable[[Array], Array]


def measure(key: Array, operator: Operator, x0: Array, *, sigma_y: ArrayLike = 0.0) -> Array:
    """A noisy measurement, y = A x0 + sigma_y n with n ~ N(0, I).

    Args:
      key: one key, or [B] keys, one for each sample.
      operator: A; it need not be linear.
      x0: [B, ...] clean data, float32.
      sigma_y: standard deviation of the noise, a number or [B].

    >>> measure(jax.random.key(0), lambda x: x[:, ::2], jnp.ones((2, 4))).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    clean = operator(x0)
    noise = normal_each(per_sample(key, x0.shape[0]), clean.shape[1:], clean.dtype)
    return clean + expand(jnp.asarray(sigma_y), clean) * noise


def residual(operator: Operator, y: Array, x0: Array) -> Array:
    """What the measurement has and an estimate of x0 has not: y - A x0, in the shape of A x0.

    Raises:
      ValueError: y is no measurement of such data; its shape says so.
    """
    predicted = operator(x0)
    y = jnp.asarray(y, predicted.dtype)
    if y.shape not in (predicted.shape, (1, *predicted.shape[1:])):
        raise ValueError(
            f"y has shape {y.shape}, but the operator makes {predicted.shape} of data of shape "
            f"{x0.shape}; y must have that shape, or 1 in place of {predicted.shape[0]}."
        )
    return y - predicted


def adjoint(operator: Operator, x0: Array) -> Operator:
    """The function y -> A^T y, for data like x0 (only its shape and dtype count).

    Raises:
      ValueError: JAX finds no transpose, because the operator is not linear.

    >>> adjoint(lambda x: 3.0 * x[:, :1], jnp.zeros((1, 2)))(jnp.ones((1, 1)))
    Array([[3., 0.]], dtype=float32)
    """
    like = jax.ShapeDtypeStruct(x0.shape, x0.dtype)
    measured = jax.eval_shape(operator, like)
    try:
        transpose = jax.linear_transpose(operator, like)
        jax.eval_shape(transpose, measured)
    except (NotImplementedError, AssertionError, TypeError) as error:
        raise ValueError(
            f"The operator has no adjoint, so it is not linear ({error}). For nonlinear ones there "
            "is dps."
        ) from error
    return lambda y: transpose(y)[0]


def ridge(
    operator: Operator,
    difference: Array,
    x0: Array,
    *,
    scale: ArrayLike = 1.0,
    ridge: ArrayLike = 0.0,
    max_iterations: int = 50,
) -> Array:
    """Regularised least squares: u = (scale A^T A + ridge)^-1 A^T difference.

    With ridge = 0 it is the solution of least norm, A^+ difference / scale.

    Args:
      operator: A, linear; a `Spectral` one is solved directly.
      difference: in the shape of A x0.
      x0: data whose shape and dtype u shall have.
      scale, ridge: non-negative, broadcast with x0.
      max_iterations: of conjugate gradients.
    """
    if isinstance(operator, Spectral):
        s = operator.singular_values
        # a zero on the diagonal is a direction that is neither measured nor regularised
        diagonal = scale * s**2 + ridge
        inverse = jnp.where(diagonal > 0, s / jnp.where(diagonal > 0, diagonal, 1.0), 0.0)
        return operator.rotate_back(inverse * operator.coefficients(difference))
    transpose = adjoint(operator, x0)
    normal = lambda u: scale * transpose(operator(u)) + ridge * u
    return conjugate_gradients(normal, transpose(difference), max_iterations=max_iterations)


def conjugate_gradients(
    apply: Callable[[Array], Array],
    b: Array,
    *,
    max_iterations: int,
    tolerance: float = 1e-5,
) -> Array:
    """Solve apply(u) = b for a symmetric, positive semidefinite `apply`, each sample on its own.

    Unlike `jax.scipy.sparse.linalg.cg`, which would take the batch for one vector, the result of
    a sample does not depend on its neighbours. Differentiable, by the equation instead of through
    the iterations.

    Args:
      apply: [B, ...] -> [B, ...], linear.
      b: [B, ...] in the range of `apply`.
      max_iterations: evaluations of `apply`, at most.
      tolerance: a sample is left when its residual is this share of b.

    Raises:
      ValueError: max_iterations is below 1.

    >>> conjugate_gradients(lambda u: 2.0 * u, jnp.ones((1, 2)), max_iterations=5)
    Array([[0.5, 0.5]], dtype=float32)
    """

    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}; at least one is needed.")

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)

    def solve(apply, b: Array) -> Array:
        goal = tolerance**2 * dot(b, b)

        def unfinished(state):
            i, _, _, _, norm = state
            return (i < max_iterations) & jnp.any(norm > goal)

        def improve(state):
            i, u, rest, direction, norm = state
            image = apply(direction)
            curvature = dot(direction, image)
            going = (norm > goal) & (curvature > 0)
            step = jnp.where(going, norm / jnp.where(going, curvature, 1.0), 0.0)
            rest = rest - step * image
            new_norm = jnp.where(going, dot(rest, rest), 0.0)
            turn = new_norm / jnp.where(going, norm, 1.0)
            return i + 1, u + step * direction, rest, rest + turn * direction, new_norm

        start = (0, jnp.zeros_like(b), b, b, dot(b, b))
        return lax.while_loop(unfinished, improve, start)[1]

    return lax.custom_linear_solve(apply, b, solve, symmetric=True)


def check_operator(operator: Operator, shape: tuple[int, ...], *, tolerance: float = 1e-4) -> None:
    """Refuse an operator that is not linear, or whose adjoint does not fit.

    Compares values at random points, so it costs a few evaluations and cannot be traced:

        A(x + 2 z) = A x + 2 A z,    <A x, y> = <x, A^T y>

    Args:
      operator: A.
      shape: (B, ...) of the data that it measures.
      tolerance: largest difference, relative to the norms of both sides.

    Raises:
      ValueError: says which of the two fails, and by how much.

    >>> check_operator(lambda x: x[:, ::2], (1, 4))
    >>> check_operator(lambda x: x + 1.0, (1, 4))
    Traceback (most recent call last):
    ValueError: The operator is not linear: at a random point it differs by a share of ...
    """
    rng = np.random.default_rng(0)
    x, z = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    measured = jax.eval_shape(operator, x)
    y = jnp.asarray(rng.normal(size=measured.shape), measured.dtype)

    @jax.jit
    def compare(x, z, y):
        image, inner = operator(x), lambda a, b: jnp.sum(a * b)
        both = operator(x + 2.0 * z), image + 2.0 * operator(z)
        return *both, inner(image, y), inner(x, adjoint(operator, x)(y)), inner(image, image)

    found, expected, left, right, square = compare(x, z, y)
    refuse_nonlinear(found, expected, tolerance=tolerance)
    if not abs(left - right) <= tolerance * np.sqrt(square * y.size):
        raise ValueError(
            f"The adjoint does not fit the operator: <A x, y> = {left:.4g}, but <x, A^T y> = "
            f"{right:.4g}."
        )
