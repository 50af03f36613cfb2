"""Padded arrays and packed rows."""

import math

import numpy as np

from fastrnn.kernels import host
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import Padded
from fastrnn.packed import PackedBatch
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for


def pack(x: np.ndarray, packed: PackedBatch, *, batch_first: bool = False) -> np.ndarray:
    """See kernels/backend.py."""
    if not _in_kernel(packed, x.dtype, batch_first):
        return host.pack(x, packed, batch_first=batch_first)
    out = buffers.empty((packed.size, *x.shape[2:]), x.dtype)
    _move("rows.pack", x.reshape(-1, _width(x)), out.reshape(-1, _width(x)), packed, batch_first)
    return out


def unpack(rows: np.ndarray, packed: PackedBatch, *, batch_first: bool = False) -> np.ndarray:
    """See kernels/backend.py."""
    if not _in_kernel(packed, rows.dtype, batch_first):
        return host.unpack(rows, packed, batch_first=batch_first)
    outer = (packed.batch, packed.steps) if batch_first else (packed.steps, packed.batch)
    out = buffers.empty((*outer, *rows.shape[1:]), rows.dtype)
    width = math.prod(rows.shape[1:])
    _move("rows.unpack", rows.reshape(-1, width), out.reshape(-1, width), packed, batch_first)
    return out


def _in_kernel(packed: PackedBatch, dtype, batch_first: bool) -> bool:
    moved = batch_first or packed.sorted_indices is not None
    return moved and dtype in (np.float32, np.float64)


def _width(x) -> int:
    return math.prod(x.shape[2:])


def _move(kernel: str, source, out, packed: PackedBatch, batch_first: bool) -> None:
    order = packed.sorted_indices
    if order is None:
        order = np.arange(packed.batch)
    strides = (packed.steps, 1) if batch_first else (1, packed.batch)
    padded = Padded(order, packed.lengths, packed.offsets, packed.steps, *strides, not batch_first)
    cost = max(source.size, out.size) * MOVE_COST
    items = packed.batch if batch_first else packed.steps
    parallel_for(Job(find(kernel, out.dtype), (source, padded, out), items, cost))
