"""Arrays in the device's memory."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from . import driver, simulated
from .driver import SIMULATED

_ALIGNED = 4  # numbers: the parts of a block begin at multiples of 16 bytes or more


class _Memory:
    """A block of a device's memory, returned when nothing refers to it any more."""

    __slots__ = ("device", "pointer", "size", "stream")
    is_own = True

    def __init__(self, device: driver.Device, size: int):
        size, self.stream = driver.rounded(size), device.stream()
        self.pointer = device.allocate(size, self.stream)
        self.device, self.size = device, size

    def __del__(self):
        if hasattr(self, "size"):  # else there was no such block
            self.device.free(self.pointer, self.size, self.stream)


class _Foreign:
    """Memory of another package, kept alive by ``owner``."""

    is_own = False

    def __init__(self, owner, pointer: int):
        self.owner, self.pointer = owner, pointer
        self.device = None if SIMULATED else driver.device_of(pointer)


class _Simulated:
    """Memory of the simulation: NumPy's, initially NaN."""

    device = None
    pointer = 0

    def __init__(self, array: np.ndarray):
        self.array = array


class DeviceArray:
    """A C-contiguous array on the device.

    The host can copy it, reshape it and take parts along its first axis; other packages read it by
    the CUDA array interface.
    """

    __slots__ = ("_at", "device", "dtype", "memory", "pointer", "shape")

    def __init__(self, memory, at: int, shape: tuple[int, ...], dtype: np.dtype):
        self.memory, self._at, self.shape, self.dtype = memory, at, shape, dtype
        self.device, self.pointer = memory.device, memory.pointer + at * dtype.itemsize

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def reshape(self, *shape) -> "DeviceArray":
        """The same numbers in another shape."""
        if shape == self.shape:
            return self
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"{self.shape} cannot become {shape}")
        return DeviceArray(self.memory, self._at, shape, self.dtype)

    def __getitem__(self, key) -> "DeviceArray":
        count, inner = self.shape[0], self.shape[1:]
        if isinstance(key, slice):
            first, last, step = key.indices(count)
            assert step == 1
            inner = max(0, last - first), *inner
        else:
            first = range(count)[key]
        at = self._at + first * math.prod(self.shape[1:])
        return DeviceArray(self.memory, at, inner, self.dtype)

    def __setitem__(self, key: slice, value) -> None:
        """Copy an array of the host or the device into a part."""
        part = self[key]
        assert part.shape == value.shape and part.dtype == value.dtype
        if isinstance(value, DeviceArray):
            _copy(value, part)
        else:
            _write(value, part)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def flat(self) -> np.ndarray:
        """The NumPy array that a kernel is given in the simulation."""
        return self.memory.array[self._at : self._at + self.size]

    def copy_to_host(self) -> np.ndarray:
        """A NumPy array, after everything that was queued before is done."""
        if SIMULATED:
            return np.array(self.flat, subok=False).reshape(self.shape)
        out = np.empty(self.shape, self.dtype)
        if self.size:
            self.device.queue("cuMemcpyDtoHAsync", out.ctypes.data, self.pointer, out.nbytes)
            self.device.synchronise()
        return out

    def __array__(self, dtype=None, copy=None):
        raise TypeError("an array on the device is not copied implicitly: use copy_to_host()")

    @property
    def __cuda_array_interface__(self) -> dict:
        if SIMULATED:
            raise AttributeError("simulated memory is not on a device")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": self.device.ready(),
        }


def empty(shape, dtype) -> DeviceArray:
    """Uninitialised memory."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    count, allocate = math.prod(shape), driver.graph_memory()
    if SIMULATED:
        memory: Any = _Simulated(simulated.new(count, dtype))
    elif allocate:
        memory = _Foreign(*allocate(count * dtype.itemsize))
    else:
        memory = _Memory(driver.here(), count * dtype.itemsize)
    return DeviceArray(memory, 0, shape, dtype)


def empties(dtype, *shapes: tuple[int, ...]) -> list[DeviceArray]:
    """Uninitialised arrays in one block of memory, which lives as long as any of them."""
    dtype, at, places = np.dtype(dtype), 0, []
    for shape in shapes:
        places.append(at)
        at += -(-math.prod(shape) // _ALIGNED) * _ALIGNED
    memory = empty(at, dtype).memory
    return [DeviceArray(memory, at, shape, dtype) for at, shape in zip(places, shapes, strict=True)]


def clear(x: DeviceArray) -> DeviceArray:
    """x, filled with zeros."""
    if SIMULATED:
        x.flat[:] = 0
    elif x.size:
        x.device.queue("cuMemsetD8Async", x.pointer, 0, x.nbytes)
    return x


def zeros(shape, dtype) -> DeviceArray:
    """An array of zeros."""
    return clear(empty(shape, dtype))


def _write(x: np.ndarray, to: DeviceArray) -> None:
    """Copy an array of the host to the device."""
    x = np.ascontiguousarray(x)
    if SIMULATED:
        to.flat[:] = x.reshape(-1)
    elif x.size:
        with to.device.current():
            to.device.queue("cuMemcpyHtoDAsync", to.pointer, x.ctypes.data, x.nbytes)
            if driver.is_pinned(x.ctypes.data):  # else x has been read when the call returns
                to.device.synchronise()


def _copy(x: DeviceArray, to: DeviceArray) -> None:
    if SIMULATED:
        to.flat[:] = x.flat
    elif x.size:
        to.device.queue("cuMemcpyDtoDAsync", to.pointer, x.pointer, x.nbytes)


def to_device(x) -> DeviceArray:
    """An array of the host on the device; a `DeviceArray` itself."""
    if isinstance(x, DeviceArray):
        return x
    x = np.asarray(x)
    out = empty(x.shape, x.dtype)
    _write(x, out)
    return out


def copy(x: DeviceArray) -> DeviceArray:
    """A copy of x on the device."""
    out = empty(x.shape, x.dtype)
    _copy(x, out)
    return out


@lru_cache(16)
def _kept_zeros(shape, dtype, device) -> DeviceArray:
    return zeros(shape, dtype)


def zero_state(shape, dtype) -> DeviceArray:
    """Zeros that nobody changes: the same array for all who ask, but one for each graph."""
    if driver.graph_memory():
        return zeros(shape, dtype)
    return _kept_zeros(tuple(shape), np.dtype(dtype), here())


def barriers(count: int = 1) -> DeviceArray:
    """What blocks wait at, see ptx.py: kernels write to it, and leave it ready for the next."""
    return zero_state((count,), np.uint32)


def here():
    """The device that new arrays lie on; None in the simulation."""
    return None if SIMULATED else driver.here()


def _described(x) -> tuple:
    """``(owner, pointer, shape, strides in elements or None, dtype, stream or None)`` of another
    package's array, by the CUDA array interface or DLPack; the owner keeps the memory alive, and
    the stream is one to wait for."""
    if hasattr(x, "__cuda_array_interface__"):
        facts = x.__cuda_array_interface__
        dtype, strides = np.dtype(facts["typestr"]), facts.get("strides")
        strides = strides and tuple(s // dtype.itemsize for s in strides)
        return x, facts["data"][0], facts["shape"], strides, dtype, facts.get("stream")
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(x, driver.stream())
    return view, view.ptr, view.shape, view.strides, view.dtype, None


def device_view(x, name: str = "x") -> DeviceArray:
    """Another package's C-contiguous array in the device's memory, without a copy.

    Raises
    ------
    ValueError
        It is not contiguous, on another device than the caller's main argument, or requires a
        gradient, which would be lost.
    """
    stream = None
    if not isinstance(x, DeviceArray):
        if getattr(x, "requires_grad", False):
            raise ValueError(
                f"{name} requires a gradient, which would be lost here: give {name}.detach(), or "
                "use the modules of fastrnn.torch"
            )
        owner, pointer, shape, strides, dtype, stream = _described(x)
        expected = 1
        for size, stride in zip(shape[::-1], (strides or ())[::-1], strict=False):
            if stride != expected and size > 1:
                raise ValueError(
                    f"{name} must be C-contiguous on the device, got strides {strides}"
                )
            expected *= size
        x = DeviceArray(_Foreign(owner, pointer), 0, tuple(shape), np.dtype(dtype))
    if x.device is not here():
        raise ValueError(f"{name} must be on {here()}, got an array on {x.device}")
    if stream and not SIMULATED:
        x.device.after(stream)
    return x


def to_host(x: DeviceArray) -> np.ndarray:
    """x as a NumPy array; waits for its computation."""
    return x.copy_to_host()


def to_caller(x, array: DeviceArray):
    """``array`` as an array of x's package if that is PyTorch or CuPy, else as it is."""
    package = type(x).__module__.partition(".")[0]
    if package == "torch":
        import torch

        return torch.as_tensor(array, device=x.device)
    if package == "cupy":
        import cupy

        return cupy.asarray(array)
    return array
