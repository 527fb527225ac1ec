"""The training step: one pure function that runs unchanged in `jit`, `pmap` and `shard_map`.

With per-sample losses l_i over a global batch of B samples, one step is

    key_n   = fold_in(key, n),                       n = state.step
    g       = grad (1 / B) sum_i l_i(params, sample_i, fold_in(key_n, i))
    params <- params + optimizer(g)
    ema    <- ema + (1 - d_n) (params - ema)         see `diffjax.training.ema`

Nothing in it depends on how the batch is laid out: a batch on one device, sharded over a mesh,
mapped by `pmap`, or cut into accumulated microbatches gives the same numbers to float tolerance.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from diffjax.core.keys import BatchKeys, batch_keys
from diffjax.training.ema import ema_names, update_ema
from diffjax.training.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, Array]
Loss = Callable[[Any, Batch, BatchKeys], tuple[Array, Metrics]]
Apply = Callable[[TrainState, Any], TrainState]
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]

# up to this many microbatches are written out one after the other on the CPU
_MAX_UNROLLED = 16


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | Sequence[float] = 0.9999,
    ema_warmup: bool = True,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Make `step(state, batch, key) -> (state, metrics)`, to be compiled by the caller.

        step = jax.jit(make_train_step(loss, optimizer), donate_argnums=0)

    `key` is the key of the run and stays the same: the step folds its own number into it. A step
    whose loss or gradient is not finite leaves params, averages and optimizer as they were and
    only counts; its metrics say so (`loss` or `grad_norm` is NaN or inf), and the loop should stop
    there (`diffjax.training.TrainingLog` does).

    Args:
      loss: `loss(params, batch, keys: BatchKeys) -> (losses, metrics)`, where losses is [b] and
        metrics a dict of [b] arrays. The step takes means over the global batch.
      optimizer: any optax gradient transformation; clip gradients by `optax.chain`.
      ema_decay: one decay or several, as given to `init_train_state`; `()` keeps no average.
      ema_warmup: let the decay start low, d_n = min(d, (1 + n) / (10 + n)).
      accumulate: cut the batch into so many microbatches, computed one after the other, to save
        memory. It must divide the batch of each device.
      axis_name: the mapped axis when the step runs inside `pmap` or `shard_map`. State and key
        are then replicated, the batch is split in order along the axis.

    Returns:
      The step. Its metrics are float32 scalars: `loss`, `grad_norm` (global L2 norm before the
      optimizer) and the means of what the loss reports.

    Raises:
      ValueError: a decay outside [0, 1), or accumulate < 1; when the step is traced: a batch whose
        entries differ in length or that accumulate does not divide, or a state with other decays.

    >>> mse = lambda params, batch, keys: ((batch["x0"] - params["w"]) ** 2, {})
    >>> optimizer = optax.sgd(0.25)
    >>> step = jax.jit(make_train_step(mse, optimizer, ema_decay=0.0))
    >>> state = TrainState(jnp.array(0), {"w": jnp.array(0.0)}, {"0": {"w": jnp.array(0.0)}},
    ...                    optimizer.init({"w": jnp.array(0.0)}))
    >>> state, metrics = step(state, {"x0": jnp.array([1.0, 3.0])}, jax.random.key(0))
    >>> float(state.params["w"]), float(metrics["loss"])
    (1.0, 5.0)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; it counts microbatches and is at least 1.")
    names = ema_names(ema_decay)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        _check_ema(state, names)
        keys = batch_keys(jax.random.fold_in(key, state.step), _batch_size(batch), axis_name)
        params = _vary(state.params, axis_name)
        grads, metrics = _gradients(loss, params, batch, keys, accumulate)
        if axis_name is not None:
            grads, metrics = lax.pmean((grads, metrics), axis_name)
        metrics["grad_norm"] = optax.global_norm(grads).astype(jnp.float32)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        apply = partial(_apply_gradients, optimizer=optimizer, ema_warmup=ema_warmup)
        # on the CPU, a selection first copies the old state
        kept = lax.platform_dependent(
            state, grads,
            cpu=partial(_branch, finite, apply), default=partial(_select, finite, apply),
        )  # fmt: skip
        return TrainState(state.step + 1, kept.params, kept.ema, kept.opt_state), metrics

    return step


def _select(finite: Array, apply: Apply, state: TrainState, grads: Any) -> TrainState:
    """The state that `apply` makes of the gradients if they are finite, else the one given."""
    return jax.tree.map(partial(jnp.where, finite), apply(state, grads), state)


def _branch(finite: Array, apply: Apply, state: TrainState, grads: Any) -> TrainState:
    """The same by a branch: a GPU would ask the host which one to take."""
    return lax.cond(finite, apply, lambda state, grads: state, state, grads)


def _apply_gradients(
    state: TrainState, grads: Any, *, optimizer: optax.GradientTransformation, ema_warmup: bool
) -> TrainState:
    cast = lambda grad, param: grad.astype(param.dtype)
    grads = jax.tree.map(cast, grads, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, state.step, warmup=ema_warmup)
    return TrainState(state.step, params, ema, opt_state)


def _gradients(
    loss: Loss, params: Any, batch: Batch, keys: BatchKeys, accumulate: int
) -> tuple[Any, Metrics]:
    """Mean gradient, in float32, and mean metrics over the batch of this device."""

    def mean_loss(params: Any, part: Batch, index: Array) -> tuple[Array, Metrics]:
        losses, metrics = loss(params, part, keys._replace(index=index))
        _check_losses(losses, metrics, index.shape[0])
        means = {name: _mean(values) for name, values in metrics.items()}
        means["loss"] = _mean(losses)
        return means["loss"], means

    value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
    if accumulate == 1:
        (_, metrics), grads = value_and_grad(params, batch, keys.index)
        return _to_float32(grads), metrics

    # on the CPU, XLA compiles convolution gradients inside a loop to code tens of times slower
    unrolled = jax.default_backend() == "cpu" and accumulate <= _MAX_UNROLLED

    def add_microbatch(total: Any, part: tuple[Batch, Array]) -> tuple[Any, Metrics]:
        now = _available_after(total, params) if unrolled else params
        (_, metrics), grads = value_and_grad(now, *part)
        return jax.tree.map(jnp.add, total, _to_float32(grads)), metrics

    parts = _microbatches((batch, keys.index), accumulate)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), params)
    total, metrics = lax.scan(add_microbatch, zeros, parts, unroll=accumulate if unrolled else 1)
    return jax.tree.map(lambda grad: grad / accumulate, total), jax.tree.map(jnp.mean, metrics)


def _available_after(total: Any, params: Any) -> Any:
    """The same params, but made to depend on the gradients so far.

    Outside a loop XLA:CPU would otherwise compute all microbatches at once and take back the
    memory that accumulation saves; it drops `lax.optimization_barrier` before it schedules.
    """
    return jax.tree.map(lambda p, t: p + (0.0 * t).astype(p.dtype), params, total)


def _microbatches(tree: Any, count: int) -> Any:
    """Cut [b, ...] leaves into [count, b / count, ...]; part m holds samples m, m + count, ...

    Strided, not contiguous: a batch that is sharded over devices in contiguous blocks is then cut
    inside every block, and no sample moves between devices.
    """

    def cut(leaf: Array) -> Array:
        size = leaf.shape[0]
        if size % count:
            raise ValueError(
                f"accumulate={count} does not divide the batch of {size} samples. Choose a batch "
                f"size that is a multiple of {count}."
            )
        return jnp.swapaxes(leaf.reshape(size // count, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, tree)


def _vary(tree: Any, axis_name: str | None) -> Any:
    """Mark replicated arrays as different on each device of the axis.

    Without it `shard_map` would sum the gradient of a replicated parameter over the devices by
    itself, and the mean over the axis would come out too large by the number of devices.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda leaf: lax.pcast(leaf, axis_name, to="varying"), tree)


def _to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _mean(values: Array) -> Array:
    return jnp.mean(values.astype(jnp.float32))


def _batch_size(batch: Batch) -> int:
    sizes = {name: jnp.shape(leaf)[:1] for name, leaf in batch.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        shapes = {name: jnp.shape(leaf) for name, leaf in batch.items()}
        raise ValueError(
            f"The entries of a batch share their first axis, the samples; they have {shapes}."
        )
    return next(iter(sizes.values()))[0]


def _check_losses(losses: Array, metrics: Metrics, size: int) -> None:
    if jnp.shape(losses) != (size,):
        raise ValueError(
            f"The loss returned an array of shape {jnp.shape(losses)}; the step averages one loss "
            f"per sample, here ({size},)."
        )
    taken = sorted({"loss", "grad_norm"} & set(metrics))
    if taken:
        raise ValueError(f"The loss reports a metric named {taken[0]!r}, which the step writes.")


def _check_ema(state: TrainState, names: dict[str, float]) -> None:
    if set(state.ema) != set(names):
        raise ValueError(
            f"The state holds averages {sorted(state.ema)}, the step was made for {sorted(names)}. "
            "Give init_train_state and make_train_step the same ema_decay."
        )
