"""What the backends that compute on the host share: memory is NumPy's and nothing is copied."""

from contextlib import nullcontext

import numpy as np
from numpy import concatenate, empty
from numpy import zeros as zero_state

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.checks import all_finite
from fastrnn.packed import PackedBatch
from fastrnn.runtime import buffers

__all__ = [
    "all_finite",
    "concatenate",
    "copy",
    "cross_entropy",
    "device_view",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "on_device",
    "pack",
    "parameters_on",
    "scale",
    "sort",
    "stream_of",
    "to_caller",
    "to_device",
    "to_host",
    "unpack",
    "unsort",
    "writable",
    "zero_state",
]

on_device = False


# Memory


def to_device(x: np.ndarray) -> np.ndarray:
    """x itself."""
    return x


def to_host(x: np.ndarray) -> np.ndarray:
    """x itself."""
    return x


def copy(x: np.ndarray) -> np.ndarray:
    """A copy of x."""
    return x.copy()


def device_view(x, name="x"):
    """x itself; it is only asked for where `on_device` is true."""
    return x


def to_caller(x, array):
    """``array`` itself."""
    return array


def stream_of(x):
    """A context that does nothing."""
    return nullcontext()


def parameters_on(parameters):
    """The parameters by name."""
    return parameters


def writable(parameters) -> np.ndarray:
    """The flat vector of the parameters, to be written now."""
    return parameters.writing()


# Padded arrays and packed rows


def pack(x: np.ndarray, packed: PackedBatch, *, batch_first: bool = False) -> np.ndarray:
    """The rows ``[N, ...]`` of a C-contiguous ``[T, B, ...]`` (or ``[B, T, ...]``) array."""
    if packed.sorted_indices is None:
        x = x.swapaxes(0, 1) if batch_first else x
        return np.ascontiguousarray(x).reshape(packed.size, *x.shape[2:])
    out = buffers.empty((packed.size, *x.shape[2:]), x.dtype)
    flat = x.reshape(-1, *x.shape[2:])
    # "clip" lets NumPy write to ``out`` directly; no index is out of bounds.
    return flat.take(_padded_indices(packed, batch_first), axis=0, out=out, mode="clip")


def unpack(rows: np.ndarray, packed: PackedBatch, *, batch_first: bool = False) -> np.ndarray:
    """The padded array of ``rows``; zero beyond each length."""
    tail = rows.shape[1:]
    if packed.sorted_indices is None:
        out = rows.reshape(packed.steps, packed.batch, *tail)
        return np.ascontiguousarray(out.swapaxes(0, 1)) if batch_first else out
    shape = (packed.batch, packed.steps) if batch_first else (packed.steps, packed.batch)
    out = buffers.empty((packed.batch * packed.steps, *tail), rows.dtype)
    out.fill(0)
    out[_padded_indices(packed, batch_first)] = rows
    return out.reshape(*shape, *tail)


def _padded_indices(packed: PackedBatch, batch_first: bool) -> np.ndarray:
    return packed.padded_indices_batch_first if batch_first else packed.padded_indices


def sort(state: np.ndarray, packed: PackedBatch) -> np.ndarray:
    """A ``[..., B, H]`` array in the sorted order of the sequences."""
    return state if packed.sorted_indices is None else state.take(packed.sorted_indices, axis=-2)


def unsort(state: np.ndarray, packed: PackedBatch) -> np.ndarray:
    """The inverse of `sort`."""
    if packed.sorted_indices is None:
        return state
    out = np.empty_like(state)
    out[..., packed.sorted_indices, :] = state
    return out


# Pointwise functions


def scale(x: np.ndarray, mask: np.ndarray, indices: np.ndarray) -> None:
    """``x *= mask[indices]``, in place."""
    x *= mask[indices]


def embedding_forward(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """``table[ids]``; IndexError for an id out of range."""
    return gather_rows(table, ids)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """Its gradient, [rows, E]."""
    return scatter_add_rows(dy, ids, out=np.zeros((rows, dy.shape[1]), dy.dtype))


def cross_entropy(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray):
    """``(loss, dlogits)`` for logits [N, V], see kernels/backend.py."""
    counts = np.flatnonzero(weights)
    p = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    right = p[counts, targets[counts]]
    np.exp(p, out=p)
    total = p.sum(axis=1)
    losses = np.log(total[counts], dtype=np.float64) - right
    p *= (weights / total).astype(p.dtype)[:, None]
    p[counts, targets[counts]] -= weights[counts].astype(p.dtype)
    return float(losses @ weights[counts]), p
