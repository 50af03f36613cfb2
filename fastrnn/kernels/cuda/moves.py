"""Kernels that move numbers: packed rows, initial states, concatenation."""

from typing import Any

import numpy as np
from numba import cuda

from fastrnn.kernels.signature import F1, I1, I
from fastrnn.packed import PackedBatch

from .launch import Kernel, kernel, over
from .memory import empty, to_device, zeros

_THREADS = 128


def concatenate(arrays) -> Any:
    """Along the first axis."""
    if len(arrays) == 1:
        return arrays[0]
    rows = sum(a.shape[0] for a in arrays)
    out, first = empty((rows, *arrays[0].shape[1:]), arrays[0].dtype), 0
    for a in arrays:
        out[first : first + len(a)] = a
        first += len(a)
    return out


@kernel
def gather_kernel(dtype) -> Kernel:
    def gather(source: F1, indices: I1, to: F1, width: I, count: I):
        """``to[i] = source[indices[i]]``, rows of ``width`` numbers."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[i] = source[indices[i // width] * width + i % width]

    return Kernel(gather, _THREADS, dtype)


def gather(source, indices: np.ndarray, width: int) -> Any:
    """The rows of ``source`` at ``indices`` (on the host), [R, width]."""
    out = empty((indices.size, width), source.dtype)
    kernel = gather_kernel(source.dtype)
    kernel(over(out.size, _THREADS), source, to_device(indices), out, width, out.size)
    return out


@kernel
def scatter_kernel(dtype) -> Kernel:
    def scatter(source: F1, indices: I1, to: F1, width: I, count: I):
        """``to[indices[i]] = source[i]``, rows of ``width`` numbers."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[indices[i // width] * width + i % width] = source[i]

    return Kernel(scatter, _THREADS, dtype)


def scatter(source, indices: np.ndarray, rows: int, width: int) -> Any:
    """[rows, width] with the rows of ``source`` at ``indices`` (on the host), else zeros."""
    out = zeros((rows, width), source.dtype)
    kernel = scatter_kernel(source.dtype)
    kernel(over(source.size, _THREADS), source, to_device(indices), out, width, source.size)
    return out


# Padded arrays and packed rows, as kernels/host.py does it


def _padded_indices(packed: PackedBatch, batch_first: bool) -> np.ndarray:
    return packed.padded_indices_batch_first if batch_first else packed.padded_indices


def pack(x, packed: PackedBatch, *, batch_first: bool = False) -> Any:
    """The rows ``[N, ...]`` of a padded array."""
    tail = x.shape[2:]
    if packed.sorted_indices is None and not batch_first:
        return x.reshape(packed.size, *tail)
    rows = gather(x, _padded_indices(packed, batch_first), int(np.prod(tail)))
    return rows.reshape(packed.size, *tail)


def unpack(rows, packed: PackedBatch, *, batch_first: bool = False) -> Any:
    """The padded array of ``rows``; zero beyond each length."""
    tail = rows.shape[1:]
    shape = (packed.batch, packed.steps) if batch_first else (packed.steps, packed.batch)
    if packed.sorted_indices is None and not batch_first:
        return rows.reshape(*shape, *tail)
    indices, width = _padded_indices(packed, batch_first), int(np.prod(tail))
    return scatter(rows, indices, packed.batch * packed.steps, width).reshape(*shape, *tail)


def _state_rows(state, packed: PackedBatch) -> np.ndarray:
    """The row of each sorted sequence in a state [K, B, H]."""
    first = np.arange(state.shape[0])[:, None] * packed.batch
    return (first + packed.sorted_indices).reshape(-1)


def sort(state, packed: PackedBatch) -> Any:
    """A state [K, B, H] in the sorted order of the sequences."""
    if packed.sorted_indices is None:
        return state
    rows = gather(state, _state_rows(state, packed), state.shape[-1])
    return rows.reshape(*state.shape)


def unsort(state, packed: PackedBatch) -> Any:
    """The inverse of `sort`."""
    if packed.sorted_indices is None:
        return state
    rows, width = state.shape[0] * packed.batch, state.shape[-1]
    return scatter(state, _state_rows(state, packed), rows, width).reshape(*state.shape)


# States


@kernel
def mask_kernel(dtype) -> Kernel:
    def multiply(x: F1, mask: F1, lengths: I1, units: I, count: I):
        """``x *= mask`` for states [B, H], except where a length is 0."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count and lengths[i // units] > 0:
            x[i] *= mask[i]

    return Kernel(multiply, _THREADS, dtype)


def mask(x, factors, lengths) -> None:
    """``x *= factors`` in place for states [B, H], except where a length is 0."""
    kernel = mask_kernel(x.dtype)
    kernel(over(x.size, _THREADS), x, factors, lengths, x.shape[1], x.size)
