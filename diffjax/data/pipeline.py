"""From a source of images to an endless stream of training batches.

Batch k of the stream holds the positions k·B .. (k+1)·B - 1 of the order that `order.py` defines,
so a batch may end one epoch and begin the next, and nothing is dropped. The stream is a function of
(source, seed, batch size) alone. Hence the global batches are the same whatever the number of
processes, each of which reads only its own rows of them; and the state of the stream is the number
of batches that it handed out.

Grain reads ahead, a batch a thread. The order is made for a whole batch at once: Grain's
element-wise shuffle costs about 5 ms of a core for 128 images, as much as all the rest, and gives
the seeds s and s + 1 the same epochs but one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from diffjax.data.captions import check_captions, mixed_captions
from diffjax.data.order import coin_flips, records_at
from diffjax.data.sources import Source, as_x0


class Batches:
    """The iterator that `batches` makes: yields batches, reads ahead, can be saved and restored."""

    def __init__(
        self,
        read: Callable[[int], dict[str, np.ndarray]],
        place: Callable[[dict[str, np.ndarray]], dict[str, Any]],
        identity: dict[str, int],
        num_threads: int,
        device_buffer: int,
    ):
        import grain

        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        numbers = grain.MapDataset.range(2**62)  # endless: the number of each batch
        self._host = iter(numbers.map(read).to_iter_dataset(options))
        self._place = place
        self._identity = identity
        self._ahead: deque[dict[str, Any]] = deque()
        self._device_buffer = device_buffer
        self._handed_out = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            while len(self._ahead) <= self._device_buffer:
                self._ahead.append(self._place(next(self._host)))
        except BaseException:
            self._seek(self._handed_out)  # so that a second try reads the same batch
            raise
        self._handed_out += 1
        return self._ahead.popleft()

    def get_state(self) -> dict[str, int]:
        """The place after the batch last handed out, whatever was read ahead; fit for JSON."""
        return {"batches": self._handed_out, **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on after the batch that was last handed out when `state` was taken.

        Raises:
          ValueError: the state is of another stream, which would go on with other images.
        """
        expected = self.get_state()
        if state.keys() != expected.keys():
            raise ValueError(f"The state has {sorted(state)}; expected {sorted(expected)}.")
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"The state is of a stream with {name} {state[name]}; this one has {value}."
                )
        self._seek(state["batches"])

    def close(self) -> None:
        """Stop the threads that read ahead."""
        self._ahead.clear()
        self._host.close()

    def _seek(self, batch: int) -> None:
        self._ahead.clear()
        self._host.set_state({"next_index": batch})
        self._handed_out = batch


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    flip: bool = False,
    labels: bool | None = None,
    encode_captions: Callable[[list[str]], dict[str, np.ndarray]] | None = None,
    encode_examples: Callable[[list[dict[str, Any]]], dict[str, np.ndarray]] | None = None,
    long_captions: float = 0.0,
    sharding: jax.sharding.Sharding | None = None,
    process: tuple[int, int] | None = None,
    num_threads: int = 4,
) -> Batches:
    """An endless, seeded, shuffled stream of training batches.

    Args:
      source: where the images come from.
      batch_size: images in the global batch.
      seed: decides the order and the flips; 0 or more.
      flip: mirror half of the images left to right, at random. Never for digits or letters.
      labels: whether batches have labels; by default if the source has them.
      encode_captions: turns the captions of a batch into arrays [B, ...] by name, which join the
        batch. Called in the reading threads.
      encode_examples: the same of whole examples, for sources that say more than a caption.
      long_captions: probability of an image's long caption in the place of the short one, drawn
        anew in every epoch; see `diffjax.data.captions`.
      sharding: how a batch lies on the devices: every entry is an array sharded so, two batches
        ahead of their use. Its first axis is the batch, such as NamedSharding(mesh, P("data")).
        Several processes each read the rows that are on their devices. Without it, NumPy arrays.
      process: (index, count) of this process where there is no sharding; it then gets the block
        `index` of `count` equal blocks of each batch. By default the one that JAX knows.
      num_threads: threads that read, a batch each.

    Returns:
      An iterator over {"x0": [B, H, W, C] float32 in [-1, 1], "labels": [B] int32}, with
      `get_state`, `set_state` and `close`. Of a source of latents x0 are the means, and "logvar"
      is beside them.

    Raises:
      ValueError: the batch does not fit the source, the devices or the processes, or the source
        lacks labels or captions that were asked for.

    >>> from diffjax.data.sources import arrays
    >>> stream = batches(arrays(np.zeros([6, 8, 8, 1], np.uint8)), 4, seed=0)
    >>> next(stream)["x0"].shape
    (4, 8, 8, 1)
    """
    _check(source, batch_size, seed, labels, num_threads)
    if encode_captions is not None:
        check_captions(source[0], long_captions)
    if flip and "image" not in source[0]:
        raise ValueError("Latents cannot be mirrored: encode the mirror images as well.")
    if sharding is None:
        rows = _rows_of_process(batch_size, process)
    else:
        rows = _rows_of_sharding(sharding, (batch_size, *source.shape), process)
    with_labels = source.num_classes is not None if labels is None else labels
    size = len(source)

    def read(number: int) -> dict[str, np.ndarray]:
        positions = number * batch_size + rows
        examples = [source[record] for record in records_at(seed, size, positions)]
        batch = _clean(examples, coin_flips(seed, positions) if flip else None)
        if with_labels:
            batch["labels"] = np.array([example["label"] for example in examples], np.int32)
        if encode_captions is not None:
            texts = mixed_captions(examples, long_captions, seed=seed, positions=positions)
            batch |= encode_captions(texts)
        if encode_examples is not None:
            batch |= encode_examples(examples)
        return batch

    def place(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        if sharding is None:
            return batch
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return {
            name: jax.make_array_from_process_local_data(
                sharding, local, (batch_size, *local.shape[1:])
            )
            for name, local in batch.items()
        }

    identity = {"seed": seed, "batch_size": batch_size, "images": size, "flip": int(flip)}
    return Batches(read, place, identity, num_threads, 0 if sharding is None else 2)


def _clean(examples: list[dict[str, Any]], mirrored: np.ndarray | None) -> dict[str, np.ndarray]:
    """The clean data of a batch: images, some of them mirrored, or the moments of latents."""
    if "image" not in examples[0]:
        stack = lambda name: np.stack([example[name] for example in examples])
        return {"x0": stack("mean"), "logvar": stack("logvar")}
    images = np.stack([example["image"] for example in examples])
    if mirrored is not None:
        images[mirrored] = images[mirrored, :, ::-1]
    return {"x0": as_x0(images)}


def _check(source, batch_size, seed, labels, num_threads) -> None:
    if not 1 <= batch_size <= len(source):
        raise ValueError(f"batch_size is {batch_size}; the source has {len(source)} images.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more.")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; expected at least 1.")
    if labels and source.num_classes is None:
        raise ValueError("Labels are asked for, but the source has none.")


def _rows_of_process(batch_size: int, process: tuple[int, int] | None) -> np.ndarray:
    """The rows of a global batch that a process reads: one of equal blocks."""
    index, count = process or (jax.process_index(), jax.process_count())
    if not 0 <= index < count:
        raise ValueError(f"process is {index} of {count}; expected 0 to {count - 1}.")
    if batch_size % count:
        raise ValueError(f"batch_size {batch_size} cannot be split evenly over {count} processes.")
    block = batch_size // count
    return np.arange(index * block, (index + 1) * block)


def _rows_of_sharding(sharding, shape: tuple[int, ...], process) -> np.ndarray:
    """The rows of a global batch that lie on the devices of this process."""
    if process is not None:
        raise ValueError("Give a sharding or a process, not both: the sharding names the devices.")
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(f"A batch of shape {shape} does not fit {sharding}: {error}") from None
    blocks = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(shape[0])[block[0]] for block in blocks]))
