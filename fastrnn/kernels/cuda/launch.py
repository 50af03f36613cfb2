"""How kernels are compiled and launched.

With ``NUMBA_ENABLE_CUDASIM=1`` there is no device: kernels run as plain Python (simulated.py), on
small tiles, and memory is NumPy's.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import cuda, types

from fastrnn.kernels.signature import Of, TupleOf, arguments

from . import simulated
from .memory import SIMULATED, DeviceArray, call, device, stream, use_device

_DEFAULT_SHARED = 48 << 10  # bytes of shared memory that a kernel can have without asking


def require() -> None:
    """Raise ImportError or ValueError unless kernels can run."""
    if SIMULATED:
        return
    if importlib.util.find_spec("numba_cuda") is None:
        from fastrnn.extras import needs

        raise ImportError(needs("the backend 'cuda' needs more packages", "cuda"))
    if not cuda.is_available():
        why = " ".join(str(cuda.cuda_error()).split())
        raise ValueError(f"backend 'cuda' needs an NVIDIA GPU and its driver: {why}")


class Kernel:
    """A kernel for blocks of ``block`` threads, compiled when it is first launched.

    Numba compiles it from its annotations (kernels/signature.py), in which an array is a bare
    pointer and F is ``dtype``. NVIDIA's own launcher runs it, because Numba's knows neither
    clusters nor more than 48 KB of shared memory; and with bare pointers a launch costs a few
    microseconds rather than tens of them.

    Parameters
    ----------
    function : callable
    block : int
        Threads of a block.
    dtype : dtype
    waits : bool, default False
        Whether blocks wait for each other, so that all of them must be resident at once.
    """

    def __init__(self, function: Callable, block: int, dtype, *, waits: bool = False):
        self.function, self.block, self.dtype, self.waits = function, block, np.dtype(dtype), waits

    def __call__(self, grid: tuple[int, int], *args, shared: int = 0, cluster: int = 1) -> None:
        """Launch it on ``grid`` clusters of ``cluster`` blocks, ``shared`` bytes of shared memory
        each. Arguments are those of the function; a record may be given as one."""
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
        loaded = _loaded(self, shared > _DEFAULT_SHARED)
        values = (kind(v) for kind, v in zip(self._kinds, _leaves(args), strict=True))
        launch(_stream_of(stream()), config, loaded, *values)

    def most_blocks(self, shared: int) -> int:
        """How many blocks can be resident at once, so that they may wait for each other."""
        return 6 if SIMULATED else _most_blocks(self, shared)

    @cached_property
    def argument_types(self) -> list:
        """Numba's types of the arguments."""
        return [_numba_type(a, self.dtype) for a in arguments(self.function).values()]

    @cached_property
    def _kinds(self) -> list[Callable]:
        """How the launcher is given each number or pointer."""
        return [
            _pointer if of.ndim else _number(of, self.dtype)
            for argument in arguments(self.function).values()
            for of in _declared_leaves(argument)
        ]


def _pointer(array: DeviceArray) -> int:
    return array.pointer


def _number(of: Of, dtype: np.dtype) -> Callable:
    return dtype.type if of.dtype == "F" else np.dtype(of.dtype).type


def _leaves(args) -> Iterator[Any]:
    """The numbers and arrays in arguments, records and tuples."""
    for a in args:
        if isinstance(a, tuple):
            yield from _leaves(a)
        else:
            yield a


def _declared_leaves(argument) -> Iterator[Of]:
    if isinstance(argument, Of):
        yield argument
    elif isinstance(argument, TupleOf):
        for _ in range(argument.size):
            yield from _declared_leaves(argument.item)
    else:
        for field in argument[1].values():
            yield from _declared_leaves(field)


def _numba_type(argument, dtype: np.dtype):
    if isinstance(argument, Of):
        number = getattr(types, dtype.name if argument.dtype == "F" else argument.dtype)
        return types.CPointer(number) if argument.ndim else number
    if isinstance(argument, TupleOf):
        return types.UniTuple(_numba_type(argument.item, dtype), argument.size)
    record, fields = argument
    return types.BaseTuple.from_types([_numba_type(f, dtype) for f in fields.values()], record)


def machine_code(kernel: Kernel, capability: tuple[int, int]):
    """``(name, code object, PTX, the assembler's messages)``; needs no GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    ptx, _ = cuda.compile(
        kernel.function, types.void(*kernel.argument_types), cc=capability, device=False,
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
    """Whether the device has clusters of blocks."""
    return not SIMULATED and tuple(device().compute_capability) >= (9, 0)


def most_shared() -> int:
    """Bytes of shared memory that a block can have if it asks for more than the default."""
    return 227 << 10 if SIMULATED else device().properties.max_shared_memory_per_block_optin


@cache
def _stream_of(handle: int):
    from cuda.core import Stream

    return Stream.from_handle(handle)


@cache
def _loaded(kernel: Kernel, much_shared: bool):
    from cuda.bindings import driver

    here = device()
    name, code, _, _ = machine_code(kernel, tuple(here.compute_capability))
    loaded = code.get_kernel(name)
    if much_shared:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        call("cuKernelSetAttribute", attribute, most_shared(), loaded.handle, here.device_id)
    return loaded


@cache
def _most_blocks(kernel: Kernel, shared: int) -> int:
    occupancy = _loaded(kernel, shared > _DEFAULT_SHARED).occupancy
    per_processor = occupancy.max_active_blocks_per_multiprocessor(kernel.block, shared)
    return per_processor * device().properties.multiprocessor_count


def over(count: int, block: int) -> tuple[int, int]:
    """A grid with one thread for each of ``count`` elements."""
    return -(-count // block), 1


def inlined(function):
    """A function for kernels to call, compiled into them."""
    return function if SIMULATED else cuda.jit(function, device=True, inline="always")
