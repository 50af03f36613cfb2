"""Kernels as plain Python, for machines without a GPU: what Numba's own simulator cannot do.

There blocks run one after another, so nothing that waits for another block can be tried. Here
all threads of a grid are coroutines that change places where they wait for each other, in an
order drawn anew at every turn: what forgets to wait is found out. Memory begins as NaN.
"""

import threading
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np


class _Dim(NamedTuple):
    x: int
    y: int = 1
    z: int = 1


class _Array(np.ndarray):
    """Refuses indices below 0, which a GPU would not count from the end."""

    def __getitem__(self, key):
        _check_index(key)
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        _check_index(key)
        super().__setitem__(key, value)


def _check_index(key):
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, slice) and part < 0:
            raise IndexError(f"index {key} is below 0")


def new(shape, dtype) -> np.ndarray:
    """Memory as it is at first: not a number, or as large as can be."""
    dtype = np.dtype(getattr(dtype, "name", dtype))
    blank = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
    return np.full(shape, blank, dtype).view(_Array)


class _Thread(NamedTuple):
    """One of them: its place, and the coroutine that it is."""

    blockIdx: _Dim
    threadIdx: _Dim
    rank: int  # of the thread in its block
    block: int  # of the block in the grid


class _Machine:
    """What a kernel calls ``cuda``, while it runs."""

    def __init__(self, grid: _Dim, block: _Dim, shared_bytes: int, cluster: int, seed: int):
        from greenlet import getcurrent, greenlet

        self._coroutine, self._current = greenlet, getcurrent
        self._hub = getcurrent()
        self.gridDim, self.blockDim, self._cluster = grid, block, cluster
        self._shared_bytes, self._rng = shared_bytes, np.random.default_rng(seed)
        self._shared: dict = {}
        self._boxes: dict = {}
        self._calls: dict = defaultdict(int)
        self._threads: dict = {}

    # What kernels ask for.

    @property
    def _me(self) -> _Thread:
        return self._threads[self._current()]

    threadIdx = property(lambda self: self._me.threadIdx)
    blockIdx = property(lambda self: self._me.blockIdx)

    def syncthreads(self):
        self._wait(("block", self._me.block), self.blockDim.x)

    @property
    def cg(self):
        count = self.gridDim.x * self.gridDim.y * self.blockDim.x
        grid = SimpleNamespace(sync=lambda: self._wait(("grid",), count))
        return SimpleNamespace(this_grid=lambda: grid)

    @property
    def shared(self):
        block = self._me.block
        return SimpleNamespace(array=lambda shape, dtype: self.shared_of(block, shape, dtype))

    local = SimpleNamespace(array=new)

    # What `ptx` asks for.

    def shared_of(self, block: int, shape, dtype) -> np.ndarray:
        """The one shared array of a block."""
        if block not in self._shared:
            dtype = np.dtype(getattr(dtype, "name", dtype))
            self._shared[block] = new(shape or self._shared_bytes // dtype.itemsize, dtype)
        return self._shared[block]

    def together(self, value, function) -> object:
        """My part of ``function`` of what all 32 lanes of my warp have."""
        me = self._me
        warp, lane = (me.block, me.rank // 32), me.rank % 32
        calls = self._calls[me.block, me.rank] = self._calls[me.block, me.rank] + 1
        box = self._boxes.setdefault((warp, calls), {})
        box[lane] = value
        if len(box) == 32:  # nobody can be further than here
            self._boxes[warp, calls] = function([box[i] for i in range(32)])
            self._boxes.pop((warp, calls - 1), None)
        self._wait(("warp", *warp), 32)
        return self._boxes[warp, calls][lane]

    @property
    def cluster(self) -> tuple[int, int]:
        """The number of my block's cluster, and of the block in it."""
        return divmod(self._me.block, self._cluster)

    def sync_cluster(self):
        self._wait(("cluster", self.cluster[0]), self._cluster * self.blockDim.x)

    def put(self, array, i, rank, value):
        """``array[i] = value`` in the shared memory of block ``rank`` of my cluster."""
        assert array is self._shared[self._me.block]
        self._shared[self.cluster[0] * self._cluster + int(rank)][i] = value

    # How they change places.

    def _wait(self, whom: tuple, count: int):
        self._hub.switch((whom, count))

    def run(self, function, args):
        places = [
            (_Dim(bx, by), _Dim(t), t, by * self.gridDim.x + bx)
            for by in range(self.gridDim.y)
            for bx in range(self.gridDim.x)
            for t in range(self.blockDim.x)
        ]

        def body():
            with np.errstate(all="ignore"):
                function(*args)

        for place in places:
            self._threads[self._coroutine(body)] = _Thread(*place)
        ready, waiting = list(self._threads), defaultdict(list)
        while ready:
            thread = ready.pop(int(self._rng.integers(len(ready))))
            asked = thread.switch()
            if thread.dead:
                continue
            waiting[asked].append(thread)
            if len(waiting[asked]) == asked[1]:
                ready += waiting.pop(asked)
        if waiting:
            stuck = {whom[0]: len(threads) for (whom, _), threads in waiting.items()}
            raise RuntimeError(f"{function.__name__}: threads wait for ever, at {stuck}")


_lock = threading.Lock()
_machine: _Machine | None = None


def machine() -> _Machine:
    """That of the kernel which is running."""
    assert _machine is not None
    return _machine


@contextmanager
def _instead(function, cuda, machine):
    """Let the kernel's module see ``machine`` where it says ``cuda``."""
    global _machine
    names = [name for name, value in function.__globals__.items() if value is cuda]
    with _lock:
        _machine = machine
        function.__globals__.update(dict.fromkeys(names, machine))
        try:
            yield
        finally:
            _machine = None
            function.__globals__.update(dict.fromkeys(names, cuda))


def run(function, cuda, grid, block: int, args, shared=0, cluster=1, seed=0) -> None:
    """Run a kernel on ``grid`` (x, y) blocks; ``shared`` is in bytes, ``cuda`` what its module
    calls so."""
    grid = _Dim(*grid)
    here = _Machine(grid, _Dim(block), shared, cluster, seed)
    args = [_for_kernel(a) for a in args]
    with _instead(function, cuda, here):
        here.run(function, args)


def _for_kernel(a):
    """An argument as a kernel is given it: arrays on the device as their flat NumPy arrays."""
    if isinstance(a, tuple):
        values = [_for_kernel(v) for v in a]
        return type(a)(*values) if hasattr(a, "_fields") else tuple(values)
    return a.flat if hasattr(a, "copy_to_host") else a


# The instructions of ptx.py.


def bits(x) -> np.uint32:
    return np.float32(x).view(np.uint32)


def number(u) -> np.float32:
    return np.uint32(u).view(np.float32)


def tf32(x) -> np.uint32:
    """Rounded to 10 bits of fraction, ties away from zero."""
    return (bits(x) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def bf16_pair(low, high) -> np.uint32:
    """Two numbers rounded to 7 bits of fraction, ties to even."""
    u = np.array([low, high], np.float32).view(np.uint32)
    low, high = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return np.uint32(low | high << 16)


def tanh_approx(x) -> np.float32:
    return np.tanh(x)


def across(value):
    return machine().together(value, lambda all_: [all_[lane ^ 4] for lane in range(32)])


def cluster_rank() -> int:
    return machine().cluster[1]


def cluster_sync():
    machine().sync_cluster()


def put(array, i, rank, value):
    machine().put(array, i, rank, value)


def _unpacked(words, pairs: bool) -> np.ndarray:
    """The numbers in 32-bit words, [..., 2] of them where they are pairs of bfloat16."""
    u = np.asarray(words, np.uint32)
    if pairs:
        return np.stack([u << 16, u & np.uint32(0xFFFF0000)], -1).view(np.float32)
    return u.view(np.float32)[..., None]


def _mma(lanes, pairs: bool) -> list:
    """``a [16, K] @ b [K, 8] + c`` by the fragments of 32 lanes."""
    wide = 2 if pairs else 1
    depth = 8 * wide
    words = np.array([[int(w) for w in lane[:6]] for lane in lanes]).reshape(8, 4, 6)
    values = _unpacked(words, pairs)  # [g, q, word, pair]
    a, b = np.empty((16, depth), np.float32), np.empty((depth, 8), np.float32)
    for word in range(4):
        rows, k = slice(8 * (word & 1), 8 + 8 * (word & 1)), (word >> 1) * depth // 2
        a[rows, k : k + depth // 2] = values[:, :, word].reshape(8, -1)
    for word in range(2):
        k = word * depth // 2
        b[k : k + depth // 2] = values[:, :, 4 + word].reshape(8, -1).T
    c = np.array([lane[6:] for lane in lanes], np.float32).reshape(8, 4, 2, 2)
    out = c.transpose(2, 0, 1, 3).reshape(16, 8) + a @ b
    back = out.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)
    return [tuple(row) for row in back]


def mma_bf16(*fragments):
    return machine().together(fragments, lambda lanes: _mma(lanes, True))


def mma_tf32(*fragments):
    return machine().together(fragments, lambda lanes: _mma(lanes, False))
