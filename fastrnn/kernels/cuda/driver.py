"""The GPUs: their contexts, the order of what is queued on each, and their memory.

Whatever this package queues on a device happens in the order in which it is queued, also from
several threads and on several streams: an operation on another stream than the one before waits
for it. So kernels share their barriers, and freed memory can be used again at once. CUDA graphs are
replayed by others, outside of this order: they have barriers and memory of their own.
"""

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, cached_property
from typing import Any

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
# Whether kernels use small tiles, of which even small arrays fill several.
SMALL = SIMULATED and os.environ.get("FASTRNN_CUDA_TILES") != "real"
LEGACY = 1  # the default stream: all others wait for it and it for them, but non-blocking ones
_DEFAULTS = 0, 2  # how others call it, or a thread's own default stream, which waits for it
# Whether each operation is waited for, so that an error names the kernel that made it.
SYNCHRONOUS = os.environ.get("FASTRNN_CUDA_SYNC", "") not in ("", "0")


# What a CUDA graph can hold: operations that only touch the device.
_CAPTURED = "cuMemcpyDtoDAsync", "cuMemsetD8Async"

# ``bytes -> (owner, address)``: other memory than this package's own, while ``owner`` lives.
Allocate = Callable[[int], tuple[Any, int]]


class _Thread(threading.local):
    """Each thread's stream, and the device that this package made current in it."""

    stream = LEGACY
    device: "Device | None" = None
    allocate: Allocate | None = None  # while the stream is being captured, see `stream_of`


_here = _Thread()


def stream() -> int:
    """The handle of this thread's current stream."""
    return _here.stream


def graph_memory() -> Allocate | None:
    """What allocates memory while this thread's stream is being captured into a CUDA graph; None
    at other times."""
    return _here.allocate


@cache
def bindings() -> Any:
    """The module with the driver's functions."""
    from cuda.bindings import driver

    return driver


def driver_call(function: str, *args) -> Any:
    """Call a function of the driver and return its result; RuntimeError if it fails."""
    error, *out = getattr(bindings(), function)(*args)
    if error:
        raise failed(function, error)
    return out[0] if len(out) == 1 else out


def failed(what: str, error: Any) -> Exception:
    """What to raise for an error of the driver."""
    if error == bindings().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        return MemoryError(f"{what} failed: {error.name}")
    hint = (
        "" if SYNCHRONOUS else "; an earlier kernel may be the cause: FASTRNN_CUDA_SYNC=1 names it"
    )
    return RuntimeError(f"{what} failed: {error.name}{hint}")


class Device:
    """A GPU.

    Attributes
    ----------
    ordinal : int
        Its number.
    lock : threading.RLock
        Held while something is queued.
    """

    def __init__(self, ordinal: int):
        self.ordinal, self.lock = ordinal, threading.RLock()
        self._last: int | None = LEGACY  # the stream that was used last; None: see `leave`
        self._free: dict[tuple[int, int], list[int]] = {}  # blocks of memory by stream and size
        self._held = 0  # bytes of all blocks
        self._kept: set[Any] = set()  # blocks that graphs use

    def __repr__(self) -> str:
        return f"device {self.ordinal}"

    # Facts

    @cached_property
    def core(self) -> Any:
        """The same as `cuda.core` knows it."""
        from cuda.core import Device

        return Device(self.ordinal)

    @cached_property
    def capability(self) -> tuple[int, int]:
        """The compute capability."""
        return tuple(self.core.compute_capability)

    @cached_property
    def processors(self) -> int:
        """The number of multiprocessors."""
        return self.core.properties.multiprocessor_count

    @cached_property
    def most_shared(self) -> int:
        """Bytes of shared memory that a block can have if it asks for more than the default."""
        return self.core.properties.max_shared_memory_per_block_optin

    # Work

    @cached_property
    def _event(self) -> Any:
        """Recorded behind what was queued last, when another stream is to follow."""
        return driver_call("cuEventCreate", 2)  # without timing

    @cached_property
    def context(self) -> int:
        """Its primary context, which other packages use as well."""
        self.core.set_current()
        return int(driver_call("cuCtxGetCurrent"))

    def current(self) -> "_Current":
        """A context in which it is current in this thread, and its lock is held."""
        return _Current(self)

    def stream(self) -> int:
        """This thread's stream on the device."""
        return _here.stream if _here.device is self else LEGACY

    def order(self) -> int:
        """The stream to queue something on, after all that was queued before; inside `current`.

        A graph does not wait for what comes before it: who launches it sees to that."""
        on = self.stream()
        if on != self._last and not _here.allocate:
            if self._last is not None:
                driver_call("cuEventRecord", self._event, self._last)
            driver_call("cuStreamWaitEvent", on, self._event, 0)
            self._last = on
        return on

    def after(self, stream: int) -> None:
        """Make what is queued from now on wait for what others have queued on a stream."""
        if _here.allocate:
            return
        with self.current():
            on, stream = self.order(), LEGACY if stream in _DEFAULTS else stream
            if stream != on:
                driver_call("cuEventRecord", self._event, stream)
                driver_call("cuStreamWaitEvent", on, self._event, 0)

    def leave(self, stream: int) -> None:
        """Remember what was queued on a stream that its owner may destroy."""
        with self.current():
            if self._last == stream != LEGACY:
                driver_call("cuEventRecord", self._event, stream)
                self._last = None

    def ready(self) -> int:
        """A stream that waits for everything queued so far."""
        with self.current():
            return self.order()

    def queue(self, function: str, *args) -> None:
        """Call a function of the driver whose last argument is the stream.

        Raises
        ------
        RuntimeError
            It fails, or cannot be part of the graph that the stream is being captured into.
        """
        if _here.allocate and function not in _CAPTURED:
            raise RuntimeError(
                f"{function} cannot be part of a CUDA graph: make the same call once before it is "
                "captured, with arrays on the device and without lengths"
            )
        with self.current():
            driver_call(function, *args, self.order())

    def queued(self, kernel: str, on: int, arrays: Iterable) -> None:
        """Called with each kernel and what it uses when it was queued; inside `current`.

        Waits for it if errors are to be known as its own. What a graph uses stays allocated, as
        nobody says when the graph is gone."""
        if _here.allocate:
            self._kept.update(a.memory for a in arrays if a.memory.is_own)
        elif SYNCHRONOUS:
            try:
                driver_call("cuStreamSynchronize", on)
            except RuntimeError as error:
                raise RuntimeError(f"the kernel {kernel} failed: {error}") from None

    def synchronise(self) -> None:
        """Wait for everything that this package has queued."""
        self.queue("cuStreamSynchronize")

    # Memory

    def allocate(self, size: int, stream: int) -> int:
        """The address of a block of ``size`` bytes, a result of `rounded`.

        A block is used again only on the stream for which it was allocated: other packages may
        have queued work on it there as well.

        Raises
        ------
        MemoryError
            There is no such block, also after all unused memory was given back.
        """
        try:
            return self._free[stream, size].pop()
        except (KeyError, IndexError):
            return self._new(size)

    def free(self, pointer: int, size: int, stream: int) -> None:
        """Return a block; what is queued from now on may use it. Called by the garbage collector,
        so at any time and in any thread."""
        self._free.setdefault((stream, size), []).append(pointer)

    def _new(self, size: int) -> int:
        with self.current():
            try:
                pointer = int(driver_call("cuMemAlloc", size))
            except MemoryError:
                self.trim()
                try:
                    pointer = int(driver_call("cuMemAlloc", size))
                except MemoryError:
                    free, total = driver_call("cuMemGetInfo")
                    raise MemoryError(
                        f"{self}: {size} bytes are not free: {self._held} are in use here, and "
                        f"{free} of {total} are left"
                    ) from None
            self._held += size
        return pointer

    def trim(self) -> None:
        """Give unused memory back to the system."""
        with self.current():
            self.synchronise()
            for (_, size), blocks in list(self._free.items()):
                with suppress(IndexError):  # empty; other threads may take blocks as well
                    while True:
                        driver_call("cuMemFree", blocks.pop())
                        self._held -= size


class _Current:
    """See `Device.current`."""

    __slots__ = ("_before", "_device")

    def __init__(self, device: Device):
        self._device = device

    def __enter__(self) -> None:
        device = self._device
        if _here.device is not device:  # else it is current already, see `stream_of`
            self._before = driver_call("cuCtxGetCurrent")
            driver_call("cuCtxSetCurrent", device.context)
        device.lock.acquire()

    def __exit__(self, *error) -> None:
        device = self._device
        device.lock.release()
        if _here.device is not device:
            driver_call("cuCtxSetCurrent", self._before)


def rounded(size: int) -> int:
    """The size of the blocks that are kept for ``size`` bytes: at most a quarter larger, or 512."""
    step = 1 << max(9, size.bit_length() - 3)
    return max(1, -(-size // step)) * step


@cache
def device(ordinal: int) -> Device:
    """The GPU of that number."""
    return Device(ordinal)


def here() -> Device:
    """This thread's GPU: that of the caller's arrays, else CUDA's current one."""
    if _here.device is not None:
        return _here.device
    from cuda.core import Device

    return device(Device().device_id)


def device_of(pointer: int) -> Device:
    """The GPU whose memory an address is in; for that of an empty array, 0, this thread's GPU."""
    if not pointer:
        return here()
    attribute = bindings().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return device(int(driver_call("cuPointerGetAttribute", attribute, pointer)))


def is_pinned(pointer: int) -> bool:
    """Whether an address of the host is one from which copies are made later."""
    attribute = bindings().CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    error, _ = bindings().cuPointerGetAttribute(attribute, pointer)
    return not error  # the driver does not know other addresses


def _place(x: Any) -> tuple[Device, int]:
    """The device of the caller's array, and the current stream of its package."""
    own: Any = getattr(x, "device", None)
    if type(own) is Device:  # a `DeviceArray`
        return own, _here.stream if _here.device is own else LEGACY
    package = type(x).__module__.partition(".")[0]
    if package == "torch" and x.is_cuda:
        import torch

        return device(own.index), torch.cuda.current_stream(own).cuda_stream
    if package == "cupy":
        import cupy

        return device(own.id), cupy.cuda.get_current_stream(own.id).ptr
    if package != "torch" and hasattr(x, "__cuda_array_interface__"):
        facts = x.__cuda_array_interface__
        return device_of(facts["data"][0]), facts.get("stream") or 0
    if hasattr(x, "__dlpack_device__") and not hasattr(x, "__array__"):
        return device(x.__dlpack_device__()[1]), 0
    return here(), 0


def _by_pytorch(x: Any) -> Allocate:
    """Memory of PyTorch, which keeps what is allocated while a graph is captured for the graph."""
    if type(x).__module__.partition(".")[0] != "torch":
        raise RuntimeError(
            "the current stream is being captured into a CUDA graph, which needs tensors of "
            "PyTorch, as its allocator keeps the graph's memory"
        )
    import torch

    def allocate(size: int) -> tuple[Any, int]:
        out = torch.empty(size, dtype=torch.uint8, device=x.device)
        return out, out.data_ptr()

    return allocate


class stream_of:
    """A context in which everything is queued on the device of x and the current stream of its
    package; on the current device and the default stream if x is on the host.

    If that stream is being captured into a CUDA graph, memory comes from PyTorch, which keeps it
    for the graph.

    Raises
    ------
    RuntimeError
        It is being captured, and x is not PyTorch's.
    """

    __slots__ = ("_allocate", "_before", "_chosen", "_outer")

    def __init__(self, x: Any):
        if SIMULATED:
            return
        chosen, handle = _place(x)
        handle = LEGACY if handle in _DEFAULTS else handle
        self._chosen, self._allocate = (chosen, handle), None
        if handle != LEGACY and int(driver_call("cuStreamIsCapturing", handle)):
            self._allocate = _by_pytorch(x)

    def __enter__(self) -> None:
        if SIMULATED:
            return
        self._outer = _here.device, _here.stream, _here.allocate
        chosen, handle = self._chosen
        self._before = int(driver_call("cuCtxGetCurrent"))
        if self._before != chosen.context:
            driver_call("cuCtxSetCurrent", chosen.context)
        _here.device, _here.stream, _here.allocate = chosen, handle, self._allocate

    def __exit__(self, *error) -> None:
        if SIMULATED:
            return
        chosen, handle = self._chosen
        try:
            if handle != self._outer[1]:
                chosen.leave(handle)
        finally:
            _here.device, _here.stream, _here.allocate = self._outer
            if self._before not in (0, chosen.context):
                driver_call("cuCtxSetCurrent", self._before)
