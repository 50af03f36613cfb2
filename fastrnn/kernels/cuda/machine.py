"""Machine code of kernels: compiled by Numba and NVIDIA's linker, and kept in files.

Neither needs a GPU, so the files can be made ahead, on another machine. ``kernel`` is a
`launch.Kernel` throughout.
"""

import hashlib
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import Any

from numba import cuda, types

from fastrnn.kernels.cache import cache_dir, read, say_once, write

_ROOT = Path(__file__).parents[2]
# All that kernels are built from; kernels/*.py has what they share with other backends.
_SOURCES = "cells/*.py", "kernels/*.py", "kernels/cuda/*.py"
_PACKAGES = (
    "numba", "llvmlite", "numba-cuda", "cuda-core", "cuda-bindings", "nvidia-nvvm",
    "nvidia-nvjitlink",
)  # fmt: skip


@cache
def ptx_of(kernel: Any) -> str:
    """Assembly for the oldest devices that the kernel can run on, and so for all later ones."""
    ptx, _ = cuda.compile(
        kernel.function, types.void(*kernel.arguments.types), cc=kernel.least, device=False,
        abi="numba", output="ptx", launch_bounds=(kernel.block, 1),
    )  # fmt: skip
    return ptx


def compiled(kernel: Any, capability: tuple[int, int]) -> tuple[bytes, str]:
    """``(machine code, the assembler's messages)``; needs no GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch="sm_{}{}".format(*capability), ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx_of(kernel).encode()), options=options)
    return bytes(linker.link("cubin").code), linker.get_info_log()


def entry(kernel: Any) -> str:
    """The name of the kernel in its machine code, which may have other functions as well."""
    found = re.search(r"\.entry\s+([\w$]+)", ptx_of(kernel))
    assert found
    return found[1]


def code_of(kernel: Any, capability: tuple[int, int]) -> tuple[str, bytes]:
    """``(name, machine code)``, from a file if there is one."""
    path = cache_dir() / "cuda" / f"{key(kernel, capability)}.cubin"
    kept = read(path)
    if kept is None:
        say_once("compiling kernels for the GPU; this takes some seconds for each, once")
        code, _ = compiled(kernel, capability)
        kept = entry(kernel).encode() + b"\n" + code
        write(path, kept)
    name, _, code = kept.partition(b"\n")
    return name.decode(), code


def key(kernel: Any, capability: tuple[int, int]) -> str:
    """What tells the machine code apart, on all machines alike."""
    of = f"{_versions()} {capability} {kernel.block} {_identity(kernel.made_by)}"
    return hashlib.sha256(of.encode()).hexdigest()[:32]


@cache
def _versions() -> str:
    """Of everything that machine code depends on."""
    digest = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return " ".join([*map(_version, _PACKAGES), digest.hexdigest()])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the compiler may be one that the system has
        return "none"


def _identity(x: Any) -> str:
    """The same text for the same thing in every process. All functions are from `_SOURCES`."""
    if isinstance(x, FunctionType):
        closed = [_identity(c.cell_contents) for c in x.__closure__ or ()]
        return f"{x.__module__}.{x.__qualname__}({', '.join(closed)})"
    if isinstance(x, tuple):
        return f"{type(x).__name__}({', '.join(map(_identity, x))})"
    return str(x)
