"""The instruction-set path: how wide vectors are, and the CPUs that the machine code is for.

The path (``amx``, ``avx512_bf16``, ``avx512``, ``avx2``, ``generic``) is chosen once per process:
the best that this CPU can run, or the one named by the environment variable ``FASTRNN_ISA``.
"""

import os
import platform
from typing import NamedTuple

import numpy as np

# Vectors in a panel at most: the accumulators of one vector of hidden units.
PANEL = 4


class Isa(NamedTuple):
    """An instruction-set path."""

    name: str
    vector_bytes: int
    tile_rows: int  # tile_rows x PANEL accumulators + what is loaded must fit the registers
    level: str  # LLVM's name of the CPUs
    features: str = ""  # that they need beyond it, as LLVM names them
    base: str = ""  # the path that has the machine code of all other kernels

    bf16: str = ""  # the format of its instructions for products of bfloat16


_BF16 = "+avx512bf16,+avx512vnni"
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Threads share the units of a time loop only where one that waits can yield its core.
CAN_YIELD = os.name == "posix"
ISAS = {"generic": Isa("generic", 16, 3, "x86-64-v2" if X86 else "generic")}
if X86:
    ISAS |= {
        "amx": Isa(
            "amx", 64, 6, "x86-64-v4", _BF16 + ",+amx-tile,+amx-bf16", "avx512", "bf16_tiles"
        ),
        "avx512_bf16": Isa("avx512_bf16", 64, 6, "x86-64-v4", _BF16, "avx512", "bf16"),
        "avx512": Isa("avx512", 64, 6, "x86-64-v4"),
        "avx2": Isa("avx2", 32, 3, "x86-64-v3"),
    }


def usable() -> list[str]:
    """The paths that this CPU can run, the best first."""
    from fastrnn._native import supports  # not yet there while the package is built

    names = ("amx", "avx512_bf16", "avx512", "avx2", "generic")
    return [name for name in names if supports(name)]


def _choose() -> Isa:
    if "FASTRNN_COMPILE_FOR" in os.environ:  # the build, on a CPU that need not run it
        return ISAS[os.environ["FASTRNN_COMPILE_FOR"]]
    forced = os.environ.get("FASTRNN_ISA")
    if forced:
        from fastrnn._native import supports

        if forced not in ISAS or not supports(forced):
            names = ", ".join(usable())
            raise ValueError(f"FASTRNN_ISA is {forced!r}; this CPU can run {names}")
    return ISAS[forced or usable()[0]]


ISA = _choose()


def width(dtype) -> int:
    """How many numbers of ``dtype`` one vector holds."""
    return ISA.vector_bytes // np.dtype(dtype).itemsize
