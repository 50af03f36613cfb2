"""The linear layer and dropout in plain NumPy."""

from typing import NamedTuple

import numpy as np

from .rounding import operand, weight


class LinearWeights(NamedTuple):
    """``weight [O, I]`` and ``bias [O]`` or None."""

    weight: np.ndarray
    bias: np.ndarray | None
    precision: str = "float32"


def linear_forward(weights, x, *, training=False):
    y = x @ weight(weights.weight, weights.precision).T
    return y if weights.bias is None else y + weights.bias


def linear_backward(weights, x, dy, *, need_dx=True):
    w, x = (operand(a, weights.precision) for a in (weights.weight, x))
    return (dy @ w if need_dx else None), dy.T @ x, dy.sum(axis=0)


def dropout(x, p, key):
    # The i-th output of SplitMix64 (Steele, Lea & Flood 2014) with the seed ``key``.
    z = np.arange(x.size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    x *= np.where(z >= np.uint64(p * 2**53), x.dtype.type(1 / (1 - p)), 0).reshape(x.shape)
