"""The device: its memory, how a kernel is launched on it, and the cells' equations for scalars.

With ``NUMBA_ENABLE_CUDASIM=1`` there is no device: kernels run as plain Python (simulated.py),
on small tiles, and memory is NumPy's.
"""

import importlib.util
import math
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.core import config

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


# Kernels


class Kernel(NamedTuple):
    """A compiled kernel, made for blocks of ``block`` threads."""

    function: Any
    block: int

    def __call__(self, grid: tuple[int, int], *args, shared: int = 0) -> None:
        """Run it on ``grid`` blocks with ``shared`` bytes of shared memory each."""
        if not all(grid):
            return
        if SIMULATED:
            simulated.run(self.function, cuda, grid, self.block, args, shared=shared)
        else:
            self.function[grid, self.block, 0, shared](*args)

    def most_blocks(self, *args, shared: int) -> int:
        """How many blocks can be there at once, so that they may wait for each other."""
        if SIMULATED:
            return 6
        function = self.function
        definition = function.compile(tuple(function.typeof_pyval(a) for a in args))
        return definition.max_cooperative_grid_blocks(self.block, shared)


def kernel(function, block: int) -> Kernel:
    """Compile ``function`` for blocks of ``block`` threads."""
    return Kernel(function if SIMULATED else cuda.jit(function, launch_bounds=(block, 1)), block)


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
