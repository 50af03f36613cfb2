"""Products in lower precision, emulated: the oracle of kernels/native/formats.py."""

from typing import Any

import numpy as np

_LARGEST = np.float32(1 / 127)  # of the int8 that are used


def to_bf16(a: np.ndarray) -> np.ndarray:
    """The nearest numbers in bfloat16, ties to even, in the type of ``a``; NaN stays NaN, and what
    is too small to be normal becomes 0."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    nearest[(bits & 0x7F800000) == 0] &= np.uint32(0x80000000)
    out = nearest.view(np.float32)
    return np.where(np.isnan(a), np.nan, out).astype(a.dtype)


def through_int8(w: np.ndarray) -> np.ndarray:
    """A weight [M, K] as 127 steps in each direction, of a size of its own for each row."""
    rows = w.astype(np.float32)
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0) * _LARGEST
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale)
    return (np.rint(rows * inverse) * scale).astype(w.dtype)


class Rounded(np.ndarray):
    """An array whose matrix products are of numbers in bfloat16; all else is as usual."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [a.view(np.ndarray) if isinstance(a, Rounded) else a for a in inputs]
        if ufunc is np.matmul:
            plain = list(map(to_bf16, plain))
        return getattr(ufunc, method)(*plain, **options)


def operand(a: np.ndarray, precision: str) -> np.ndarray:
    """An input of products."""
    return a.view(Rounded) if precision == "bf16" else a


def weight(w: np.ndarray, precision: str) -> np.ndarray:
    """A weight of products; others, which have one axis, stay as they are."""
    if w.ndim == 2 and precision == "int8":
        return through_int8(w)
    return operand(w, precision) if w.ndim == 2 else w
