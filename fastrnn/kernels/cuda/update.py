"""Optimizer updates on the device: what kernels/cpu/update.py does, with the same arguments."""

import math
from functools import cache

import numpy as np
from numba import cuda, float64

from .launch import Kernel, over, sqrt
from .memory import SIMULATED, empty, to_host

_THREADS = 128
# A block adds up so many squares, by so many threads.
_CHUNK, _SHARES = (8, 4) if SIMULATED else (8192, 256)


@cache
def _squares() -> Kernel:
    chunk, threads = _CHUNK, _SHARES

    def squares(x, count, out):
        shared = cuda.shared.array(threads, float64)
        t, block = cuda.threadIdx.x, cuda.blockIdx.x
        total = float64(0)
        for i in range(block * chunk + t, min(count, (block + 1) * chunk), threads):
            total += float64(x[i]) * float64(x[i])
        shared[t] = total
        cuda.syncthreads()
        if t == 0:
            for i in range(1, threads):
                total += shared[i]
            out[block] = total

    return Kernel(squares, threads)


def norm(x) -> float:
    """Euclidean norm, summed in float64 in a fixed order."""
    sums = empty(-(-x.size // _CHUNK), np.float64)
    _squares()((sums.size, 1), x, x.size, sums)
    return math.sqrt(math.fsum(to_host(sums)))


@cache
def _sgd() -> Kernel:
    def sgd(w, g, v, scale, lr, momentum, decay, nesterov, count):
        k = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if k < count:
            d = g[k] * scale + decay * w[k]
            v[k] = momentum * v[k] + d
            w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])

    return Kernel(sgd, _THREADS)


@cache
def _adam() -> Kernel:
    def adam(w, g, m, v, scale, lr, new1, beta2, new2, eps, l2, shrink, root2, count):
        k = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if k < count:
            d = g[k] * scale + l2 * w[k]
            m[k] += (d - m[k]) * new1
            v[k] = v[k] * beta2 + d * d * new2
            w[k] = w[k] * shrink - lr * m[k] / (sqrt(v[k]) / root2 + eps)

    return Kernel(adam, _THREADS)


def sgd(w, g, v, scale, lr, momentum, decay, nesterov) -> None:
    """Stochastic gradient descent with the velocity ``v``; ``scale`` multiplies g."""
    numbers = [w.dtype.type(n) for n in (scale, lr, momentum, decay)]
    _sgd()(over(w.size, _THREADS), w, g, v, *numbers, nesterov, w.size)


def adam(w, g, m, v, scale, lr, beta1, beta2, eps, l2, shrink, step) -> None:
    """Adam with the moments ``m`` and ``v``; ``shrink`` multiplies w, ``step`` is from 1."""
    corrected, root2 = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
    numbers = (scale, corrected, 1 - beta1, beta2, 1 - beta2, eps, l2, shrink, root2)
    _adam()(over(w.size, _THREADS), w, g, m, v, *(w.dtype.type(n) for n in numbers), w.size)
