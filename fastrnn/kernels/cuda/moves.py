"""Kernels that move numbers: packed rows, initial states, concatenation."""

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fastrnn.kernels.signature import F1, I1, I
from fastrnn.packed import PackedBatch

from .launch import Kernel, over
from .memory import empty, to_device

_THREADS = 128


@cache
def move_kernel(dtype) -> Kernel:
    def move(source: F1, source_offset: I, to: F1, to_offset: I, count: I, add: I):
        """``to[to_offset + i] = source[source_offset + i]``, plus the old value if ``add``."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            v = source[source_offset + i]
            to[to_offset + i] = to[to_offset + i] + v if add else v

    return Kernel(move, _THREADS, dtype)


def move(source, source_offset: int, to, to_offset: int, count: int, *, add=False) -> None:
    """Copy ``count`` neighbouring numbers, or add them to the old values."""
    kernel = move_kernel(to.dtype)
    kernel(over(count, _THREADS), source, source_offset, to, to_offset, count, add)


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


@cache
def fill_kernel(dtype) -> Kernel:
    real = np.dtype(dtype).type

    def fill(to: F1, count: I):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[i] = real(0)

    return Kernel(fill, _THREADS, dtype)


def zeros(shape, dtype) -> Any:
    """An array of zeros."""
    out = empty(shape, dtype)
    fill_kernel(out.dtype)(over(out.size, _THREADS), out, out.size)
    return out


@cache
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


@cache
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


@cache
def place_kernel(dtype) -> Kernel:
    def place(
        initial: F1, mask: F1, has_mask: I, state: F1, lengths: I1, offsets: I1, steps: I,
        batch: I, units: I, reverse: I,
    ):  # fmt: skip
        """Write initial states [B, H] where the first step of each sequence reads them."""
        at = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if at < batch * units:
            b, u = at // units, at % units
            v = initial[b * units + u]
            row = offsets[steps] + b  # stays there if the length is 0
            if lengths[b] > 0:
                row = (offsets[lengths[b] - 1] if reverse else 0) + b
                if has_mask:
                    v = v * mask[b * units + u]
            state[row * units + u] = v

    return Kernel(place, _THREADS, dtype)


def place(initial, mask, state, lengths, offsets, steps: int, reverse: bool) -> None:
    """Write initial states [B, H] where the first step of each sequence reads them in ``state``,
    times ``mask`` [B, H] or None."""
    batch, units = initial.shape
    place_kernel(state.dtype)(
        over(batch * units, _THREADS), initial, initial if mask is None else mask,
        mask is not None, state, lengths, offsets, steps, batch, units, reverse,
    )  # fmt: skip


@cache
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
