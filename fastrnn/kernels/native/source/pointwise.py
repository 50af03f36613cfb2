"""Functions of each number or of each row."""

import math

import numpy as np

from fastrnn.cells.activations import exp
from fastrnn.kernels.native.records import CHUNK
from fastrnn.kernels.signature import D1, F1, F2, I1, F, I, U

from .compiler import kernel
from .simd import (
    lane_count,
    larger,
    load,
    load_first,
    pointer,
    store,
    store_first,
    zeros_like,
)

_ADDED = 32


@kernel
def dropout(x: F1, key: U, limit: U, scale: F, first: I, last: I):
    x_p = pointer(x)
    for i in range(first, last):
        # The i-th output of SplitMix64 (Steele, Lea & Flood 2014) with the seed ``key``.
        z = key + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        x_p[i] *= scale if (z >> np.uint64(11)) >= limit else scale * 0


@kernel
def scale(x: F2, mask: F2, indices: I1, first: I, last: I):
    """``x[p] *= mask[indices[p]]``."""
    x_p, mask_p, width = pointer(x), pointer(mask), x.shape[1]
    for p in range(first, last):
        row = indices[p] * width
        for k in range(width):
            x_p[p * width + k] *= mask_p[row + k]


@kernel
def insert(x: F2, table: F2, indices: I1, out: F2, first: I, last: I):
    """``out`` is x with ``table[indices[p]]`` in the first columns of row p, unless that is
    negative."""
    x_p, table_p, out_p = pointer(x), pointer(table), pointer(out)
    width, size = x.shape[1], table.shape[1]
    for p in range(first, last):
        at, begin = p * width, 0
        if indices[p] >= 0:
            row, begin = indices[p] * size, size
            for k in range(size):
                out_p[at + k] = table_p[row + k]
        for k in range(begin, width):
            out_p[at + k] = x_p[at + k]


@kernel
def largest(x: F2, starts: I1, out: F2, where: I1, first: I, last: I):
    """``out[s]`` is the largest number of each column in the rows ``[starts[s], starts[s + 1])`` of
    x, at least one, and ``where`` the first row that has it."""
    x_p, out_p, where_p, width = pointer(x), pointer(out), pointer(where), x.shape[1]
    for s in range(first, last):
        row = s * width
        for k in range(width):
            out_p[row + k] = x_p[starts[s] * width + k]
            where_p[row + k] = starts[s]
        for p in range(starts[s] + 1, starts[s + 1]):
            at = p * width
            for k in range(width):
                if x_p[at + k] > out_p[row + k]:
                    out_p[row + k] = x_p[at + k]
                    where_p[row + k] = p


@kernel
def largest_gradient(dy: F2, starts: I1, where: I1, out: F2, first: I, last: I):
    """The gradient of x for that of ``out`` of `largest`."""
    dy_p, where_p, out_p, width = pointer(dy), pointer(where), pointer(out), dy.shape[1]
    for s in range(first, last):
        for i in range(starts[s] * width, starts[s + 1] * width):
            out_p[i] = dy_p[0] * 0
        for k in range(width):
            out_p[where_p[s * width + k] * width + k] = dy_p[s * width + k]


@kernel
def cross_entropy(
    logits: F2, targets: I1, weights: F1, losses: D1, out: F2, first: I, last: I
):  # fmt: skip
    """The loss of each row, and ``out = weight * (softmax(logits) - one_hot(target))``.

    Where a weight is 0, the loss is 0 and the target is not looked at.
    """
    x_p, out_p = pointer(logits), pointer(out)
    classes, n = logits.shape[1], lane_count(pointer(logits))
    whole = classes // n * n
    for p in range(first, last):
        at = p * classes
        top = x_p[at]
        if whole:
            most = load(x_p, at)
            for k in range(n, whole, n):
                most = larger(most, load(x_p, at + k))
            store(out_p, at, most)  # to have its numbers
            for k in range(n):
                top = max(top, out_p[at + k])
        for k in range(whole, classes):
            top = max(top, x_p[at + k])
        total, k0 = 0.0, 0
        while k0 < whole:  # a few vectors are added before their sum becomes float64
            k1 = min(k0 + _ADDED * n, whole)
            some = zeros_like(x_p)
            for k in range(k0 + n, k1, n):
                e = exp(load(x_p, at + k) - top)
                store(out_p, at + k, e)
                some = some + e
            e = exp(load(x_p, at + k0) - top)
            store(out_p, at + k0, some + e)
            for k in range(n):
                total += np.float64(out_p[at + k0 + k])
            store(out_p, at + k0, e)
            k0 = k1
        if whole < classes:
            e = exp(load_first(x_p, at + whole, classes - whole) - top)
            store_first(out_p, at + whole, e, classes - whole)
            for k in range(whole, classes):
                total += np.float64(out_p[at + k])
        losses[p] = 0.0
        factor = weights[p] / total
        for k in range(classes):
            out_p[at + k] *= factor
        if weights[p] != 0:
            t = at + targets[p]
            losses[p] = math.log(total) - (np.float64(x_p[t]) - np.float64(top))
            out_p[t] -= weights[p]


@kernel
def differences(x: F1, out: F2, first: I, last: I):
    """``sum of x - x`` of each block of CHUNK numbers, a vector each: 0, or NaN if one of them is
    infinite or NaN."""
    x_p, out_p = pointer(x), pointer(out)
    n = lane_count(x_p)
    for i in range(first, last):
        end = min((i + 1) * CHUNK, x.shape[0])
        total = zeros_like(x_p)
        for k in range(i * CHUNK, end, n):
            v = load_first(x_p, k, end - k)
            total = total + (v - v)
        store(out_p, i * n, total)
