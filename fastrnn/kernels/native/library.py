"""`find`: a kernel as machine code, precompiled or, where there is none, compiled now."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from fastrnn._native import Kernel, precompiled

from . import jit
from .identity import full_name
from .isa import ISA

# FASTRNN_JIT=1: compile everything at run time, with the same bits.
USE_PRECOMPILED = os.environ.get("FASTRNN_JIT", "") in ("", "0")


@cache
def find(name: str, dtype: np.dtype, *of: Any) -> Kernel:
    """The kernel ``module.function`` of `native.source` for F = ``dtype``.

    ``of`` are the arguments of the function that makes it, for kernels that are made for a cell.

    Raises
    ------
    ImportError
        It is not precompiled, and Numba is not installed.
    TypeError
        ``dtype`` is not in the machine's byte order.
    """
    if not dtype.isnative:
        raise TypeError(f"arrays must be in the machine's byte order, got {dtype.str}")
    full = full_name(name, dtype, *of)
    found = precompiled(ISA.name, full) if USE_PRECOMPILED else None
    return found or jit.load(full, dtype, _source(name, of))


def _source(name: str, of: tuple) -> Callable:
    def make():
        module, function = name.split(".")
        found = getattr(import_module(f".source.{module}", __package__), function)
        return found(*of) if of else found

    return make
