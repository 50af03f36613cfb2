"""Numbers that only change places, or are added on the way."""

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fastrnn.kernels import is_on_device

from .launch import Kernel, over
from .memory import DeviceArray, empty, to_device

_THREADS = 128


@cache
def _move() -> Kernel:
    def move(source, source_at, to, to_at, count, add):
        """``to[to_at + i] = source[source_at + i]``, plus what is there if ``add``."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            v = source[source_at + i]
            to[to_at + i] = to[to_at + i] + v if add else v

    return Kernel(move, _THREADS)


def move(source, source_at: int, to, to_at: int, count: int, *, add: bool = False) -> None:
    """Copy ``count`` numbers that lie side by side, or add them to what is there."""
    _move()(over(count, _THREADS), source, source_at, to, to_at, count, add)


def copied(x) -> Any:
    """x on the device, in memory of its own."""
    if not is_on_device(x):
        return to_device(x)
    x = to_device(x)
    out = empty(x.shape, x.dtype)
    move(x, 0, out, 0, x.size)
    return out


def concatenate(arrays) -> Any:
    """Arrays one above the other, along their first axis, where they lie."""
    if not isinstance(arrays[0], DeviceArray):
        return np.concatenate(arrays)
    if len(arrays) == 1:
        return arrays[0]
    out, at = empty((sum(a.shape[0] for a in arrays), *arrays[0].shape[1:]), arrays[0].dtype), 0
    for a in arrays:
        move(a, 0, out, at, a.size)
        at += a.size
    return out


@cache
def _fill(dtype) -> Kernel:
    number = np.dtype(dtype).type

    def fill(to, count):
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[i] = number(0)

    return Kernel(fill, _THREADS)


def zeros(shape, dtype) -> Any:
    """An array of zeros."""
    out = empty(shape, dtype)
    _fill(out.dtype)(over(out.size, _THREADS), out, out.size)
    return out


@cache
def _take() -> Kernel:
    def take(source, places, to, width, count):
        """``to[i] = source[places[i]]``, rows of ``width`` numbers."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[i] = source[places[i // width] * width + i % width]

    return Kernel(take, _THREADS)


def take(source, places, width: int) -> Any:
    """The rows of ``source`` at ``places``, [R, width]."""
    out = empty((places.size, width), source.dtype)
    _take()(over(out.size, _THREADS), source, places, out, width, out.size)
    return out


@cache
def _put() -> Kernel:
    def put(source, places, to, width, count):
        """``to[places[i]] = source[i]``, rows of ``width`` numbers."""
        i = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if i < count:
            to[places[i // width] * width + i % width] = source[i]

    return Kernel(put, _THREADS)


def put(source, places, rows: int, width: int) -> Any:
    """[rows, width] with the rows of ``source`` at ``places`` and zeros elsewhere."""
    out = zeros((rows, width), source.dtype)
    _put()(over(source.size, _THREADS), source, places, out, width, source.size)
    return out


@cache
def _place() -> Kernel:
    def place(initial, state, lengths, offsets, steps, batch, units, reverse):
        """Write initial states [B, H] where each sequence's first step looks for them."""
        at = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        if at < batch * units:
            b, u = at // units, at % units
            row = offsets[steps] + b  # stays there where the length is 0
            if lengths[b] > 0:
                row = (offsets[lengths[b] - 1] if reverse else 0) + b
            state[row * units + u] = initial[b * units + u]

    return Kernel(place, _THREADS)


def place(initial, state, lengths, offsets, steps: int, reverse: bool) -> None:
    """Write initial states [B, H] where each sequence's first step looks for them in ``state``."""
    batch, units = initial.shape
    grid = over(batch * units, _THREADS)
    _place()(grid, initial, state, lengths, offsets, steps, batch, units, reverse)
