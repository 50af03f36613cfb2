"""Plain matrix products on our own tiles and threads: the linear layer, and sums for gradients.

A threaded BLAS would do them as fast, but its waiting workers spin on the cores we need.
"""

from functools import cached_property

import numpy as np

from fastrnn.kernels import buffers
from fastrnn.kernels.threads import MOVE, Job, spread

from . import gemm, pack
from .simd import width
from .tile import PANEL

# What a number costs that is packed whole vectors at a time, in multiply-adds.
_PACK = MOVE // 4


def product(a, runs, panels, bias, out, columns) -> Job:
    """`gemm.product` over all rows of ``a``; ``runs`` are its blocks, their length and stride."""
    args = (a, *runs, panels, bias, out, 0, panels.shape[2], columns)
    return Job(gemm.product, args, len(a), len(a) * panels.size)


def accumulate(a, b, b_at, b_panel, columns, packed, sums, unpacked, out) -> Job:
    """`gemm.accumulate` of everything into ``packed``, and from there to ``out`` as
    `pack.unpack_gradient` does with ``unpacked``, the columns."""
    q, depth, panel = packed.shape

    def share(first, last):
        if len(a):
            scratch = np.empty((gemm.BLOCK, panel), packed.dtype)
            gemm.accumulate(a, depth, b, b_at, b_panel, columns, packed, sums, scratch, first, last)
        else:
            packed.reshape(-1, panel)[first:last] = 0
        pack.unpack_gradient(packed, unpacked, out, first, last)

    if not len(a):
        sums[:] = 0
    return Job(share, (), q * depth, (len(a) + _PACK) * packed.size)


def pack_forward(w, columns, out) -> Job:
    """`pack.pack_forward` of all panels."""
    return Job(pack.pack_forward, (w, columns, out), len(out), out.size * _PACK)


def pack_backward(w, columns, out, at=0) -> Job:
    """`pack.pack_backward` of all panels."""
    cost = len(columns) * len(out) * out.shape[2] * _PACK
    return Job(pack.pack_backward, (w, columns, out, at), len(out), cost)


class Weights:
    """``weight [O, I]`` and ``bias [O]`` or None, packed when first needed."""

    def __init__(self, weight, bias):
        self.weight, self._bias = weight, bias
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        self.panel = PANEL * width(self.dtype)
        self.columns = pack.plain_columns(self.outputs, self.dtype)

    @cached_property
    def forward(self) -> np.ndarray:
        q = len(self.columns) // self.panel
        out = buffers.empty((q, self.inputs, self.panel), self.dtype)
        spread(pack_forward(self.weight, self.columns, out))
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
        spread(pack_backward(self.weight, np.arange(self.outputs), out))
        return out


def forward(weights: Weights, x) -> np.ndarray:
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w = weights
    y = buffers.empty((len(x), w.outputs), w.dtype)
    spread(product(x, (1, w.inputs, 0), w.forward, w.bias, y, w.outputs))
    return y


def backward(weights: Weights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    w = weights
    dx, jobs = None, []
    if need_dx:
        dx = buffers.empty((len(x), w.inputs), w.dtype)
        zero = np.zeros((len(w.backward), w.panel), w.dtype)
        jobs.append(product(dy, (1, w.outputs, 0), w.backward, zero, dx, w.inputs))
    packed = buffers.empty((len(w.columns) // w.panel, w.inputs, w.panel), w.dtype)
    dbias = np.zeros((len(packed), w.panel), w.dtype)
    dweight = buffers.empty(w.weight.shape, w.dtype)
    jobs.append(accumulate(x, dy, 0, w.panel, w.outputs, packed, dbias, w.columns, dweight))
    spread(*jobs)
    return dx, dweight, dbias.reshape(-1)[: w.outputs].copy()
