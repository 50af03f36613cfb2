"""The cells' equations, compiled for scalars of the GPU."""

import math
from collections.abc import Callable
from functools import cache
from types import CellType, FunctionType
from typing import Any

import numpy as np

from fastrnn.cells import Cell, activations
from fastrnn.cells.spec import Equations

from .driver import SIMULATED
from .launch import inlined


def _fma(a, b, c):
    return a * b + c


def _clamp(x, limit):
    return max(min(x, limit), -limit)


def _where_positive(real: type) -> Callable:
    zero = real(0)

    def where_positive(x, y):
        return zero if x <= 0 else y

    return inlined(where_positive)


# Python's own functions would make everything float64, and refuse arguments that overflow.
_functions: Any = np if SIMULATED else math
exp, log, sqrt = _functions.exp, _functions.log, _functions.sqrt

# The machine's version of the primitives; all other functions are compiled from their source.
_PRIMITIVES: dict[Callable, Callable] = {
    activations.fma: inlined(_fma),
    activations.clamp: inlined(_clamp),
    activations.tanh: _functions.tanh,
    activations.expm1: _functions.expm1,
    activations.log1p: _functions.log1p,
}


@cache
def compiled(cell: Cell, dtype, tanh: Callable | None = None) -> Equations:
    """The equations of a cell for numbers of ``dtype``, with ``tanh`` instead of the exact one."""
    functions = _primitives(dtype)
    if tanh:
        functions[activations.tanh] = tanh
    return Equations(
        *(_compiled(f, np.dtype(dtype).type, functions) for f in cell.step_equations())
    )


def _primitives(dtype) -> dict[Callable, Callable]:
    return {**_PRIMITIVES, activations.where_positive: _where_positive(np.dtype(dtype).type)}


@cache
def scalar(function: Callable, dtype) -> Callable:
    """A function over numbers, made of those of `fastrnn.cells.activations`."""
    return _compiled(function, np.dtype(dtype).type, _primitives(dtype))


def _compiled(function: Any, real: type, functions: dict) -> Callable:
    """A function of `fastrnn.cells` with its constants as ``number`` (a Python float would make
    everything float64) and the functions that it calls compiled as well."""
    if function not in functions:

        def converted(value):
            if isinstance(value, FunctionType) and value.__module__.startswith("fastrnn.cells"):
                return _compiled(value, real, functions)
            if isinstance(value, tuple):
                return tuple(map(converted, value))
            return real(value) if isinstance(value, float) else value

        code = function.__code__
        scope = {n: converted(v) for n, v in function.__globals__.items() if n in code.co_names}
        closure = tuple(CellType(converted(c.cell_contents)) for c in function.__closure__ or ())
        scope = {**function.__globals__, **scope}
        code = code.replace(co_consts=tuple(map(converted, code.co_consts)))
        functions[function] = inlined(FunctionType(code, scope, function.__name__, None, closure))
    return functions[function]
