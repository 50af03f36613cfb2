"""What tells machine code apart: the names of kernels, and a fingerprint of their source."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .formats import Format
from .isa import Isa

_ROOT = Path(__file__).parents[2]
# All that kernels are built from; kernels/*.py has what they share with other backends.
_SOURCES = ("cells/*.py", "kernels/*.py", "kernels/native/**/*.py")


def full_name(name: str, form: Format, *of: Any) -> str:
    """The name of a kernel in the extension and in the cache, see `library.find`."""
    words = [str(getattr(o, "key", getattr(o, "__name__", o))) for o in of]
    return f"{name}({','.join(words)}) {form.name}"


def path_of(form: Format, isa: Isa) -> str:
    """The instruction-set path that a format's machine code is built for."""
    return isa.name if form.name in (isa.bf16, "int8") else isa.base or isa.name


def fingerprint(isa: Isa) -> str:
    """Of everything that machine code depends on."""
    digest = hashlib.sha256(f"{version('numba')} {version('llvmlite')} {isa}".encode())
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
