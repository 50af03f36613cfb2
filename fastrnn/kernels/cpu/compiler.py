"""`kernel`: the one way in which this package compiles a function.

Compiled kernels are kept on disk under a key made of every source file that they are built from,
the versions and the instruction-set path. A cache that cannot be read or written costs a
compilation and is never an error.
"""

import contextlib
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba import types
from numba.core import serialize
from numba.core.caching import FunctionCache, _CacheLocator

from fastrnn.kernels.signature import Of, TupleOf, declared

from .simd import ISA

_ROOT = Path(__file__).parents[2]


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {ISA}".encode())
    for folder in ("cells", "kernels", "runtime", "bench"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Where compiled kernels are kept: ``FASTRNN_CACHE_DIR``, else the user's cache."""
    chosen = os.environ.get("FASTRNN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastrnn"


_DIRECTORY = cache_dir() / _fingerprint()


class _Locator(_CacheLocator):
    def __init__(self, py_func):
        self._name = py_func.__module__.rpartition(".")[2]

    def get_cache_path(self):
        return str(_DIRECTORY)

    def get_source_stamp(self):
        return _DIRECTORY.name

    def get_disambiguator(self):
        return self._name

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func)


class _Implementation(FunctionCache._impl_class):
    _locator_classes = (_Locator,)


class _Files:
    """One file per signature, named after it: nothing that two processes could mix up."""

    def __init__(self, stem: str):
        self._stem = stem

    def _path(self, key) -> Path:
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return _DIRECTORY / f"{self._stem}-{name}.kernel"

    def load(self, key):
        data = self._path(key).read_bytes()
        digest, payload = data[:32], data[32:]
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(f"{self._path(key)} is damaged")
        return pickle.loads(payload)

    def save(self, key, data) -> None:
        payload = serialize.dumps(data)
        descriptor, temporary = tempfile.mkstemp(dir=_DIRECTORY)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, self._path(key))
        except BaseException:
            os.unlink(temporary)
            raise


# What reading or writing a damaged or forbidden file can raise.
_FAILURES = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    pickle.PickleError,
)


class _Cache(FunctionCache):
    """Numba's function cache in our own files, where any failure means compiling anew."""

    _impl_class = _Implementation

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = _Files(self._impl.filename_base)

    def _index_key(self, sig, codegen):
        # The folder stands for the sources and the file's name for the function, so what a
        # function closes over need not be looked at (nor could it be pickled).
        return sig, codegen.magic_tuple()

    def load_overload(self, sig, target_context):
        with contextlib.suppress(*_FAILURES):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig, data):
        with contextlib.suppress(*_FAILURES):
            super().save_overload(sig, data)


class Kernel:
    """A compiled function: serial, without the GIL, raising nothing, cached on disk.

    Attributes
    ----------
    dispatcher
        Numba's, for calls from other kernels and with arguments of any type.
    """

    def __init__(self, function: Callable):
        self.dispatcher = numba.njit(function, nogil=True, error_model="numpy", boundscheck=False)
        self.dispatcher._cache = _Cache(function)
        self._compiled: dict[np.dtype, Callable] = {}

    def of(self, dtype: np.dtype) -> Callable:
        """The kernel for arguments as it declares them, where F is ``dtype``.

        Compiled now if it was not before. Calls skip the dispatcher, which takes longer than a
        small kernel to look at a few records; arguments are not checked.
        """
        compiled = self._compiled.get(dtype)
        if compiled is None:
            if not dtype.isnative:
                raise TypeError(f"arrays must be in the machine's byte order, got {dtype.str}")
            compiled = self.dispatcher.compile(signature(self.dispatcher.py_func, dtype))
            self._compiled[dtype] = compiled
        return compiled

    def __call__(self, *args):
        """Call it with arguments of any type; compiled for those."""
        return self.dispatcher(*args)


# Every kernel by name: with what it declares, all that is needed to compile them ahead of time.
KERNELS: dict[str, Kernel] = {}


def kernel(function: Callable, name: str | None = None) -> Kernel:
    """Make a kernel of a function whose arguments are annotated, see kernels/signature.py.

    Numba names what it compiles after the function's module, name and arguments and a number that
    starts at 1 in every process, so a kernel that was read from the disk may contain the symbols
    of one that was just compiled. Hence no two functions here may share a name: one that is made
    several times, for several cells, needs a ``name`` of its own.
    """
    if name:
        function.__qualname__ = name
    new_kernel = KERNELS[function.__qualname__] = Kernel(function)
    return new_kernel


def signature(function, dtype) -> tuple:
    """The types of a kernel's arguments as it declares them, where F is ``dtype``."""
    return tuple(_numba_type(a, np.dtype(dtype)) for a in declared(function).values())


def _numba_type(argument, dtype: np.dtype):
    if isinstance(argument, Of):
        name = dtype.name if argument.dtype == "F" else argument.dtype
        number = types.boolean if name == "bool" else getattr(types, name)
        return types.Array(number, argument.ndim, "C") if argument.ndim else number
    if isinstance(argument, TupleOf):
        return types.UniTuple(_numba_type(argument.item, dtype), argument.size)
    record, fields = argument
    return types.BaseTuple.from_types([_numba_type(f, dtype) for f in fields.values()], record)
