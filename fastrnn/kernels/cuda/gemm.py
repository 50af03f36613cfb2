"""Products of whole sequences, and sums over their rows. Every sum has one order.

Matrices are parts of flat arrays, see `Matrix`.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from .launch import Kernel, over
from .memory import SIMULATED, empty, to_device

# Rows and columns of a block's tile, how deep it reads at once, and a thread's share of each side.
TILE, DEPTH, SHARE = (4, 3, 2) if SIMULATED else (64, 16, 4)
SIDE = TILE // SHARE  # threads along a side
COLUMNS = 4 if SIMULATED else 128  # threads that sum or gather a column each
CHUNK = 3 if SIMULATED else 128  # rows that are summed by one thread


@cache
def _product(dtype):
    number = np.dtype(dtype).type
    tile, depth, share, side, threads = TILE, DEPTH, SHARE, SIDE, SIDE * SIDE
    row = tile + 1  # of the shared tiles: not the same bank for all of a column
    size = 2 * depth * row

    def product(
        a, a_at, a_row, a_col, b, b_at, b_row, b_col, bias, has_bias,
        c, c_at, c_row, rows, inner, columns, add,
    ):  # fmt: skip
        """``c = a @ b``, plus bias [columns] if ``has_bias``, plus c itself if ``add``."""
        shared = cuda.shared.array(size, dtype)
        t, i0, j0 = cuda.threadIdx.x, cuda.blockIdx.x * tile, cuda.blockIdx.y * tile
        ti, tj = t // side, t % side
        sums = cuda.local.array((share, share), dtype)
        for i in range(share):
            for j in range(share):
                sums[i, j] = number(0)
        for k0 in range(0, inner, depth):
            cuda.syncthreads()
            # Neighbouring threads read what lies side by side.
            for q in range(t, tile * depth, threads):
                i, k = (q // depth, q % depth) if a_col == 1 else (q % tile, q // tile)
                v = number(0)
                if i0 + i < rows and k0 + k < inner:
                    v = a[a_at + (i0 + i) * a_row + (k0 + k) * a_col]
                shared[k * row + i] = v
                j, k = (q % tile, q // tile) if b_col == 1 else (q // depth, q % depth)
                v = number(0)
                if j0 + j < columns and k0 + k < inner:
                    v = b[b_at + (k0 + k) * b_row + (j0 + j) * b_col]
                shared[(depth + k) * row + j] = v
            cuda.syncthreads()
            for k in range(depth):
                for i in range(share):
                    x = shared[k * row + ti + i * side]
                    for j in range(share):
                        sums[i, j] += x * shared[(depth + k) * row + tj + j * side]
        for i in range(share):
            for j in range(share):
                p, q = i0 + ti + i * side, j0 + tj + j * side
                if p < rows and q < columns:
                    v = sums[i, j]
                    if has_bias:
                        v += bias[q]
                    if add:
                        v += c[c_at + p * c_row + q]
                    c[c_at + p * c_row + q] = v

    return Kernel(product, threads)


@cache
def _sum_rows(dtype):
    number, threads, chunk = np.dtype(dtype).type, COLUMNS, CHUNK

    def sum_rows(a, a_at, a_row, rows, columns, out):
        """``out[c, j] = sum over the rows i of chunk c of a[i, j]``."""
        j, first = cuda.blockIdx.x * threads + cuda.threadIdx.x, cuda.blockIdx.y * chunk
        if j < columns:
            total = number(0)
            for i in range(first, min(first + chunk, rows)):
                total += a[a_at + i * a_row + j]
            out[cuda.blockIdx.y * columns + j] = total

    return Kernel(sum_rows, threads)


@cache
def _pick():
    threads = COLUMNS

    def pick(table, table_at, width, ids, count, out, out_at, out_row, columns):
        """``out[n, j] = table[j, ids[n]]``: what a one-hot input is multiplied to."""
        j = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if j < columns:
            for n in range(cuda.blockIdx.y, count, cuda.gridDim.y):
                out[out_at + n * out_row + j] = table[table_at + j * width + ids[n]]

    return Kernel(pick, threads)


@cache
def _sum_groups(dtype):
    number, threads = np.dtype(dtype).type, COLUMNS

    def sum_groups(
        a, a_at, a_row, order, starts, groups, out, out_at, out_row, out_column, columns, count
    ):  # fmt: skip
        """``out[groups[s], j] = sum of a[order[i], j]``, i from ``starts[s]`` to the next."""
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count:
            s, j = at // columns, at % columns
            total = number(0)
            for i in range(starts[s], starts[s + 1]):
                total += a[a_at + order[i] * a_row + j]
            out[out_at + groups[s] * out_row + j * out_column] = total

    return Kernel(sum_groups, threads)


def _blocks(count: int, of: int) -> int:
    return -(-count // of)


class Matrix(NamedTuple):
    """Part of an array: element (i, j) is ``flat[at + i * row + j * column]`` of all of it."""

    flat: Any
    at: int
    row: int
    column: int = 1

    @property
    def transposed(self) -> "Matrix":
        return Matrix(self.flat, self.at, self.column, self.row)


def product(a: Matrix, b: Matrix, out: Matrix, sizes, *, bias=None, add=False) -> None:
    """``out = a @ b``, plus bias [columns], plus what is there if ``add``; ``sizes`` are rows,
    what is summed over, and columns."""
    rows, inner, columns = sizes
    dtype = out.flat.dtype
    grid = _blocks(rows, TILE), _blocks(columns, TILE)  # the second is limited to 65,535
    side = (out.flat, False) if bias is None else (bias, True)
    _product(dtype)(grid, *a, *b, *side, *out[:3], rows, inner, columns, add)


def sum_rows(a: Matrix, rows: int, columns: int):
    """The sum of all rows, [columns]: of chunks first, then of those."""
    while True:
        chunks = max(1, _blocks(rows, CHUNK))
        out = empty((chunks, columns), a.flat.dtype)
        grid = _blocks(columns, COLUMNS), chunks
        _sum_rows(a.flat.dtype)(grid, *a[:3], rows, columns, out)
        if chunks == 1:
            return out.reshape(columns)
        a, rows = Matrix(out, 0, columns), chunks


def pick(table: Matrix, ids, out: Matrix, columns: int) -> None:
    """``out[n, j] = table[j, ids[n]]`` for j below ``columns``."""
    grid = _blocks(columns, COLUMNS), min(ids.size, 1 << 15)
    _pick()(grid, *table[:3], ids, ids.size, *out[:3], columns)


def sum_groups(a: Matrix, ids: np.ndarray, out: Matrix, columns: int) -> None:
    """``out[v] = sum of the rows a[n] with ids[n] == v``, in their order, for the v that occur."""
    order = np.argsort(ids, kind="stable")
    groups, starts = np.unique(ids[order], return_index=True)
    there = (to_device(x) for x in (order, np.append(starts, len(ids)), groups))
    count = len(groups) * columns
    kernel = _sum_groups(out.flat.dtype)
    kernel(over(count, COLUMNS), *a[:3], *there, *out, columns, count)
