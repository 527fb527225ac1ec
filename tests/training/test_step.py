"""Laws of the training step on one device."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_problem as tiny

from diffjax.core.keys import batch_keys
from diffjax.training.state import init_train_state
from diffjax.training.step import _apply_gradients, _branch, _select, make_train_step

KEY = jax.random.key(7)
DECAYS = (0.0, 0.9)
SGD, ADAM = tiny.SGD, tiny.ADAM


@functools.cache
def jitted(accumulate=1, ema_warmup=True):
    step = make_train_step(
        tiny.loss, SGD, ema_decay=DECAYS, accumulate=accumulate, ema_warmup=ema_warmup
    )
    return jax.jit(step)


def test_step_is_the_gradient_of_the_mean_loss():
    state, batch = tiny.new_state(), tiny.make_batch()
    keys = batch_keys(jax.random.fold_in(KEY, 0), 16)
    mean = lambda params: jnp.mean(tiny.loss(params, batch, keys)[0])
    value, grads = jax.jit(jax.value_and_grad(mean))(state.params)
    after, metrics = jitted()(state, batch, KEY)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics["strength"], 0.5, rtol=1e-6)
    assert int(after.step) == 1
    assert after.step.dtype == jnp.int32


def test_accumulation_changes_nothing_but_the_order_of_sums():
    whole, whole_metrics = jitted()(tiny.new_state(), tiny.make_batch(), KEY)
    parts, parts_metrics = jitted(2)(tiny.new_state(), tiny.make_batch(), KEY)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(parts_metrics, whole_metrics, rtol=1e-5)


def test_accumulation_in_a_loop_equals_accumulation_written_out(monkeypatch):
    written_out, _ = jitted(2)(tiny.new_state(), tiny.make_batch(), KEY)
    monkeypatch.setattr("diffjax.training.step._MAX_UNROLLED", 0)
    step = jax.jit(make_train_step(tiny.loss, SGD, ema_decay=DECAYS, accumulate=2))
    looped, _ = step(tiny.new_state(), tiny.make_batch(), KEY)
    chex.assert_trees_all_close(looped, written_out, rtol=1e-5, atol=1e-6)


def test_accumulation_saves_memory():
    def loss(params, batch, keys):
        return jnp.sum((tiny.apply(params, batch["x0"]) - batch["x0"]) ** 2, axis=1), {}

    def temporary_bytes(accumulate):
        step = jax.jit(make_train_step(loss, SGD, ema_decay=(), accumulate=accumulate))
        state, batch = tiny.new_state(ema_decay=(), width=64), tiny.make_batch(4096)
        return step.lower(state, batch, KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < 0.5 * temporary_bytes(1)


def test_each_step_draws_its_own_noise_from_one_key():
    state, batch = tiny.new_state(), tiny.make_batch()
    again = jitted()(state, batch, KEY)[1]["loss"]
    later = jitted()(dataclasses.replace(state, step=state.step + 1), batch, KEY)[1]["loss"]
    np.testing.assert_array_equal(jitted()(state, batch, KEY)[1]["loss"], again)
    assert float(later) != float(again)


def test_a_run_compiles_once_and_donates_its_state():
    traced = chex.assert_max_traces(make_train_step(tiny.loss, ADAM), n=1)
    step = jax.jit(traced, donate_argnums=0)
    state = tiny.new_state(ADAM, ema_decay=0.9999)
    for seed in range(3):
        given = jax.tree.leaves(state)
        state, _ = step(state, tiny.make_batch(seed=seed), KEY)
        assert all(leaf.is_deleted() for leaf in given)
    assert step._cache_size() == 1
    chex.clear_trace_counter()


def test_the_program_holds_no_parameters():
    step = make_train_step(tiny.loss, ADAM)
    state = tiny.new_state(ADAM, ema_decay=0.9999, width=64)
    jaxpr = jax.make_jaxpr(step)(state, tiny.make_batch(), KEY)
    assert sum(np.size(constant) for constant in jaxpr.consts) < 64


def test_bfloat16_compute_keeps_float32_masters_and_averages():
    loss = functools.partial(tiny.loss, dtype=jnp.bfloat16)
    step = jax.jit(make_train_step(loss, SGD, ema_decay=0.9))
    after, metrics = step(tiny.new_state(ema_decay=0.9), tiny.make_batch(), KEY)
    exact, exact_metrics = jitted()(tiny.new_state(), tiny.make_batch(), KEY)
    chex.assert_type(jax.tree.leaves((after.params, after.ema, metrics)), jnp.float32)
    np.testing.assert_allclose(metrics["loss"], exact_metrics["loss"], rtol=2e-2)
    chex.assert_trees_all_close(after.params, exact.params, atol=2e-3)


def test_bfloat16_parameters_stay_bfloat16_beside_a_float32_average():
    params = tiny.init(jax.random.key(0), dtype=jnp.bfloat16)
    state = init_train_state(params, SGD, ema_decay=0.9)
    after, _ = jax.jit(make_train_step(tiny.loss, SGD, ema_decay=0.9))(
        state, tiny.make_batch(), KEY
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_type(jax.tree.leaves(after.ema), jnp.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_only_the_counter(value):
    batch = tiny.make_batch()
    batch["x0"] = batch["x0"].at[3, 0].set(value)
    before = tiny.new_state()
    after, metrics = jitted()(before, batch, KEY)
    assert not np.isfinite(metrics["loss"])
    assert int(after.step) == 1
    chex.assert_trees_all_equal(
        (after.params, after.ema, after.opt_state), (before.params, before.ema, before.opt_state)
    )


@pytest.mark.parametrize("optimizer", [optax.contrib.prodigy(), optax.lbfgs(0.1, linesearch=None)])
def test_a_state_can_be_donated_whatever_its_optimizer_shares(optimizer):
    params = {"w": jnp.ones(3)}
    loss = lambda params, batch, keys: (batch["x0"] * jnp.sum(params["w"] ** 2), {})
    step = make_train_step(loss, optimizer, ema_decay=0.9)
    donating = jax.jit(step, donate_argnums=0)
    plain = donated = init_train_state(params, optimizer, ema_decay=0.9)
    for _ in range(3):
        plain, _ = jax.jit(step)(plain, {"x0": jnp.ones(2)}, KEY)
    for _ in range(3):
        donated, _ = donating(donated, {"x0": jnp.ones(2)}, KEY)
    chex.assert_trees_all_close(donated, plain, rtol=1e-6)


@pytest.mark.parametrize("finite", [True, False])
def test_a_branch_keeps_the_state_that_a_selection_keeps(finite):
    state = tiny.new_state()
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, state.params)
    apply = functools.partial(_apply_gradients, optimizer=SGD, ema_warmup=True)
    kept = [
        jax.jit(keep, static_argnums=1)(finite, apply, state, grads) for keep in (_select, _branch)
    ]
    chex.assert_trees_all_equal(*kept)
    moved = apply(state, grads) if finite else state
    chex.assert_trees_all_close(kept[0], moved, rtol=1e-6)


def test_what_the_step_cannot_use_is_refused_by_name():
    state, batch = tiny.new_state(), tiny.make_batch(6)
    with pytest.raises(ValueError, match=r"accumulate=4 does not divide the batch of 6"):
        jitted(4)(state, batch, KEY)
    with pytest.raises(ValueError, match="share their first axis"):
        jitted()(state, {**batch, "labels": jnp.zeros(5, jnp.int32)}, KEY)
    with pytest.raises(ValueError, match="same ema_decay"):
        jitted()(tiny.new_state(ema_decay=0.5), batch, KEY)
    with pytest.raises(ValueError, match="accumulate is 0"):
        make_train_step(tiny.loss, SGD, accumulate=0)
    mean = lambda params, batch, keys: (jnp.mean(tiny.loss(params, batch, keys)[0]), {})
    with pytest.raises(ValueError, match=r"shape \(\)"):
        jax.eval_shape(make_train_step(mean, SGD, ema_decay=DECAYS), state, batch, KEY)
    named = lambda params, batch, keys: (jnp.zeros(6), {"loss": jnp.zeros(6)})
    with pytest.raises(ValueError, match="'loss'"):
        jax.eval_shape(make_train_step(named, SGD, ema_decay=DECAYS), state, batch, KEY)
