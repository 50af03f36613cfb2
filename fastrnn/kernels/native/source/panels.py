"""Packing weights into the layouts of layouts.py, and unpacking their gradients."""

from numba.extending import register_jitable

from fastrnn.kernels.signature import F2, F3, I1, I

from .compiler import kernel
from .simd import lane_count, load_first, pointer, store, transpose


@kernel
def pack_forward(w: F2, columns: I1, out: F3, first: I, last: I):
    """Panels [first, last) of the forward layout; w [M, K], out [Q, K, v W]."""
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


@kernel
def pack_backward(w: F2, columns: I1, out: F3, offset: I, first: I, last: I):
    """Panels [first, last) of the backward layout, from row ``offset`` on; out [R, M, 4W]."""
    w_p, out_p = pointer(w), pointer(out)
    depth, n = w.shape[1], out.shape[2]
    vector = lane_count(w_p)
    for r in range(first, last):
        for i in range(columns.shape[0]):
            to = (r * out.shape[1] + offset + i) * n
            m = columns[i] * depth + r * n
            left = depth - r * n if columns[i] >= 0 else 0
            for j in range(0, n, vector):
                store(out_p, to + j, load_first(w_p, m + j, left - j))
