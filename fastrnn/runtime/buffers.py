"""Large arrays whose memory is reused, because the C library returns it to the system at once.

Fresh pages cost about as much as the arithmetic done on them. A block becomes free by itself when
the last array that refers to it is gone, so callers return nothing explicitly.
"""

import math
import os
import threading

import numpy as np

_SMALL = 1 << 16  # bytes; smaller blocks are kept by the C library itself
_ALIGN = 64  # bytes: a cache line, and the widest vector
_free: list[np.ndarray] = []
_lock = threading.Lock()  # for taking a block; giving one back is a single append


def _renew_lock() -> None:
    """After a fork: the thread that held the lock does not exist in the child."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Lease(np.ndarray):
    """The base of the arrays on a block; when it is collected, the block is free again."""

    base: np.ndarray

    def __del__(self):
        if _free is not None:  # None while Python shuts down
            _free.append(self.base)


def _new(size: int) -> np.ndarray:
    """A block whose address is a multiple of `_ALIGN`."""
    raw = np.empty(size + _ALIGN, np.uint8)
    at = -raw.ctypes.data % _ALIGN
    return raw[at : at + size].view(_Block)


class _Block(np.ndarray):
    """A type of its own, so that a lease's base is the block and not the memory behind it."""


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised C-contiguous array, on the smallest free block that is large enough."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    with _lock:
        # Not on a block that is much too large: a small array that lives long would occupy it.
        fitting = [i for i, block in enumerate(_free) if size <= block.nbytes <= 2 * size]
        if fitting:
            block = _free.pop(min(fitting, key=lambda i: _free[i].nbytes))
        else:
            # Releasing smaller blocks bounds what is kept by a small multiple of the most memory
            # that was ever in use at once, for any number of different shapes.
            _free[:] = [block for block in _free if block.nbytes > size]
            block = _new(size)
    return np.ndarray(shape, dtype, block.view(_Lease))
