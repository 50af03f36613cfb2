"""The one door between the host and the device: nothing else asks where an array lies.

Kernels take and return arrays that lie where their backend computes. What users pass may be
anything: NumPy arrays, lists, and, with the backend "cuda", arrays of any package in the GPU's
memory. A `Door` takes these in, checked, and gives results back the way the caller knows them.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastrnn import checks

from .backend import Backend, get_backend

_DLPACK_CUDA = 2  # kDLCUDA of dlpack.h


def is_on_device(x: Any) -> bool:
    """Whether x is an array in a GPU's memory, of whatever package."""
    if hasattr(type(x), "is_cuda"):  # PyTorch, whose interface raises where a gradient is required
        return bool(x.is_cuda)
    if hasattr(x, "copy_to_host") or hasattr(x, "__cuda_array_interface__"):
        return True
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] == _DLPACK_CUDA


def backend_of(x: Any) -> Backend:
    """The backend where an array lies: "cuda" for one in a GPU's memory, else "cpu"."""
    return get_backend("cuda" if is_on_device(x) else "cpu")


class Door:
    """The way in and out for one call.

    Parameters
    ----------
    kernels : Backend
    x : array_like
        The caller's main argument: results are returned where it lies, as arrays of its package.
    name : str, default "x"
        Its name, for errors.
    """

    __slots__ = ("is_device", "kernels", "name", "x")

    def __init__(self, kernels: Backend, x: Any, name: str = "x"):
        self.kernels, self.x, self.name = kernels, x, name
        self.is_device = kernels.on_device and is_on_device(x)

    def stream(self) -> AbstractContextManager:
        """Queue everything on the stream of the caller's package."""
        return self.kernels.stream_of(self.x)

    def take(self, name: str, value: Any, dtype: np.dtype, shape: tuple | None = None) -> Any:
        """``value`` as an array for the kernels; None in ``shape`` is any size.

        Raises
        ------
        ValueError
            The shape differs, a number on the host is not finite, or ``value`` lies on another
            device than the main argument, on the device while that does not, or requires a
            gradient.
        TypeError
            It is not numeric, or an array on the device is of another dtype.
        """
        kernels = self.kernels
        if not (kernels.on_device and is_on_device(value)):
            array = checks.real_array(name, value, dtype, shape, kernels.all_finite)
            return kernels.to_device(array)
        if not self.is_device:
            raise ValueError(f"{name} must be on the host, as {self.name} is")
        array = kernels.device_view(value, name)
        if array.dtype != dtype:
            raise TypeError(f"{name} must be of dtype {dtype}, got {array.dtype}")
        checks.shape_of(name, array.shape, shape)
        return array

    def give(self, array: Any) -> Any:
        """A result as the caller knows arrays; None stays None."""
        if not self.kernels.on_device or array is None:
            return array
        if self.is_device:
            return self.kernels.to_caller(self.x, array)
        return self.kernels.to_host(array)
