"""Dropout in place, by the same hash of a number's place as on the CPU."""

from functools import cache

from numba import cuda, uint64

from fastrnn.kernels import cpu

from .launch import Kernel
from .memory import DeviceArray

_THREADS = 128


@cache
def _dropout() -> Kernel:
    def dropout(x, count, high, low, limit, scale):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            # The i-th output of SplitMix64 (Steele, Lea & Flood 2014) begun at the key.
            z = (uint64(high) << uint64(32)) + uint64(low)
            z += uint64(i) * uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
            z = z ^ (z >> uint64(31))
            x[i] *= scale if (z >> uint64(11)) >= uint64(limit) else scale - scale

    return Kernel(dropout, _THREADS)


def dropout(x, p: float, key: int) -> None:
    """Multiply each number of x by 0 with probability p, else by 1/(1-p), where x lies."""
    if not isinstance(x, DeviceArray):
        return cpu.dropout(x, p, key)
    grid, scale = (-(-x.size // _THREADS), 1), x.dtype.type(1 / (1 - p))
    _dropout()(grid, x, x.size, key >> 32, key & 0xFFFFFFFF, int(p * 2**53), scale)
