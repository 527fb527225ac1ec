"""One of two processes of two devices each, which read one global batch together.

Run as `python reads_as_one_of_two.py PORT INDEX` by test_several_processes.py; prints "ok".
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.data import arrays, batches


def main(port: str, index: int) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    images = np.random.default_rng(0).integers(0, 256, [20, 2, 2, 1]).astype(np.uint8)
    source = arrays(images, np.arange(20))
    whole = batches(source, 8, seed=1, flip=True, process=(0, 1))
    devices = np.array(jax.devices())
    meshes = [
        Mesh(devices, "data"),  # each process holds half of the rows
        Mesh(devices.reshape(2, 2).T, ("data", "model")),  # each process holds all of them
    ]
    for mesh in meshes:
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        stream = batches(source, 8, seed=1, flip=True, sharding=sharding)
        whole.set_state({**whole.get_state(), "batches": 0})
        for _ in range(3):
            batch, expected = next(stream), next(whole)
            for name, array in batch.items():
                assert array.shape == expected[name].shape
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(shard.data, expected[name][shard.index])
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
