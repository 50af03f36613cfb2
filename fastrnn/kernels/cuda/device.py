"""The device: its memory, how a kernel is launched on it, and the cells' equations for scalars.

With ``NUMBA_ENABLE_CUDASIM=1`` there is no device: kernels run as plain Python (simulated.py),
on small tiles, and memory is NumPy's.
"""

import importlib.util
import math
import re
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types
from numba.core import config
from numba.np.numpy_support import from_dtype

from fastrnn.cells import activations

from . import simulated

SIMULATED = bool(config.ENABLE_CUDASIM)


def require() -> None:
    """Raise ImportError or ValueError unless kernels can run."""
    if SIMULATED:
        return
    if importlib.util.find_spec("numba_cuda") is None:
        raise ImportError('the backend "cuda" needs an extra: pip install "fastrnn[cuda]"')
    if not cuda.is_available():
        why = " ".join(str(cuda.cuda_error()).split())
        raise ValueError(f"backend 'cuda' needs an NVIDIA GPU and its driver: {why}")


# Memory


def is_on_device(x) -> bool:
    """Whether x lies in a GPU's memory, whoever put it there."""
    return isinstance(x, simulated.DeviceArray) or hasattr(x, "__cuda_array_interface__")


def to_device(x) -> Any:
    """x as a C-contiguous array of the device; what lies there is not copied."""
    if isinstance(x, simulated.DeviceArray):
        return x
    if SIMULATED:
        return simulated.to_device(x)
    return cuda.as_cuda_array(x) if is_on_device(x) else cuda.to_device(np.ascontiguousarray(x))


def to_host(x) -> np.ndarray:
    """x as a NumPy array; waits for what computes it."""
    return x if isinstance(x, np.ndarray) else x.copy_to_host()


def empty(shape, dtype) -> Any:
    """Memory of the device, with anything in it."""
    return simulated.empty(shape, dtype) if SIMULATED else cuda.device_array(shape, dtype)


# Kernels see every array as a bare pointer, and every other argument as an int64: a launch then
# costs microseconds, not tens of them. Numba compiles them; NVIDIA's own launcher runs them, as
# Numba's knows no clusters and no more than 48 KB of shared memory.


class Kernel(NamedTuple):
    """A kernel for blocks of ``block`` threads, compiled when it is first run."""

    function: Callable
    block: int
    waits: bool = False  # for other blocks, so all must be there at once

    def __call__(self, grid: tuple[int, int], *args, shared: int = 0, cluster: int = 1) -> None:
        """Run it on ``grid`` clusters of ``cluster`` blocks, ``shared`` bytes of memory each."""
        if not all(grid):
            return
        if SIMULATED:
            grid = grid[0] * cluster, grid[1]
            simulated.run(self.function, cuda, grid, self.block, args, shared, cluster)
            return
        from cuda.core import LEGACY_DEFAULT_STREAM, LaunchConfig, launch

        config = LaunchConfig(
            grid=grid, cluster=cluster if cluster > 1 else None, block=self.block,
            shmem_size=shared, is_cooperative=self.waits,
        )  # fmt: skip
        values = [_pointer(a) if hasattr(a, "dtype") else np.int64(a) for a in args]
        launch(LEGACY_DEFAULT_STREAM, config, _loaded(self, _signature(args)), *values)

    def most_blocks(self, *args, shared: int) -> int:
        """How many blocks can be there at once, so that they may wait for each other."""
        if SIMULATED:
            return 6
        occupancy = _loaded(self, _signature(args)).occupancy
        of_each = occupancy.max_active_blocks_per_multiprocessor(self.block, shared)
        return of_each * _device().properties.multiprocessor_count


kernel = Kernel


def _pointer(array) -> int:
    return array.__cuda_array_interface__["data"][0]


def _signature(args) -> tuple:
    return tuple(
        types.CPointer(from_dtype(a.dtype)) if hasattr(a, "dtype") else types.int64 for a in args
    )


def machine_code(kernel: Kernel, signature, capability: tuple[int, int]):
    """``(name, code object, PTX, what the assembler says)``; needs no GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    ptx, _ = cuda.compile(
        kernel.function, types.void(*signature), cc=capability, device=False, abi="numba",
        output="ptx", launch_bounds=(kernel.block, 1),
    )  # fmt: skip
    parts = [ObjectCode.from_ptx(ptx.encode())]
    if kernel.waits:
        from cuda.pathfinder import find_static_lib

        parts.append(ObjectCode.from_library(find_static_lib("cudadevrt")))
    options = LinkerOptions(arch="sm_{}{}".format(*capability), ptxas_options=["-v"])
    linker = Linker(*parts, options=options)
    code = linker.link("cubin")
    name = re.search(r"\.entry\s+(\w+)", ptx)
    assert name
    return name[1], code, ptx, linker.get_info_log()


def has_clusters() -> bool:
    """Whether the device knows clusters of blocks."""
    return not SIMULATED and tuple(_device().compute_capability) >= (9, 0)


@cache
def _device():
    from cuda.core import Device

    cuda.current_context()  # Numba's memory and these kernels are of one context
    device = Device(cuda.get_current_device().id)
    device.set_current()
    return device


@cache
def _loaded(kernel: Kernel, signature: tuple):
    from cuda.bindings import driver

    device = _device()
    name, code, _, _ = machine_code(kernel, signature, tuple(device.compute_capability))
    loaded = code.get_kernel(name)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    most = device.properties.max_shared_memory_per_block_optin
    (error,) = driver.cuKernelSetAttribute(attribute, most, loaded.handle, device.device_id)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{name} cannot have {most} bytes of shared memory: {error}")
    return loaded


def inlined(function):
    """Compile a function that kernels call."""
    return function if SIMULATED else cuda.jit(function, device=True, inline="always")


# The cells' equations (fastrnn/cells) for scalars.


def _fma(a, b, c):
    return a * b + c


def _tanh(x):
    return math.tanh(x)


def _simulated_tanh(x):
    return np.tanh(x)


def _where_positive(x, y):
    return y - y if x <= 0 else y


def scalar(function, dtype, tanh=None):
    """One of the cells' functions, compiled for numbers of ``dtype``; ``tanh`` instead of the
    exact one if it is given.

    The primitives that it calls are replaced by those above, and its constants by numbers of
    ``dtype``, as a Python float would make everything float64.
    """
    called = {
        "fma": inlined(_fma),
        "tanh": tanh or inlined(_simulated_tanh if SIMULATED else _tanh),
        "where_positive": inlined(_where_positive),
    }
    for name in ("sigmoid", "relu"):
        called[name] = inlined(_with(getattr(activations, name), called, dtype))
    return called.get(function.__name__) or inlined(_with(function, called, dtype))


def _with(function, names, dtype):
    code, number = function.__code__, np.dtype(dtype).type
    constants = tuple(number(c) if isinstance(c, float) else c for c in code.co_consts)
    return FunctionType(
        code.replace(co_consts=constants), {**function.__globals__, **names}, function.__name__
    )
