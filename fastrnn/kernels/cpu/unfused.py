"""The operations of unfused cells on the CPU, see kernels/unfused.py."""

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.cells import Cell
from fastrnn.kernels.native.formats import choose
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import Block
from fastrnn.kernels.unfused import resolve
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

from . import linear
from .linear import LinearWeights

_COST = 2 * MOVE_COST  # of a number of an elementwise function, in multiply-adds


class Ops:
    """See `kernels.unfused.Ops`."""

    def __init__(
        self, cell: Cell, parameters: Mapping[str, np.ndarray], training: bool, precision: str
    ):
        self.cell, self.p = cell, parameters
        self.training, self.precision = training, precision
        self.dtype = parameters["weight_ih"].dtype
        self._packed: dict[str, LinearWeights] = {}

    def empty(self, shape) -> np.ndarray:
        return buffers.empty(shape, self.dtype)

    def zeros(self, shape) -> np.ndarray:
        return np.zeros(shape, self.dtype)

    def _linear(self, name: str) -> LinearWeights:
        if name not in self._packed:
            self._packed[name] = LinearWeights(
                resolve(self.cell, self.p, name), None, self.precision
            )
        return self._packed[name]

    @cached_property
    def _table(self) -> np.ndarray:
        return np.ascontiguousarray(self.p["weight_ih"].T)

    def project(self, x, bias):
        if x.ndim == 2:
            if "project" not in self._packed:  # the bias is that of all calls
                self._packed["project"] = LinearWeights(self.p["weight_ih"], bias, self.precision)
            return linear.linear_forward(self._packed["project"], x, training=self.training)
        a = gather_rows(self._table, x)
        return a if bias is None else a + bias

    def project_backward(self, x, dy, need_dx: bool):
        if x.ndim == 2:
            return linear.linear_backward(self._linear("weight_ih"), x, dy, need_dx=need_dx)[:2]
        table = np.zeros(self._table.shape, self.dtype)
        return None, np.ascontiguousarray(scatter_add_rows(dy, x, out=table).T)

    def product(self, weight: str, source):
        return linear.linear_forward(self._linear(weight), source, training=self.training)

    def product_backward(self, weight: str, dy):
        return linear.input_gradient(self._linear(weight), dy)

    def weight_gradient(self, source, dy):
        form = choose(self.precision, self.dtype, training=True)
        return linear.dense_weight_gradient(form, source, dy)

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
        run = find("unfused.elementwise", self.dtype, self.cell, function, len(blocks), count)
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
        parallel_for(
            Job(find("unfused.normalise", self.dtype), (x, y, factor), len(x), x.size * _COST)
        )
        return y, factor

    def normalise_backward(self, dy, y, factor):
        dx = self.empty(y.shape)
        run = find("unfused.normalise_backward", self.dtype)
        parallel_for(Job(run, (dy, y, factor, dx), len(y), y.size * _COST))
        return dx

    def sum_rows(self, x):
        # NumPy adds rows one after the other along the first axis: a fixed order.
        return x.sum(axis=0)
