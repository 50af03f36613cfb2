"""Optimizer updates: one pass over the flat vectors. Plain loops; memory is the limit.

w, g are the parameters and their gradient [n]; every number has the type of w. Bare pointers,
as an index that might be negative would keep the compiler from using vectors.
"""

import math

import numpy as np

from fastrnn.kernels.threads import MOVE, Job, spread

from .compiler import kernel
from .simd import pointer

# Partial sums have this many terms whatever the number of threads, so the bits stay.
CHUNK = 1 << 14


@kernel
def _squares(x, out, first, last):
    x_p = pointer(x)
    for i in range(first, last):
        start, stop = i * CHUNK, min((i + 1) * CHUNK, x.shape[0])
        a = b = c = d = 0.0  # four sums, as each addition waits for the one before
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
    spread(Job(_squares, (x, sums), len(sums), len(x) * MOVE))
    return math.sqrt(math.fsum(sums))


@kernel
def _sgd(w, g, v, scale, lr, momentum, decay, nesterov, first, last):
    w, g, v = pointer(w), pointer(g), pointer(v)
    for k in range(first, last):
        d = g[k] * scale + decay * w[k]
        v[k] = momentum * v[k] + d
        w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])


@kernel
def _adam(w, g, m, v, scale, lr, new1, beta2, new2, eps, l2, shrink, root2, first, last):
    w, g, m, v = pointer(w), pointer(g), pointer(m), pointer(v)
    for k in range(first, last):
        d = g[k] * scale + l2 * w[k]
        m[k] += (d - m[k]) * new1
        v[k] = v[k] * beta2 + d * d * new2
        w[k] = w[k] * shrink - lr * m[k] / (np.sqrt(v[k]) / root2 + eps)


def sgd(w, g, v, scale, lr, momentum, decay, nesterov) -> None:
    """Stochastic gradient descent with the velocity ``v``; ``scale`` multiplies g."""
    numbers = [w.dtype.type(n) for n in (scale, lr, momentum, decay)]
    spread(Job(_sgd, (w, g, v, *numbers, nesterov), len(w), len(w) * MOVE))


def adam(w, g, m, v, scale, lr, beta1, beta2, eps, l2, shrink, step) -> None:
    """Adam with the moments ``m`` and ``v``; ``shrink`` multiplies w, ``step`` is from 1."""
    # The corrections for moments that start at zero, in float64 and outside of the loop.
    corrected, root2 = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    numbers = (scale, corrected, 1 - beta1, beta2, 1 - beta2, eps, l2, shrink, root2)
    args = (w, g, m, v, *(w.dtype.type(n) for n in numbers))
    spread(Job(_adam, args, len(w), len(w) * MOVE))
