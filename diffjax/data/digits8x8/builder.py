"""TFDS builder of the handwritten digits: 1,797 grey images of 8x8 pixels, ten classes.

The images are the test part of the UCI optical recognition data set (Alpaydin & Kaynak, 1998), as
bundled with scikit-learn, so that nothing is downloaded. Their grey levels are the integers 0..16.
They are stored in PNG bytes under the exactly invertible map

    byte = round(level * 255 / 16),    level = round(byte * 16 / 255),

whose rounding error of half a byte is 1/32 of a level.

scikit-learn's order goes from writer to writer: every 130 images or so, the digits repeat the order
of one printed form. The last fifth of it is the split `test`: 360 images, all but the first hundred
of which are by writers that `train` has not seen.

TFDS asks for builders in a module of their own inside a package folder. Nothing here needs
TensorFlow: the examples are yielded as PNG files in memory, which TFDS stores as they are.
"""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration

MAX_LEVEL = 16
"""The brightest grey level of the original images."""

SPLIT_SIZES = {"train": 1437, "test": 360}
"""How many images of scikit-learn's order each split takes, one after the other."""


def levels_to_bytes(levels: np.ndarray) -> np.ndarray:
    """Grey levels 0..16 as bytes 0..255: round(level * 255 / 16).

    >>> levels_to_bytes(np.array([0, 1, 8, 16]))
    array([  0,  16, 128, 255], dtype=uint8)
    """
    return np.rint(np.asarray(levels) * (255 / MAX_LEVEL)).astype(np.uint8)


def bytes_to_levels(images: np.ndarray) -> np.ndarray:
    """The grey levels 0..16 that `levels_to_bytes` came from: round(byte * 16 / 255).

    >>> bytes_to_levels(levels_to_bytes(np.arange(17))).tolist() == list(range(17))
    True
    """
    return np.rint(np.asarray(images) * (MAX_LEVEL / 255)).astype(np.uint8)


def png_file(image: np.ndarray) -> io.BytesIO:
    """A grey [H, W] uint8 image as a PNG file in memory."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    file.seek(0)
    return file


# Not registered: the set is reached through this class, never by a name that a later TFDS may take.
with skip_registration():

    class Digits8x8(tfds.core.GeneratorBasedBuilder):
        """The splits `train` and `test`; `row` counts in scikit-learn's order."""

        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="Handwritten digits of 8x8 pixels and 17 grey levels, ten classes.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                        "label": tfds.features.ClassLabel(num_classes=10),
                        "row": tfds.features.Scalar(np.int32),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://archive.ics.uci.edu/dataset/80",
            )

        def _split_generators(self, dl_manager):
            first = SPLIT_SIZES["train"]
            rows = {"train": range(first), "test": range(first, first + SPLIT_SIZES["test"])}
            return {split: self._generate_examples(part) for split, part in rows.items()}

        def _generate_examples(self, rows):
            from sklearn.datasets import load_digits

            levels, labels = load_digits(return_X_y=True)
            images = levels_to_bytes(levels).reshape(-1, 8, 8)
            for row in rows:
                example = {"image": png_file(images[row]), "label": int(labels[row]), "row": row}
                yield row, example
