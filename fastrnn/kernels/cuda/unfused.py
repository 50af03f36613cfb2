"""The operations of unfused cells on the GPU, see kernels/unfused.py."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import cuda, float64

from fastrnn.cells import Cell
from fastrnn.kernels.signature import F1, I, Of, TupleOf
from fastrnn.kernels.unfused import EPS, add, resolve
from fastrnn.kernels.unrolled import applied, statements, tuple_function

from . import gemm, linear, moves
from .driver import SMALL
from .equations import scalar, sqrt
from .launch import Kernel, inlined, kernel, over
from .matrix import Matrix, Sizes
from .memory import empty, to_host

_THREADS = 128
_ROW = 4 if SMALL else 64  # threads that share a row


class Block(NamedTuple):
    """An input of an elementwise function: some columns of a matrix."""

    values: F1
    offset: I  # of the first column
    stride: I  # from row to row, 0 where the one row serves all


@kernel
def elementwise_kernel(function: Callable, inputs: int, outputs: int, dtype) -> Kernel:
    run = scalar(function, dtype)
    load = inlined(
        tuple_function("x, r, u", "x[{k}].values[x[{k}].offset + r * x[{k}].stride + u]", inputs)
    )
    store = inlined(statements("y, i, v", "y[{k}][i] = v[{k}]", outputs))
    call = inlined(applied(run, inputs))

    def elementwise(
        x: Annotated[Any, TupleOf(Block, inputs)],
        y: Annotated[Any, TupleOf(Of("F", 1), outputs)],
        width: I, count: I,
    ):  # fmt: skip
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            store(y, i, call(load(x, i // width, i % width)))

    return Kernel(elementwise, _THREADS, dtype)


@kernel
def normalise_kernel(dtype) -> Kernel:
    real, threads, both = np.dtype(dtype).type, _ROW, 2 * _ROW

    def normalise(x: F1, y: F1, factor: F1, columns: I):
        """A block per row; partial sums in float64, in a fixed order."""
        shared = cuda.shared.array(both, float64)
        t, first = cuda.threadIdx.x, cuda.blockIdx.x * columns
        total = float64(0)
        for k in range(t, columns, threads):
            total += float64(x[first + k])
        shared[t] = total
        cuda.syncthreads()
        mean = float64(0)
        for j in range(threads):
            mean += shared[j]
        mean /= columns
        total = float64(0)
        for k in range(t, columns, threads):
            d = float64(x[first + k]) - mean
            total += d * d
        shared[threads + t] = total
        cuda.syncthreads()
        variance = float64(0)
        for j in range(threads):
            variance += shared[threads + j]
        scale = float64(1) / sqrt(variance / columns + float64(EPS))
        if t == 0:
            factor[cuda.blockIdx.x] = real(scale)
        for k in range(t, columns, threads):
            y[first + k] = real((float64(x[first + k]) - mean) * scale)

    return Kernel(normalise, threads, dtype)


@kernel
def normalise_backward_kernel(dtype) -> Kernel:
    real, threads, both = np.dtype(dtype).type, _ROW, 2 * _ROW

    def normalise_backward(dy: F1, y: F1, factor: F1, dx: F1, columns: I):
        shared = cuda.shared.array(both, float64)
        t, first = cuda.threadIdx.x, cuda.blockIdx.x * columns
        total, product = float64(0), float64(0)
        for k in range(t, columns, threads):
            total += float64(dy[first + k])
            product += float64(dy[first + k]) * float64(y[first + k])
        shared[t] = total
        shared[threads + t] = product
        cuda.syncthreads()
        mean, along = float64(0), float64(0)
        for j in range(threads):
            mean += shared[j]
            along += shared[threads + j]
        mean /= columns
        along /= columns
        scale = float64(factor[cuda.blockIdx.x])
        for k in range(t, columns, threads):
            d = float64(dy[first + k]) - mean - float64(y[first + k]) * along
            dx[first + k] = real(scale * d)

    return Kernel(normalise_backward, threads, dtype)


@kernel
def copy_columns_kernel(dtype) -> Kernel:
    def copy_columns(source: Block, to: Block, width: I, count: I):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            r, u = i // width, i % width
            to.values[to.offset + r * to.stride + u] = source.values[
                source.offset + r * source.stride + u
            ]

    return Kernel(copy_columns, _THREADS, dtype)


class Ops:
    """See `kernels.unfused.Ops`."""

    def __init__(self, cell: Cell, parameters: Mapping[str, Any], precision: str):
        self.cell, self.p, self.precision = cell, parameters, precision
        self.dtype = parameters["weight_ih"].dtype

    def empty(self, shape):
        return empty(shape, self.dtype)

    def zeros(self, shape):
        return moves.zeros(shape, self.dtype)

    def project(self, x, bias):
        w = self.p["weight_ih"]
        if x.ndim == 2:
            return linear.linear_forward(linear.LinearWeights(w, bias, self.precision), x)
        rows, inputs = w.shape
        a = empty((len(x), rows), self.dtype)
        gemm.pick(Matrix(w, 0, inputs), x, Matrix(a, 0, rows), rows)
        return a if bias is None else self.elementwise(add, 1, a, bias)[0]

    def project_backward(self, x, dy, need_dx: bool):
        w = self.p["weight_ih"]
        if x.ndim == 2:
            weights = linear.LinearWeights(w, None, self.precision)
            return linear.linear_backward(weights, x, dy, need_dx=need_dx)[:2]
        rows, inputs = w.shape
        dw = moves.zeros(w.shape, self.dtype)
        if len(x):
            gemm.segment_sum(Matrix(dy, 0, rows), to_host(x), Matrix(dw, 0, 1, inputs), rows)
        return None, dw

    def product(self, weight: str, source):
        w = resolve(self.cell, self.p, weight)
        weights = linear.LinearWeights(w, None, self.precision)
        return linear.linear_forward(weights, source)

    def product_backward(self, weight: str, dy):
        w = resolve(self.cell, self.p, weight)
        (outputs, inputs), out = w.shape, empty((len(dy), w.shape[1]), self.dtype)
        sizes = Sizes(len(dy), outputs, inputs)
        parts = Matrix(dy, 0, outputs), Matrix(w, 0, inputs), Matrix(out, 0, inputs)
        gemm.product(*parts, sizes, precision=self.precision)
        return out

    def weight_gradient(self, source, dy):
        out = empty((dy.shape[1], source.shape[1]), self.dtype)
        sizes = Sizes(dy.shape[1], len(dy), source.shape[1])
        a, b = Matrix(dy, 0, dy.shape[1]).transposed, Matrix(source, 0, source.shape[1])
        gemm.product(a, b, Matrix(out, 0, source.shape[1]), sizes, precision=self.precision)
        return out

    def elementwise(self, function: Callable, count: int, *inputs) -> list:
        whole = [x for x in inputs if not isinstance(x, tuple)]
        width = whole[0].shape[-1]
        arrays = [x[0] if isinstance(x, tuple) else x for x in inputs]
        rows = next((len(x) for x in arrays if x.ndim == 2), 1)
        blocks = []
        for x in inputs:
            x, block = x if isinstance(x, tuple) else (x, 0)
            blocks.append(Block(x, block * width, 0 if x.ndim == 1 else x.shape[1]))
        out = tuple(empty((rows, width), self.dtype) for _ in range(count))
        kernel = elementwise_kernel(function, len(blocks), count, self.dtype)
        kernel(over(rows * width, _THREADS), tuple(blocks), out, width, rows * width)
        return list(out)

    def _copy(self, source: Block, to: Block, rows: int, width: int) -> None:
        kernel = copy_columns_kernel(self.dtype)
        kernel(over(rows * width, _THREADS), source, to, width, rows * width)

    def join(self, blocks):
        if len(blocks) == 1:
            return blocks[0]
        rows, widths = len(blocks[0]), [x.shape[1] for x in blocks]
        out, offset = empty((rows, sum(widths)), self.dtype), 0
        for x, width in zip(blocks, widths, strict=True):
            self._copy(Block(x, 0, width), Block(out, offset, sum(widths)), rows, width)
            offset += width
        return out

    def split(self, x, widths):
        if len(widths) == 1:
            return [x]
        parts, offset = [empty((len(x), width), self.dtype) for width in widths], 0
        for part, width in zip(parts, widths, strict=True):
            self._copy(Block(x, offset, x.shape[1]), Block(part, 0, width), len(x), width)
            offset += width
        return parts

    def stack(self, arrays):
        first = arrays[0]
        return moves.concatenate([a.reshape(1, *first.shape) for a in arrays])

    def normalise(self, x):
        y, factor = empty(x.shape, self.dtype), empty((len(x), 1), self.dtype)
        normalise_kernel(self.dtype)((len(x), 1), x, y, factor, x.shape[1])
        return y, factor

    def normalise_backward(self, dy, y, factor):
        dx = empty(y.shape, self.dtype)
        kernel = normalise_backward_kernel(self.dtype)
        kernel((len(y), 1), dy, y, factor, dx, y.shape[1])
        return dx

    def sum_rows(self, x):
        return gemm.sum_rows(Matrix(x, 0, x.shape[1]), len(x), x.shape[1])
