"""Kernels that are compiled at run time, and the folder that keeps their machine code.

A file is kept (see kernels/cache.py) under a key made of every source file that kernels are built
from, the versions and the instruction-set path.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from fastrnn._native import Kernel
from fastrnn.extras import needs
from fastrnn.kernels.cache import cache_dir, read, say_once, write

from .formats import Format
from .identity import fingerprint
from .isa import ISA

_SYMBOL = "fastrnn_kernel"
_compiling = threading.Lock()  # also: no two threads may make kernels of one name


def _renew_lock() -> None:
    """After a fork: the thread that held the lock does not exist in the child."""
    global _compiling
    _compiling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@cache
def _folder() -> Path:
    return cache_dir() / fingerprint(ISA)


def load(name: str, form: Format, make: Callable, *, keep: bool = True) -> Kernel:
    """The kernel that ``make`` returns (see `source.compiler.kernel`), compiled now unless a file
    has its machine code; ``keep``: read and write such files.

    Raises
    ------
    ImportError
        Numba is not installed.
    """
    try:
        path = _folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.kernel"
    except PackageNotFoundError as error:
        what = (
            f"the kernel {name} is not precompiled for {ISA.name!r}, and compiling it needs Numba"
        )
        raise ImportError(needs(what, "jit")) from error
    with _compiling:
        kept = read(path) if keep else None
        if kept is None:
            say_once("compiling kernels that are not precompiled; this takes a few seconds")
            kept = _compile(form, make)
            if keep:
                write(path, kept)
        signature, _, code = kept.partition(b"\n")
        engine = _engine(code)
    return Kernel(name, signature.decode(), engine.get_function_address(_SYMBOL), engine)


def _compile(form: Format, make: Callable) -> bytes:
    """The signature, a line break, and the machine code."""
    from .source import compiler

    kernel = make()
    signature = compiler.signature(kernel, form).encode()
    return signature + b"\n" + compiler.machine_code(kernel, _SYMBOL, form)


def _engine(code: bytes):
    """What holds the machine code in memory."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine
