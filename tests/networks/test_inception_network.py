"""Inception V3 against torchvision's modules, changed to those of the network of FID.

inception.npz holds what they make of the weights and images below: averages that leave out what is
beyond the edge, a maximum in the last block, logits without their bias.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_file import write_inception

from diffjax.networks.inception import inception, maximum, mean_of_neighbours
from diffjax.pretrained.inception import load_inception
from diffjax.pretrained.tensor_files import write_tensor_file


@pytest.mark.slow
def test_features_and_logits_are_those_of_torchvision(tmp_path):
    model = load_inception(write_inception(tmp_path / "inception.safetensors"))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 91, 75, 3)).astype(np.float32)
    output = jax.jit(model.network.apply)(model.params, images)
    expected = np.load(Path(__file__).parent / "inception.npz")
    for found, wanted in zip(output, (expected["features"], expected["logits"])):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.std(wanted))


def test_averages_and_maxima_know_the_edge():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert mean_of_neighbours(x)[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4
    assert mean_of_neighbours(x)[0, 1, 1, 0] == 4
    np.testing.assert_array_equal(
        maximum(x - 20.0, 1)[0, ..., 0], [[-16, -15, -15], [-13, -12, -12], [-13, -12, -12]]
    )
    np.testing.assert_array_equal(maximum(x, 2)[0, ..., 0], [[8]])


def test_small_images_and_another_number_of_classes_are_refused(tmp_path):
    network = inception()
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="of 75 pixels or more"):
        jax.eval_shape(network.apply, params, jnp.ones((1, 32, 32, 3)))
    tensors = {"fc.weight": np.zeros((1000, 2048), np.float32)}
    write_tensor_file(tmp_path / "other.safetensors", tensors, tensors.__getitem__)
    with pytest.raises(ValueError, match=r"fc.weight"):
        load_inception(tmp_path / "other.safetensors")
