"""Moves of rows: initial and final states, padded arrays and packed rows."""

from fastrnn.kernels.native.records import Lengths, Padded
from fastrnn.kernels.signature import F1, F2, I1, B, I

from .compiler import kernel
from .simd import pointer


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
        if not save:
            a, b = r, batch + r
        elif lengths.lengths[r] == 0:
            a, b = final + r, final + r
        else:
            a = r
            if reverse:
                a = lengths.offsets[lengths.lengths[r] - 1] + r
            b = a
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


@kernel
def pack(x: F2, padded: Padded, out: F2, first: I, last: I):
    """The steps of the sequences [first, last), in the order of their lengths, as packed rows."""
    x_p, out_p = pointer(x), pointer(out)
    width = x.shape[1]
    for r in range(first, last):
        at = padded.sorted_indices[r] * padded.batch_stride
        for t in range(padded.lengths[r]):
            source = (at + t * padded.step_stride) * width
            to = (padded.offsets[t] + r) * width
            for k in range(width):
                out_p[to + k] = x_p[source + k]


@kernel
def unpack(rows: F2, padded: Padded, out: F2, first: I, last: I):
    """The inverse; zeros beyond each length."""
    rows_p, out_p = pointer(rows), pointer(out)
    width = out.shape[1]
    for r in range(first, last):
        at = padded.sorted_indices[r] * padded.batch_stride
        for t in range(padded.steps):
            to = (at + t * padded.step_stride) * width
            if t < padded.lengths[r]:
                source = (padded.offsets[t] + r) * width
                for k in range(width):
                    out_p[to + k] = rows_p[source + k]
            else:
                for k in range(width):
                    out_p[to + k] = 0


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
