"""The host's side of the CUDA backend without a GPU: everything but what kernels compute.

A script of its own, as the tests' process has the kernels as plain Python. ``libcuda.so.1`` must be
fake_driver.c, compiled (see test_offline.py). Prints JSON: how many operations some calls queue and
how long the host takes for them.

    LD_LIBRARY_PATH=FOLDER NUMBA_ENABLE_CUDASIM=0 python tests/kernels/cuda/dry_run.py
"""

import ctypes
import gc
import itertools
import json
import statistics
import sys
import threading
import time
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np

import fastrnn
from fastrnn.data.text import UNKNOWN, Chunk, Vocabulary
from fastrnn.kernels.cuda import blas, driver, gemm, launch, machine, memory, recurrent
from fastrnn.kernels.cuda.matrix import Matrix, Sizes
from fastrnn.models import LanguageModel

fake = ctypes.CDLL("libcuda.so.1")
kernels: dict[str, launch.Kernel] = {}
operations: list[tuple[str, int, int]] = []
blocks: Counter = Counter()  # alive, by device


def code_of(kernel: launch.Kernel, capability) -> tuple[str, bytes]:
    """Instead of the machine code: a name by which `listen` knows the kernel."""
    name = f"{kernel.name.replace('.', '_')}_{len(kernels)}"
    kernels[name] = kernel
    return name, b"code"


@ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
)
def listen(what, where, number, values):
    what = what.decode()
    operations.append((what, where, number))
    if what in ("alloc", "free"):
        blocks[where] += 1 if what == "alloc" else -1
    if what in kernels:
        for i, kind in enumerate(kernels[what].arguments.kinds):
            raw = ctypes.string_at(values[i], 8)
            if kind == "pointer":
                assert int.from_bytes(raw, "little") >= 4096, (what, i)
            elif kind == "float32":
                assert raw[4:] == bytes(4), (what, i)  # what fills 8 bytes


class Described:
    """Another package's array, on a stream of its own."""

    def __init__(self, array: memory.DeviceArray, stream: int = 1):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | {"stream": stream}


def queued(function) -> Counter:
    """What a call queues: how many of each, kernels as "launch"."""
    operations.clear()
    function()
    return Counter("launch" if what in kernels else what for what, _, _ in operations)


def refused(error: type, message: str, function) -> None:
    try:
        function()
    except error as raised:
        assert message in str(raised), raised
    else:
        raise AssertionError(f"not refused: {message}")


def there(*shape) -> memory.DeviceArray:
    return memory.to_device(np.zeros(shape, np.float32))


def calls(cell, sizes, precision):
    """Inference and training of a layer on arrays of the device."""
    steps, batch, inputs, units = sizes
    layer = cell(inputs, units, precision=precision, backend="cuda", seed=0)
    x, dy = there(steps, batch, inputs), there(steps, batch, units)

    def training():
        layer.parameters.writing_on_device(memory.to_device)  # as an optimizer does
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return {"inference": lambda: layer(x), "training": training}


def check_arrays() -> None:
    x = memory.to_device(np.arange(24.0).reshape(4, 6))
    assert np.array_equal(x[1:3].reshape(-1, 3).copy_to_host(), np.arange(6.0, 18).reshape(4, 3))
    assert not memory.zeros((2, 3), np.int64).copy_to_host().any()


def check_models() -> None:
    """Every layer's way through the host: its kernels' arguments are looked at by `listen`."""
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
        # Nothing is computed: what comes back is what memory happened to hold.
        gradient = memory.zeros(model.parameters.size, np.float32)
        model.loss_and_gradient(Chunk(ids, ids, True))
        fastrnn.Adam().step(model.parameters, gradient)
        fastrnn.SGD().step(model.parameters, gradient)


def check_products() -> None:
    """What cuBLAS is given for all orders of rows and columns, by doing it."""
    rng, is_used = np.random.default_rng(0), blas.is_used
    blas._library, blas.is_used = lambda: blas.declared(fake), lambda: True
    for (m, k, n), turned, add, dtype in itertools.product(
        [(1, 1, 1), (9, 7, 5), (4, 1, 8), (1, 6, 1), (2, 3, 1)], ["", "a", "b", "ab"],
        [False, True], [np.float32, np.float64],
    ):  # fmt: skip
        a, b, c = (rng.standard_normal(s).astype(dtype) for s in ((m, k), (k, n), (m, n + 3)))
        parts = []
        for name, x in (("a", a), ("b", b)):
            stored = x.T if name in turned else x
            matrix = Matrix(memory.to_device(np.append(dtype(9), stored)), 1, stored.shape[1])
            parts.append(matrix.transposed if name in turned else matrix)
        out = memory.to_device(c)
        to, precision = Matrix(out.reshape(-1), 2, n + 3), "tf32" if m % 2 else "float32"
        gemm.product(*parts, to, Sizes(m, k, n), add=add, precision=precision)
        wanted = c.copy()
        wanted[:, 2 : 2 + n] = a @ b + (c[:, 2 : 2 + n] if add else 0)
        assert np.allclose(out.copy_to_host(), wanted, atol=1e-5), (m, k, n, turned, add)
    blas.is_used = is_used


def check_pool() -> None:
    run = calls(fastrnn.LSTM, (3, 2, 4, 64), "float32")["training"]
    run()
    assert not queued(run)["alloc"]  # memory is used again, on the stream that it was for
    with driver.stream_of(Described(there(3), 0x7000)):
        pointer = memory.empty(12345, np.int8).pointer
        assert memory.empty(12345, np.int8).pointer == pointer
    assert memory.empty(12345, np.int8).pointer != pointer
    own, before = driver.here(), sum(blocks.values())
    del run
    gc.collect()
    free = ctypes.c_uint64(3 << 20)
    fake.fake_memory(free)
    memory.empty(2 << 20, np.int8)
    assert sum(blocks.values()) == before + 1
    memory.empty(3 << 20, np.int8)  # fits only after what is unused was given back
    assert sum(blocks.values()) < before
    refused(
        MemoryError, "device 0: 67108864 bytes are not free", lambda: memory.empty(1 << 26, "i1")
    )
    fake.fake_memory(ctypes.c_uint64(1 << 40))
    own.trim()


def check_devices() -> None:
    layer = fastrnn.LSTM(4, 64, backend="cuda", seed=0)
    layer(there(3, 2, 4))
    assert driver.here() is driver.device(0)
    driver.device(1).core.set_current()
    other = Described(there(3, 2, 4))
    driver.device(0).core.set_current()
    refused(ValueError, "on device 1", lambda: layer(other))
    mine = Described(there(3, 2, 4))
    state = there(1, 2, 64)
    driver.device(1).core.set_current()
    refused(
        ValueError, "h_0 must be on device 1, got an array on device 0",
        lambda: fastrnn.LSTM(4, 64, backend="cuda")(other, (state, state)),
    )  # fmt: skip
    y, _ = fastrnn.LSTM(4, 64, backend="cuda", seed=0)(other)
    assert y.device is driver.device(1)
    with driver.stream_of(Described(there(3), 0x7000)):  # a stream of device 1
        operations.clear()
        state.copy_to_host()
        assert {stream for _, stream, _ in operations} == {driver.LEGACY}, operations
    layer(mine)  # on device 0, and what was current is again
    assert driver.here() is driver.device(1)
    driver.device(0).core.set_current()


def check_streams() -> None:
    """Two threads, each on a stream of its own: no operation begins before the one queued last."""
    layer = fastrnn.LSTM(4, 64, backend="cuda", seed=0)
    inputs = [Described(there(3, 2, 4), stream) for stream in (0x7000, 0x8000)]
    layer(inputs[0])
    operations.clear()

    def work(x):
        for _ in range(100):
            layer(x)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    # "record" is on the stream that was used last, "after" on the next one: between the two
    # nothing is queued.
    last, recorded = 0x7000, True
    for what, stream, _ in operations:
        if what in ("alloc", "free"):
            continue
        assert stream in (0x7000, 0x8000)
        if what == "record":
            assert stream == last
        elif what == "after":
            assert recorded
            last = stream
        else:
            assert stream == last and not recorded, (what, last, stream)
        recorded = what == "record"
    assert Counter(what for what, _, _ in operations)["after"] > 2
    fake.fake_capture(ctypes.c_uint64(0x7000))
    refused(RuntimeError, "needs tensors of PyTorch", lambda: layer(inputs[0]))
    fake.fake_capture(ctypes.c_uint64(0))


class Tensor(Described):
    """PyTorch's, as far as it is looked at."""

    __module__ = "torch"
    is_cuda, dtype, device = True, np.dtype("float32"), SimpleNamespace(index=0)

    def __init__(self, array: memory.DeviceArray):
        super().__init__(array)
        self.shape = array.shape

    def data_ptr(self) -> int:
        return self.array.pointer


def pytorch(blocks: list[memory.DeviceArray]) -> SimpleNamespace:
    """The package, whose memory are the ``blocks``."""

    def empty(size: int, dtype, device) -> Tensor:
        assert size <= blocks[-1].nbytes
        return Tensor(blocks.pop())

    stream = SimpleNamespace(cuda_stream=0x7000)
    cuda = SimpleNamespace(current_stream=lambda device: stream)
    return SimpleNamespace(
        cuda=cuda, uint8=np.uint8, empty=empty, as_tensor=lambda array, device: array
    )


def check_graphs() -> None:
    """What is captured needs nothing of the host, and has its memory for itself."""
    device = driver.here()
    blocks = [memory.empty(1 << 18, np.uint8) for _ in range(100)]
    sys.modules["torch"] = cast(ModuleType, pytorch(blocks))
    for cell, precision in (fastrnn.LSTM, "bf16"), (fastrnn.GRU, "float32"):
        check_graph(cell(4, 64, 2, precision=precision, bidirectional=True, backend="cuda"))
    # What is copied from the parameters is copied again at each replay.
    peephole = fastrnn.LSTM(4, 64, bidirectional=True, variant="peephole", backend="cuda")
    assert check_graph(peephole)["copy"] > 0
    kept = {block.pointer for block in device._kept}
    gc.collect()
    taken = [memory.empty(size, np.uint8) for size in (24, 512, 4096) for _ in range(64)]
    assert kept and kept.isdisjoint(a.pointer for a in taken)
    device._kept.clear()
    del sys.modules["torch"]


def check_graph(layer) -> Counter:
    x, dy = Tensor(there(3, 2, 4)), Tensor(there(3, 2, 128))

    def step():
        _, _, tape = layer.forward(x)
        layer.backward(tape, dy)

    def dropping():
        fastrnn.Dropout(0.5, backend="cuda").forward(x)

    step()
    fake.fake_capture(ctypes.c_uint64(0x7000))
    count = queued(step)
    assert count["launch"] > 9 and count.keys() <= {"launch", "clear", "copy"}, count
    assert {stream for _, stream, _ in operations} == {0x7000}
    refused(RuntimeError, "cuMemcpyHtoDAsync cannot be part", lambda: layer(x, lengths=[2, 3]))
    refused(RuntimeError, "dropout cannot be part", dropping)
    fake.fake_capture(ctypes.c_uint64(0))
    return count


def check_arrays_of_others() -> None:
    """Their streams are waited for, and empty ones have no address."""
    layer = fastrnn.LSTM(4, 64, backend="cuda", seed=0)
    x, state = Described(there(3, 2, 4)), Described(there(1, 2, 64), 0x7000)
    layer(x, (state, state))
    operations.clear()
    layer(x, (state, state))
    assert ("record", 0x7000, 0) in operations, operations
    x_2 = Described(there(3, 2, 4), 2)  # a thread's default stream
    operations.clear()
    layer(x_2)
    assert operations and {stream for _, stream, _ in operations} == {driver.LEGACY}, operations
    nothing = Described(there(3, 2, 4))
    nothing.__cuda_array_interface__ |= {"shape": (3, 0, 4), "data": (0, False)}
    assert layer(nothing)[0].shape == (3, 0, 64)
    driver.device(1).core.set_current()
    far = Described(there(1, 2, 64), 0x8000)
    driver.device(0).core.set_current()
    operations.clear()
    refused(ValueError, "h_0 must be on device 0", lambda: layer(x, (far, far)))
    assert not any(stream == 0x8000 for _, stream, _ in operations)  # it is another device's
    state.__cuda_array_interface__ |= {"shape": (1, 2, 65)}
    refused(ValueError, "h_0 must have shape (1, 2, 64)", lambda: layer(x, (state, state)))
    # From pinned memory a copy is made later: the caller's numbers must not change before.
    assert "wait" not in queued(lambda: there(3))
    fake.fake_pinned(True)
    assert queued(lambda: there(3))["wait"] == 1
    fake.fake_pinned(False)


def check_current() -> None:
    """What is current in CUDA stays current, also after an error."""
    one, zero = driver.device(1), there(3)
    one.core.set_current()
    before = int(driver.driver_call("cuCtxGetCurrent"))
    zero.copy_to_host()
    memory.clear(zero)
    zero.device.trim()
    fake.fake_failure(700)
    refused(RuntimeError, "cuStreamSynchronize failed", zero.device.synchronise)
    assert int(driver.driver_call("cuCtxGetCurrent")) == before
    driver.device(0).core.set_current()


def check_room() -> None:
    run = calls(fastrnn.LSTM, (3, 2, 4, 64), "bf16")["inference"]
    run()
    assert any(what.startswith("tensor_forward") for what, _, _ in operations)
    clusters = len(kernels)
    fake.fake_room(2, 0)  # no clusters, so groups of blocks
    launch._most_clusters.cache_clear()
    run = calls(fastrnn.LSTM, (3, 2, 4, 64), "bf16")["inference"]
    queued(run)
    assert any(what.startswith("tensor_forward") for what, _, _ in operations)
    assert len(kernels) > clusters
    fake.fake_room(0, 0)
    launch._most_blocks.cache_clear()
    run = calls(fastrnn.LSTM, (3, 2, 4, 64), "bf16")["inference"]
    refused(RuntimeError, "device 0 has no room for the kernel fused.forward", run)
    fake.fake_room(2, 16)
    launch._most_blocks.cache_clear()
    launch._most_clusters.cache_clear()


def check_synchronous() -> None:
    run = calls(fastrnn.LSTM, (3, 2, 4, 64), "bf16")["inference"]
    driver.SYNCHRONOUS = True
    count = queued(run)
    assert count["wait"] >= count["launch"] > 0
    fake.fake_failure(700)
    refused(RuntimeError, "the kernel gemm.product failed: cuStreamSynchronize", run)
    driver.SYNCHRONOUS = False
    fake.fake_failure(700)
    refused(RuntimeError, "FASTRNN_CUDA_SYNC=1", lambda: there(3).copy_to_host())


def host_times() -> list[dict]:
    """Operations and the host's microseconds of whole calls."""
    rows = []
    for cell, sizes, precision in (
        (fastrnn.LSTM, (50, 32, 128, 256), "bf16"),
        (fastrnn.LSTM, (50, 32, 128, 512), "float32"),
        (fastrnn.GRU, (50, 32, 128, 256), "float32"),
    ):
        for what, run in calls(cell, sizes, precision).items():
            for _ in range(20):
                run()
            fake.fake_listen(listen)
            count = queued(run)
            fake.fake_listen(None)
            times = []
            for _ in range(300):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            rows.append({
                "layer": cell.__name__, "shape": sizes, "precision": precision, "call": what,
                "launches": count.pop("launch"), "others": sum(count.values()),
                "microseconds": round(statistics.median(times) * 1e6, 1),
            })  # fmt: skip
    return rows


def main() -> None:
    machine.code_of = code_of
    blas.is_used = lambda: False
    fake.fake_listen(listen)
    check_arrays()
    check_models()
    check_products()
    check_pool()
    check_devices()
    check_streams()
    check_graphs()
    check_arrays_of_others()
    check_current()
    check_room()
    check_synchronous()
    memory._kept_zeros.cache_clear()
    recurrent._dense_indices.cache_clear()
    gc.collect()
    for ordinal in (0, 1):
        driver.device(ordinal).trim()
    assert not any(blocks.values()), blocks  # all memory was given back
    for row in host_times():
        print(json.dumps(row))


if __name__ == "__main__":
    main()
