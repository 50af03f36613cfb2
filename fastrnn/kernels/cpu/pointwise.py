"""Dropout in one pass and in place: whether a number is kept is a hash of its position."""

import numpy as np

from fastrnn.kernels.native.library import find
from fastrnn.runtime.threads import Job, parallel_for


def dropout(x: np.ndarray, p: float, key: int) -> None:
    """Multiply each number of a C-contiguous x by 0 with probability p, else by 1/(1-p).

    The choice is the same for the same ``key`` (below 2**64) and shape.
    """
    flat = x.reshape(-1)
    args = (flat, np.uint64(key), np.uint64(p * 2**53), x.dtype.type(1 / (1 - p)))
    parallel_for(Job(find("pointwise.dropout", x.dtype), args, len(flat), len(flat) * 8))
