"""Where every number lies: the packed layouts that the kernels read and write.

W is the vector's width (`simd.width`), a *panel* is v vectors side by side, 4 at most. For a
layer with several gates panel q holds the gates of the W hidden units from q W on: column
``j W + l`` is gate j of unit ``q W + l``; for one gate and for a plain matrix it is simply
columns ``4 W q`` to ``4 W (q + 1)``. What lies beyond the last unit or column is zero.

    forward  [Q, K, v W] ``out[q, k, l] = w[columns[q v W + l], k]``   for x @ w.T
    backward [R, M, 4 W] ``out[r, m, l] = w[columns[m], r 4 W + l]``   for dz @ w
    gates    [N, D, Q, 4 W] activated gates, then the gradients of their pre-activations;
             [N, D, Hp] for one gate
"""

import numpy as np

from .compiler import kernel
from .simd import lane_count, load_first, pointer, store, width
from .tile import PANEL

# A transposition takes this many columns at once: one cache line of each row.
BLOCK = 16


def gate_columns(units: int, gates: tuple[int, ...], dtype) -> np.ndarray:
    """The row of a ``[., K]`` weight behind each packed column, -1 for none.

    ``gates`` are those of a panel, by their place in the weight.
    """
    w = width(dtype)
    q = -(-units // w)
    unit = np.arange(q * w).reshape(q, 1, w)
    column = np.where(unit < units, np.reshape(gates, (1, -1, 1)) * units + unit, -1)
    return np.ascontiguousarray(column.reshape(-1))


def plain_columns(count: int, dtype) -> np.ndarray:
    """The same for a plain ``[count, K]`` weight."""
    w = PANEL * width(dtype)
    column = np.arange(-(-count // w) * w)
    return np.where(column < count, column, -1)


@kernel
def pack_forward(w, columns, out, first, last):
    """Panels [first, last) of the forward layout; w [M, K], out [Q, K, v W]."""
    w_p, out_p = pointer(w), pointer(out)
    depth, n = out.shape[1], out.shape[2]
    for q in range(first, last):
        for k0 in range(0, depth, BLOCK):
            k1 = min(k0 + BLOCK, depth)
            for j in range(n):
                to = q * depth * n + j
                m = columns[q * n + j] * depth
                if m >= 0:
                    for k in range(k0, k1):
                        out_p[to + k * n] = w_p[m + k]
                else:
                    for k in range(k0, k1):
                        out_p[to + k * n] = 0


@kernel
def unpack_gradient(packed, columns, out, first, last):
    """The inverse: ``out[columns[q v W + l], k] = packed[q, k, l]`` for the pairs [first, last)
    out of the list of all (q, k)."""
    packed_p, out_p = pointer(packed), pointer(out)
    depth, n = packed.shape[1], packed.shape[2]
    at = first
    while at < last:
        q = at // depth
        k = at - q * depth
        count = min(BLOCK - k % BLOCK, depth - k, last - at)
        for j in range(n):
            m = columns[q * n + j]
            if m >= 0:
                for i in range(count):
                    out_p[m * depth + k + i] = packed_p[(at + i) * n + j]
        at += count


@kernel
def pack_backward(w, columns, out, at, first, last):
    """Panels [first, last) of the backward layout, from row ``at`` on; out [R, M, 4W]."""
    w_p, out_p = pointer(w), pointer(out)
    depth, n = w.shape[1], out.shape[2]
    vector = lane_count(w_p)
    for r in range(first, last):
        for i in range(columns.shape[0]):
            to = (r * out.shape[1] + at + i) * n
            m = columns[i] * depth + r * n
            left = depth - r * n if columns[i] >= 0 else 0
            for j in range(0, n, vector):
                store(out_p, to + j, load_first(w_p, m + j, left - j))
