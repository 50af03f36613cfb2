"""Where every number lies: the packed layouts that the kernels read and write.

W is the vector's width (`simd.width`), a *panel* is 4 W columns. For a recurrent layer
panel q holds the four gates of the W hidden units from q W on: column ``j W + l`` is gate j
of unit ``q W + l``; for a plain matrix it is simply columns ``4 W q`` to ``4 W (q + 1)``.
What lies beyond the last unit or column is zero.

    forward  [Q, K, 4W]   ``out[q, k, l] = w[columns[q 4W + l], k]``    for x @ w.T
    backward [R, 4W Q, 4W] ``out[r, m, l] = w[columns[m], r 4W + l]``   for dz @ w
    gates    [N, D, Q, 4W] activated gates, then the gradients of their pre-activations

The element type of packed weights is decided here alone.
"""

import numpy as np

from .compiler import kernel
from .simd import width
from .tile import PANEL


def gate_columns(units: int, gates: int, dtype) -> np.ndarray:
    """The row of a ``[gates * units, K]`` weight behind each packed column, -1 for none."""
    w = width(dtype)
    q = -(-units // w)
    unit = np.arange(q * w).reshape(q, 1, w)
    gate = np.arange(PANEL).reshape(1, PANEL, 1)
    column = np.where((unit < units) & (gate < gates), gate * units + unit, -1)
    return np.ascontiguousarray(column.reshape(-1))


def plain_columns(count: int, dtype) -> np.ndarray:
    """The same for a plain ``[count, K]`` weight."""
    w = PANEL * width(dtype)
    column = np.arange(-(-count // w) * w)
    return np.where(column < count, column, -1)


@kernel
def pack_forward(w, columns, out, first, last):
    """Panels [first, last) of the forward layout; w [M, K], out [Q, K, 4W]."""
    n = out.shape[2]
    depth = w.shape[1]
    for q in range(first, last):
        for k0 in range(0, depth, 16):
            k1 = min(k0 + 16, depth)
            for j in range(n):
                m = columns[q * n + j]
                if m >= 0:
                    for k in range(k0, k1):
                        out[q, k, j] = w[m, k]
                else:
                    for k in range(k0, k1):
                        out[q, k, j] = 0


@kernel
def pack_backward(w, columns, out, at, first, last):
    """Panels [first, last) of the backward layout, from row ``at``; out [R, >= at + 4WQ, 4W]."""
    n = out.shape[2]
    depth = w.shape[1]
    for r in range(first, last):
        count = min(n, depth - r * n)
        for i in range(columns.shape[0]):
            m = columns[i]
            if m < 0:
                count_i = 0
            else:
                count_i = count
            for j in range(count_i):
                out[r, at + i, j] = w[m, r * n + j]
            for j in range(count_i, n):
                out[r, at + i, j] = 0


@kernel
def unpack_gradient(packed, columns, out, first, last):
    """``out[columns[q 4W + l], k] = packed[q, k, l]`` for panels [first, last)."""
    n = packed.shape[2]
    depth = packed.shape[1]
    for q in range(first, last):
        for k0 in range(0, depth, 16):
            k1 = min(k0 + 16, depth)
            for j in range(n):
                m = columns[q * n + j]
                if m >= 0:
                    for k in range(k0, k1):
                        out[m, k] = packed[q, k, j]
