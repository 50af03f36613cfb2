"""Packing weights into the layouts of layouts.py, and unpacking their gradients."""

from functools import cache

import numpy as np
from numba.extending import register_jitable

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.signature import F2, F3, I1, P3, I

from .bfloat16 import store_pairs
from .compiler import kernel
from .int8 import LARGEST, inverse_or_zero, largest_of, store_pairs_int8
from .simd import (
    as_floats,
    at_address,
    lane_count,
    load,
    load_first,
    pointer,
    store,
    transpose,
    zeros_like,
)


@cache
def pack_forward(form: Format):
    """A kernel that packs the forward layout."""
    if form.weights != form.numbers:
        return _pack_converted(form)

    def run(w: F2, columns: I1, out: P3, first: I, last: I):
        """Panels [first, last); w [M, K], out [Q, K, v W]."""
        w_p, out_p = pointer(w), pointer(out)
        depth, panel, n = out.shape[1], out.shape[2], lane_count(w_p)
        for q in range(first, last):
            for j in range(0, panel, n):
                to = q * depth * panel + j
                m = columns[q * panel + j] * depth
                k = 0
                if columns[q * panel + j + n - 1] >= 0:  # then all of the vector, and side by side
                    while k + n <= depth:
                        transpose(w_p, m + k, depth, out_p, to + k * panel, panel)
                        k += n
                for i in range(n):
                    m = columns[q * panel + j + i] * depth
                    for rest in range(k, depth):
                        out_p[to + rest * panel + i] = w_p[m + rest] if m >= 0 else 0

    return kernel(run, f"pack_forward({form.name})")


@register_jitable
def _square(w_p, columns, at, k, depth, block_p):
    """A vector's width of rows k of the transposed weight, zeros beyond the last column and row."""
    n = lane_count(w_p)
    if columns[at + n - 1] >= 0 and k + n <= depth:
        transpose(w_p, columns[at] * depth + k, depth, block_p, 0, n)
        return
    for i in range(n):
        m = columns[at + i]
        for row in range(n):
            block_p[row * n + i] = w_p[m * depth + k + row] if m >= 0 and k + row < depth else 0


# How a square goes to a panel, by format: ``rows`` of it to ``out_p[to]``.


@register_jitable
def _put_halves(out_p, to, panel, j, block_p, rows, scale):
    n = lane_count(block_p)
    for row in range(rows):
        store(out_p, to + row * panel + j, load(block_p, row * n))


@register_jitable
def _put_pairs(out_p, to, panel, j, block_p, rows, scale):
    n = lane_count(block_p)
    for row in range(0, rows, 2):
        low, high = load(block_p, row * n), load(block_p, (row + 1) * n)
        store_pairs(out_p, to + row * panel + 2 * j, low, high)


@register_jitable
def _put_int8(out_p, to, panel, j, block_p, rows, scale):
    n = lane_count(block_p)
    for row in range(0, rows, 2):
        low, high = load(block_p, row * n) * scale, load(block_p, (row + 1) * n) * scale
        store_pairs_int8(out_p, to + row * panel + 2 * j, low, high)


_OF_LARGEST = np.float32(1 / LARGEST)


def _pack_converted(form: Format):
    """The same for a format of its own for weights, by squares of a vector's width."""
    scaled, head = form.head > 0, form.head
    put = _put_int8 if scaled else _put_pairs if form.step > 1 else _put_halves

    def run(w: F2, columns: I1, out: P3, first: I, last: I, scratch: I):
        w_p, out_p = pointer(w), pointer(out)
        block_p, depth, panel = at_address(scratch, w_p), w.shape[1], out.shape[2]
        n, padded = lane_count(w_p), out.shape[1] - head
        for q in range(first, last):
            start = q * out.shape[1] * panel
            for j in range(0, panel, n):
                at = q * panel + j
                inverse = zeros_like(w_p)
                if scaled:
                    largest = zeros_like(w_p)
                    for k in range(0, depth, n):
                        _square(w_p, columns, at, k, depth, block_p)
                        for row in range(n):
                            largest = largest_of(largest, load(block_p, row * n))
                    store(as_floats(out_p), start // 4 + j, largest * _OF_LARGEST)
                    inverse = inverse_or_zero(largest * _OF_LARGEST)
                for k in range(0, padded, n):
                    _square(w_p, columns, at, k, depth, block_p)
                    rows = min(n, padded - k)
                    put(out_p, start + (head + k) * panel, panel, j, block_p, rows, inverse)

    return kernel(run, f"pack_forward({form.name})")


@register_jitable
def unpack_gradient(packed: F3, columns: I1, out: F2, first: I, last: I):
    """The inverse: ``out[columns[q v W + l], k] = packed[q, k, l]`` for the pairs [first, last)
    out of the list of all (q, k)."""
    packed_p, out_p = pointer(packed), pointer(out)
    depth, panel, n = packed.shape[1], packed.shape[2], lane_count(packed_p)
    at = first
    while at < last:
        q = at // depth
        start = at - q * depth
        end = min(depth, start + last - at)
        for j in range(0, panel, n):
            here = q * depth * panel + j
            m = columns[q * panel + j] * depth
            k = start
            if columns[q * panel + j + n - 1] >= 0:
                while k + n <= end:
                    transpose(packed_p, here + k * panel, panel, out_p, m + k, depth)
                    k += n
            for i in range(n):
                m = columns[q * panel + j + i] * depth
                if m >= 0:
                    for rest in range(k, end):
                        out_p[m + rest] = packed_p[here + rest * panel + i]
        at += end - start


@cache
def pack_backward(form: Format):
    """A kernel that packs the backward layout."""
    pairs, unit = form.step > 1, form.unit

    def run(w: F2, columns: I1, out: P3, offset: I, first: I, last: I):
        """Panels [first, last), from row ``offset`` on; out [R, M, 4W]."""
        w_p, out_p = pointer(w), pointer(out)
        depth, n, count = w.shape[1], out.shape[2], columns.shape[0]
        vector = lane_count(w_p)
        for r in range(first, last):
            if pairs:
                for i in range(0, (count + unit - 1) // unit * unit, 2):
                    to = (r * out.shape[1] + offset + i) * n
                    for j in range(0, n, vector):
                        low, high = zeros_like(w_p), zeros_like(w_p)
                        if i < count:
                            low = _part(w_p, columns[i], depth, r * n + j)
                        if i + 1 < count:
                            high = _part(w_p, columns[i + 1], depth, r * n + j)
                        store_pairs(out_p, to + 2 * j, low, high)
            else:
                for i in range(count):
                    to = (r * out.shape[1] + offset + i) * n
                    for j in range(0, n, vector):
                        store(out_p, to + j, _part(w_p, columns[i], depth, r * n + j))

    return kernel(run, f"pack_backward({form.name})")


@register_jitable
def _part(w_p, m, depth, at):
    """The vector at column ``at`` of row m, zeros if m is negative."""
    return load_first(w_p, m * depth + at, depth - at if m >= 0 else 0)
