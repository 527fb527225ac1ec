"""The handwritten digits that scikit-learn carries, as a TFDS data set of 8x8 PNG images."""
