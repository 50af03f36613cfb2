"""Kernels that are compiled at run time, and the folder that keeps their machine code.

A file is kept under a key made of every source file that kernels are built from, the versions and
the instruction-set path. One that cannot be read or written costs a compilation and is never an
error. What takes time is logged by the logger "fastrnn", once for a process.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from fastrnn._native import Kernel
from fastrnn.extras import needs

from .formats import Format
from .identity import fingerprint
from .isa import ISA

_SYMBOL = "fastrnn_kernel"
_DIGEST = hashlib.sha256().digest_size
_compiling = threading.Lock()  # also: no two threads may make kernels of one name


_log = logging.getLogger("fastrnn")


_said: set[str] = set()  # at the level of warnings, as Python shows nothing below by default


def _say_once(message: str, *of: object) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message, *of)


def _renew_lock() -> None:
    """After a fork: the thread that held the lock does not exist in the child."""
    global _compiling
    _compiling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def cache_dir() -> Path:
    """Where machine code is kept: ``FASTRNN_CACHE_DIR``, else the user's cache."""
    chosen = os.environ.get("FASTRNN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastrnn"


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
        kept = _read(path) if keep else None
        if kept is None:
            _say_once("compiling kernels that are not precompiled; this takes a few seconds")
            kept = _compile(form, make)
            if keep:
                _write(path, *kept)
        signature, code = kept
        engine = _engine(code)
    return Kernel(name, signature, engine.get_function_address(_SYMBOL), engine)


def _compile(form: Format, make: Callable) -> tuple[str, bytes]:
    from .source import compiler

    kernel = make()
    return compiler.signature(kernel, form), compiler.machine_code(kernel, _SYMBOL, form)


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


def _read(path: Path) -> tuple[str, bytes] | None:
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        digest, payload = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(payload).digest() == digest:
            signature, _, code = payload.partition(b"\n")
            return signature.decode(), code
    return None


def _write(path: Path, signature: str, code: bytes) -> None:
    payload = signature.encode() + b"\n" + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        _say_once(
            "the cache of compiled kernels cannot be used, so they are compiled again at every "
            "start; FASTRNN_CACHE_DIR names another folder (%s)",
            error,
        )
