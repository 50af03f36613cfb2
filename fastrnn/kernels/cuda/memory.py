"""Arrays in the device's memory, and the stream that everything is queued on."""

import contextlib
import math
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numba.core import config

from . import simulated

SIMULATED = bool(config.ENABLE_CUDASIM)

_LEGACY = 1  # the default stream, which synchronises with all others


class _Thread(threading.local):
    """Each thread's stream, and whether it has made the device current."""

    stream = _LEGACY
    ready = False


_here = _Thread()
_last = _LEGACY  # the stream that was used last, by any thread


def stream() -> int:
    """The handle of this thread's current stream."""
    return _here.stream


def _switch(to: int) -> None:
    """Continue on another stream, after everything that was queued on the previous one."""
    global _last
    if to != _last and not SIMULATED:
        event = call("cuEventCreate", 2)  # without timing
        call("cuEventRecord", event, _last)
        call("cuStreamWaitEvent", to, event, 0)
        call("cuEventDestroy", event)  # once it has happened
        _last = to
    _here.stream = to


@contextlib.contextmanager
def stream_of(x) -> Iterator[None]:
    """Queue everything on the current stream of x's package; on the default one if it has none."""
    before, package, handle = stream(), type(x).__module__.partition(".")[0], 0
    if package == "torch":
        import torch

        handle = torch.cuda.current_stream(x.device).cuda_stream
    elif package == "cupy":
        import cupy

        handle = cupy.cuda.get_current_stream().ptr
    elif hasattr(x, "__cuda_array_interface__"):
        handle = x.__cuda_array_interface__.get("stream") or 0
    _switch(handle or _LEGACY)
    try:
        yield
    finally:
        _switch(before)  # later work there may use the results


def call(function: str, *args) -> Any:
    """Call a function of the driver and return its result; RuntimeError if it fails."""
    from cuda.bindings import driver

    use_device()
    error, *out = getattr(driver, function)(*args)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function} failed: {error.name}")
    return out[0] if out else None


@cache
def device() -> Any:
    """The GPU."""
    from cuda.bindings import driver
    from cuda.core import Device

    found = Device()
    found.set_current()
    # Freed memory stays in the pool, which would return it to the system at every synchronisation.
    _, pool = driver.cuDeviceGetDefaultMemPool(found.device_id)
    keep = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    driver.cuMemPoolSetAttribute(pool, keep, driver.cuuint64_t(2**64 - 1))
    return found


def use_device() -> None:
    """Make the GPU current in this thread."""
    if not _here.ready:
        device().set_current()
        _here.ready = True


class _Memory:
    """A block of memory, returned to the device's pool when nothing refers to it any more."""

    def __init__(self, size: int):
        self.pointer = int(call("cuMemAllocAsync", max(size, 1), stream()))

    def __del__(self):
        with contextlib.suppress(Exception):  # as while Python shuts down
            # All uses were queued on this stream, or on one that this one waits for.
            call("cuMemFreeAsync", self.pointer, _last)


class _Foreign:
    """Memory of another package, kept alive by ``owner``."""

    def __init__(self, owner, pointer: int):
        self.owner, self.pointer = owner, pointer


class _Simulated:
    """Memory of the simulation: NumPy's, initially NaN."""

    def __init__(self, array: np.ndarray):
        self.array = array


class DeviceArray:
    """A C-contiguous array on the device.

    The host can copy it, reshape it and take parts along its first axis; other packages read it by
    the CUDA array interface.
    """

    def __init__(self, memory, at: int, shape: tuple[int, ...], dtype):
        self._memory, self._at = memory, at
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.size, self.ndim = math.prod(self.shape), len(self.shape)

    def reshape(self, *shape) -> "DeviceArray":
        """The same numbers in another shape."""
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        if math.prod(shape) != self.size:
            raise ValueError(f"{self.shape} cannot become {shape}")
        return DeviceArray(self._memory, self._at, shape, self.dtype)

    def __getitem__(self, key) -> "DeviceArray":
        if isinstance(key, slice):
            first, last, step = key.indices(self.shape[0])
            assert step == 1
            shape: tuple[int, ...] = (max(0, last - first), *self.shape[1:])
        else:
            first, shape = range(self.shape[0])[key], self.shape[1:]
        at = self._at + first * math.prod(self.shape[1:])
        return DeviceArray(self._memory, at, shape, self.dtype)

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
    def pointer(self) -> int:
        return self._memory.pointer + self._at * self.dtype.itemsize

    @property
    def flat(self) -> np.ndarray:
        """The NumPy array that a kernel is given in the simulation."""
        return self._memory.array[self._at : self._at + self.size]

    def copy_to_host(self) -> np.ndarray:
        """A NumPy array, after everything that was queued before is done."""
        if SIMULATED:
            return np.array(self.flat, subok=False).reshape(self.shape)
        out = np.empty(self.shape, self.dtype)
        if self.size:
            call("cuMemcpyDtoHAsync", out.ctypes.data, self.pointer, out.nbytes, stream())
            call("cuStreamSynchronize", stream())
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
            "stream": stream(),
        }


def empty(shape, dtype) -> DeviceArray:
    """Uninitialised memory."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    count = math.prod(shape)
    memory = (
        _Simulated(simulated.new(count, dtype)) if SIMULATED else _Memory(count * dtype.itemsize)
    )
    return DeviceArray(memory, 0, shape, dtype)


def _write(x: np.ndarray, to: DeviceArray) -> None:
    """Copy an array of the host to the device."""
    x = np.ascontiguousarray(x)
    if SIMULATED:
        to.flat[:] = x.reshape(-1)
    elif x.size:
        # From pageable memory: x has been read when the call returns.
        call("cuMemcpyHtoDAsync", to.pointer, x.ctypes.data, x.nbytes, stream())


def _copy(x: DeviceArray, to: DeviceArray) -> None:
    if SIMULATED:
        to.flat[:] = x.flat
    elif x.size:
        call("cuMemcpyDtoDAsync", to.pointer, x.pointer, x.size * x.dtype.itemsize, stream())


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


def _described(x) -> tuple:
    """``(owner, pointer, shape, strides in elements or None, dtype)`` of another package's array,
    by the CUDA array interface or DLPack; the owner keeps the memory alive."""
    if hasattr(x, "__cuda_array_interface__"):
        facts = x.__cuda_array_interface__
        dtype, strides = np.dtype(facts["typestr"]), facts.get("strides")
        strides = strides and tuple(s // dtype.itemsize for s in strides)
        return x, facts["data"][0], facts["shape"], strides, dtype
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(x, stream())
    return view, view.ptr, view.shape, view.strides, view.dtype


def device_view(x) -> DeviceArray:
    """Another package's C-contiguous array in the device's memory, without a copy."""
    if isinstance(x, DeviceArray):
        return x
    if getattr(x, "requires_grad", False):
        x = x.detach()
    owner, pointer, shape, strides, dtype = _described(x)
    expected = 1
    for size, stride in zip(shape[::-1], (strides or ())[::-1], strict=False):
        if stride != expected and size > 1:
            raise ValueError("an array on the device must be C-contiguous")
        expected *= size
    return DeviceArray(_Foreign(owner, pointer), 0, shape, dtype)


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
