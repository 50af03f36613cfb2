"""Functions over tuples whose length is known when they are made.

Compilers for kernels have no comprehension over tuples, and an index that is computed would force
a tuple into memory.
"""

from collections.abc import Callable


def tuple_function(arguments: str, element: str, count: int, **names) -> Callable:
    """``def function(arguments): return (element, ...)`` with ``{k}`` from 0 to ``count - 1``.

    ``names`` are what the source refers to.
    """
    elements = "".join(f"{element.format(k=k)}, " for k in range(count))
    return from_source(f"def function({arguments}):\n    return ({elements})\n", names)


def statements(arguments: str, statement: str, count: int, **names) -> Callable:
    """The same for a statement that is repeated."""
    lines = "".join(f"    {statement.format(k=k)}\n" for k in range(count))
    return from_source(f"def function({arguments}):\n{lines}    return\n", names)


def applied(function: Callable, count: int) -> Callable:
    """``(v) -> function(*v)``, where a compiler knows no starred arguments."""
    arguments = ", ".join(f"v[{k}]" for k in range(count))
    source = f"def function(v):\n    return inner({arguments})\n"
    return from_source(source, {"inner": function})


def with_first(count: int) -> Callable:
    """``(first, values) -> values`` with another first element."""
    return tuple_function("first, values", "(first if {k} == 0 else values[{k}])", count)


def from_source(source: str, names: dict) -> Callable:
    """The ``function`` that the source defines; ``names`` are what it refers to."""
    scope = dict(names)
    exec(source, scope)
    return scope["function"]
