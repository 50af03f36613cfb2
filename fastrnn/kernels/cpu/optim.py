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


def sgd(w, g, velocity, options: SGDStep, rows=None) -> None:
    """Stochastic gradient descent, see `SGDStep`; of some ``rows`` of the tables w and velocity, if
    given."""
    scale, lr, momentum, decay = map(w.dtype.type, options[:4])
    _update(
        "optim.sgd",
        w,
        g,
        (velocity,),
        records.SGD(scale, lr, momentum, decay, options.nesterov),
        rows,
    )


def adam(w, g, moments, options: AdamStep, rows=None) -> None:
    """Adam, see `AdamStep`; of some ``rows`` of the tables w and moments, if given."""
    _update(
        "optim.adam", w, g, moments, records.Adam(*map(w.dtype.type, options.coefficients)), rows
    )


def _update(kernel: str, w, g, state, options, rows) -> None:
    if rows is None:
        job = Job(find(kernel, w.dtype), (w, g, *state, options), len(w), w.size * MOVE_COST)
    else:
        args = (w, rows, g, *state, options)
        job = Job(find(f"{kernel}_rows", w.dtype), args, len(rows), g.size * MOVE_COST)
    parallel_for(job)
