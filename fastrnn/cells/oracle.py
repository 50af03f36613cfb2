"""What the cells' references share: plain NumPy, nothing of the package."""

from collections.abc import Callable

import numpy as np


def sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + 0.5


# ``y = f(x)`` and ``dx = backward(y, dy)`` of each activation; a and b are alpha and beta.
FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "sigmoid": (lambda x: sigmoid(x), lambda y, dy: dy * y * (1 - y)),
    "tanh": (np.tanh, lambda y, dy: dy * (1 - y**2)),
    "relu": (lambda x: np.maximum(x, 0), lambda y, dy: dy * ((y > 0) * 1.0)),
    "affine": (lambda x, a, b: a * x + b, lambda y, dy, a, b: dy * a),
    "leaky_relu": (
        lambda x, a: np.where(x > 0, x, a * x),
        lambda y, dy, a: dy * np.where(y > 0, 1, a),
    ),
    "thresholded_relu": (lambda x, a: np.where(x > a, x, 0), lambda y, dy, a: dy * (y != 0)),
    "scaled_tanh": (
        lambda x, a, b: a * np.tanh(b * x),
        lambda y, dy, a, b: dy * a * b * (1 - (y / a) ** 2),
    ),
    "hard_sigmoid": (
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda y, dy, a, b: dy * a * ((y > 0) & (y < 1)),
    ),
    "elu": (
        lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
        lambda y, dy, a: dy * np.where(y > 0, 1, y + a),
    ),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda y, dy: dy * (1 - np.abs(y)) ** 2),
    "softplus": (lambda x: np.logaddexp(0, x), lambda y, dy: dy * (1 - np.exp(-y))),
}


def function(spec):
    """``(forward, backward)`` of an activation given as ``(name, (alpha, beta))``."""
    name, parameters = spec
    forward, backward = FUNCTIONS[name]
    return (lambda x: forward(x, *parameters)), (lambda y, dy: backward(y, dy, *parameters))
