"""Kernels that are compiled at run time, and the folder that keeps their machine code.

A file is kept (see kernels/cache.py) under a key made of every source file that kernels are built
from, the versions and the instruction-set path.
"""

import hashlib
import itertools
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from fastrnn._native import Kernel
from fastrnn.extras import needs
from fastrnn.kernels.cache import cache_dir, read, say_once, write

from .formats import Format
from .identity import fingerprint
from .isa import ISA

_SYMBOL = "fastrnn_kernel"
_numbers = itertools.count()  # of what was loaded
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
        library = _loaded(code)
    return Kernel(name, signature.decode(), library[_SYMBOL], library)


def _compile(form: Format, make: Callable) -> bytes:
    """The signature, a line break, and the machine code."""
    from .source import compiler

    kernel = make()
    signature = compiler.signature(kernel, form).encode()
    return signature + b"\n" + compiler.machine_code(kernel, _SYMBOL, form)


def _loaded(code: bytes) -> Any:
    """What holds the machine code in memory, with the addresses of its symbols."""
    from llvmlite.binding import JITLibraryBuilder

    library = JITLibraryBuilder().add_object_img(code).add_current_process()
    return library.export_symbol(_SYMBOL).link(_linker(), f"fastrnn_{next(_numbers)}")


@cache
def _linker() -> Any:
    """LLVM's JITLink, which puts code and constants side by side. Its older linker may put them
    more than 2 GB apart in a large process, which is too far for the code's 32-bit offsets."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler(use_jit_link=sys.platform != "win32")
