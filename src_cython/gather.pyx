# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Gather rows of a table by index, and add gradients back into them.

Every index is checked before anything is written. The work is done in C without the GIL on
contiguous memory, divided between threads (but for the dense sum); the Python functions around it
convert arguments and raise errors.
"""

import numpy as np

import fastrnn.checks as checks
from fastrnn._native import Kernel
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define FASTRNN_PREFETCH(p) __builtin_prefetch(p)
    #else
    #define FASTRNN_PREFETCH(p) ((void)0)
    #endif
    """
    void FASTRNN_PREFETCH(const void* p) nogil

# How many rows ahead to prefetch: rows far apart in memory take long to arrive.
cdef enum:
    AHEAD = 8

ctypedef fused index_t:
    int32_t
    int64_t

ctypedef fused floating:
    float
    double


cdef Py_ssize_t _first_bad(const index_t[::1] ids, int64_t limit) noexcept nogil:  # IN
    """Position of the first id outside [0, limit), or -1."""
    cdef Py_ssize_t i
    cdef bint bad = False
    for i in range(ids.shape[0]):  # no branch: the good case is one fast pass
        bad |= (ids[i] < 0) | (ids[i] >= limit)
    if bad:
        for i in range(ids.shape[0]):
            if ids[i] < 0 or ids[i] >= limit:
                return i
    return -1


def _check(const index_t[::1] ids, int64_t limit):
    cdef Py_ssize_t at
    with nogil:
        at = _first_bad(ids, limit)
    if at >= 0:
        raise IndexError(f"ids: id {ids[at]} at position {at} is not in [0, {limit})")


cdef inline void _ask(const char* row, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(0, size, 64):
        FASTRNN_PREFETCH(row + k)


# Kernels as the team runs them: arguments are in slots, see src_native/native.c.


cdef void _gather(
    const floating* table, const index_t* ids, const int64_t* slots, int64_t first, int64_t last
) noexcept nogil:
    """table [V, E], ids [N], out [N, E]."""
    cdef int64_t i, width = slots[2]
    cdef Py_ssize_t size = width * sizeof(floating)
    cdef floating* out = <floating*>slots[5]
    for i in range(first, last):
        if i + AHEAD < last:
            _ask(<const char*>(table + ids[i + AHEAD] * width), size)
        memcpy(out + i * width, table + ids[i] * width, size)


cdef void _gather_f_i(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _gather(<const float*>s[0], <const int32_t*>s[3], s, first, last)


cdef void _gather_f_q(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _gather(<const float*>s[0], <const int64_t*>s[3], s, first, last)


cdef void _gather_d_i(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _gather(<const double*>s[0], <const int32_t*>s[3], s, first, last)


cdef void _gather_d_q(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _gather(<const double*>s[0], <const int64_t*>s[3], s, first, last)


cdef void _scatter_sorted(
    const floating* grads, const int64_t* slots, int64_t first, int64_t last
) noexcept nogil:
    """grads [N, >= E], order [.], starts [R + 1], out [R, E]: ``out[r]`` is the sum of
    ``grads[order[starts[r] : starts[r + 1]]]``, in that order."""
    cdef int64_t r, s, k, stride = slots[2], count = slots[4], width = slots[9]
    cdef const int64_t* order = <const int64_t*>slots[3]
    cdef const int64_t* starts = <const int64_t*>slots[5]
    cdef floating* out = <floating*>slots[7]
    cdef Py_ssize_t size = width * sizeof(floating)
    cdef const floating* source
    for r in range(first, last):
        for s in range(starts[r], starts[r + 1]):
            if s + AHEAD < count:
                _ask(<const char*>(grads + order[s + AHEAD] * stride), size)
            source = grads + order[s] * stride
            if s == starts[r]:
                memcpy(out + r * width, source, size)
            else:
                for k in range(width):
                    out[r * width + k] += source[k]


cdef void _scatter_f(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _scatter_sorted(<const float*>s[0], s, first, last)


cdef void _scatter_d(const int64_t* s, int64_t first, int64_t last, void* _) noexcept nogil:
    _scatter_sorted(<const double*>s[0], s, first, last)


ctypedef void (*entry_t)(const int64_t*, int64_t, int64_t, void*) noexcept nogil


cdef _kernel(str name, str signature, entry_t entry):
    return Kernel(name, signature, <uintptr_t>entry, None)


_FLOATS = _FLOAT32, _FLOAT64 = np.dtype("float32"), np.dtype("float64")
_GATHER = {
    (_FLOAT32, np.dtype("int32")): _kernel("gather", "f2i1f2", _gather_f_i),
    (_FLOAT32, np.dtype("int64")): _kernel("gather", "f2q1f2", _gather_f_q),
    (_FLOAT64, np.dtype("int32")): _kernel("gather", "d2i1d2", _gather_d_i),
    (_FLOAT64, np.dtype("int64")): _kernel("gather", "d2q1d2", _gather_d_q),
}
_SCATTER = {
    _FLOAT32: _kernel("scatter", "f2q1q1f2", _scatter_f),
    _FLOAT64: _kernel("scatter", "d2q1q1d2", _scatter_d),
}


def _scatter(const floating[:, ::1] grads, const index_t[::1] ids, floating[:, ::1] out):
    cdef Py_ssize_t i, k
    cdef floating* row
    with nogil:
        for i in range(ids.shape[0]):
            row = &out[ids[i], 0]
            for k in range(grads.shape[1]):
                row[k] += grads[i, k]


def _by_row(const int64_t[::1] ids, int64_t limit):
    """``(order, rows, starts)``: the positions of the ids that are not negative, by id and then by
    position; the ids that occur, ascending; and where each begins in the order, with its length at
    the end."""
    cdef int64_t i, row, last = -1, places = max(1, ids.shape[0])
    cdef Py_ssize_t count = 0, runs = 0
    order = np.empty(ids.shape[0], np.int64)
    cdef int64_t[::1] order_ = order
    for i in range(ids.shape[0]):
        if ids[i] >= 0:
            order_[count] = i
            count += 1
    order = order[:count]
    if limit <= 2**62 // places:
        # All keys differ, so NumPy's fastest sort, which is not stable, can be used.
        for i in range(count):
            order_[i] += ids[order_[i]] * places
        order.sort()
        for i in range(count):
            order_[i] %= places
    else:
        order = order[np.argsort(np.asarray(ids)[order], kind="stable")]
        order_ = order
    rows, starts = np.empty(count, np.int64), np.empty(count + 1, np.int64)
    cdef int64_t[::1] rows_ = rows, starts_ = starts
    for i in range(count):
        row = ids[order_[i]]
        if row != last:
            rows_[runs], starts_[runs] = row, i
            runs, last = runs + 1, row
    starts_[runs] = count
    return order, rows[:runs], starts[: runs + 1]


def sum_rows(grads, ids, Py_ssize_t width, Py_ssize_t limit):
    """``(rows, sums)`` as `scatter_add_rows` returns them for ``grads[:, :width]``, C-contiguous,
    where ids are int64 below ``limit`` and a negative one takes no part. Nothing is checked."""
    order, rows, starts = _by_row(ids, limit)
    sums = np.empty((len(rows), width), grads.dtype)
    if sums.size:
        cost = len(order) * width * MOVE_COST
        args = (grads, order, starts, sums)
        parallel_for(Job(_SCATTER[grads.dtype], args, len(rows), cost))
    return rows, sums


def _as_ids(ids):
    ids = checks.as_array("ids", ids)
    if ids.ndim != 1:
        raise ValueError(f"ids must have one dimension, got shape {ids.shape}")
    if ids.size == 0:
        return np.empty(0, np.int64)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got dtype {ids.dtype}")
    return np.ascontiguousarray(ids, np.int32 if ids.dtype == np.int32 else np.int64)


def _as_matrix(name, value, like=None):
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        raise ValueError(f"{name} must be an array of two dimensions, got {_say(value)}")
    allowed = _FLOATS if like is None else (like,)
    if value.dtype not in allowed:
        names = " or ".join(map(str, allowed))
        raise TypeError(f"{name} must be of {names}, got dtype {value.dtype}")
    return value


def _say(value):
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"shape {shape}"


def _as_out(name, out, shape, dtype):
    _as_matrix(name, out, dtype)
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"{name} must be C-contiguous and writeable")
    return out


def gather_rows(table, ids, out=None):
    """``out[i] = table[ids[i]]``.

    Parameters
    ----------
    table : float32 or float64 array [V, E]
    ids : array_like of int [N]
        int32 and int64 are read as they are.
    out : array [N, E] of the table's type, C-contiguous, optional
        Where to write; by default a new array.

    Returns
    -------
    out : array [N, E]

    Raises
    ------
    IndexError
        An id is not in ``[0, V)``; the message names its position, the id and V. Nothing is
        written.
    ValueError, TypeError
        A shape or a type does not fit, or ``out`` shares memory with the table.
    """
    table = np.ascontiguousarray(_as_matrix("table", table))
    ids = _as_ids(ids)
    shape = (len(ids), table.shape[1])
    if out is None:
        out = np.empty(shape, table.dtype)
    _as_out("out", out, shape, table.dtype)
    if np.may_share_memory(out, table):
        raise ValueError("out must not share memory with table")
    _check(ids, len(table))
    if out.size:
        kernel = _GATHER[table.dtype, ids.dtype]
        parallel_for(Job(kernel, (table, ids, out), len(ids), out.size * MOVE_COST))
    return out


def scatter_add_rows(grads, ids, *, out=None, num_rows=None):
    """Add the rows of ``grads`` to the rows of a table named by ``ids``.

    Rows are added in the order of ``ids``, so the result is the same every time.

    Parameters
    ----------
    grads : float32 or float64 array [N, E]
    ids : array_like of int [N]
    out : array [V, E] of the same type, C-contiguous, optional
        Dense: the array to add to in place, also returned.
    num_rows : int, optional
        Sparse, if ``out`` is not given: V, the number of rows of the table.

    Returns
    -------
    out : array [V, E]
        Dense.
    (rows, sums) : int64 array [R], array [R, E]
        Sparse: the rows that occur, ascending, and the sum of the gradients of each.

    Raises
    ------
    IndexError
        An id is not in ``[0, V)``; the message names its position, the id and V. Nothing is
        written.
    ValueError, TypeError
        A shape or a type does not fit, or both or neither of ``out`` and ``num_rows`` are given.
    """
    grads = np.ascontiguousarray(_as_matrix("grads", grads))
    ids = _as_ids(ids)
    if len(ids) != len(grads):
        raise ValueError(f"ids must have {len(grads)} entries like grads, got {len(ids)}")
    if (out is None) == (num_rows is None):
        raise ValueError("give either out (dense) or num_rows (sparse)")
    if out is not None:
        if np.ndim(out) != 2:
            raise ValueError(f"out must be an array of two dimensions, got {_say(out)}")
        _as_out("out", out, (len(out), grads.shape[1]), grads.dtype)
        _check(ids, len(out))
        if grads.size:
            _scatter(grads, ids, out)
        return out
    num_rows = checks.integer("num_rows", num_rows, 0)
    _check(ids, num_rows)
    return sum_rows(grads, ids.astype(np.int64, copy=False), grads.shape[1], num_rows)
