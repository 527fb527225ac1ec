"""Systems that make videos: a UNet of images with layers between that mix the frames.

Videos [B, F, H, W, 3] take the places of images, and their latents are [B, F, h, w, channels]. The
number of frames belongs to the system:

    system = make_system(parts, num_frames=16)
    videos = txt2img(system, ...)
"""

import jax
from jax import Array

from diffjax.core.keys import Normal
from diffjax.networks.functional import Params
from diffjax.pipelines.stable_diffusion import stable_diffusion
from diffjax.pipelines.system import Codec, System
from diffjax.pretrained import Components, UnsupportedError

# frames of a second of what the published models were trained on
FRAME_RATE = 8.0


def text_to_video(parts: Components, *, num_frames: int = 16, skip: int = 0) -> System:
    """ModelScope's text to video, and AnimateDiff.

    `prepare` as of `stable_diffusion`.
    Sources: arXiv:2308.06571; AnimateDiff, arXiv:2307.04725.

    Args:
      parts: of the folder.
      num_frames: of each video.
      skip: how many of the last layers of CLIP are left out.

    Raises:
      UnsupportedError: the UNet of the folder makes images.
      ValueError: there are more frames than the UNet has positions for, or less than one.
    """
    frames = parts.models["unet"].config.frames
    if frames is None:
        raise UnsupportedError(
            "the UNet of this folder makes images, each by itself; needed is a UNetMotionModel or "
            "a UNet3DConditionModel, or a motion adapter, see load_motion_adapter"
        )
    most = frames.max_frames if frames.kind == "motion" else num_frames
    if not 1 <= num_frames <= most:
        raise ValueError(f"num_frames is {num_frames}; this model makes 1 .. {max(most, 1)}")
    images = stable_diffusion(parts, skip=skip)
    codec = frame_by_frame(images, num_frames)
    return images._replace(**codec._asdict(), rate=FRAME_RATE)


def frame_by_frame(images: Codec | System, num_frames: int) -> Codec:
    """The codec of videos, from one of images that sees each frame by itself."""

    def encode(params: Params, keys: Array, videos: Array, normal: Normal) -> Array:
        count = videos.shape[1]
        each = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
        return _unfolded(images.encode(params, each, _folded(videos), normal), count)

    return Codec(
        encode=encode,
        features=lambda params, videos: _unfolded(
            images.features(params, _folded(videos)), videos.shape[1]
        ),
        decode=lambda params, latents: _unfolded(
            images.decode(params, _folded(latents)), latents.shape[1]
        ),
        latent_shape=lambda height, width: (num_frames, *images.latent_shape(height, width)),
    )


def _folded(videos: Array) -> Array:
    """[B, F, ...] -> [B F, ...]."""
    return videos.reshape(-1, *videos.shape[2:])


def _unfolded(images: Array, num_frames: int) -> Array:
    """[B F, ...] -> [B, F, ...]."""
    return images.reshape(-1, num_frames, *images.shape[1:])
