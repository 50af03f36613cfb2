"""Arrays in the device's memory, and the stream that everything is queued on."""

import contextlib
import math
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numba.core import config

from fastrnn.kernels import is_on_device

from . import simulated

SIMULATED = bool(config.ENABLE_CUDASIM)

_LEGACY = 1  # the default stream, which waits for what was queued before, and the other way round


class _Thread(threading.local):
    """What each thread has of its own: its stream, and whether it knows the device."""

    stream = _LEGACY
    ready = False


_here = _Thread()
_last = _LEGACY  # the stream that was used last, by anybody


def stream() -> int:
    """The stream of now, as a handle."""
    return _here.stream


def _switch(to: int) -> None:
    """Go on with another stream, after all that was queued on the one before."""
    global _last
    if to != _last and not SIMULATED:
        event = call("cuEventCreate", 2)  # without timing
        call("cuEventRecord", event, _last)
        call("cuStreamWaitEvent", to, event, 0)
        call("cuEventDestroy", event)  # when it is done
        _last = to
    _here.stream = to


@contextlib.contextmanager
def on_stream_of(x) -> Iterator[None]:
    """Queue everything on the stream that x's package is on; on the default one if it has none."""
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
        _switch(before)  # what comes next there may use what was made here


def call(function: str, *args) -> Any:
    """A function of the driver; what it returns, or RuntimeError."""
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
    # What is freed stays with us: the pool would give it back whenever somebody waits.
    _, pool = driver.cuDeviceGetDefaultMemPool(found.device_id)
    keep = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    driver.cuMemPoolSetAttribute(pool, keep, driver.cuuint64_t(2**64 - 1))
    return found


def use_device() -> None:
    """Let this thread know the GPU."""
    if not _here.ready:
        device().set_current()
        _here.ready = True


class _Memory:
    """A block of memory, given back to the device's pool when nothing refers to it any more."""

    def __init__(self, size: int):
        self.pointer = int(call("cuMemAllocAsync", max(size, 1), stream()))

    def __del__(self):
        with contextlib.suppress(Exception):  # as when Python ends
            # Whatever used it was queued on this stream, or on one that this one waits for.
            call("cuMemFreeAsync", self.pointer, _last)


class _Foreign:
    """Memory of somebody else."""

    def __init__(self, owner, pointer: int):
        self.owner, self.pointer = owner, pointer


class _Simulated:
    """Memory of the simulation: NumPy's, not a number at first."""

    def __init__(self, array: np.ndarray):
        self.array = array


class DeviceArray:
    """A C-contiguous array on the device. On the host one can copy it, reshape it and take a part
    along its first axis; other packages see it by the CUDA array interface."""

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
        from .moves import move

        part, value = self[key], to_device(value)
        assert part.shape == value.shape
        move(value, 0, part, 0, part.size)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def pointer(self) -> int:
        return self._memory.pointer + self._at * self.dtype.itemsize

    @property
    def flat(self) -> np.ndarray:
        """What a kernel sees in the simulation."""
        return self._memory.array[self._at : self._at + self.size]

    def copy_to_host(self) -> np.ndarray:
        """A NumPy array, when all that was queued before is done."""
        if SIMULATED:
            return np.array(self.flat, subok=False).reshape(self.shape)
        out = np.empty(self.shape, self.dtype)
        if self.size:
            call("cuMemcpyDtoHAsync", out.ctypes.data, self.pointer, out.nbytes, stream())
            call("cuStreamSynchronize", stream())
        return out

    def __array__(self, dtype=None, copy=None):
        raise TypeError("an array on the device is not copied unasked: use copy_to_host()")

    @property
    def __cuda_array_interface__(self) -> dict:
        if SIMULATED:
            raise AttributeError("simulated memory is no device's")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": stream(),
        }


def empty(shape, dtype) -> DeviceArray:
    """Memory with anything in it."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    count = math.prod(shape)
    memory = (
        _Simulated(simulated.new(count, dtype)) if SIMULATED else _Memory(count * dtype.itemsize)
    )
    return DeviceArray(memory, 0, shape, dtype)


def _described(x) -> tuple:
    """``(what keeps it alive, pointer, shape, strides in numbers or None, dtype)`` of an array of
    somebody else, by the CUDA array interface or DLPack."""
    if hasattr(x, "__cuda_array_interface__"):
        facts = x.__cuda_array_interface__
        dtype, strides = np.dtype(facts["typestr"]), facts.get("strides")
        strides = strides and tuple(s // dtype.itemsize for s in strides)
        return x, facts["data"][0], facts["shape"], strides, dtype
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(x, stream())
    return view, view.ptr, view.shape, view.strides, view.dtype


def to_device(x) -> DeviceArray:
    """x on the device, C-contiguous; what lies there already is not copied."""
    if isinstance(x, DeviceArray):
        return x
    if is_on_device(x):
        owner, pointer, shape, strides, dtype = _described(x)
        row = 1
        for size, stride in zip(shape[::-1], (strides or ())[::-1], strict=False):
            if stride != row and size > 1:
                raise ValueError("an array on the device must be C-contiguous")
            row *= size
        return DeviceArray(_Foreign(owner, pointer), 0, shape, dtype)
    x = np.ascontiguousarray(x).reshape(np.shape(x))
    out = empty(x.shape, x.dtype)
    if SIMULATED:
        out.flat[:] = x.reshape(-1)
    elif x.size:
        # Of pageable memory: when this comes back, x has been read.
        call("cuMemcpyHtoDAsync", out.pointer, x.ctypes.data, x.nbytes, stream())
    return out


def to_host(x) -> np.ndarray:
    """x as a NumPy array; waits for what computes it."""
    return x.copy_to_host() if isinstance(x, DeviceArray) else x


def like(x, array):
    """An array (or None) as the package that x is of knows it: NumPy's, torch's, CuPy's or as it
    is."""
    if array is None or not is_on_device(x):
        return to_host(array)
    package = type(x).__module__.partition(".")[0]
    if package == "torch":
        import torch

        return torch.as_tensor(array, device=x.device)
    if package == "cupy":
        import cupy

        return cupy.asarray(array)
    return array
