import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.pretrained.prompts import STRONGER, emphasize, parse_emphasis


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", [("", 1.0)]),
        ("a cat: grey", [("a cat: grey", 1.0)]),
        ("(a cat:1.3)", [("a cat", 1.3)]),
        ("a ((cat))", [("a ", 1.0), ("cat", STRONGER**2)]),
        ("a [cat]", [("a ", 1.0), ("cat", 1 / STRONGER)]),
        ("(a (red:2) cat)", [("a ", STRONGER), ("red", 2 * STRONGER), (" cat", STRONGER)]),
        ("(a cat", [("a cat", STRONGER)]),
        ("a cat) and 10:20)", [("a cat) and 10:20)", 1.0)]),
        (r"a \(cat\) \[1\] c:\d", [(r"a (cat) [1] c:\d", 1.0)]),
        ("(cat:.5)(dog:1.)", [("cat", 0.5), ("dog", 1.0)]),
        ("(cat: 0)[dog:2]", [("cat", 0.0), ("dog:2", 1 / STRONGER)]),
    ],
)
def test_parentheses_give_weights(prompt, parts):
    found = parse_emphasis(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in parts], rtol=1e-6)


def test_emphasis_keeps_the_mean_and_weights_of_one_change_nothing():
    states = jax.random.normal(jax.random.key(0), (2, 5, 4)) + 1.0
    weights = jnp.array([[1.0, 1.5, 0.5, 2.0, 1.0], [1.0] * 5])
    found = emphasize(states, weights)
    np.testing.assert_array_equal(found[1], states[1])
    np.testing.assert_allclose(found.mean((1, 2)), states.mean((1, 2)), rtol=1e-5)
    ratio = found[0] / states[0]
    np.testing.assert_allclose(ratio / ratio[0], weights[0][:, None] * jnp.ones(4), rtol=1e-5)
