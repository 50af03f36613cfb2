"""`find`: a kernel as machine code, precompiled or, where there is none, compiled now."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from fastrnn._native import Kernel, precompiled

from . import jit
from .formats import Format, plain
from .identity import full_name, path_of
from .isa import ISA

# FASTRNN_JIT=1: compile everything at run time, with the same bits.
USE_PRECOMPILED = os.environ.get("FASTRNN_JIT", "") in ("", "0")


@cache
def find(name: str, types: np.dtype | Format, *of: Any) -> Kernel:
    """The kernel ``module.function`` of `native.source` for a format, or for F = ``types``.

    ``of`` are the arguments after the format of the function that makes it, for kernels that are
    made.

    Raises
    ------
    ImportError
        It is not precompiled, and Numba is not installed.
    TypeError
        A dtype is not in the machine's byte order.
    """
    form = types if isinstance(types, Format) else plain(types)
    full = full_name(name, form, *of)
    found = precompiled(path_of(form, ISA), full) if USE_PRECOMPILED else None
    return found or jit.load(full, form, _source(name, form, of))


def _source(name: str, form: Format, of: tuple) -> Callable:
    def make():
        from .source.compiler import is_kernel

        module, function = name.split(".")
        found = getattr(import_module(f".source.{module}", __package__), function)
        return found if is_kernel(found) else found(form, *of)

    return make
