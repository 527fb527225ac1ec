"""The classifier of noisy images: what its logits depend on, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import UNetConfig, classifier

CONFIG = UNetConfig(
    in_channels=1, block_out_channels=(8, 8), layers_per_block=1, attention=(False, False),
    mid_attention=False, num_groups=4, num_classes=3, dropout=0.5,
)  # fmt: skip


def test_logits_depend_on_image_and_clock_of_their_own_sample_and_on_keys_alone_in_training():
    init, apply = classifier(CONFIG)
    # some layers begin at 0, where nothing passes
    wave = lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)
    params = jax.tree.map(wave, init(jax.random.key(0)))
    x, t = jax.random.normal(jax.random.key(1), (3, 8, 8, 1)), jnp.array([0.0, 3.0, 700.0])
    keys = jax.random.split(jax.random.key(2), 3)
    run = jax.jit(lambda x, t, keys: (apply(params, x, t), apply(params, x, t, keys=keys)))
    logits, dropped = run(x, t, keys)
    assert logits.shape == (3, 3)
    assert logits.dtype == jnp.float32
    later, noisier = run(x, t.at[0].add(100.0), keys)[0], run(x.at[1].add(1.0), t, keys)[0]
    np.testing.assert_allclose(later[1:], logits[1:], atol=1e-6)
    np.testing.assert_allclose(noisier[::2], logits[::2], atol=1e-6)
    for other in (later[0] - logits[0], noisier[1] - logits[1], dropped - logits):
        assert np.abs(other).max() > 1e-4


def test_a_configuration_without_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes is None"):
        classifier(UNetConfig())
