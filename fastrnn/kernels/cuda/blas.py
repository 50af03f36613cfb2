"""Matrix products by cuBLAS, where it is installed.

Its results do not depend on the run, but they do on the number of rows. ``FASTRNN_CUDA_PRODUCTS``
chooses: "cublas", or "own" for the kernel of gemm.py, which adds up each number of the result in
one order, whatever the shape.
"""

import ctypes
import os
from functools import cache
from typing import Any

import numpy as np

from .driver import SIMULATED, Device, graph_memory
from .matrix import Matrix, Sizes
from .memory import empty

_WORKSPACE = 32 << 20  # bytes, as the manual recommends for compute capability 9.0

# Of cublas_api.h and library_types.h.
_N, _T = 0, 1  # cublasOperation_t
_DEFAULT = -1  # cublasGemmAlgo_t
_TYPES = {"float32": 0, "float64": 1}  # cudaDataType_t
_COMPUTE = {"float32": 68, "float64": 70, "tf32": 77}  # cublasComputeType_t
_NUMBERS = {
    name: tuple(ctypes.pointer(kind(v)) for v in (0, 1))
    for name, kind in (("float32", ctypes.c_float), ("float64", ctypes.c_double))
}


@cache
def _library() -> Any:
    """cuBLAS, None where its use is not wished or it is not installed."""
    chosen = os.environ.get("FASTRNN_CUDA_PRODUCTS", "")
    if chosen not in ("", "cublas", "own"):
        raise ValueError(f"FASTRNN_CUDA_PRODUCTS must be cublas or own, got {chosen!r}")
    if SIMULATED or chosen == "own":
        return None
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        path = load_nvidia_dynamic_lib("cublas").abs_path
    except DynamicLibNotFoundError:
        if chosen:
            raise
        return None
    return declared(ctypes.CDLL(path))


def declared(library: Any) -> Any:
    """The library with the types of what is called."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cublasGemmEx.argtypes = (
        [pointer] + [number] * 5 + [pointer] + [pointer, number, number] * 2
        + [pointer] + [pointer, number, number] + [number] * 2
    )  # fmt: skip
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    library.cublasCreate_v2.argtypes = [ctypes.POINTER(pointer)]
    return library


def is_used() -> bool:
    """Whether products are computed by cuBLAS."""
    return _library() is not None


def _check(function: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{function} failed with status {status} (cublasStatus_t)")


@cache
def _handle(device: Device) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check("cublasCreate", _library().cublasCreate_v2(ctypes.byref(handle)))
    return handle


def operand(x: Matrix, rows: int, columns: int) -> tuple[int, int]:
    """``(operation, leading dimension)`` of a matrix [rows, columns] for cuBLAS, which stores
    columns one after the other: there our rows are columns."""
    if x.column == 1 and (rows == 1 or x.row >= columns):
        return _N, max(x.row, columns)
    assert x.row == 1
    return _T, max(x.column, rows)


def product(a: Matrix, b: Matrix, out: Matrix, sizes: Sizes, add: bool, tf32: bool) -> None:
    """``out = a @ b``, plus out itself if ``add``; float32 by way of TF32 if ``tf32``."""
    library, device, name = _library(), out.values.device, out.values.dtype.name
    rows, inner, columns = sizes
    (a_op, a_ld), (b_op, b_ld) = operand(a, rows, inner), operand(b, inner, columns)
    zero, one = _NUMBERS[name]
    kind, size = _TYPES[name], out.values.dtype.itemsize
    compute = _COMPUTE["tf32" if tf32 and name == "float32" else name]
    # The transposed product, out.T = b.T @ a.T, as rows are columns.
    with device.current():
        on = device.order()
        handle = _handle(device)
        _check("cublasSetStream", library.cublasSetStream_v2(handle, on))
        if graph_memory():  # its own memory would be shared by all graphs
            work = empty(_WORKSPACE, np.uint8)
            status = library.cublasSetWorkspace_v2(handle, work.pointer, work.nbytes)
            _check("cublasSetWorkspace", status)
        status = library.cublasGemmEx(
            handle, b_op, a_op, columns, rows, inner, one,
            b.values.pointer + b.offset * size, kind, b_ld,
            a.values.pointer + a.offset * size, kind, a_ld, one if add else zero,
            out.values.pointer + out.offset * size, kind, out.row, compute, _DEFAULT,
        )  # fmt: skip
        _check("cublasGemmEx", status)
        device.queued("cublasGemmEx", on, (a.values, b.values, out.values))
