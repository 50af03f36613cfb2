"""Moves of rows: initial and final states, padded arrays and packed rows."""

from functools import cache

from numba.extending import register_jitable

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.records import Lengths, Padded
from fastrnn.kernels.signature import A2, F1, F2, I1, B, I

from .bfloat16 import zip_vectors
from .compiler import kernel
from .int8 import quantise_row
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


@register_jitable
def _first_rows(lengths, rows, batch, save, reverse, r):
    """The rows of the states that the first step of sequence r may start from."""
    final = rows - batch
    if not save:
        return r, batch + r
    row = r
    if lengths.lengths[r] == 0:
        row = final + r
    elif reverse:
        row = lengths.offsets[lengths.lengths[r] - 1] + r
    return row, row


@kernel
def begin_state(
    state: F2, initial: F2, lengths: Lengths, save: B, reverse: B, mask: F2, first: I, last: I
):
    """Initial states [B, H] to where the first step of each sequence [first, last) reads them.

    The last B rows of ``state`` are final states: the initial one where a length is 0. ``mask``
    [B, H], or empty, multiplies all others.
    """
    state_p, initial_p, mask_p = pointer(state), pointer(initial), pointer(mask)
    batch, units = initial.shape
    stride = state.shape[1]
    final = state.shape[0] - batch
    for r in range(first, last):
        a, b = _first_rows(lengths, state.shape[0], batch, save, reverse, r)
        for k in range(units):
            value = initial_p[r * units + k]
            state_p[(final + r) * stride + k] = value
            if mask.shape[0] > 0 and a != final + r:
                value *= mask_p[r * units + k]
            state_p[a * stride + k] = value
            state_p[b * stride + k] = value
        for k in range(units, stride):
            state_p[(final + r) * stride + k] = 0
            state_p[a * stride + k] = 0
            state_p[b * stride + k] = 0


@cache
def begin_h(form: Format):
    """A kernel for the h that a format multiplies, after `begin_state`."""

    def run(state: F2, h: A2, batch: I, lengths: Lengths, save: B, reverse: B, first: I, last: I):
        """The initial rows of ``state`` in the same rows of h, for the sequences [first, last)."""
        state_p, h_p = pointer(state), pointer(h)
        stride, size = state.shape[1], h.shape[1]
        for r in range(first, last):
            rows = _first_rows(lengths, state.shape[0], batch, save, reverse, r)
            for k in range(0, size, lane_count(state_p)):
                v = load_first(state_p, rows[0] * stride + k, stride - k)
                store(h_p, rows[0] * size + k, v)
                store(h_p, rows[1] * size + k, v)

    return kernel(run, f"begin_h({form.name})")


@kernel
def copy(a: F2, offset: I, out: F2, first: I, last: I):
    """``out[r] = a[offset + r]``, cut or filled with zeros to the columns of ``out``."""
    a_p, out_p = pointer(a), pointer(out)
    width, stride = out.shape[1], a.shape[1]
    common = min(width, stride)
    for r in range(first, last):
        for k in range(common):
            out_p[r * width + k] = a_p[(offset + r) * stride + k]
        for k in range(common, width):
            out_p[r * width + k] = 0


@cache
def to_activations(form: Format):
    """A kernel that converts rows to the type that a format multiplies."""
    quantises = form.quantises

    def run(a: F2, out: A2, first: I, last: I):
        """``out[r] = a[r]``, filled with zeros to the columns of ``out``: whole vectors."""
        a_p, out_p = pointer(a), pointer(out)
        width, stride = out.shape[1], a.shape[1]
        for r in range(first, last):
            to = r * width
            if quantises:
                quantise_row(a_p, r * stride, stride, out_p, to, width)
            else:
                for k in range(0, width, lane_count(a_p)):
                    store(out_p, to + k, load_first(a_p, r * stride + k, max(stride - k, 0)))

    return kernel(run, f"to_activations({form.name})")


@cache
def zipped(form: Format):
    """A kernel that lays rows out for the gradient of a weight, see layouts.py."""

    def run(a: A2, depth: I, rows: I, out: A2, first: I, last: I, scratch: I):
        """The numbers of rows 2 p and 2 p + 1 side by side: out [S depth, 2 L] for the columns
        [first, last) out of the list of all (s, column), a vector of them each."""
        a_p, out_p = pointer(a), as_floats(pointer(out))
        stride, block = a.shape[1], out.shape[1]
        pairs_p = at_address(scratch, pointer(a))
        block_p = as_floats(pairs_p)
        n = lane_count(block_p)
        vectors = (depth + n - 1) // n
        for work in range(first, last):
            s = work // vectors
            k = (work - s * vectors) * n
            count = min(block, rows - s * block)
            for p in range(0, count, 2 * n):
                for i in range(n):
                    row = p + 2 * i
                    low, high = zeros_like(a_p), zeros_like(a_p)
                    if row < count:
                        low = load(a_p, (s * block + row) * stride + k)
                    if row + 1 < count:
                        high = load(a_p, (s * block + row + 1) * stride + k)
                    zip_vectors(pairs_p, 2 * i * n, low, high)
                to = ((s * depth + k) * block + p) // 2
                if k + n <= depth:
                    transpose(block_p, 0, n, out_p, to, block // 2)
                else:
                    for j in range(depth - k):
                        for i in range(n):
                            out_p[to + j * (block // 2) + i] = block_p[i * n + j]

    return kernel(run, f"zipped({form.name})")


# A padded array is read or written from start to end: ``i`` is a step and ``j`` a sequence, counted
# in the order of lengths, or the other way round.


@register_jitable
def _active(padded, i):
    """How many ``j`` there are."""
    if not padded.by_step:
        return padded.lengths[i]
    is_step = i < padded.offsets.shape[0] - 1
    return padded.offsets[i + 1] - padded.offsets[i] if is_step else 0


@register_jitable
def _rows(padded, i, j):
    """The padded row and, for j below `_active`, the packed one."""
    t, r = (i, j) if padded.by_step else (j, i)
    row = padded.sorted_indices[r] * padded.batch_stride + t * padded.step_stride
    return row, padded.offsets[min(t, padded.offsets.shape[0] - 1)] + r


@kernel
def pack(x: F2, padded: Padded, out: F2, first: I, last: I):
    """The steps or sequences [first, last) as packed rows."""
    x_p, out_p = pointer(x), pointer(out)
    width = x.shape[1]
    for i in range(first, last):
        for j in range(_active(padded, i)):
            source, to = _rows(padded, i, j)
            for k in range(width):
                out_p[to * width + k] = x_p[source * width + k]


@kernel
def unpack(rows: F2, padded: Padded, out: F2, first: I, last: I):
    """The inverse; zeros beyond each length."""
    rows_p, out_p = pointer(rows), pointer(out)
    width = out.shape[1]
    count = padded.lengths.shape[0] if padded.by_step else padded.steps
    for i in range(first, last):
        active = _active(padded, i)
        for j in range(count):
            to, source = _rows(padded, i, j)
            if j < active:
                for k in range(width):
                    out_p[to * width + k] = rows_p[source * width + k]
            else:
                for k in range(width):
                    out_p[to * width + k] = 0


@kernel
def unpack_sums(sums: F2, positions: I1, out: F1, first: I, last: I):
    """``out[j] = `` the sum at position ``positions[j]``."""
    sums_p = pointer(sums)
    for j in range(first, last):
        out[j] = sums_p[positions[j]]


@kernel
def zero(counts: I1, first: I, last: I):
    """``counts[:] = 0``: barriers before they are used, see barrier.py."""
    for i in range(first, last):
        counts[i] = 0
