"""Dropout, the loss and the embedding: one thread per number, or one block per row."""

from typing import Any

import numpy as np
from numba import cuda, uint64

from fastrnn import checks
from fastrnn.kernels.signature import F1, I1, F, I

from . import moves
from .driver import SMALL, graph_memory
from .equations import exp, log
from .gemm import segment_sum
from .launch import Kernel, kernel, over
from .matrix import Matrix
from .memory import empty, to_device, to_host

_THREADS = 128
_ROW = 4 if SMALL else 64  # threads that share a row of the loss


@kernel
def dropout_kernel(dtype) -> Kernel:
    def dropout(x: F1, count: I, high: I, low: I, limit: I, scale: F):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            # The i-th output of SplitMix64 (Steele, Lea & Flood 2014) with the seed ``key``.
            z = (uint64(high) << uint64(32)) + uint64(low)
            z += uint64(i) * uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
            z = z ^ (z >> uint64(31))
            x[i] *= scale if (z >> uint64(11)) >= uint64(limit) else scale - scale

    return Kernel(dropout, _THREADS, dtype)


def dropout(x, p: float, key: int) -> None:
    """Multiply each number of x by 0 with probability p, else by 1/(1-p); the same choice as on the
    CPU."""
    if graph_memory():
        raise RuntimeError(
            "dropout cannot be part of a CUDA graph: it would drop the same numbers at each replay"
        )
    grid, scale = over(x.size, _THREADS), x.dtype.type(1 / (1 - p))
    dropout_kernel(x.dtype)(grid, x, x.size, key >> 32, key & 0xFFFFFFFF, int(p * 2**53), scale)


@kernel
def scale_kernel(dtype) -> Kernel:
    def scale(x: F1, mask: F1, indices: I1, width: I, count: I):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            x[i] *= mask[indices[i // width] * width + i % width]

    return Kernel(scale, _THREADS, dtype)


def scale(x, mask: np.ndarray, indices: np.ndarray) -> None:
    """``x *= mask[indices]``, in place; mask and indices lie on the host."""
    kernel = scale_kernel(x.dtype)
    grid = over(x.size, _THREADS)
    kernel(grid, x, to_device(mask), to_device(indices), x.shape[1], x.size)


@kernel
def cross_entropy_kernel(dtype) -> Kernel:
    real, threads = np.dtype(dtype).type, _ROW

    def cross_entropy(
        logits: F1, targets: I1, weights: F1, rows: I, classes: I, losses: F1, out: F1
    ):
        """A block takes one row at a time. Where a weight is 0, the target is not looked at."""
        shared = cuda.shared.array(threads, dtype)
        t = cuda.threadIdx.x
        for row in range(cuda.blockIdx.x, rows, cuda.gridDim.x):
            at, target = row * classes, targets[row]
            most = logits[at]
            for j in range(t, classes, threads):
                most = max(most, logits[at + j])
            shared[t] = most
            cuda.syncthreads()
            for j in range(threads):
                most = max(most, shared[j])
            cuda.syncthreads()
            total = real(0)
            for j in range(t, classes, threads):
                total += exp(logits[at + j] - most)
            shared[t] = total
            cuda.syncthreads()
            total = real(0)
            for j in range(threads):
                total += shared[j]
            scale = weights[row]
            for j in range(t, classes, threads):
                p = exp(logits[at + j] - most) / total * scale
                out[at + j] = p - scale if j == target else p
            if t == 0:
                losses[row] = real(0)
                if scale != 0:
                    losses[row] = log(total) + most - logits[at + target]
            cuda.syncthreads()

    return Kernel(cross_entropy, threads, dtype)


def cross_entropy(logits, targets, weights) -> tuple[float, Any]:
    """See kernels/backend.py."""
    rows, classes = logits.shape
    losses, out = empty(rows, logits.dtype), empty(logits.shape, logits.dtype)
    there = to_device(targets), to_device(weights.astype(logits.dtype))
    cross_entropy_kernel(logits.dtype)(
        (min(rows, 1 << 16), 1), logits, *there, rows, classes, losses, out
    )
    return float((to_host(losses) * weights).sum()), out


def embedding_forward(table, ids: np.ndarray):
    """``table[ids]`` [N, E]; IndexError for an id out of range."""
    checks.below("ids", "id", ids, len(table))
    return moves.gather(table, ids, table.shape[1])


def embedding_backward(dy, ids: np.ndarray, rows: int):
    """Its gradient, [rows, E]; equal ids are added in their order."""
    width = dy.shape[1]
    out = moves.zeros((rows, width), dy.dtype)
    segment_sum(Matrix(dy, 0, width), ids, Matrix(out, 0, width), width)
    return out
