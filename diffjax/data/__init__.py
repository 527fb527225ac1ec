"""Sources of images, and the pipeline that turns them into batches.

source = data.load("digits")
for batch in data.batches(source, 128, seed=0):   # {"x0": [128, 8, 8, 1], "labels": [128]}
    ...
"""

from diffjax.data.folder import image_folder
from diffjax.data.latents import Encode, Latents, Mirrored, read_latents, write_latents
from diffjax.data.photos import Photos, photos
from diffjax.data.pipeline import Batches, batches
from diffjax.data.registry import load
from diffjax.data.shapes import Shapes, shapes
from diffjax.data.sources import Arrays, Source, arrays, in_memory, npz
from diffjax.data.tfds_sets import digits, prepare, tfds_set

__all__ = [
    "Arrays",
    "Batches",
    "Encode",
    "Latents",
    "Mirrored",
    "Photos",
    "Shapes",
    "Source",
    "arrays",
    "batches",
    "digits",
    "image_folder",
    "in_memory",
    "load",
    "npz",
    "photos",
    "prepare",
    "read_latents",
    "shapes",
    "tfds_set",
    "write_latents",
]
