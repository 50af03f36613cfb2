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
from numba import cuda, typeof, types
from numba.np.numpy_support import from_dtype

from fastrnn.cells import activations

from . import simulated
from .memory import SIMULATED, DeviceArray, call, device, stream


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
        from cuda.core import LaunchConfig, Stream, launch

        config = LaunchConfig(
            grid=grid, cluster=cluster if cluster > 1 else None, block=self.block,
            shmem_size=shared, is_cooperative=self.waits,
        )  # fmt: skip
        launch(
            Stream.from_handle(stream()),
            config,
            _loaded(self, _signature(args)),
            *map(_value, args),
        )

    def most_blocks(self, *args, shared: int) -> int:
        """How many blocks can be there at once, so that they may wait for each other."""
        if SIMULATED:
            return 6
        occupancy = _loaded(self, _signature(args)).occupancy
        of_each = occupancy.max_active_blocks_per_multiprocessor(self.block, shared)
        return of_each * device().properties.multiprocessor_count


def _value(a):
    """What the launcher takes an argument as."""
    if isinstance(a, DeviceArray):
        return a.pointer
    return a if isinstance(a, np.generic) else np.int64(a)


def _signature(args) -> tuple:
    out = []
    for a in args:
        if isinstance(a, DeviceArray):
            out.append(types.CPointer(from_dtype(a.dtype)))
        else:
            out.append(typeof(a) if isinstance(a, np.generic) else types.int64)
    return tuple(out)


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
    return not SIMULATED and tuple(device().compute_capability) >= (9, 0)


@cache
def _loaded(kernel: Kernel, signature: tuple):
    from cuda.bindings import driver

    here = device()
    name, code, _, _ = machine_code(kernel, signature, tuple(here.compute_capability))
    loaded = code.get_kernel(name)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    most = here.properties.max_shared_memory_per_block_optin
    call("cuKernelSetAttribute", attribute, most, loaded.handle, here.device_id)
    return loaded


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
