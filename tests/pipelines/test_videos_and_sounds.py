import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.networks import UNetConfig
from diffjax.networks.autoencoder_kl import AutoencoderKLConfig
from diffjax.networks.hifigan import HiFiGANConfig
from diffjax.networks.unet_context import ContextConfig
from diffjax.networks.unet_frames import FramesConfig
from diffjax.networks.unet_waveform import WaveformUNetConfig
from diffjax.pipelines import make_system
from diffjax.pipelines.sounds import spectrogram_codec
from diffjax.pipelines.system import pixel_codec
from diffjax.pipelines.videos import frame_by_frame
from diffjax.pretrained import Components, Model, UnsupportedError, read_scheduler

SCHEDULERS = {"scheduler": read_scheduler({"_class_name": "IPNDMScheduler"})}


def parts_of(name, **configs):
    """Parts without params, for what is known before anything is computed."""
    models = {part: Model(config, None, {}) for part, config in configs.items()}
    return Components(name, {}, models, {}, SCHEDULERS)


def test_each_frame_is_coded_like_an_image_with_a_key_of_its_own():
    noised = lambda params, keys, images, normal: images + normal(keys, images.shape[1:], "float32")
    codec = pixel_codec(3, 2)._replace(encode=noised, decode=lambda params, z: 2.0 * z)
    videos = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4, 3))
    drawn = []

    def normal(keys, shape, dtype):
        drawn.append(keys)
        return jnp.arange(len(keys), dtype=dtype).reshape(-1, *(1,) * len(shape)) * jnp.ones(shape)

    of_frames = frame_by_frame(codec, 3)
    latents = of_frames.encode({}, jax.random.split(jax.random.key(1), 2), videos, normal)
    numbers = jnp.arange(6.0).reshape(2, 3, 1, 1, 1)
    np.testing.assert_allclose(latents, videos + numbers, atol=1e-6)
    assert len(np.unique(jax.random.key_data(drawn[0]), axis=0)) == 6
    np.testing.assert_array_equal(of_frames.decode({}, latents), 2.0 * latents)
    np.testing.assert_array_equal(of_frames.features({}, videos), videos)
    assert of_frames.latent_shape(4, 6) == (3, 4, 6, 3)


@pytest.mark.parametrize("samples", [1, 159, 160, 1281, 16000])
def test_sounds_are_made_long_enough_and_hardly_longer(samples):
    vae = AutoencoderKLConfig(block_out_channels=(32,) * 4, latent_channels=5)
    vocoder = HiFiGANConfig(mels=64, upsample_rates=(5, 4, 2, 2, 2), upsample_windows=(16,) * 5)
    codec = spectrogram_codec(parts_of("AudioLDMPipeline", vae=vae, vocoder=vocoder))
    time, mels, channels = codec.latent_shape(samples, 1)
    assert (mels, channels) == (8, 5)
    assert 0 <= time * 8 * vocoder.hop - samples < 8 * vocoder.hop
    unet = WaveformUNetConfig(block_out_channels=(32, 32, 32))
    length, channels = make_system(parts_of("DanceDiffusionPipeline", unet=unet)).latent_shape(
        samples, 1
    )
    assert channels == 2
    assert length % 8 == 0
    assert 0 <= length - samples < 8


def test_what_cannot_move_or_sound_is_refused():
    context = ContextConfig()
    images = parts_of("AnimateDiffPipeline", unet=UNetConfig(context=context))
    with pytest.raises(UnsupportedError, match="needed is a UNetMotionModel"):
        make_system(images)
    short = UNetConfig(context=context, frames=FramesConfig(max_frames=8))
    with pytest.raises(ValueError, match=r"num_frames is 9; this model makes 1 \.\. 8"):
        make_system(parts_of("AnimateDiffPipeline", unet=short), num_frames=9)
    silent = WaveformUNetConfig(sample_rate=None)
    with pytest.raises(UnsupportedError, match="sample_rate is missing"):
        make_system(parts_of("DanceDiffusionPipeline", unet=silent))
    sounds = make_system(parts_of("DanceDiffusionPipeline", unet=WaveformUNetConfig()))
    with pytest.raises(ValueError, match="takes no prompts"):
        sounds.prepare(["a cat"])
    with pytest.raises(ValueError, match="at least 1"):
        sounds.latent_shape(0, 1)
