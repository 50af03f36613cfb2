"""The host's side of the CUDA backend without a GPU: a driver that only has memory, and launches
that are compiled, checked and not run. A script of its own, as tests/kernels/cuda/offline.py.

    NUMBA_ENABLE_CUDASIM=0 python tests/kernels/cuda/dry_run.py
"""

import ctypes
from collections import Counter
from types import SimpleNamespace

import cuda.core
import numpy as np
from numba.cuda import dispatcher

import fastrnn
from fastrnn.data.text import UNKNOWN, Chunk, Vocabulary
from fastrnn.kernels import cuda as backend
from fastrnn.kernels.cuda import launch, memory
from fastrnn.models import LanguageModel

blocks: dict[int, ctypes.Array] = {}
launched: Counter = Counter()


def call(function: str, *args):
    """A driver that only has memory."""
    if function == "cuMemAllocAsync":
        block = (ctypes.c_char * args[0])()
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)
    if function == "cuMemFreeAsync":
        del blocks[args[0]]
        return None
    if function in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync"):
        ctypes.memmove(*args[:3])  # the last is the stream
        return None
    assert function in ("cuStreamSynchronize", "cuKernelSetAttribute"), function
    return None


class Loaded:
    """What a kernel becomes."""

    handle = None
    occupancy = SimpleNamespace(max_active_blocks_per_multiprocessor=lambda block, shared: 2)


def run(stream, config, kernel, *values):
    """What the launcher is given."""
    assert isinstance(kernel, Loaded) and int(stream.handle) == 1
    assert all(type(v) in (int, np.int64, np.float32, np.float64) for v in values), values
    # The real one looks for a GPU if it is told of clusters.
    assert all(type(n) is int and n > 0 for n in config.grid), config.grid
    assert config.grid[1] <= 65535 and config.block <= 256 and config.shmem_size <= 227 << 10
    how = "cooperative" if config.is_cooperative else f"clusters of {config.cluster or 1}"
    launched[how] += 1


def main() -> None:
    properties = SimpleNamespace(
        multiprocessor_count=132, max_shared_memory_per_block_optin=227 << 10
    )
    here = SimpleNamespace(compute_capability=(9, 0), properties=properties, device_id=0)
    here.set_current = lambda: None
    memory.call = launch.call = call
    memory.device = launch.device = lambda: here
    dispatcher.get_current_device = lambda: here
    launch.require = lambda: None
    backend.require = launch.require
    compiled = launch.machine_code

    def checked(kernel, capability):
        name, _, ptx, log = compiled(kernel, capability)
        assert f".entry {name}(" in ptx.replace("\n", "") or name in ptx
        return name, SimpleNamespace(get_kernel=lambda _: Loaded()), ptx, log

    launch.machine_code = checked
    cuda.core.launch, cuda.core.LaunchConfig = run, SimpleNamespace

    x = memory.to_device(np.arange(24.0).reshape(4, 6))
    assert np.array_equal(x[1:3].reshape(-1, 3).copy_to_host(), np.arange(6.0, 18).reshape(4, 3))
    for cell in (fastrnn.LSTM, fastrnn.GRU):
        layer = cell(5, 40, 2, bidirectional=True, backend="cuda", seed=0)
        y, _, tape = layer.forward(np.ones((3, 4, 5)), lengths=[3, 0, 1, 2])
        layer.backward(tape, np.ones_like(y))
    for embedding_dim in (0, 3):
        model = LanguageModel(
            Vocabulary([UNKNOWN, *"abc"]), embedding_dim=embedding_dim, hidden_size=300,
            dropout=0.5, backend="cuda", seed=0,
        )  # fmt: skip
        ids = np.ones((3, 2), np.int64)
        _, gradient, _ = model.loss_and_gradient(Chunk(ids, ids, True))
        before = model.parameters.flat.copy()
        fastrnn.Adam().step(model.parameters, gradient)
        fastrnn.SGD().step(model.parameters, gradient)
        assert np.array_equal(model.parameters.flat, before)  # as nothing was computed
    del layer, model, tape, gradient, x, y
    print(dict(launched), f"{len(blocks)} blocks of memory left")


if __name__ == "__main__":
    main()
