"""Checks of user input: convert it if it fits, otherwise raise an error that names it."""

import contextlib
import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

import numpy as np

DTYPES = ("float32", "float64")


def short(value) -> str:
    """The repr of what a user gave, cut for an error message."""
    try:
        text = repr(value)
    except Exception as error:  # of an int with too many digits, or of a class of the user's
        text = f"{type(value).__name__} ({error})"
    return text if len(text) <= 80 else f"{text[:77]}..."


def shape_of(name: str, got: tuple, wanted: tuple | None) -> None:
    """Raise ValueError if ``got`` is not the shape ``wanted``, where None stands for any size."""
    if wanted is not None and (
        len(got) != len(wanted)
        or any(w is not None and w != g for w, g in zip(wanted, got, strict=True))
    ):
        sizes = ", ".join("*" if w is None else str(w) for w in wanted)
        raise ValueError(f"{name} must have shape ({sizes}), got {got}")


def as_array(name: str, value) -> np.ndarray:
    """``np.asarray``, also for tensors that require a gradient, lie on a GPU or are bfloat16."""
    if type(value) is np.ndarray and value.dtype.kind != "V":
        return value
    if hasattr(value, "batch_sizes") and hasattr(value, "unsorted_indices"):
        raise TypeError(
            f"{name} must be an array, got a PackedSequence: use pad_packed_sequence and pass "
            f"the lengths"
        )
    try:
        if hasattr(value, "detach"):  # PyTorch
            value = value.detach().cpu()
            is_half = value.is_floating_point() and value.dtype.itemsize == 2
            return (value.float() if is_half else value).numpy()
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from error


def as_list(value):
    """A column of pandas or pyarrow as a list, anything else as it is."""
    if getattr(value, "ndim", 1) == 2 and hasattr(value, "iloc"):
        raise TypeError(f"expected one column, got a {type(value).__name__}")
    if hasattr(value, "to_pylist"):
        return value.to_pylist()
    return list(value) if hasattr(value, "iloc") else value


def all_finite(array: np.ndarray) -> bool:
    """Whether no number is infinite or NaN."""
    return bool(np.isfinite(array).all())


def real_array(
    name: str, value, dtype, shape: tuple | None = None, is_finite=all_finite
) -> np.ndarray:
    """``value`` as a finite C-contiguous array of ``dtype``; None in ``shape`` is any size."""
    array = as_array(name, value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    shape_of(name, array.shape, shape)
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused
        array = np.ascontiguousarray(array, dtype).reshape(array.shape)
    if not is_finite(array):
        raise ValueError(f"{name} must be finite, got NaN or infinity (in {dtype})")
    return array


def integer_array(name: str, value, dimensions: int | None = None) -> np.ndarray:
    """``value`` as a C-contiguous int64 array."""
    array = as_array(name, value)
    if dimensions not in (None, array.ndim):
        raise ValueError(f"{name} must have {dimensions} dimensions, got shape {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)


def below(name: str, what: str, ids: np.ndarray, limit: int, counts=True) -> None:
    """Raise IndexError if an integer is outside ``[0, limit)`` where ``counts`` is true."""
    bad = ((ids < 0) | (ids >= limit)) & counts
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise IndexError(
            f"{name}: {what} {ids.reshape(-1)[at]} at position {at} is not in [0, {limit})"
        )


def lengths_array(name: str, value, batch: int, steps: int) -> np.ndarray:
    """``value`` as int64 [batch], every entry in ``[0, steps]``."""
    array = integer_array(name, value)
    if array.shape != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() > steps):
        raise ValueError(
            f"{name} must be between 0 and {steps}, got {array.min()} to {array.max()}"
        )
    return array


def integer(name: str, value, least: int = 1) -> int:
    """``value`` as an int of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least or int(value) >= 2**63:
        few = f"at least {least}" if value < least else "below 2**63"
        raise ValueError(f"{name} must be {few}, got {short(value)}")
    return int(value)


def _as_float(name: str, value) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:  # an int
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def number(name: str, value, low: float, high: float, *, closed: bool = False) -> float:
    """``value`` as a float in ``[low, high)``, or ``[low, high]`` if ``closed``."""
    value = _as_float(name, value)
    if not (low <= value < high or (closed and value == high)):
        raise ValueError(f"{name} must be in [{low}, {high}{']' if closed else ')'}, got {value}")
    return value


def above_zero(name: str, value) -> float:
    """``value`` as a float above 0; infinity is allowed."""
    value = _as_float(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


def choice(name: str, value, choices: Iterable[str]) -> str:
    """``value`` if it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {short(value)}")
    return value


def path(name: str, value) -> Path:
    """``value`` as a Path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    try:
        if b"\0" in os.fsencode(value):
            raise ValueError("it has a null byte")
    except ValueError as error:
        raise ValueError(f"{name} must be a path, got {value!r}: {error}") from None
    return Path(value)


def has(name: str, value, *wanted: str) -> None:
    """Raise TypeError if ``value`` has not all of these attributes."""
    missing = [a for a in wanted if not hasattr(value, a)]
    if missing or isinstance(value, type):
        raise TypeError(
            f"{name} must be an object with {', '.join(wanted)}, got {type(value).__name__}"
        )


def flag(name: str, value) -> bool:
    """``value`` as a bool; 0 and 1 are allowed."""
    if not isinstance(value, bool | np.bool_ | Integral) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {short(value)}")
    return bool(value)


def generator(name: str, seed) -> np.random.Generator:
    """A generator of random numbers from what NumPy takes as a seed."""
    try:
        return np.random.default_rng(seed)
    except Exception as error:  # of many kinds
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} must be None or an int of at least 0, got {short(seed)}") from None


def float_dtype(name: str, value) -> np.dtype:
    """``value`` as float32 or float64."""
    dtype = None
    if isinstance(value, str | type | np.dtype):
        with contextlib.suppress(Exception):  # NumPy raises many kinds, SyntaxError among them
            dtype = np.dtype(value)
    if dtype is None or dtype.name not in DTYPES or not dtype.isnative:
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}; got {short(value)}")
    return dtype
