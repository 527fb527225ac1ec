"""What is dropped is the null condition, for the samples whose keys say so, each on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.core.conditioning import Condition, told_nothing, with_drops, with_image

COUNT = 4000
KEYS = jax.random.split(jax.random.key(0), COUNT)
TEXT = Condition(
    {"context": jnp.arange(6.0).reshape(3, 2), "context_mask": jnp.array([1.0, 1.0, 0.0])}, 0.3
)
LABELS = Condition({"labels": 10}, 0.2)
GIVEN = {
    "context": jnp.full((COUNT, 3, 2), 7.0),
    "context_mask": jnp.ones((COUNT, 3)),
    "labels": jnp.arange(COUNT) % 10,
    "vector": jnp.ones((COUNT, 5)),
}


def given_back(params, x, t, *, keys=None, **conditioning):
    """A network that returns what it was told."""
    return conditioning


def test_a_dropped_condition_is_the_null_condition_and_the_others_stay():
    told = with_drops(given_back, [TEXT, LABELS])({}, None, None, keys=KEYS, **GIVEN)
    nothing = told_nothing(GIVEN, [TEXT, LABELS])
    drop_text = np.asarray(told["context_mask"][:, 2] == 0)
    drop_label = np.asarray(told["labels"] == 10)
    for name, drop in (("context", drop_text), ("context_mask", drop_text), ("labels", drop_label)):
        np.testing.assert_array_equal(told[name][drop], nothing[name][drop])
        np.testing.assert_array_equal(told[name][~drop], GIVEN[name][~drop])
    np.testing.assert_array_equal(told["vector"], GIVEN["vector"])
    for drop, prob in ((drop_text, 0.3), (drop_label, 0.2), (drop_text & drop_label, 0.06)):
        assert abs(drop.mean() - prob) < 4 * np.sqrt(prob * (1 - prob) / COUNT)


def test_nothing_is_dropped_without_keys_and_a_drop_depends_on_its_own_key_alone():
    apply = with_drops(given_back, [TEXT, LABELS])
    assert apply({}, None, None, **GIVEN) is not GIVEN
    for name, array in apply({}, None, None, **GIVEN).items():
        assert array is GIVEN[name]
    whole = apply({}, None, None, keys=KEYS, **GIVEN)
    part = {name: array[5:9] for name, array in GIVEN.items()}
    for name, array in apply({}, None, None, keys=KEYS[5:9], **part).items():
        np.testing.assert_array_equal(array, whole[name][5:9])


def test_an_image_is_further_channels_and_can_be_dropped_like_any_condition():
    apply = with_drops(
        with_image(lambda params, x, t, keys: x), [Condition({"image": 0.0}, drop_prob=0.5)]
    )
    x, image = jnp.zeros((COUNT, 2, 2, 3)), jnp.ones((COUNT, 2, 2, 1))
    np.testing.assert_array_equal(
        apply({}, x, None, image=image), jnp.concatenate([x, image], axis=-1)
    )
    seen = np.asarray(apply({}, x, None, keys=KEYS, image=image)[..., 3])
    assert set(np.unique(seen.sum(axis=(1, 2)))) == {0.0, 4.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_drops(given_back, [LABELS, LABELS]), "belongs to one"),
        (lambda: with_drops(given_back, [Condition({"labels": 1}, 1.5)]), "drop_prob is 1.5"),
        (lambda: told_nothing({}, [LABELS]), "'labels'"),
        (
            lambda: with_image(given_back)({}, jnp.zeros((1, 4, 4, 3)), None),
            "give image",
        ),
        (
            lambda: with_image(given_back)(
                {}, jnp.zeros((1, 4, 4, 3)), None, image=jnp.zeros((1, 2, 2, 3))
            ),
            "resize the image",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_no_condition_is_about_may_be_a_tree():
    apply = with_drops(lambda params, x, t, **told: told, [Condition({"labels": 9}, 1.0)])
    tree = {"edges": {"picture": jnp.ones((2, 4, 4, 3))}}
    keys = jax.random.split(jax.random.key(0), 2)
    told = apply({}, None, None, keys=keys, labels=jnp.array([1, 2]), control=tree)
    np.testing.assert_array_equal(told["labels"], 9)
    assert told["control"] is tree
