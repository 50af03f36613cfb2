"""The operations of unfused cells on the CPU, see kernels/unfused.py."""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.cells import Cell
from fastrnn.kernels.signature import F2, I, Of, TupleOf
from fastrnn.kernels.unfused import EPS, resolve
from fastrnn.kernels.unrolled import statements, tuple_function
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

from . import linear
from .compiler import Kernel, kernel
from .equations import register
from .linear import LinearWeights
from .simd import lane_count, load_first, pointer, pointers, store_first

_COST = 2 * MOVE_COST  # of a number of an elementwise function, in multiply-adds


class Block(NamedTuple):
    """An input of an elementwise function: some columns of a matrix."""

    values: F2
    offset: I  # of the first column
    step: I  # 1, or 0 where the one row serves all


@cache
def _elementwise(function: Any, cell: str, inputs: int, outputs: int) -> Kernel:
    name = f"{cell}.{function.__name__}"
    register(function, name)
    addresses = register_jitable(
        tuple_function("x", "pointer(x[{k}].values)", inputs, pointer=pointer)
    )
    load = register_jitable(
        tuple_function(
            "p, x, r, u, n",
            "load_first(p[{k}], x[{k}].offset + r * x[{k}].step * x[{k}].values.shape[1] + u, n)",
            inputs,
            load_first=load_first,
        )
    )
    store = register_jitable(
        statements(
            "p, at, v, n", "store_first(p[{k}], at, v[{k}], n)", outputs, store_first=store_first
        )
    )

    def run(
        x: Annotated[Any, TupleOf(Block, inputs)],
        y: Annotated[Any, TupleOf(Of("F", 2), outputs)],
        first: I, last: I,
    ):  # fmt: skip
        x_p, y_p, width = addresses(x), pointers(y), y[0].shape[1]
        for r in range(first, last):
            for u in range(0, width, lane_count(y_p[0])):
                v = function(*load(x_p, x, r, u, width - u))
                store(y_p, r * width + u, v, width - u)

    return kernel(run, f"elementwise({name},{inputs})")


@kernel
def _normalise(x: F2, y: F2, factor: F2, first: I, last: I):
    """Rows with mean 0 and variance 1 (+ EPS); sums in float64, in order."""
    n = x.shape[1]
    for r in range(first, last):
        mean = 0.0
        for k in range(n):
            mean += np.float64(x[r, k])
        mean /= n
        variance = 0.0
        for k in range(n):
            d = np.float64(x[r, k]) - mean
            variance += d * d
        scale = 1 / np.sqrt(variance / n + EPS)
        factor[r, 0] = scale
        for k in range(n):
            y[r, k] = (np.float64(x[r, k]) - mean) * scale


@kernel
def _normalise_backward(dy: F2, y: F2, factor: F2, dx: F2, first: I, last: I):
    n = y.shape[1]
    for r in range(first, last):
        mean, product = 0.0, 0.0
        for k in range(n):
            mean += np.float64(dy[r, k])
            product += np.float64(dy[r, k]) * np.float64(y[r, k])
        mean /= n
        product /= n
        for k in range(n):
            dx[r, k] = factor[r, 0] * (dy[r, k] - mean - y[r, k] * product)


class Ops:
    """See `kernels.unfused.Ops`."""

    def __init__(self, cell: Cell, parameters: Mapping[str, np.ndarray]):
        self.cell, self.p = cell, parameters
        self.dtype = parameters["weight_ih"].dtype
        self._packed: dict[str, LinearWeights] = {}

    def empty(self, shape) -> np.ndarray:
        return buffers.empty(shape, self.dtype)

    def zeros(self, shape) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def _linear(self, name: str) -> LinearWeights:
        if name not in self._packed:
            self._packed[name] = LinearWeights(resolve(self.cell, self.p, name), None)
        return self._packed[name]

    @cached_property
    def _table(self) -> np.ndarray:
        return np.ascontiguousarray(self.p["weight_ih"].T)

    def project(self, x, bias):
        if x.ndim == 2:
            if "project" not in self._packed:  # the bias is that of all calls
                self._packed["project"] = LinearWeights(self.p["weight_ih"], bias)
            return linear.linear_forward(self._packed["project"], x)
        a = gather_rows(self._table, x)
        return a if bias is None else a + bias

    def project_backward(self, x, dy, need_dx: bool):
        if x.ndim == 2:
            return linear.linear_backward(self._linear("weight_ih"), x, dy, need_dx=need_dx)[:2]
        table = np.zeros(self._table.shape, self.dtype)
        return None, np.ascontiguousarray(scatter_add_rows(dy, x, out=table).T)

    def product(self, weight: str, source):
        return linear.linear_forward(self._linear(weight), source)

    def product_backward(self, weight: str, dy):
        return linear.input_gradient(self._linear(weight), dy)

    def weight_gradient(self, source, dy):
        return linear.weight_gradient(source, dy)

    def elementwise(self, function: Callable, count: int, *inputs) -> list[np.ndarray]:
        whole = [x for x in inputs if not isinstance(x, tuple)]
        width = whole[0].shape[-1]
        arrays = [x[0] if isinstance(x, tuple) else x for x in inputs]
        rows = next((len(x) for x in arrays if x.ndim == 2), 1)
        blocks = []
        for x in inputs:
            x, block = x if isinstance(x, tuple) else (x, 0)
            is_vector = x.ndim == 1
            x = x.reshape(1, -1) if is_vector else x
            blocks.append(Block(x, block * width, 0 if is_vector else 1))
        out = tuple([self.empty((rows, width)) for _ in range(count)])
        run = _elementwise(function, self.cell.key, len(blocks), count).of(self.dtype)
        parallel_for(Job(run, (tuple(blocks), out), rows, rows * width * len(blocks) * _COST))
        return list(out)

    def join(self, blocks):
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

    def split(self, x, widths):
        parts = np.split(x, np.cumsum(widths)[:-1], axis=1)
        return [np.ascontiguousarray(part) for part in parts]

    def stack(self, arrays):
        return np.stack(arrays)

    def normalise(self, x):
        y, factor = self.empty(x.shape), self.empty((len(x), 1))
        parallel_for(Job(_normalise.of(self.dtype), (x, y, factor), len(x), x.size * _COST))
        return y, factor

    def normalise_backward(self, dy, y, factor):
        dx = self.empty(y.shape)
        run = _normalise_backward.of(self.dtype)
        parallel_for(Job(run, (dy, y, factor, dx), len(y), y.size * _COST))
        return dx

    def sum_rows(self, x):
        # NumPy adds rows one after the other along the first axis: a fixed order.
        return x.sum(axis=0)
