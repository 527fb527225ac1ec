"""The weights of Inception V3 by which FID is measured, from a file that you have."""

from pathlib import Path

import jax

from diffjax.networks.inception import inception
from diffjax.pretrained.models import Model
from diffjax.pretrained.tensor_files import read_tensor_file
from diffjax.pretrained.weights import to_params


def load_inception(path: str | Path) -> Model:
    """Read Inception V3 with the names that torch versions of TensorFlow's file have.

        model = load_inception("inception.safetensors")
        features = model.network.apply(model.params, images).features

    Nothing is bundled or fetched. A file of torch (pt_inception-2015-12-05-6726825d.pth, as
    pytorch-fid takes it) becomes one by

        safetensors.torch.save_file(torch.load(FILE, weights_only=True), "inception.safetensors")

    Args:
      path: FILE.safetensors.

    Raises:
      FileNotFoundError, ValueError: the file is missing, damaged or holds another network, such as
        the Inception of torchvision, which tells 1000 classes apart instead of 1008.
    """
    network = inception()
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return Model(None, network, to_params(read_tensor_file(path), shapes, rename=_needed))


def _needed(name: str) -> str | None:
    """None for what only training needs."""
    unused = name.endswith("num_batches_tracked") or name.startswith("AuxLogits.")
    return None if unused else name
