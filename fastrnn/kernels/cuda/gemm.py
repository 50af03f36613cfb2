"""Matrix products over whole sequences, and sums over their rows. Every sum has a fixed order.

Matrices are parts of flat arrays, see matrix.py.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda

from fastrnn.kernels.signature import F1, I1, I

from . import blas
from .driver import SMALL
from .launch import Kernel, index, kernel, over
from .matrix import Matrix, Sizes
from .memory import empty, to_device

# Rows and columns of a block's tile, its depth, and a thread's share of each side.
TILE, DEPTH, SHARE = (4, 3, 2) if SMALL else (64, 16, 4)
COLUMNS = 4 if SMALL else 128  # threads that gather a column each
# Columns that a block sums, and threads that share a column.
SUMMED, SHARES = (2, 3) if SMALL else (32, 16)


@kernel
def product_kernel(dtype) -> Kernel:
    real = np.dtype(dtype).type
    tile, depth, share, side = TILE, DEPTH, SHARE, TILE // SHARE
    threads = side * side
    row = tile + 1  # of the shared tiles: the numbers of a column are in different banks
    size = 2 * depth * row

    def product(a: Matrix, b: Matrix, bias: F1, has_bias: I, out: Matrix, sizes: Sizes, add: I):
        """``out = a @ b``, plus bias [columns] if ``has_bias``, plus out itself if ``add``."""
        rows, inner, columns = sizes
        shared = cuda.shared.array(size, dtype)
        t, i0, j0 = cuda.threadIdx.x, cuda.blockIdx.x * tile, cuda.blockIdx.y * tile
        ti, tj = t // side, t % side
        sums = cuda.local.array((share, share), dtype)
        for i in range(share):
            for j in range(share):
                sums[i, j] = real(0)
        for k0 in range(0, inner, depth):
            cuda.syncthreads()
            # Neighbouring threads read neighbouring numbers.
            for q in range(t, tile * depth, threads):
                i, k = (q // depth, q % depth) if a.column == 1 else (q % tile, q // tile)
                v = real(0)
                if i0 + i < rows and k0 + k < inner:
                    v = a.values[a.offset + (i0 + i) * a.row + (k0 + k) * a.column]
                shared[index(k * row + i)] = v
                j, k = (q % tile, q // tile) if b.column == 1 else (q // depth, q % depth)
                v = real(0)
                if j0 + j < columns and k0 + k < inner:
                    v = b.values[b.offset + (k0 + k) * b.row + (j0 + j) * b.column]
                shared[index((depth + k) * row + j)] = v
            cuda.syncthreads()
            for k in range(depth):
                at_a, at_b = index(k * row + ti), index((depth + k) * row + tj)
                for i in range(share):
                    x = shared[at_a + i * side]
                    for j in range(share):
                        sums[i, j] += x * shared[at_b + j * side]
        for i in range(share):
            for j in range(share):
                p, q = i0 + ti + i * side, j0 + tj + j * side
                if p < rows and q < columns:
                    v = sums[i, j]
                    if has_bias:
                        v += bias[q]
                    if add:
                        v += out.values[out.offset + p * out.row + q]
                    out.values[out.offset + p * out.row + q] = v

    return Kernel(product, threads, dtype)


@kernel
def sum_rows_kernel(dtype) -> Kernel:
    real, width, shares = np.dtype(dtype).type, SUMMED, SHARES
    threads = width * shares

    def sum_rows(a: Matrix, rows: I, columns: I, out: F1, copies: I):
        """``out[j] = sum over the rows i of a[i, j]``: each thread adds some of them, in order.
        The result is written several times, side by side."""
        shared = cuda.shared.array(threads, dtype)
        t, j = cuda.threadIdx.x, cuda.blockIdx.x * width + cuda.threadIdx.x % width
        total = real(0)
        if j < columns:
            for i in range(t // width, rows, shares):
                total += a.values[a.offset + i * a.row + j]
        shared[t] = total
        cuda.syncthreads()
        if t < width and j < columns:
            for share in range(1, shares):
                total += shared[share * width + t]
            for i in range(copies):
                out[i * columns + j] = total

    return Kernel(sum_rows, threads, dtype)


@kernel
def spread_kernel(dtype) -> Kernel:
    threads = COLUMNS

    def spread(row: F1, columns: I, out: Matrix, count: I):
        """``out[i, j] = row[j]``."""
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count:
            i, j = at // columns, at % columns
            out.values[out.offset + i * out.row + j] = row[j]

    return Kernel(spread, threads, dtype)


@kernel
def pick_kernel(dtype) -> Kernel:
    threads = COLUMNS

    def pick(table: Matrix, ids: I1, count: I, out: Matrix, columns: I):
        """``out[n, j] = table[j, ids[n]]``: the product of a one-hot input with a weight."""
        j = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if j < columns:
            for n in range(cuda.blockIdx.y, count, cuda.gridDim.y):
                to = out.offset + n * out.row + j
                out.values[to] = table.values[table.offset + j * table.row + ids[n]]

    return Kernel(pick, threads, dtype)


class Segments(NamedTuple):
    """Rows in groups: those of group s are ``order[starts[s] : starts[s + 1]]``."""

    order: I1
    starts: I1
    groups: I1  # the row of the result of each


@kernel
def segment_sum_kernel(dtype) -> Kernel:
    real, threads = np.dtype(dtype).type, COLUMNS

    def segment_sum(a: Matrix, segments: Segments, out: Matrix, columns: I, count: I):
        """``out[groups[s], j]`` = the sum of ``a[i, j]`` over the rows i of group s, in order."""
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if at < count:
            s, j = at // columns, at % columns
            total = real(0)
            for i in range(segments.starts[s], segments.starts[s + 1]):
                total += a.values[a.offset + segments.order[i] * a.row + j]
            out.values[out.offset + segments.groups[s] * out.row + j * out.column] = total

    return Kernel(segment_sum, threads, dtype)


def _blocks(count: int, per_block: int) -> int:
    return -(-count // per_block)


def product(
    a: Matrix, b: Matrix, out: Matrix, sizes: Sizes, *, bias=None, add=False,
    precision: str = "float32",
) -> None:  # fmt: skip
    """``out = a @ b``, plus bias [columns], plus out itself if ``add``; rows of out lie side by
    side. float32 numbers are multiplied as TF32 unless the precision is float32."""
    if not (sizes.rows and sizes.columns):
        return
    if not blas.is_used():
        kernel = product_kernel(out.values.dtype)
        grid = _blocks(sizes.rows, TILE), _blocks(sizes.columns, TILE)  # the second up to 65,535
        kernel(grid, a, b, out.values if bias is None else bias, bias is not None, out, sizes, add)
        return
    if bias is not None:
        assert not add
        count = sizes.rows * sizes.columns
        grid = over(count, COLUMNS)
        spread_kernel(out.values.dtype)(grid, bias, sizes.columns, out, count)
    blas.product(a, b, out, sizes, add or bias is not None, precision != "float32")


def sum_rows(a: Matrix, rows: int, columns: int, copies: int = 1):
    """The sum of all rows, [columns * copies]: the same numbers in each copy."""
    out, grid = empty(columns * copies, a.values.dtype), (_blocks(columns, SUMMED), 1)
    sum_rows_kernel(a.values.dtype)(grid, a, rows, columns, out, copies)
    return out


def pick(table: Matrix, ids, out: Matrix, columns: int) -> None:
    """``out[n, j] = table[j, ids[n]]`` for j below ``columns``."""
    grid = _blocks(columns, COLUMNS), min(ids.size, 1 << 15)
    pick_kernel(out.values.dtype)(grid, table, ids, ids.size, out, columns)


def segment_sum(a: Matrix, ids: np.ndarray, out: Matrix, columns: int) -> None:
    """``out[v] = sum of the rows a[n] with ids[n] == v`` in their order, for the v that occur."""
    order = np.argsort(ids, kind="stable")
    groups, starts = np.unique(ids[order], return_index=True)
    segments = Segments(*map(to_device, (order, np.append(starts, len(ids)), groups)))
    count = len(groups) * columns
    kernel = segment_sum_kernel(out.values.dtype)
    kernel(over(count, COLUMNS), a, segments, out, columns, count)
