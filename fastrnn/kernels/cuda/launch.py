"""How kernels are made and launched.

With ``NUMBA_ENABLE_CUDASIM=1`` there is no device: kernels run as plain Python (simulated.py), on
small tiles, and memory is NumPy's.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, cached_property, wraps
from typing import Any

import numpy as np
from numba import cuda

from . import driver, machine, simulated
from .arguments import Arguments
from .driver import SIMULATED, Device, driver_call

OLDEST = (8, 0)  # compute capability
CLUSTERS = (9, 0)  # the first one that has clusters of blocks
PORTABLE = 8  # blocks of a cluster that all of these have
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

    Numba compiles it from its annotations, see `arguments`. The driver launches it, because
    Numba's launcher knows neither clusters nor more than 48 KB of shared memory, and takes tens of
    microseconds.

    Parameters
    ----------
    function : callable
    block : int
        Threads of a block.
    dtype : dtype
    waits : bool, default False
        Whether blocks wait for each other, so that all of them must be resident at once.
    least : tuple of int
        The compute capability that it needs.

    Attributes
    ----------
    name : str
        For messages.
    made_by : tuple
        The function that made it and its arguments, which tell it from all others, see `kernel`.
    """

    made_by: tuple = ()

    def __init__(
        self,
        function: Callable,
        block: int,
        dtype,
        *,
        waits: bool = False,
        least: tuple[int, int] = OLDEST,
    ):
        self.function, self.block, self.dtype = function, block, np.dtype(dtype)
        self.waits, self.least = waits, least
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._configs: dict[tuple, Any] = {}  # of launches on clusters

    @cached_property
    def arguments(self) -> Arguments:
        """How arguments get to the driver."""
        return Arguments(self.function, self.dtype)

    def __call__(self, grid: tuple[int, int], *args, shared: int = 0, cluster: int = 1) -> None:
        """Launch it on ``grid`` clusters of ``cluster`` blocks, ``shared`` bytes of shared memory
        each. Where blocks wait for each other, ``cluster`` is how many do, and they form none.
        Arguments are those of the function; a record may be given as one.

        Raises
        ------
        ValueError
            Arrays are on several devices.
        """
        if not all(grid):
            return
        if SIMULATED:
            grid = grid[0] * cluster, grid[1]
            simulated.run(self.function, cuda, grid, self.block, args, shared, cluster)
            return
        arrays = self.arguments.arrays(args)
        device = self._device_of(arrays)
        with device.current():
            on = device.order()
            loaded = _loaded(self, device, shared > _DEFAULT_SHARED)
            values = self.arguments.pack(args)
            if cluster > 1 and not self.waits:
                config = self._config(grid, shared, cluster, on)
                driver_call("cuLaunchKernelEx", config, loaded, values, 0)
            else:
                size = grid[0] * cluster, grid[1], 1, self.block, 1, 1, shared, on, values
                if self.waits:
                    driver_call("cuLaunchCooperativeKernel", loaded, *size)
                else:
                    driver_call("cuLaunchKernel", loaded, *size, 0)
            device.queued(self.name, on, arrays)

    def _device_of(self, arrays) -> Device:
        """The one that all arrays are on."""
        device = arrays[0].device
        for array in arrays:
            if array.device is not device:
                names = zip(self.arguments.array_names, arrays, strict=True)
                where = ", ".join(f"{name} on {array.device}" for name, array in names)
                raise ValueError(f"{self.name}: arrays must be on one device, got {where}")
        return device

    def _config(self, grid: tuple[int, int], shared: int, cluster: int, on: int) -> Any:
        key = grid, shared, cluster, on
        config = self._configs.get(key)
        if config is None:
            if len(self._configs) >= 64:
                self._configs.clear()
            config = _cluster_config(grid, self.block, shared, cluster, on)
            self._configs[key] = config
        return config

    def most_blocks(self, shared: int) -> int:
        """How many blocks can be resident at once, so that they may wait for each other.

        Raises
        ------
        RuntimeError
            There is no room for a single one.
        """
        if SIMULATED:
            return 6
        most = _most_blocks(self, driver.here(), shared)
        if not most:
            raise RuntimeError(
                f"{driver.here()} has no room for the kernel {self.name}: a block has {self.block} "
                f"threads and {shared} bytes of shared memory"
            )
        return most

    def most_together(self, shared: int, cluster: int) -> int:
        """How many clusters, or groups of blocks that wait for each other, can be resident at
        once; 0 if the device cannot run one."""
        if SIMULATED:
            return 6 // cluster
        if self.waits:
            return _most_blocks(self, driver.here(), shared) // cluster
        return _most_clusters(self, driver.here(), shared, cluster)


def kernel(make: Callable[..., Kernel]) -> Callable[..., Kernel]:
    """Decorator of functions that make a kernel: the same one for the same arguments."""

    @cache
    @wraps(make)
    def made(*args, **options):
        out = make(*args, **options)
        out.made_by = make, args, tuple(options.items())
        return out

    return made


def _cluster_config(grid: tuple[int, int], block: int, shared: int, cluster: int, on: int) -> Any:
    """The driver's description of a launch on ``grid`` clusters."""
    from cuda.bindings import driver as api

    config, attribute = api.CUlaunchConfig(), api.CUlaunchAttribute()
    attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size = attribute.value.clusterDim
    size.x, size.y, size.z = cluster, 1, 1
    config.gridDimX, config.gridDimY, config.gridDimZ = grid[0] * cluster, grid[1], 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes, config.hStream = shared, on
    config.attrs, config.numAttrs = [attribute], 1
    return config


def has_clusters() -> bool:
    """Whether the device has clusters of blocks."""
    return not SIMULATED and driver.here().capability >= CLUSTERS


def most_shared() -> int:
    """Bytes of shared memory that a block can have if it asks for more than the default."""
    return 227 << 10 if SIMULATED else driver.here().most_shared


@cache
def _code(kernel: Kernel, capability: tuple[int, int]) -> Any:
    """The machine code in this process."""
    from cuda.core import ObjectCode

    name, code = machine.code_of(kernel, capability)
    return ObjectCode.from_cubin(code).get_kernel(name)


@cache
def _loaded(kernel: Kernel, device: Device, much_shared: bool) -> Any:
    """The kernel as the driver knows it."""
    from cuda.bindings import driver as api

    handle = _code(kernel, device.capability).handle
    if much_shared:
        attribute = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        most = device.most_shared
        driver_call("cuKernelSetAttribute", attribute, most, handle, device.ordinal)
    return api.CUfunction(int(handle))


@cache
def _most_blocks(kernel: Kernel, device: Device, shared: int) -> int:
    with device.current():
        loaded = _loaded(kernel, device, shared > _DEFAULT_SHARED)
        per_processor = driver_call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor", loaded, kernel.block, shared
        )
    return per_processor * device.processors


@cache
def _most_clusters(kernel: Kernel, device: Device, shared: int, cluster: int) -> int:
    from cuda.bindings import driver as api

    with device.current():
        loaded = _loaded(kernel, device, shared > _DEFAULT_SHARED)
        config = _cluster_config((1, 1), kernel.block, shared, cluster, 0)
        try:
            if cluster > PORTABLE:
                attribute = (
                    api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                )
                handle = _code(kernel, device.capability).handle
                driver_call("cuKernelSetAttribute", attribute, 1, handle, device.ordinal)
            return driver_call("cuOccupancyMaxActiveClusters", loaded, config)
        except RuntimeError:  # such a cluster is not one of this device's
            return 0


def over(count: int, block: int) -> tuple[int, int]:
    """A grid with one thread for each of ``count`` elements."""
    return -(-count // block), 1


def inlined(function):
    """A function for kernels to call, compiled into them."""
    return function if SIMULATED else cuda.jit(function, device=True, inline="always")


@inlined
def index(i):
    """i, as an index of an array in shared memory that is not negative. Numba adds the instructions
    that count from the end where the compiler cannot know that; pointers to global memory have
    none."""
    return i if SIMULATED else i & 0xFFFFF
