"""The operations of unfused cells, see kernels/unfused.py."""

from functools import cache
from types import FunctionType
from typing import Annotated, Any

import numpy as np
from numba.extending import register_jitable

from fastrnn.cells import Cell
from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.records import Block
from fastrnn.kernels.signature import F2, I, Of, TupleOf
from fastrnn.kernels.unfused import EPS
from fastrnn.kernels.unrolled import statements, tuple_function

from .compiler import kernel
from .equations import register
from .simd import lane_count, load_first, pointer, pointers, store_first


@cache
def elementwise(form: Format, cell: Cell, function: FunctionType, inputs: int, outputs: int):
    """A kernel that applies a function of the cell's program to the numbers of each unit."""
    name = f"{cell.key}.{function.__name__}"
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

    return kernel(run, f"elementwise({form.name},{name},{inputs})")


@kernel
def normalise(x: F2, y: F2, factor: F2, first: I, last: I):
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
def normalise_backward(dy: F2, y: F2, factor: F2, dx: F2, first: I, last: I):
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
