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


class _Lease:
    """What arrays on a block refer to; the block is free again when it goes."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self.block = block
        address = -(-block.ctypes.data // _ALIGN) * _ALIGN
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self):
        _free.append(self.block)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised C-contiguous array, on the smallest free block that holds it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize + _ALIGN
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
            block = np.empty(size, np.uint8)
    return np.asarray(_Lease(block, shape, dtype))


def zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    """`empty`, filled with zeros."""
    out = empty(shape, dtype)
    out.fill(0)
    return out
