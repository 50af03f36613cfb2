"""Optimizer updates: one pass over the flat vectors, bound by memory."""

import math

import numpy as np

from fastrnn.kernels.native import records
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import CHUNK
from fastrnn.kernels.options import AdamStep, SGDStep
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for


def norm(x: np.ndarray) -> float:
    """Euclidean norm, summed in float64 in a fixed order."""
    sums = np.empty(-(-len(x) // CHUNK))
    parallel_for(Job(find("optim.squares", x.dtype), (x, sums), len(sums), len(x) * MOVE_COST))
    return math.sqrt(math.fsum(sums))


def sgd(w, g, velocity, options: SGDStep) -> None:
    """Stochastic gradient descent, see `SGDStep`."""
    scale, lr, momentum, decay = map(w.dtype.type, options[:4])
    numbers = records.SGD(scale, lr, momentum, decay, options.nesterov)
    parallel_for(
        Job(find("optim.sgd", w.dtype), (w, g, velocity, numbers), len(w), len(w) * MOVE_COST)
    )


def adam(w, g, moments, options: AdamStep) -> None:
    """Adam, see `AdamStep`."""
    numbers = records.Adam(*map(w.dtype.type, options.coefficients))
    parallel_for(
        Job(find("optim.adam", w.dtype), (w, g, *moments, numbers), len(w), len(w) * MOVE_COST)
    )
