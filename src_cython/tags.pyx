# cython: language_level=3, boundscheck=False, wraparound=False
"""Entities in sequences of tags."""

import numpy as np

from libc.stdint cimport int64_t


def strict_spans(
    const unsigned char[::1] prefixes, const int64_t[::1] types, const int64_t[::1] ids,
    const int64_t[::1] lengths, bint bioes,
):
    """``first, last`` of the entities that follow the scheme, see `fastrnn.data.tags`.

    Of tag k, ``prefixes[k]`` is the prefix (a letter) and ``types[k]`` a number for its type. ids
    are the tags of sequences of the given lengths, one after the other. The scheme is BIOES or
    else IOB2. An entity is the tokens ``[first, last)``.
    """
    cdef Py_ssize_t n = ids.shape[0], found = 0, at = 0, s, p, end, first
    cdef int64_t kind
    cdef unsigned char prefix
    cdef bint goes_on
    spans = np.empty((2, n), np.int64)
    cdef int64_t[:, ::1] out = spans
    with nogil:
        for s in range(lengths.shape[0]):
            first, end, kind = -1, at + lengths[s], 0  # of the current entity, if first >= 0
            for p in range(at, end):
                prefix = prefixes[ids[p]]
                goes_on = first >= 0 and types[ids[p]] == kind and prefix in (b"I", b"E")
                if first >= 0 and not goes_on:
                    if not bioes:
                        out[0, found], out[1, found] = first, p
                        found += 1
                    first = -1
                if prefix == b"B" or (bioes and prefix == b"S"):
                    first, kind = p, types[ids[p]]
                if bioes and (prefix == b"S" or (goes_on and prefix == b"E")):
                    out[0, found], out[1, found] = first, p + 1
                    found += 1
                    first = -1
            if first >= 0 and not bioes:
                out[0, found], out[1, found] = first, end
                found += 1
            at = end
    return spans[0, :found], spans[1, :found]
