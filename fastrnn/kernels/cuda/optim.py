"""Optimizer updates on the GPU: the twin of kernels/cpu/optim.py."""

import math
from typing import NamedTuple

import numpy as np
from numba import cuda, float64

from fastrnn.kernels.options import AdamStep, SGDStep
from fastrnn.kernels.signature import D1, F1, F, I

from .driver import SMALL
from .equations import sqrt
from .launch import Kernel, kernel, over
from .memory import empty, to_host

_THREADS = 128
# Squares that a block adds up, and its threads.
_CHUNK, _SHARES = (8, 4) if SMALL else (8192, 256)


@kernel
def squares_kernel(dtype) -> Kernel:
    chunk, threads = _CHUNK, _SHARES

    def squares(x: F1, count: I, out: D1):
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

    return Kernel(squares, threads, dtype)


def norm(x) -> float:
    """Euclidean norm, summed in float64 in a fixed order."""
    sums = empty(-(-x.size // _CHUNK), np.float64)
    squares_kernel(x.dtype)((sums.size, 1), x, x.size, sums)
    return math.sqrt(math.fsum(to_host(sums)))


class _SGD(NamedTuple):
    scale: F
    lr: F
    momentum: F
    weight_decay: F
    nesterov: I


@kernel
def sgd_kernel(dtype) -> Kernel:
    def sgd(w: F1, g: F1, v: F1, options: _SGD, count: I):
        scale, lr, momentum, decay, nesterov = options
        k = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if k < count:
            d = g[k] * scale + decay * w[k]
            v[k] = momentum * v[k] + d
            w[k] -= lr * (d + momentum * v[k] if nesterov else v[k])

    return Kernel(sgd, _THREADS, dtype)


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
def adam_kernel(dtype) -> Kernel:
    def adam(w: F1, g: F1, m: F1, v: F1, options: _Adam, count: I):
        scale, lr, new1, beta2, new2, eps, l2, shrink, root2 = options
        k = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if k < count:
            d = g[k] * scale + l2 * w[k]
            m[k] += (d - m[k]) * new1
            v[k] = v[k] * beta2 + d * d * new2
            w[k] = w[k] * shrink - lr * m[k] / (sqrt(v[k]) / root2 + eps)

    return Kernel(adam, _THREADS, dtype)


def sgd(w, g, velocity, options: SGDStep) -> None:
    """Stochastic gradient descent, see `SGDStep`."""
    scale, lr, momentum, decay = map(w.dtype.type, options[:4])
    numbers = _SGD(scale, lr, momentum, decay, options.nesterov)
    sgd_kernel(w.dtype)(over(w.size, _THREADS), w, g, velocity, numbers, w.size)


def adam(w, g, moments, options: AdamStep) -> None:
    """Adam, see `AdamStep`."""
    numbers = _Adam(*map(w.dtype.type, options.coefficients))
    adam_kernel(w.dtype)(over(w.size, _THREADS), w, g, *moments, numbers, w.size)
