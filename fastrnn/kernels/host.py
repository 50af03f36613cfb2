"""What backends that compute on the host share: memory is NumPy's, and nothing has to be moved."""

import numpy as np
from numpy import concatenate, empty

from fastrnn._gather import gather_rows, scatter_add_rows

__all__ = [
    "concatenate",
    "embedding_backward",
    "embedding_forward",
    "empty",
    "scale",
    "to_device",
    "to_host",
    "values",
]


def to_device(x: np.ndarray) -> np.ndarray:
    """x itself."""
    return x


def to_host(x: np.ndarray) -> np.ndarray:
    """x itself."""
    return x


def values(parameters):
    """The parameters by name."""
    return parameters


def scale(x: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> None:
    """``x *= mask[rows]``"""
    x *= mask[rows]


def embedding_forward(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """``table[ids]``; IndexError for an id out of range."""
    return gather_rows(table, ids)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """Its gradient, [rows, E]."""
    return scatter_add_rows(dy, ids, out=np.zeros((rows, dy.shape[1]), dy.dtype))
