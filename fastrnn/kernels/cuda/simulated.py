"""Kernels as plain Python, for machines without a GPU: what Numba's own simulator cannot do.

There, blocks run one after another, so waiting for another block cannot be tried. Here all threads
of a grid are coroutines that switch where they wait for each other, in an order drawn again at
every switch. Memory is NaN at first, negative indices are refused, a deadlock is reported, and so
is a data race: two threads access a number, at least one of them writes, and there is no barrier
between the two.
"""

import sys
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


class _Local(np.ndarray):
    """A thread's own memory. Refuses negative indices, which a GPU would not count from the end."""

    def __getitem__(self, key):
        _check_index(key)
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        _check_index(key)
        super().__setitem__(key, value)


class _Memory(_Local):
    """Memory that threads share: every access by a kernel is checked for races."""

    _address: int

    def __getitem__(self, key):
        if _machine is not None and not isinstance(key, slice):
            _machine.accessed(self, key, write=False)
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        if _machine is not None and not isinstance(key, slice):
            _machine.accessed(self, key, write=True)
        super().__setitem__(key, value)

    @property
    def address(self) -> int:
        """Of the first number; views of one array overlap."""
        try:
            return self._address
        except AttributeError:
            self._address = self.__array_interface__["data"][0]
            return self._address

    def __array_finalize__(self, other):
        self.__dict__.pop("_address", None)  # a view may begin elsewhere


def _check_index(key):
    for part in key if isinstance(key, tuple) else (key,):
        if not isinstance(part, slice) and part < 0:
            raise IndexError(f"index {key} is below 0")


def new(shape, dtype, kind=_Memory) -> np.ndarray:
    """Uninitialised memory: NaN, or the largest integer."""
    dtype = np.dtype(getattr(dtype, "name", dtype))
    blank = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
    return np.full(shape, blank, dtype).view(kind)


def _new_local(shape, dtype) -> np.ndarray:
    return new(shape, dtype, _Local)


class _Access(NamedTuple):
    """Who accessed a number, and how many barriers of each scope that thread had passed.

    Where each thread of a cluster sends to all its blocks, it passes a barrier of the cluster in
    two parts: when it sends, and when it has what all others sent.
    """

    thread: tuple[int, int]  # block and rank
    scopes: tuple[int, int, int, int]  # warp, block, cluster, grid
    passed: tuple[int, int, int, int]
    sent: int  # as ``passed``, of the cluster: 1 more between the two parts


def _ordered(a: _Access, b: _Access) -> bool:
    """Whether a barrier that both threads passed lies between two accesses."""
    (warp, block, cluster, _), (w, bl, _, g) = a.scopes, a.passed
    warp_b, block_b, cluster_b, _ = b.scopes
    return (
        a.thread == b.thread
        or g < b.passed[3]
        or (block == block_b and bl < b.passed[1])
        or (cluster == cluster_b and a.sent < b.passed[2])
        or (warp == warp_b and w < b.passed[0])
    )


class _Arrivals:
    """A barrier that counts bytes, see ptx.py."""

    phase, left, is_expected = 0, 0, False


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
        self._arrivals: dict = {}  # by block and index
        self._barriers: dict = {}  # whose each is, of those in global memory
        self._copies: dict = defaultdict(list)  # that each thread has begun
        self._ended: list = []  # what threads wait for that has come since
        self._accesses: dict = {}  # what each thread's accesses are recorded as
        self._writes: dict[int, _Access] = {}  # the last one of each number, by its address
        self._reads: dict[int, dict] = {}  # those since, by thread

    # What kernels ask for.

    @property
    def _me(self) -> _Thread:
        return self._threads[self._current()]

    threadIdx = property(lambda self: self._me.threadIdx)
    blockIdx = property(lambda self: self._me.blockIdx)

    def syncthreads(self):
        self._wait(("block", self._me.block), self.blockDim.x)

    @property
    def shared(self):
        block = self._me.block
        return SimpleNamespace(
            array=lambda shape, dtype, alignment=0: self.shared_of(block, shape, dtype)
        )

    local = SimpleNamespace(array=_new_local)

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

    def arrive(self, i: int, count: int, is_first: bool):
        """Come to the barrier of my cluster's blocks, to wait for the others later."""
        cluster, rank = self.cluster
        assert count == self._cluster and is_first == (rank == 0)
        assert self._barriers.setdefault(i, cluster) == cluster
        self.syncthreads()
        current = self._current()
        now = self._accesses[current]
        self._accesses[current] = now._replace(sent=now.passed[2] + 1)

    def copy_later(self, *copy):
        self._copies[self._current()].append(copy)

    def await_copies(self):
        for array, i, source, j in self._copies.pop(self._current(), ()):
            for k in range(4):
                array[i + k] = source[j + k]

    def sync_grid(self):
        self._wait(("grid",), self.gridDim.x * self.gridDim.y * self.blockDim.x)

    def initialise(self, barrier: int):
        self._arrivals[self._me.block, int(barrier)] = _Arrivals()

    def expect(self, barrier: int, count: int):
        self._count((self._me.block, int(barrier)), int(count), is_expected=True)

    def _count(self, where: tuple[int, int], more: int, *, is_expected=False):
        """Expect so many bytes more, or less as they have come."""
        arrivals = self._arrivals[where]
        arrivals.left += more
        arrivals.is_expected |= is_expected
        if arrivals.is_expected and not arrivals.left:
            self._ended.append((("arrivals", *where, arrivals.phase), None))
            arrivals.phase, arrivals.is_expected = arrivals.phase + 1, False

    def wait_for(self, barrier: int, phase: int):
        where = self._me.block, int(barrier)
        arrivals = self._arrivals[where]
        while arrivals.phase & 1 == phase & 1:
            self._hub.switch((("arrivals", *where, arrivals.phase), None))
        self._passed("cluster")

    def store_remote(self, array, i, rank, value, barrier: int):
        """``array[i] = value`` in the shared memory of block ``rank`` of my cluster."""
        assert array is self._shared[self._me.block]
        block, current = self.cluster[0] * self._cluster + int(rank), self._current()
        now = self._accesses[current]
        # What is sent becomes visible with all that this thread did before.
        self._accesses[current] = now._replace(sent=now.passed[2])
        self._shared[block][i] = value
        self._accesses[current] = now._replace(sent=now.passed[2] + 1)
        self._count((block, int(barrier)), -array.itemsize)

    # How they change places.

    def _wait(self, whom: tuple, count: int):
        self._hub.switch((whom, count))
        self._passed(whom[0])

    def _passed(self, what: str):
        current = self._current()
        now = self._accesses[current]
        scope, passed = _SCOPES.index(what), list(now.passed)
        passed[scope] += 1
        self._accesses[current] = now._replace(passed=tuple(passed), sent=passed[2])

    def accessed(self, array: _Memory, index: int, *, write: bool) -> None:
        """Note an access; RuntimeError if it races with an earlier one."""
        now = self._accesses[self._current()]
        address = array.address + int(index) * array.itemsize
        last = self._writes.get(address)
        if last is not None and last is not now and not _ordered(last, now):
            raise _race(index, last, now)
        readers = self._reads.get(address)
        if write:
            for other in readers.values() if readers else ():
                if other is not now and not _ordered(other, now):
                    raise _race(index, other, now)
            self._writes[address] = now
            if readers:
                readers.clear()
        elif readers is None:
            self._reads[address] = {now.thread: now}
        else:
            readers[now.thread] = now

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
            coroutine = self._coroutine(body)
            me = self._threads[coroutine] = _Thread(*place)
            scopes = me.block * 1024 + me.rank // 32, me.block, me.block // self._cluster, 0
            self._accesses[coroutine] = _Access((me.block, me.rank), scopes, (0, 0, 0, 0), 0)
        ready, waiting = list(self._threads), defaultdict(list)
        while ready:
            thread = ready.pop(int(self._rng.integers(len(ready))))
            asked = thread.switch()
            if not thread.dead:
                waiting[asked].append(thread)
                if len(waiting[asked]) == asked[1]:
                    ready += waiting.pop(asked)
            while self._ended:
                ready += waiting.pop(self._ended.pop(), [])
        if waiting:
            stuck: dict = defaultdict(int)
            for (whom, _), threads in waiting.items():
                stuck[whom[0]] += len(threads)
            raise RuntimeError(f"{function.__name__}: threads wait for ever, at {dict(stuck)}")


def _race(index, a: _Access, b: _Access) -> RuntimeError:
    return RuntimeError(
        f"data race at index {int(index)}: thread {a.thread} and thread {b.thread} "
        "(block, thread) with no barrier between them"
    )


# What a barrier is of, from the smallest to the largest.
_SCOPES = ("warp", "block", "cluster", "grid")
_lock = threading.Lock()
_machine: _Machine | None = None


def machine() -> _Machine:
    """That of the kernel which is running."""
    assert _machine is not None
    return _machine


@contextmanager
def _instead(function, cuda, machine):
    """Let the kernel and what it calls see ``machine`` where their modules say ``cuda``."""
    global _machine
    ours = [vars(m) for name, m in sys.modules.items() if name.startswith(__package__)]
    scopes = [s for s in (function.__globals__, *ours) if s.get("cuda") is cuda]
    with _lock:
        _machine = machine
        for scope in scopes:
            scope["cuda"] = machine
        try:
            yield
        finally:
            _machine = None
            for scope in scopes:
                scope["cuda"] = cuda


def run(function, cuda, grid, block: int, args, shared=0, cluster=1, seed=0) -> None:
    """Run a kernel on ``grid`` (x, y) blocks, of which ``cluster`` belong together; ``shared`` is
    in bytes, ``cuda`` what its module calls so."""
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


def as_bits(x) -> np.uint32:
    return np.float32(x).view(np.uint32)


def as_float(u) -> np.float32:
    return np.uint32(u).view(np.float32)


def tf32(x) -> np.uint32:
    """Rounded to 10 bits of fraction, ties away from zero."""
    return (as_bits(x) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def bf16_pair(low, high) -> np.uint32:
    """Two numbers rounded to 7 bits of fraction, ties to even."""
    u = np.array([low, high], np.float32).view(np.uint32)
    low, high = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return np.uint32(low | high << 16)


def tanh_approx(x) -> np.float32:
    """The worst that the instruction's error, 2**-11 of the result, allows: up or down by the last
    bit of x."""
    return np.float32(np.tanh(x) * (1 + (2**-11 if as_bits(x) & 1 else -(2**-11))))


def across(value):
    return machine().together(value, lambda all_: [all_[lane ^ 4] for lane in range(32)])


def cluster_rank() -> int:
    return machine().cluster[1]


def cluster_sync():
    machine().sync_cluster()


def initialise(array, barrier):
    machine().initialise(barrier)


def expect(array, barrier, count):
    machine().expect(barrier, count)


def wait_for(array, barrier, phase):
    machine().wait_for(barrier, phase)


def arrive(barriers, i, count, is_first):
    assert i < len(barriers)
    machine().arrive(i, count, is_first)
    return np.uint32(0)


def await_all(barriers, i, before):
    machine().sync_cluster()


def grid_sync(barrier):
    machine().sync_grid()


def copy_later(array, i, source, j):
    assert i % 4 == j % 4 == 0
    machine().copy_later(array, i, source, j)


def await_copies():
    machine().await_copies()


def load_if(array, i, condition):
    return array[i] if condition else np.float32(0)


def store_remote(array, i, rank, value, barrier):
    machine().store_remote(array, i, rank, value, barrier)


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
