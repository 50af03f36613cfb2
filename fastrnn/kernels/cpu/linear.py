"""Matrix products on our own tiles and threads: the linear layer, and the jobs it is made of.

A threaded BLAS would be as fast, but its waiting workers spin on the cores that we need.
"""

from functools import cached_property

import numpy as np

from fastrnn.kernels.native.isa import PANEL, width
from fastrnn.kernels.native.layouts import plain_columns
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import Panels, Runs, Sums
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

# The cost of packing one number, whole vectors at a time, in multiply-adds.
_PACK_COST = MOVE_COST // 4


def product(a, runs: Runs, panels, bias, out, columns: int) -> Job:
    """``a @ panels`` into the first columns of ``out``."""
    args = (a, runs, panels, bias, Panels(out, 0, panels.shape[2], columns))
    return Job(find("gemm.product", out.dtype), args, len(a), len(a) * panels.size)


def weight_gradient(a, b: Panels, sums: Sums, columns, out) -> Job:
    """The gradient of a weight from the input [N, .] and the gradient of the result."""
    q, depth, _ = sums.packed.shape
    cost = (len(a) + _PACK_COST) * sums.packed.size
    args = (a, depth, b, sums, columns, out)
    return Job(find("gemm.weight_gradient", out.dtype), args, q * depth, cost)


def new_sums(q: int, depth: int, panel: int, dtype) -> Sums:
    """Uninitialised."""
    return Sums(buffers.empty((q, depth, panel), dtype), np.empty((q, panel), dtype))


def pack_forward(w, columns, out) -> Job:
    """`panels.pack_forward` of all panels."""
    kernel = find("panels.pack_forward", out.dtype)
    return Job(kernel, (w, columns, out), len(out), out.size * _PACK_COST)


def pack_backward(w, columns, out, offset=0) -> Job:
    """`panels.pack_backward` of all panels."""
    cost = len(columns) * len(out) * out.shape[2] * _PACK_COST
    kernel = find("panels.pack_backward", out.dtype)
    return Job(kernel, (w, columns, out, offset), len(out), cost)


class LinearWeights:
    """``weight [O, I]`` and ``bias [O]`` or None, packed when first needed."""

    def __init__(self, weight, bias):
        self.weight, self._bias = weight, bias
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self.panel = PANEL * width(self.dtype)
        self.columns = plain_columns(self.outputs, self.dtype)

    @cached_property
    def forward(self) -> np.ndarray:
        q = len(self.columns) // self.panel
        out = buffers.empty((q, self.inputs, self.panel), self.dtype)
        parallel_for(pack_forward(self.weight, self.columns, out))
        return out

    @cached_property
    def bias(self) -> np.ndarray:
        out = np.zeros((len(self.columns) // self.panel, self.panel), self.dtype)
        if self._bias is not None:
            out.reshape(-1)[: self.outputs] = self._bias
        return out

    @cached_property
    def backward(self) -> np.ndarray:
        r = -(-self.inputs // self.panel)
        out = buffers.empty((r, self.outputs, self.panel), self.dtype)
        parallel_for(pack_backward(self.weight, np.arange(self.outputs), out))
        return out


def linear_forward(weights: LinearWeights, x) -> np.ndarray:
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w = weights
    y = buffers.empty((len(x), w.outputs), w.dtype)
    parallel_for(product(x, Runs(1, w.inputs, 0), w.forward, w.bias, y, w.outputs))
    return y


def linear_backward(weights: LinearWeights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    dx, jobs = None, list[Job]()
    if need_dx:
        dx, job = _input_gradient(weights, dy)
        jobs.append(job)
    dweight, totals, job = _weight_gradient(x, dy)
    parallel_for(*jobs, job)
    return dx, dweight, totals.reshape(-1)[: weights.outputs].copy()


def input_gradient(weights: LinearWeights, dy) -> np.ndarray:
    """``dy @ weight``, [N, I]."""
    dx, job = _input_gradient(weights, dy)
    parallel_for(job)
    return dx


def dense_weight_gradient(x, dy) -> np.ndarray:
    """``dy.T @ x``, [O, I]."""
    dweight, _, job = _weight_gradient(x, dy)
    parallel_for(job)
    return dweight


def _input_gradient(w: LinearWeights, dy) -> tuple[np.ndarray, Job]:
    dx = buffers.empty((len(dy), w.inputs), w.dtype)
    zero = np.zeros((len(w.backward), w.panel), w.dtype)
    return dx, product(dy, Runs(1, w.outputs, 0), w.backward, zero, dx, w.inputs)


def _weight_gradient(x, dy) -> tuple[np.ndarray, np.ndarray, Job]:
    """``(dweight, sums of dy in panels, the job that computes both)``."""
    (outputs, inputs), dtype = (dy.shape[1], x.shape[1]), dy.dtype
    panel, columns = PANEL * width(dtype), plain_columns(outputs, dtype)
    sums = new_sums(len(columns) // panel, inputs, panel, dtype)
    dweight = buffers.empty((outputs, inputs), dtype)
    job = weight_gradient(x, Panels(dy, 0, panel, outputs), sums, columns, dweight)
    return dweight, sums.totals, job
