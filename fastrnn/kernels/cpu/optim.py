"""Optimizer updates: one pass over the flat vectors, bound by memory.

w and g are the parameters and their gradient [n]; every number has the type of w. Loops use bare
pointers, because an index that might be negative keeps the compiler from using vectors.
"""

import math
from typing import NamedTuple

import numpy as np

from fastrnn.kernels.options import AdamStep, SGDStep
from fastrnn.kernels.signature import D1, F1, B, F, I
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

from .compiler import kernel
from .simd import pointer

# Partial sums have this many terms for any number of threads, so the bits do not change.
CHUNK = 1 << 14


@kernel
def _squares(x: F1, out: D1, first: I, last: I):
    x_p = pointer(x)
    for i in range(first, last):
        start, stop = i * CHUNK, min((i + 1) * CHUNK, x.shape[0])
        a = b = c = d = 0.0  # four sums, because each addition waits for the one before
        for k in range(start, stop - 3, 4):
            a += np.float64(x_p[k]) * np.float64(x_p[k])
            b += np.float64(x_p[k + 1]) * np.float64(x_p[k + 1])
            c += np.float64(x_p[k + 2]) * np.float64(x_p[k + 2])
            d += np.float64(x_p[k + 3]) * np.float64(x_p[k + 3])
        for k in range(start + (stop - start) // 4 * 4, stop):
            a += np.float64(x_p[k]) * np.float64(x_p[k])
        out[i] = (a + b) + (c + d)


def norm(x: np.ndarray) -> float:
    """Euclidean norm, summed in float64 in a fixed order."""
    sums = np.empty(-(-len(x) // CHUNK))
    parallel_for(Job(_squares.of(x.dtype), (x, sums), len(sums), len(x) * MOVE_COST))
    return math.sqrt(math.fsum(sums))


class _SGD(NamedTuple):
    scale: F
    lr: F
    momentum: F
    weight_decay: F
    nesterov: B


@kernel
def _sgd(w: F1, g: F1, v: F1, options: _SGD, first: I, last: I):
    w, g, v = pointer(w), pointer(g), pointer(v)
    scale, lr, momentum, decay, nesterov = options
    for k in range(first, last):
        d = g[k] * scale + decay * w[k]
        v[k] = momentum * v[k] + d
        w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])


class _Adam(NamedTuple):
    """See `AdamStep.coefficients`."""

    scale: F
    lr: F
    new1: F
    beta2: F
    new2: F
    eps: F
    l2: F
    shrink: F
    root2: F


@kernel
def _adam(w: F1, g: F1, m: F1, v: F1, options: _Adam, first: I, last: I):
    w, g, m, v = pointer(w), pointer(g), pointer(m), pointer(v)
    scale, lr, new1, beta2, new2, eps, l2, shrink, root2 = options
    for k in range(first, last):
        d = g[k] * scale + l2 * w[k]
        m[k] += (d - m[k]) * new1
        v[k] = v[k] * beta2 + d * d * new2
        w[k] = w[k] * shrink - lr * m[k] / (np.sqrt(v[k]) / root2 + eps)


def sgd(w, g, velocity, options: SGDStep) -> None:
    """Stochastic gradient descent, see `SGDStep`."""
    scale, lr, momentum, decay = map(w.dtype.type, options[:4])
    numbers = _SGD(scale, lr, momentum, decay, options.nesterov)
    parallel_for(Job(_sgd.of(w.dtype), (w, g, velocity, numbers), len(w), len(w) * MOVE_COST))


def adam(w, g, moments, options: AdamStep) -> None:
    """Adam, see `AdamStep`."""
    numbers = _Adam(*map(w.dtype.type, options.coefficients))
    parallel_for(Job(_adam.of(w.dtype), (w, g, *moments, numbers), len(w), len(w) * MOVE_COST))
