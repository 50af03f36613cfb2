"""Optimizer updates in plain NumPy, see kernels/updates.py."""

import math

import numpy as np


def norm(x) -> float:
    return math.sqrt(np.square(x, dtype=np.float64).sum())


def sgd(w, g, velocity, options) -> None:
    scale, lr, momentum, decay, nesterov = options
    d = g * scale + decay * w
    velocity[:] = momentum * velocity + d
    w -= lr * (d + momentum * velocity if nesterov else velocity)


def adam(w, g, moments, options) -> None:
    m, v = moments
    scale, lr, new1, beta2, new2, eps, l2, shrink, root2 = options.coefficients
    d = g * scale + l2 * w
    m += (d - m) * new1
    v[:] = v * beta2 + d * d * new2
    w[:] = w * shrink - lr * m / (np.sqrt(v) / root2 + eps)
