"""Functions of each number or of each row."""

import numpy as np

from fastrnn.kernels import host
from fastrnn.kernels.native.isa import width
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import CHUNK
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

_EXP_COST = 2 * MOVE_COST


def dropout(x: np.ndarray, p: float, key: int) -> None:
    """Multiply each number of a C-contiguous x by 0 with probability p, else by 1/(1-p).

    The choice is the same for the same ``key`` (below 2**64) and shape.
    """
    flat = x.reshape(-1)
    args = (flat, np.uint64(key), np.uint64(p * 2**53), x.dtype.type(1 / (1 - p)))
    parallel_for(Job(find("pointwise.dropout", x.dtype), args, len(flat), len(flat) * 8))


def scale(x: np.ndarray, mask: np.ndarray, indices: np.ndarray) -> None:
    """``x *= mask[indices]``, in place."""
    kernel = find("pointwise.scale", x.dtype)
    parallel_for(Job(kernel, (x, mask, indices), len(x), x.size * MOVE_COST))


def insert(x: np.ndarray, table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A copy of x with ``table[indices[p]]`` in the first columns of row p, unless that is
    negative."""
    out = buffers.empty(x.shape, x.dtype)
    kernel = find("pointwise.insert", x.dtype)
    parallel_for(Job(kernel, (x, table, indices, out), len(x), x.size * MOVE_COST))
    return out


def largest(x: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest number of each column in each run of rows of x, and the first row that has it.

    Run s has the rows from ``starts[s]`` up to ``starts[s + 1]``, at least one.
    """
    runs, width = len(starts) - 1, x.shape[1]
    out, where = buffers.empty((runs, width), x.dtype), np.empty(runs * width, np.int64)
    kernel = find("pointwise.largest", x.dtype)
    parallel_for(Job(kernel, (x, starts, out, where), runs, x.size * MOVE_COST))
    return out, where


def largest_gradient(dy: np.ndarray, starts: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The gradient of x for that of the first result of `largest`."""
    out = buffers.empty((int(starts[-1]), dy.shape[1]), dy.dtype)
    kernel = find("pointwise.largest_gradient", dy.dtype)
    parallel_for(Job(kernel, (dy, starts, where, out), len(dy), out.size * MOVE_COST))
    return out


def cross_entropy(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray):
    """See kernels/backend.py."""
    if logits.dtype not in (np.float32, np.float64):  # longer or shorter floats
        return host.cross_entropy(logits, targets, weights)
    losses, out = np.empty(len(logits)), buffers.empty(logits.shape, logits.dtype)
    args = (np.ascontiguousarray(logits), targets, weights.astype(logits.dtype), losses, out)
    kernel = find("pointwise.cross_entropy", logits.dtype)
    parallel_for(Job(kernel, args, len(logits), logits.size * _EXP_COST))
    return float((losses * weights).sum()), out


def all_finite(x: np.ndarray) -> bool:
    """Whether no number of a C-contiguous array is infinite or NaN."""
    if x.size < CHUNK:
        return host.all_finite(x)
    blocks = -(-x.size // CHUNK)
    out = np.empty((blocks, width(x.dtype)), x.dtype)
    args = (x.reshape(-1), out)
    parallel_for(Job(find("pointwise.differences", x.dtype), args, blocks, x.size * 8))
    return not out.any()
