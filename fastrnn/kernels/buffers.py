"""Large arrays whose memory is used again, because the C library gives it back at once.

Fresh pages cost about as much as the arithmetic done on them. Memory returns here by itself
when the last array that refers to it is gone, so nobody has to return anything.
"""

import math
import os
import threading

import numpy as np

_SMALL = 1 << 16  # bytes; below this the C library keeps the memory itself
_ALIGN = 64  # bytes: a cache line, and the widest vector
_free: list[np.ndarray] = []
_lock = threading.Lock()  # for taking a block; giving one back is a single append


def _renew_lock() -> None:
    """After a fork the thread that held the lock is not there to release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Lease(np.ndarray):
    """What arrays on a block refer to; the block is free again when it goes."""

    base: np.ndarray

    def __del__(self):
        if _free is not None:  # as when Python ends
            _free.append(self.base)


def _new(size: int) -> np.ndarray:
    """A block whose address is a multiple of `_ALIGN`."""
    raw = np.empty(size + _ALIGN, np.uint8)
    at = -raw.ctypes.data % _ALIGN
    return raw[at : at + size].view(_Block)


class _Block(np.ndarray):
    """So that a lease refers to the block and not to what the block is part of."""


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised C-contiguous array, on the smallest free block that holds it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    with _lock:
        # Not on one much too large: a small array that somebody keeps would keep all of it.
        fitting = [i for i, block in enumerate(_free) if size <= block.nbytes <= 2 * size]
        if fitting:
            block = _free.pop(min(fitting, key=lambda i: _free[i].nbytes))
        else:
            # Letting smaller ones go bounds what is kept by a small multiple of the most that
            # was ever in use at once, however many shapes pass by.
            _free[:] = [block for block in _free if block.nbytes > size]
            block = _new(size)
    return np.ndarray(shape, dtype, block.view(_Lease))
