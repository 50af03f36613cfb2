"""How kernels declare their signatures: by annotations, beside each argument.

`F` is the floating-point type that a kernel is compiled for, float32 or float64; `A` and `P` are
those of the activations and the packed weights of its products, `S` that of saved gates. A record
(a `NamedTuple` whose fields are annotated in the same way) is one argument; to the compiler it is
its fields. `arguments` reads these annotations, so a kernel can be compiled without being called.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np


class Of(NamedTuple):
    """A kernel's argument: a number (``ndim`` 0) or a C-contiguous array."""

    dtype: str  # NumPy's name, or a letter
    ndim: int = 0

    def name(self, letters: "Types") -> str:
        """NumPy's name of the type."""
        return letters[self.dtype].name if self.dtype in letters else self.dtype


class TupleOf(NamedTuple):
    """Several arguments of one type in a tuple: ``Annotated[Any, TupleOf(Of("F", 2), 3)]``."""

    item: Any  # an `Of`, a `TupleOf` or a record
    size: int


Types = Mapping[str, np.dtype]  # by the letters F, A, P and S

B = Annotated[Any, Of("bool")]
F = Annotated[Any, Of("F")]
F1 = Annotated[Any, Of("F", 1)]
F2 = Annotated[Any, Of("F", 2)]
F3 = Annotated[Any, Of("F", 3)]
A2 = Annotated[Any, Of("A", 2)]
P3 = Annotated[Any, Of("P", 3)]
S2 = Annotated[Any, Of("S", 2)]
D1 = Annotated[Any, Of("float64", 1)]
D2 = Annotated[Any, Of("float64", 2)]
D3 = Annotated[Any, Of("float64", 3)]
I = Annotated[Any, Of("int64")]  # noqa: E741
I1 = Annotated[Any, Of("int64", 1)]
I2 = Annotated[Any, Of("int64", 2)]
U = Annotated[Any, Of("uint64")]
W1 = Annotated[Any, Of("uint32", 1)]


def arguments(function: Callable) -> dict[str, Any]:
    """The arguments of a kernel: each an `Of`, a `TupleOf` or a record and its fields by name."""
    return {name: _read(hint) for name, hint in _hints(function).items() if name != "return"}


def text(function: Callable, types: Types, without=()) -> str:
    """The same as one line: the form that src_native/native.c reads."""
    read = arguments(function).items()
    return "".join(_text(argument, types) for name, argument in read if name not in without)


def _text(argument: Any, types: Types) -> str:
    if isinstance(argument, Of):
        letter: str = np.dtype(argument.name(types)).char
        letter = {"l": "q", "L": "Q"}.get(letter, letter)
        return f"{letter}{argument.ndim or ''}"
    if isinstance(argument, TupleOf):
        return f"({_text(argument.item, types) * argument.size})"
    _, fields = argument
    return f"({''.join(_text(field, types) for field in fields.values())})"


def _hints(of: Any) -> dict[str, Any]:
    return get_type_hints(of, include_extras=True)


def _read(hint: Any) -> Any:
    if hasattr(hint, "__metadata__"):
        of = hint.__metadata__[0]
        if isinstance(of, TupleOf) and isinstance(of.item, type):
            return TupleOf(_read(of.item), of.size)
        return of
    if isinstance(hint, type) and issubclass(hint, tuple):
        return hint, {name: _read(field) for name, field in _hints(hint).items()}
    raise TypeError(f"an argument of a kernel must say its type, got {hint!r}")
