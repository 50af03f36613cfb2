"""The cells' equations, compiled for vectors (`simd.Lanes`)."""

from collections.abc import Iterator
from functools import cache
from types import FunctionType

from numba.extending import register_jitable

from fastrnn.cells import Cell
from fastrnn.cells.spec import Equations

from .simd import OVERLOADED

_registered: set[FunctionType] = set()


@cache
def compiled(cell: Cell) -> Equations:
    """The equations of a cell, registered for kernels to call: compiled into each of them."""
    equations = cell.step_equations()
    for name, function in equations._asdict().items():
        register(function, f"{cell.key}.{name}")
    return equations


def register(function: FunctionType, name: str) -> None:
    """Let kernels call a function of `fastrnn.cells` and everything that it calls.

    Each made function needs a name of its own, see `compiler.kernel`.
    """
    if function in OVERLOADED or function in _registered:
        return
    if function.__closure__:
        function.__qualname__ = name
    for inner in called(function):
        register(inner, f"{name}.{inner.__name__}")
    register_jitable(function)
    _registered.add(function)  # last, as other threads may look


def called(function: FunctionType) -> Iterator[FunctionType]:
    """The functions of `fastrnn.cells` that a function refers to, as globals or closures."""
    names = (function.__globals__.get(name) for name in function.__code__.co_names)
    cells = (c.cell_contents for c in function.__closure__ or ())
    for value in (*names, *cells):
        if isinstance(value, FunctionType) and value.__module__.startswith("fastrnn.cells"):
            yield value
