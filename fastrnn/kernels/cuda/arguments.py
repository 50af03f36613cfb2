"""A kernel's arguments, from its annotations (kernels/signature.py) to what the driver reads.

To the compiler an array is a bare pointer, and a record is its fields. The driver takes an array
of pointers to the values; each has 8 bytes here.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from ctypes import addressof, c_char, c_void_p

import numpy as np
from numba import types

from fastrnn.kernels.signature import Of, TupleOf, arguments

# How `struct` writes a number, with what fills 8 bytes.
_LETTERS = {"float32": "f4x", "float64": "d", "int64": "q", "uint64": "Q", "pointer": "Q"}


class Arguments:
    """Those of one kernel, where F is ``dtype``."""

    def __init__(self, function: Callable, dtype: np.dtype):
        self.dtype, declared = dtype, arguments(function)
        self.types = [self._numba_type(a) for a in declared.values()]
        # Each number or pointer: what it is called, and the expression that finds it in ``a``.
        leaves = [
            (name + path, f"a[{i}]{path}", of)
            for i, (name, argument) in enumerate(declared.items())
            for path, of in _leaves(argument)
        ]
        self.kinds = ["pointer" if of.ndim else self._name(of) for _, _, of in leaves]
        self.array_names = [name for name, _, of in leaves if of.ndim]
        self.arrays = _tuple_of(path for _, path, of in leaves if of.ndim)
        self._values = _tuple_of(path + ".pointer" * (of.ndim > 0) for _, path, of in leaves)
        self._struct = struct.Struct("=" + "".join(_LETTERS[kind] for kind in self.kinds))
        self._own = threading.local()  # as a device's lock does not keep out another device

    def pack(self, args: tuple) -> int:
        """Write the arguments ``args``; the address of the pointers to them."""
        own = self._own
        if not hasattr(own, "values"):
            count = len(self.kinds)
            own.values = (c_char * (8 * count))()
            first = addressof(own.values)
            own.pointers = (c_void_p * count)(*range(first, first + 8 * count, 8))
            own.address = addressof(own.pointers)
        self._struct.pack_into(own.values, 0, *self._values(args))
        return own.address

    def _name(self, of: Of) -> str:
        return self.dtype.name if of.dtype == "F" else of.dtype

    def _numba_type(self, argument) -> types.Type:
        if isinstance(argument, Of):
            number = getattr(types, self._name(argument))
            return types.CPointer(number) if argument.ndim else number
        if isinstance(argument, TupleOf):
            return types.UniTuple(self._numba_type(argument.item), argument.size)
        record, fields = argument
        return types.BaseTuple.from_types([self._numba_type(f) for f in fields.values()], record)


def _leaves(argument, path: str = "") -> Iterator[tuple[str, Of]]:
    """The path and kind of each number and array in an argument."""
    if isinstance(argument, Of):
        yield path, argument
    elif isinstance(argument, TupleOf):
        for i in range(argument.size):
            yield from _leaves(argument.item, f"{path}[{i}]")
    else:
        for name, field in argument[1].items():
            yield from _leaves(field, f"{path}.{name}")


def _tuple_of(expressions) -> Callable:
    """``a -> (expression, ...)``, which is faster than any loop."""
    return eval(f"lambda a: ({''.join(f'{e}, ' for e in expressions)})")
