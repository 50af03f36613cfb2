"""Plain matrix products on our own tiles and threads: the linear layer, and sums for gradients.

A threaded BLAS would do them as fast, but its waiting workers spin on the cores we need.
"""

from functools import cached_property

import numpy as np

from fastrnn.kernels import buffers

from . import gemm, pack
from .simd import width
from .threads import MOVE, Job, spread
from .tile import PANEL


def product(a, depth, panels, bias, out, columns) -> Job:
    """`gemm.product` over all rows of ``a``."""
    args = (a, depth, panels, bias, out, columns)
    return Job(gemm.product, args, len(a), len(a) * depth * columns)


def accumulate(a, b, b_at, out, sums=None) -> Job:
    """`gemm.accumulate` of everything."""
    q, depth, panel = out.shape
    if sums is None:
        sums = np.empty((0, panel), out.dtype)

    def share(first, last):
        if len(a):
            scratch = np.empty((gemm.BLOCK, panel), out.dtype)
            gemm.accumulate(a, depth, b, b_at, out, sums, scratch, first, last)
        else:
            out.reshape(-1, panel)[first:last] = 0

    if not len(a):
        sums[:] = 0
    return Job(share, (), q * depth, len(a) * out.size)


def pack_forward(w, columns, out) -> Job:
    """`pack.pack_forward` of all panels."""
    return Job(pack.pack_forward, (w, columns, out), len(out), out.size * MOVE)


def pack_backward(w, columns, out, at=0) -> Job:
    """`pack.pack_backward` of all panels."""
    cost = len(columns) * len(out) * out.shape[2] * MOVE
    return Job(pack.pack_backward, (w, columns, out, at), len(out), cost)


def unpack(columns, packed) -> tuple[np.ndarray, Job]:
    """The gradient ``[M, K]`` of a weight from its packed form, and the job that fills it."""
    out = buffers.empty((int(columns.max()) + 1, packed.shape[1]), packed.dtype)
    cost = packed.size * MOVE
    return out, Job(pack.unpack_gradient, (packed, columns, out), len(packed), cost)


class Weights:
    """``weight [O, I]`` and ``bias [O]`` or None, packed when first needed."""

    def __init__(self, weight, bias):
        self.weight, self._bias = weight, bias
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self.panel = PANEL * width(self.dtype)

    @cached_property
    def forward(self) -> np.ndarray:
        columns = pack.plain_columns(self.outputs, self.dtype)
        q = len(columns) // self.panel
        out = buffers.empty((q, self.inputs, self.panel), self.dtype)
        spread(pack_forward(self.weight, columns, out))
        return out

    @cached_property
    def bias(self) -> np.ndarray:
        out = np.zeros((-(-self.outputs // self.panel), self.panel), self.dtype)
        if self._bias is not None:
            out.reshape(-1)[: self.outputs] = self._bias
        return out

    @cached_property
    def backward(self) -> np.ndarray:
        columns = np.arange(self.outputs)
        r = -(-self.inputs // self.panel)
        out = buffers.empty((r, self.outputs, self.panel), self.dtype)
        spread(pack_backward(self.weight, columns, out))
        return out


def forward(weights: Weights, x) -> np.ndarray:
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w = weights
    y = buffers.empty((len(x), w.outputs), w.dtype)
    spread(product(x, w.inputs, w.forward, w.bias, y, w.outputs))
    return y


def backward(weights: Weights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    w = weights
    dx, jobs = None, []
    if need_dx:
        dx = buffers.empty((len(x), w.inputs), w.dtype)
        zero = np.zeros((len(w.backward), w.panel), w.dtype)
        jobs.append(product(dy, w.outputs, w.backward, zero, dx, w.inputs))
    r = -(-w.inputs // w.panel)
    if w.inputs % w.panel:
        padded = buffers.zeros((len(x), r * w.panel), w.dtype)
        padded[:, : w.inputs] = x
        x = padded
    packed = buffers.empty((r, w.outputs, w.panel), w.dtype)
    spread(*jobs, accumulate(dy, x, 0, packed))
    dweight = np.empty((w.outputs, r, w.panel), w.dtype)
    dweight[:] = packed.swapaxes(0, 1)
    dweight = np.ascontiguousarray(dweight.reshape(w.outputs, -1)[:, : w.inputs])
    return dx, dweight, dy.sum(axis=0)
