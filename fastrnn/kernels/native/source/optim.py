"""Optimizer updates: one pass over the flat vectors, bound by memory.

Loops use bare pointers, because an index that might be negative keeps the compiler from using
vectors.
"""

import numpy as np

from fastrnn.kernels.native.records import CHUNK, SGD, Adam
from fastrnn.kernels.signature import D1, F1, F2, I1, I

from .compiler import kernel
from .simd import pointer


@kernel
def squares(x: F1, out: D1, first: I, last: I):
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


@kernel
def sgd(w: F1, g: F1, v: F1, options: SGD, first: I, last: I):
    w, g, v = pointer(w), pointer(g), pointer(v)
    scale, lr, momentum, decay, nesterov = options
    for k in range(first, last):
        d = g[k] * scale + decay * w[k]
        v[k] = momentum * v[k] + d
        w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])


@kernel
def adam(w: F1, g: F1, m: F1, v: F1, options: Adam, first: I, last: I):
    w, g, m, v = pointer(w), pointer(g), pointer(m), pointer(v)
    scale, lr, new1, beta2, new2, eps, l2, shrink, root2 = options
    for k in range(first, last):
        d = g[k] * scale + l2 * w[k]
        m[k] += (d - m[k]) * new1
        v[k] = v[k] * beta2 + d * d * new2
        w[k] = w[k] * shrink - lr * m[k] / (np.sqrt(v[k]) / root2 + eps)


@kernel
def sgd_rows(w: F2, rows: I1, g: F2, v: F2, options: SGD, first: I, last: I):
    """`sgd` of some rows of a table; g [R, .] is their gradient."""
    w, g, v, width = pointer(w), pointer(g), pointer(v), w.shape[1]
    scale, lr, momentum, decay, nesterov = options
    for r in range(first, last):
        row, at = rows[r] * width, r * width
        for j in range(width):
            k = row + j
            d = g[at + j] * scale + decay * w[k]
            v[k] = momentum * v[k] + d
            w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])


@kernel
def adam_rows(w: F2, rows: I1, g: F2, m: F2, v: F2, options: Adam, first: I, last: I):
    """`adam` of some rows of a table; g [R, .] is their gradient."""
    w, g, m, v, width = pointer(w), pointer(g), pointer(m), pointer(v), w.shape[1]
    scale, lr, new1, beta2, new2, eps, l2, shrink, root2 = options
    for r in range(first, last):
        row, at = rows[r] * width, r * width
        for j in range(width):
            k = row + j
            d = g[at + j] * scale + l2 * w[k]
            m[k] += (d - m[k]) * new1
            v[k] = v[k] * beta2 + d * d * new2
            w[k] = w[k] * shrink - lr * m[k] / (np.sqrt(v[k]) / root2 + eps)
