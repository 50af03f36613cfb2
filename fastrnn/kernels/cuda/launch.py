"""How kernels are compiled and launched, and the cells' equations for scalars.

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

from fastrnn.cells import activations

from . import simulated
from .memory import SIMULATED, DeviceArray, call, device, stream, use_device

_USUAL = 48 << 10  # bytes of shared memory that a kernel need not ask for


def require() -> None:
    """Raise ImportError or ValueError unless kernels can run."""
    if SIMULATED:
        return
    if importlib.util.find_spec("numba_cuda") is None:
        raise ImportError('the backend "cuda" needs an extra: pip install "fastrnn[cuda]"')
    if not cuda.is_available():
        why = " ".join(str(cuda.cuda_error()).split())
        raise ValueError(f"backend 'cuda' needs an NVIDIA GPU and its driver: {why}")


# Kernels see every array as a bare pointer, a NumPy number as it is and any other as an int64: a
# launch then costs microseconds, not tens of them. Numba compiles them; NVIDIA's own launcher runs
# them, as Numba's knows no clusters and no more than 48 KB of shared memory.


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
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(
            grid=grid, cluster=cluster if cluster > 1 else None, block=self.block,
            shmem_size=shared, is_cooperative=self.waits,
        )  # fmt: skip
        use_device()
        loaded = _loaded(self, _signature(args), shared > _USUAL)
        launch(_stream_of(stream()), config, loaded, *map(_value, args))

    def most_blocks(self, *args, shared: int) -> int:
        """How many blocks can be there at once, so that they may wait for each other."""
        if SIMULATED:
            return 6
        return _most_blocks(self, _signature(args), shared)


def _value(a):
    """What the launcher takes an argument as."""
    if isinstance(a, DeviceArray):
        return a.pointer
    return a if isinstance(a, np.generic) else np.int64(a)


def _signature(args) -> tuple[str, ...]:
    """Arguments' types by NumPy's names, with a star where they are arrays."""
    out = []
    for a in args:
        if isinstance(a, DeviceArray):
            out.append("*" + a.dtype.name)
        else:
            out.append(a.dtype.name if isinstance(a, np.generic) else "int64")
    return tuple(out)


def _numba_type(name: str):
    number = getattr(types, name.removeprefix("*"))
    return types.CPointer(number) if name.startswith("*") else number


def machine_code(kernel: Kernel, signature, capability: tuple[int, int]):
    """``(name, code object, PTX, what the assembler says)``; needs no GPU. The signature is by
    names, as "*float32" for an array and "int64"."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    ptx, _ = cuda.compile(
        kernel.function, types.void(*map(_numba_type, signature)), cc=capability, device=False,
        abi="numba", output="ptx", launch_bounds=(kernel.block, 1),
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
    return not SIMULATED and tuple(device().compute_capability) >= (9, 0)


def most_shared() -> int:
    """Bytes of shared memory that a block can have if it asks for more than is usual."""
    return 227 << 10 if SIMULATED else device().properties.max_shared_memory_per_block_optin


@cache
def _stream_of(handle: int):
    from cuda.core import Stream

    return Stream.from_handle(handle)


@cache
def _loaded(kernel: Kernel, signature: tuple, much_shared: bool):
    from cuda.bindings import driver

    here = device()
    name, code, _, _ = machine_code(kernel, signature, tuple(here.compute_capability))
    loaded = code.get_kernel(name)
    if much_shared:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call("cuKernelSetAttribute", attribute, most_shared(), loaded.handle, here.device_id)
    return loaded


@cache
def _most_blocks(kernel: Kernel, signature: tuple, shared: int) -> int:
    occupancy = _loaded(kernel, signature, shared > _USUAL).occupancy
    of_each = occupancy.max_active_blocks_per_multiprocessor(kernel.block, shared)
    return of_each * device().properties.multiprocessor_count


def over(count: int, block: int) -> tuple[int, int]:
    """A grid with a thread for each of ``count``."""
    return -(-count // block), 1


def inlined(function):
    """Compile a function that kernels call."""
    return function if SIMULATED else cuda.jit(function, device=True, inline="always")


# The cells' equations (fastrnn/cells) for scalars.


def _fma(a, b, c):
    return a * b + c


def _where_positive(x, y):
    return y - y if x <= 0 else y


# Python's own would make everything float64, and refuse what is too large.
_functions: Any = np if SIMULATED else math
exp, log, sqrt, _tanh = _functions.exp, _functions.log, _functions.sqrt, _functions.tanh


def scalar(function, dtype, tanh=None):
    """One of the cells' functions, compiled for numbers of ``dtype``; ``tanh`` instead of the
    exact one if it is given.

    The primitives that it calls are replaced by those above, and its constants by numbers of
    ``dtype``, as a Python float would make everything float64.
    """
    called = {
        "fma": inlined(_fma),
        "tanh": tanh or _tanh,
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
