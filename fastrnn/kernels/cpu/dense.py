"""Plain matrix products on our own tiles and threads: the linear layer, and sums for gradients.

A threaded BLAS would do them as fast, but its waiting workers spin on the cores we need.
"""

from functools import cached_property

import numpy as np

from fastrnn.kernels import buffers

from . import gemm, pack
from .simd import width
from .threads import spread
from .tile import PANEL

# Multiply-adds below which a piece of work stays in one thread: waking one takes as long.
LEAST = 1 << 18


def least(per_item: int) -> int:
    """How many items of ``per_item`` multiply-adds are worth a thread."""
    return -(-LEAST // max(per_item, 1))


def accumulate(a, b, b_at, out, sums) -> None:
    """`gemm.accumulate` on all threads; ``sums`` may be None."""
    q, depth, panel = out.shape
    if sums is None:
        sums = np.empty((0, panel), out.dtype)
    if not len(a):
        out.fill(0)
        sums.fill(0)
        return

    def share(first, last):
        scratch = np.empty((gemm.BLOCK, panel), out.dtype)
        gemm.accumulate(a, depth, b, b_at, out, sums, scratch, first, last)

    spread(share, (), q * depth, least(len(a) * panel))


def unpack(columns, packed) -> np.ndarray:
    """The gradient ``[M, K]`` of a weight whose packed form has the given columns."""
    q, depth, panel = packed.shape
    out = np.empty((int(columns.max()) + 1, depth), packed.dtype)
    spread(pack.unpack_gradient, (packed, columns, out), q, least(depth * panel))
    return out


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
        spread(pack.pack_forward, (self.weight, columns, out), q, least(self.inputs * self.panel))
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
        args = (self.weight, columns, out, 0)
        spread(pack.pack_backward, args, r, least(self.outputs * self.panel))
        return out


def forward(weights: Weights, x) -> np.ndarray:
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w = weights
    y = buffers.empty((len(x), w.outputs), w.dtype)
    args = (x, 0, w.inputs, w.forward, w.bias, y, 0, w.outputs)
    spread(gemm.product, args, len(x), least(w.inputs * w.outputs))
    return y


def backward(weights: Weights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    w = weights
    dx = None
    if need_dx:
        dx = buffers.empty((len(x), w.inputs), w.dtype)
        zero = np.zeros((len(w.backward), w.panel), w.dtype)
        args = (dy, 0, w.outputs, w.backward, zero, dx, 0, w.inputs)
        spread(gemm.product, args, len(x), least(w.inputs * w.outputs))
    r = -(-w.inputs // w.panel)
    if w.inputs % w.panel:
        padded = buffers.zeros((len(x), r * w.panel), w.dtype)
        padded[:, : w.inputs] = x
        x = padded
    packed = buffers.empty((r, w.outputs, w.panel), w.dtype)
    accumulate(dy, x, 0, packed, None)
    dweight = np.empty((w.outputs, r, w.panel), w.dtype)
    dweight[:] = packed.swapaxes(0, 1)
    dweight = np.ascontiguousarray(dweight.reshape(w.outputs, -1)[:, : w.inputs])
    return dx, dweight, dy.sum(axis=0)
