"""Laws of checkpoints: exact, atomic, verified, and never silently started over."""

import dataclasses
import functools
import json
import os
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_problem as tiny

from diffjax.training.checkpoint import (
    Checkpointer,
    CheckpointError,
    find_checkpoint,
    load_item,
    load_run,
)
from diffjax.training.manifest import find_damage, whole_file, write_manifest
from diffjax.training.step import make_train_step

KEY = jax.random.key(11)
DATA = {"next_index": 3, "workers": [0, 1]}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


@functools.cache
def first_state():
    return tiny.new_state(OPTIMIZER, (0.9, 0.9999))


def state_at(step):
    """A state whose every array tells its step."""
    move = lambda leaf: leaf + step if leaf.dtype == jnp.float32 else leaf
    moved = jax.tree.map(move, first_state())
    return dataclasses.replace(moved, step=jnp.int32(step))


def save(directory, *steps, keep=5):
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(state_at(step), key=KEY, data=DATA, config={"width": 8})


def restore(directory, like=None):
    with Checkpointer(directory) as checkpointer:
        return checkpointer.restore_latest(first_state() if like is None else like)


def flip_bit(path, bit=3):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three good checkpoints, to be copied before they are damaged."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 10, 20, 30)
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_restored_equals_saved_bit_for_bit(saved):
    state, run = restore(saved)
    chex.assert_trees_all_equal(state, state_at(30))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, first_state())
    assert jax.tree.structure(state) == jax.tree.structure(first_state())
    assert (run.step, run.data, run.config) == (30, DATA, {"width": 8})
    assert run.key.dtype == KEY.dtype
    np.testing.assert_array_equal(jax.random.key_data(run.key), jax.random.key_data(KEY))


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(tmp_path):
    step = jax.jit(make_train_step(tiny.loss, OPTIMIZER, ema_decay=(0.9, 0.9999)), donate_argnums=0)

    def run(state, key, steps):
        for n in steps:
            state, _ = step(state, tiny.make_batch(seed=n), key)
        return state

    fresh = lambda: tiny.new_state(OPTIMIZER, (0.9, 0.9999))
    whole = run(fresh(), KEY, range(4))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(run(fresh(), KEY, range(2)), key=KEY)
    state, info = restore(tmp_path)
    chex.assert_trees_all_equal(run(state, info.key, range(2, 4)), whole)


def test_a_template_of_shapes_is_enough(saved):
    state, _ = restore(saved, jax.eval_shape(lambda: first_state()))
    chex.assert_trees_all_equal(state, state_at(30))


def test_sampling_loads_the_average_alone(copied):
    for name in ("params", "opt_state"):
        shutil.rmtree(copied / "30" / name)
    path = find_checkpoint(copied)
    ema = load_item(path, "ema")
    chex.assert_trees_all_equal(ema, state_at(30).ema)
    chex.assert_trees_all_equal(load_item(path, "ema", like=ema), ema)
    assert load_run(path).config == {"width": 8}
    with pytest.raises(CheckpointError, match="no item 'params'"):
        load_item(path, "params")


def test_the_last_ones_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert names(tmp_path) == ["3", "4"]


def test_the_saved_arrays_may_be_donated_at_once(tmp_path):
    state = jax.tree.map(lambda leaf: jnp.tile(leaf, (50, 1)), state_at(5).params)
    expected = jax.device_get(state)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: 1.5 * leaf + 1.0, tree), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        full = dataclasses.replace(state_at(5), params=state)
        checkpointer.save(full, key=KEY)
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
    chex.assert_trees_all_equal(load_item(tmp_path / "5", "params"), expected)


def test_bytes_and_plain_optimizers_survive(tmp_path):
    state = tiny.new_state(tiny.SGD, ())
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, key=jax.random.key(1, impl="rbg"), data=b"\x00\xff")
        checkpointer.wait()
        restored, run = checkpointer.restore_latest(state)
    chex.assert_trees_all_equal(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert run.data == b"\x00\xff"
    assert str(jax.random.key_impl(run.key)) == "rbg"


def test_saving_the_same_step_again_does_nothing_but_a_foreign_step_is_refused(copied):
    with Checkpointer(copied) as checkpointer:
        state, _ = checkpointer.restore_latest(first_state())
        checkpointer.save(state, key=KEY)
        with pytest.raises(CheckpointError, match="20 exists already"):
            checkpointer.save(state_at(20), key=KEY)
    assert find_damage(copied / "30") is None


def test_a_flipped_bit_in_any_file_is_found(copied):
    folder = copied / "30"
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    # arrays, Orbax's metadata, run.json and the manifest itself
    assert {"manifest.json", "run.json", "_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"} <= {
        path.name for path in files
    }
    for path in files:
        content = path.read_bytes()
        for bit in (0, 5):
            flip_bit(path, bit)
            assert find_damage(folder) is not None, path
            path.write_bytes(content)
    assert find_damage(folder) is None


def damage_array(folder):
    flip_bit(max(folder.rglob("params/**/d/*"), key=lambda path: path.stat().st_size))


def truncate(folder):
    path = max(folder.rglob("opt_state/**/d/*"), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "flipped bit": (damage_array, "does not match its hash"),
    "truncated": (truncate, "bytes instead of"),
    "empty folder": (empty, "manifest.json is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 99), "cannot be read"),
    "lost file": (lambda folder: (folder / "run.json").unlink(), "No such file"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(copied, kind):
    damage, reason = DAMAGES[kind]
    damage(copied / "30")
    with pytest.warns(UserWarning, match=rf"{copied}/30 is damaged.*{reason}.*Using {copied}/20"):
        state, run = restore(copied)
    assert run.step == 20
    chex.assert_trees_all_equal(state, state_at(20))
    assert names(copied) == ["10", "20", "30.damaged"]


def test_a_run_goes_on_and_saves_again_over_what_was_set_aside(copied):
    empty(copied / "30")
    with Checkpointer(copied) as checkpointer:
        with pytest.warns(UserWarning, match="damaged"):
            checkpointer.restore_latest(first_state())
        checkpointer.save(state_at(30), key=KEY)
    assert restore(copied)[1].step == 30
    assert "30.damaged" in names(copied)


def test_sampling_warns_and_leaves_damage_where_it_is(copied):
    flip_bit(max((copied / "30" / "ema").rglob("d/*"), key=lambda path: path.stat().st_size))
    with pytest.warns(UserWarning, match="30 is damaged"):
        assert find_checkpoint(copied).name == "20"
    assert find_checkpoint(copied, items=["params"]).name == "30"
    assert names(copied) == ["10", "20", "30"]


def test_all_damaged_is_refused_and_nothing_is_deleted(copied):
    for step in ("10", "20", "30"):
        damage_array(copied / step)
    for attempt in (restore, restore, find_checkpoint):
        items = {"items": ["params"]} if attempt is find_checkpoint else {}
        with pytest.raises(CheckpointError, match=r"30: params/.* 10: .*Nothing was deleted"):
            attempt(copied, **items)
    assert names(copied) == ["10", "20", "30"]


def test_what_was_set_aside_is_not_taken_for_a_fresh_folder(copied):
    for step in ("10", "20", "30"):
        (copied / step).rename(copied / f"{step}.damaged")
    with pytest.raises(CheckpointError, match="damaged checkpoints only"):
        restore(copied)


def test_an_unfinished_first_save_is_a_fresh_start(tmp_path):
    (tmp_path / "10.saving").mkdir()
    (tmp_path / "10.saving.orbax-checkpoint-tmp").mkdir()
    assert restore(tmp_path) is None
    save(tmp_path, 10)
    assert names(tmp_path) == ["10", "10.unfinished", "10.unfinished-2"]
    assert restore(tmp_path)[1].step == 10


def test_a_folder_that_holds_nothing_is_none_to_train_and_an_error_to_sample(tmp_path):
    assert restore(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find_checkpoint(tmp_path / "elsewhere")
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; it has \[1\]"):
        find_checkpoint(tmp_path, step=2)


def test_another_model_is_refused_by_its_shapes(saved):
    like = tiny.new_state(OPTIMIZER, (0.9, 0.9999), width=4)
    with pytest.raises(CheckpointError, match=r"inner/bias is float32\[8\], the model has .*\[4\]"):
        restore(saved, like)
    with pytest.raises(CheckpointError, match=r"0\.9999/inner/bias is not in the model"):
        restore(saved, tiny.new_state(OPTIMIZER, 0.9))
    assert names(saved) == ["10", "20", "30"]


@pytest.fixture
def full_disk():
    """No file may grow beyond 2 kB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def large_state(step):
    noise = {"w": jax.random.normal(KEY, (100, 100))}
    return dataclasses.replace(state_at(step), params=noise)


def run_to_a_full_disk(directory, fill_disk, error=None):
    """Save step 40 onto a full disk, and end the run, by an error if one is given."""
    state = large_state(40)
    with Checkpointer(directory) as checkpointer:
        fill_disk()
        checkpointer.save(state, key=KEY)
        if error is not None:
            raise error


def test_a_failed_last_save_is_raised_with_path_and_reason(copied, full_disk):
    with pytest.raises(CheckpointError, match=rf"step 40 to {copied}/40: File too large"):
        run_to_a_full_disk(copied, full_disk)
    assert "40" not in names(copied)


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(copied, full_disk):
    with pytest.raises(FloatingPointError) as caught:
        run_to_a_full_disk(copied, full_disk, FloatingPointError("loss is nan"))
    assert "Could not save the checkpoint of step 40" in caught.value.__notes__[0]


def test_a_failed_save_is_raised_by_the_next(copied, full_disk):
    states = large_state(40), large_state(50)
    with Checkpointer(copied) as checkpointer:
        full_disk()
        checkpointer.save(states[0], key=KEY)
        with pytest.raises(CheckpointError, match="step 40"):
            checkpointer.save(states[1], key=KEY)


def test_a_save_whose_folder_vanishes_is_an_error(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpointer = Checkpointer(directory)
    shutil.rmtree(directory)
    directory.write_text("a file where the folder was")
    with pytest.raises(CheckpointError, match=r"step 0 to .*: Not a directory"):
        checkpointer.save(first_state(), key=KEY)


def test_what_cannot_be_saved_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Cannot write checkpoints .*Not a directory"):
        Checkpointer(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(ValueError, match="not on a file system"):
        Checkpointer("gs://bucket/run")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(ValueError, match="config"):
            checkpointer.save(first_state(), key=KEY, config={"sizes": (1, 2)})
        with pytest.raises(ValueError, match="data"):
            checkpointer.save(first_state(), key=KEY, data=object())
        with pytest.raises(ValueError, match="typed key"):
            checkpointer.save(first_state(), key=jnp.zeros(2, jnp.uint32))


def test_the_data_position_of_other_processes_is_not_taken_for_ones_own(copied):
    path = copied / "30"
    run = json.loads((path / "run.json").read_text())
    for positions, here in (([{"next": 3}] * 2, {"next": 3}), ([{"next": 3}, {"next": 4}], None)):
        (path / "run.json").write_text(json.dumps(run | {"data": positions}))
        write_manifest(path)
        assert load_run(path).data == here
    with pytest.raises(CheckpointError, match="positions of 2 processes; this run has 1"):
        restore(copied)


def test_the_manifest_lists_every_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    write_manifest(tmp_path)
    listed = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert listed["sub/a"]["size"] == 3
    assert list(listed) == ["sub/a"]


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "digits.npz"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as draft:
        draft.write_text("half of it " + "\udfff", encoding="utf8")
    assert path.read_text() == "old"
    with whole_file(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
