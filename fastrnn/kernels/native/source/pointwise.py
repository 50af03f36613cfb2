"""Dropout in one pass and in place: whether a number is kept is a hash of its position."""

import numpy as np

from fastrnn.kernels.signature import F1, F, I, U

from .compiler import kernel
from .simd import pointer


@kernel
def dropout(x: F1, key: U, limit: U, scale: F, first: I, last: I):
    x_p = pointer(x)
    for i in range(first, last):
        # The i-th output of SplitMix64 (Steele, Lea & Flood 2014) with the seed ``key``.
        z = key + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        x_p[i] *= scale if (z >> np.uint64(11)) >= limit else scale * 0
