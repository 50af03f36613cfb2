"""The packed layouts that the kernels read and write.

W is the width of a vector (`simd.width`); a *panel* is v vectors side by side, 4 at most. For a
cell with several accumulators, panel q holds those of the W hidden units from q W on: column
``j W + l`` is accumulator j of unit ``q W + l``. For a cell with one, and for a plain matrix, it is
columns ``4 W q`` to ``4 W (q + 1)``. Whatever is beyond the last unit or column is zero.

    forward  [Q, K, v W] ``out[q, k, l] = w[columns[q v W + l], k]``   for x @ w.T
    backward [R, M, 4 W] ``out[r, m, l] = w[columns[m], r 4 W + l]``   for dz @ w
             In the format bf16 the rows 2 k and 2 k + 1 are one after the other number by number,
             as the instruction takes them, and K is rounded up to an even number; in int8 the first
             four rows are the scales of the columns, in float32.
    zipped   [S K, 2 L] for the gradient of a weight in bf16: rows p and p + 1 of x [N, K] number by
             number, those of S blocks of 2 L rows one block after the other, ``out[s K + k, p]``.
    gates    [N, D, Q, v W] what the forward pass saves for each accumulator (activated gates),
             then the gradients of the accumulators; [N, D, Hp] for a cell with one
"""

from functools import cache

import numpy as np

from .isa import PANEL, width


@cache
def gate_columns(units: int, gates: tuple[int, ...], dtype) -> np.ndarray:
    """The row of a ``[., K]`` weight behind each packed column, -1 for none.

    ``gates`` are the row blocks of the weight in the order of a panel.
    """
    w = width(dtype)
    q = -(-units // w)
    unit = np.arange(q * w).reshape(q, 1, w)
    column = np.where(unit < units, np.reshape(gates, (1, -1, 1)) * units + unit, -1)
    return np.ascontiguousarray(column.reshape(-1))


@cache
def plain_columns(count: int, dtype) -> np.ndarray:
    """The same for a plain ``[count, K]`` weight."""
    w = PANEL * width(dtype)
    column = np.arange(-(-count // w) * w)
    return np.where(column < count, column, -1)


@cache
def gate_positions(units: int, gates: tuple[int, ...], dtype) -> np.ndarray:
    """The packed column of each row of the weight: the inverse of `gate_columns`."""
    columns = gate_columns(units, gates, dtype)
    out = np.empty(columns.max() + 1, np.int64)
    out[columns[columns >= 0]] = np.flatnonzero(columns >= 0)
    return out
