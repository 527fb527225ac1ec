from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import ContextConfig, UNetConfig
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.clip import CLIPVisionConfig
from diffjax.pipelines import make_system
from diffjax.pretrained import Components, Model, read_scheduler


@pytest.fixture
def system():
    """Its image encoder sees the mean of a picture."""
    seen = lambda params, pixels: SimpleNamespace(pooled=params * pixels.mean((1, 2)))
    models = {
        "unet": Model(UNetConfig(context=ContextConfig(features=3)), None, {}),
        "vae": Model(AutoencoderKLConfig(), None, {}),
        "image_encoder": Model(CLIPVisionConfig(image_size=8), SimpleNamespace(apply=seen), {}),
    }
    schedulers = {"scheduler": read_scheduler({"_class_name": "DDIMScheduler"})}
    return make_system(
        Components("StableDiffusionImageVariationPipeline", {}, models, {}, schedulers)
    )


def test_variations_are_told_one_token_or_one_of_zeros(system):
    pictures = jnp.full((2, 16, 12, 3), -1.0).at[1].set(1.0)
    told = [
        system.condition({"image_encoder": 2.0}, inputs)["context"]
        for inputs in system.prepare(pictures, [None, None], height=16, width=16)
    ]
    assert [each.shape for each in told] == [(2, 1, 3), (2, 1, 3)]
    np.testing.assert_array_equal(told[1], 0.0)
    # from black to white, in the units of CLIP
    whitened = (told[0][1] - told[0][0])[0] / 2.0
    np.testing.assert_allclose(1.0 / whitened, [0.2686, 0.2613, 0.2758], atol=1e-3)
    assert len(system.prepare(pictures, height=16, width=16)) == 1


def test_texts_are_refused(system):
    with pytest.raises(ValueError, match="it takes no texts"):
        system.prepare(["a cat"], height=16, width=16)
    with pytest.raises(ValueError, match="it takes no texts"):
        system.prepare(jnp.zeros((1, 8, 8, 3)), ["ugly"], height=16, width=16)
