# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sequences of different lengths as one padded array."""

import contextlib
from operator import attrgetter

import numpy as np

import fastrnn.checks as checks

cimport cython
from cpython.long cimport PyLong_AsLongLong, PyLong_CheckExact
from libc.stdint cimport int32_t, int64_t

_DTYPE = attrgetter("dtype")

ctypedef fused index_t:
    int32_t
    int64_t


cdef void _fill(
    const index_t[::1] flat,  # IN
    const int64_t[::1] offsets,  # IN
    index_t[:, :] out,  # OUT [B, T], any strides
    bint pad_before,
    bint cut_before,
    index_t value,
) noexcept nogil:
    cdef Py_ssize_t b0, t, k, count, side
    cdef bint inside
    cdef Py_ssize_t batch = out.shape[0], steps = out.shape[1]
    # For 8 sequences written together (a cache line of an output [T, B]): the index in flat of
    # output step 0, perhaps before the sequence's start, and the range of steps taken from flat.
    cdef Py_ssize_t[8] start, first, last
    for b0 in range(0, batch, 8):
        side = min(8, batch - b0)
        for k in range(side):
            start[k] = offsets[b0 + k]
            count = offsets[b0 + k + 1] - start[k]
            if count > steps:
                if cut_before:
                    start[k] += count - steps
                count = steps
            first[k] = steps - count if pad_before else 0
            last[k] = first[k] + count
            start[k] -= first[k]
        if out.strides[1] > out.strides[0]:  # [T, B]: step by step, to fill cache lines
            for t in range(steps):
                for k in range(side):
                    inside = t >= first[k] and t < last[k]
                    out[b0 + k, t] = flat[start[k] + t] if inside else value
        else:
            for k in range(side):
                for t in range(steps):
                    inside = t >= first[k] and t < last[k]
                    out[b0 + k, t] = flat[start[k] + t] if inside else value


def _pad(
    const index_t[::1] flat, const int64_t[::1] offsets, index_t[:, :] out,
    bint pad_before, bint cut_before, int64_t value,
):
    with nogil:
        _fill(flat, offsets, out, pad_before, cut_before, <index_t>value)


@cython.boundscheck(True)  # Python code runs in between and may change a list
def _flatten_lists(list sequences, int64_t[::1] flat):
    """Copy lists of Python ints one after the other into ``flat``, which they must fill."""
    cdef Py_ssize_t b, k, at = 0
    cdef list items
    for b in range(len(sequences)):
        items = sequences[b]
        for k in range(len(items)):
            item = items[k]
            flat[at] = PyLong_AsLongLong(item) if PyLong_CheckExact(item) else _as_int(item, b, k)
            at += 1
    if at != flat.shape[0]:
        raise ValueError("sequences changed while they were read")


cdef int64_t _as_int(item, Py_ssize_t b, Py_ssize_t k) except? -1:
    if isinstance(item, (bool, np.bool_)) or not hasattr(item, "__index__"):
        raise TypeError(
            f"sequences[{b}][{k}] must be an int, got {type(item).__name__}"
        )
    return item.__index__()


def _integers(name, value):
    array = checks.as_array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return np.ascontiguousarray(array, np.int32 if array.dtype == np.int32 else np.int64)


def _flatten(sequences):
    """Convert any of the accepted forms to ``(flat, offsets)``."""
    if isinstance(sequences, tuple) and len(sequences) == 2 and isinstance(
        sequences[0], np.ndarray
    ) and np.ndim(sequences[1]) == 1:
        flat = _integers("sequences[0] (flat)", sequences[0])
        offsets = _integers("sequences[1] (offsets)", sequences[1]).astype(np.int64)
        if (
            offsets.size == 0 or offsets[0] < 0 or offsets[-1] > flat.size
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                f"sequences[1] (offsets) must ascend within [0, {flat.size}], got {offsets}"
            )
        return flat, offsets
    if isinstance(sequences, (str, bytes)) or not hasattr(sequences, "__iter__") or (
        getattr(sequences, "ndim", 1) == 0
    ):
        raise TypeError(
            "sequences must be lists of ints, arrays of ints or (flat, offsets), "
            f"got {type(sequences).__name__}"
        )
    sequences = sequences.to_pylist() if hasattr(sequences, "to_pylist") else list(sequences)
    kinds = set(map(type, sequences))
    if not kinds <= {list, np.ndarray}:
        for b, s in enumerate(sequences):
            if not hasattr(s, "__len__") or isinstance(s, (str, bytes, dict, set)):
                raise TypeError(
                    f"sequences[{b}] must be a list or an array, got {type(s).__name__}"
                )
        # Convert other sequences to lists now, so that the sizes are those of what is copied.
        sequences = [s if isinstance(s, (list, np.ndarray)) else list(s) for s in sequences]
    offsets = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, sequences), np.int64, len(sequences)), out=offsets[1:])
    if kinds == {np.ndarray} and len(set(map(_DTYPE, sequences))) == 1:
        # The common case without a check of each array: concatenate requires equal dimensions.
        if sequences[0].ndim == 1 and sequences[0].dtype.kind in "iu":
            with contextlib.suppress(ValueError):  # raised below, with the name of the bad one
                return _integers("sequences", np.concatenate(sequences)), offsets
    if any(isinstance(s, np.ndarray) for s in sequences):
        arrays = [s if isinstance(s, np.ndarray) else _integers(f"sequences[{b}]", s)
                  for b, s in enumerate(sequences)]
        for b, a in enumerate(arrays):
            if a.ndim != 1 or (a.size and a.dtype.kind not in "iu"):
                _integers(f"sequences[{b}]", a)
        filled = [a for a in arrays if a.size] or [np.empty(0, np.int64)]
        flat = _integers("sequences", np.concatenate(filled))
        if len(flat) != offsets[-1]:
            raise ValueError("sequences changed while they were read")
        return flat, offsets
    flat = np.empty(offsets[-1], np.int64)
    _flatten_lists(sequences, flat)
    return flat, offsets


def _choice(name, value):
    return checks.choice(name, value, ("post", "pre")) == "pre"


def pad_sequences(
    sequences, *, max_len=None, padding="post", truncating="post", value=0, batch_first=False
):
    """Pad sequences of different lengths into one array.

    Parameters
    ----------
    sequences : list of lists of int, list of int arrays, column of pandas or pyarrow, or
        (flat, offsets)
        In the last form, a tuple of an array and offsets, sequence b is
        ``flat[offsets[b]:offsets[b + 1]]``; a tuple of exactly two arrays is always read this way.
    max_len : int, optional
        T; by default the longest length. Longer sequences are cut.
    padding : {"post", "pre"}
        Whether to pad after or before a sequence. The ``lengths`` of the layers require "post".
    truncating : {"post", "pre"}
        Whether the end or the start of a long sequence is cut off.
    value : int, default 0
        The padding value.
    batch_first : bool, default False
        [B, T] instead of [T, B].

    Returns
    -------
    ids : int64 array [T, B] or [B, T]
        int32 if all sequences are int32 arrays.
    lengths : int64 array [B]
        Length of each sequence after cutting.

    Raises
    ------
    ValueError, TypeError
        An argument is not one of the above; the message names the sequence.
    """
    pad_before, cut_before = _choice("padding", padding), _choice("truncating", truncating)
    value = checks.integer("value", value, -(2**63))
    if max_len is not None:
        max_len = checks.integer("max_len", max_len, 0)
    batch_first = checks.flag("batch_first", batch_first)
    flat, offsets = _flatten(sequences)
    lengths = np.diff(offsets)
    longest = int(lengths.max()) if lengths.size else 0
    steps = longest if max_len is None else int(max_len)
    bounds = np.iinfo(flat.dtype)
    if not bounds.min <= value <= bounds.max:
        raise ValueError(f"value must fit {flat.dtype}, got {value}")
    shape = (len(lengths), steps) if batch_first else (steps, len(lengths))
    out = np.empty(shape, flat.dtype)
    _pad(flat, offsets, out if batch_first else out.T, pad_before, cut_before, value)
    return out, np.minimum(lengths, steps)


def sort_lengths(const int64_t[::1] lengths):
    """``(order, sorted lengths, batch_sizes, offsets)`` of `fastrnn.packed.PackedBatch`, the longest
    first and equal ones in their order."""
    cdef Py_ssize_t batch = lengths.shape[0], b, t, longest = 0
    for b in range(batch):
        longest = max(longest, lengths[b])
    cdef int64_t[::1] place = np.zeros(longest + 2, np.int64)  # by length, where the next one goes
    order, ordered = np.empty(batch, np.int64), np.empty(batch, np.int64)
    sizes, offsets = np.empty(longest, np.int64), np.empty(longest + 1, np.int64)
    cdef int64_t[::1] order_ = order, ordered_ = ordered, sizes_ = sizes, offsets_ = offsets
    for b in range(batch):
        place[lengths[b]] += 1
    offsets_[0] = 0
    for t in range(longest, -1, -1):  # the number of sequences that are longer
        place[t] += place[t + 1]
    for t in range(longest):
        sizes_[t] = place[t + 1]
        offsets_[t + 1] = offsets_[t] + sizes_[t]
    for b in range(batch):
        t = place[lengths[b] + 1]
        place[lengths[b] + 1] += 1
        order_[t] = b
        ordered_[t] = lengths[b]
    return order, ordered, sizes, offsets
