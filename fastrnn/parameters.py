"""The storage of a model's parameters: one flat vector, with views of it by PyTorch's names.

Optimizers use the vector, layers and checkpoints use the views, and only this module knows where
a parameter is stored. Views are read-only: all writes go through `Parameters.writing` or its
counterpart for a device, so that a backend notices that its packed copy is out of date.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from fastrnn import checks

# Parameters begin at multiples of so many numbers, 16 bytes or more, as products on a GPU like it.
_ALIGNED = 4


class _Vector:
    """The flat vector on the host and, once requested, on a device; the copy written last is
    the valid one."""

    def __init__(self, host: np.ndarray):
        self.host, self.version = host, 0
        self._there: Any = None
        self._current = {"host"}

    def __getstate__(self):
        return vars(self) | {"host": self.on_host(), "_there": None, "_current": {"host"}}

    def on_host(self) -> np.ndarray:
        if "host" not in self._current:
            self.host[:] = self._there.copy_to_host()
            self._current.add("host")
        return self.host

    def on_device(self, to_device: Callable) -> Any:
        if "device" not in self._current:
            if self._there is None:
                self._there = to_device(self.host)
            else:  # a CUDA graph may know the address
                self._there[:] = self.host
            self._current.add("device")
        return self._there

    def changes(self, where: str) -> None:
        self.version += 1
        self._current = {where}


class Parameters(Mapping):
    """Named views of one flat vector, in which parameters may have up to three zeros between them.

    Parameters
    ----------
    values : mapping of str to array
        Initial values; copied. The layout follows the mapping's order.
    dtype : "float32" or "float64"

    Attributes
    ----------
    version : int
        Changes with every `writing`.
    """

    def __init__(self, values: Mapping[str, np.ndarray], dtype):
        layout, end = {}, 0
        for name, value in values.items():
            at, shape = _aligned(end), np.shape(value)
            layout[name], end = (at, shape), at + prod(shape)
        flat = np.zeros(end, dtype)
        for name, (at, shape) in layout.items():
            flat[at : at + prod(shape)] = np.ravel(values[name])
        self._bind(_Vector(flat), slice(0, end), layout)

    def _bind(self, vector: _Vector, part: slice, layout):
        self._vector, self._part, self._layout = vector, part, layout
        self._views: dict[str, np.ndarray] = {}
        self._there: tuple[Any, Any, dict[str, Any]] = None, None, {}  # see `_on_device`
        for name, (at, shape) in layout.items():
            first = part.start + at
            view = vector.host[first : first + prod(shape)].reshape(shape)
            view.flags.writeable = False
            self._views[name] = view

    def __getstate__(self):
        return self._vector, self._part, self._layout  # copies of parts share a vector as well

    def __setstate__(self, state):
        self._bind(*state)

    @property
    def dtype(self) -> np.dtype:
        return self._vector.host.dtype

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self._part.stop - self._part.start

    @property
    def version(self) -> int:
        return self._vector.version

    @property
    def flat(self) -> np.ndarray:
        """The whole vector, read-only."""
        view = self._vector.on_host()[self._part]
        view.flags.writeable = False
        return view

    def writing(self) -> np.ndarray:
        """The whole vector for immediate writing; each call counts as a change."""
        flat = self._vector.on_host()[self._part]
        self._vector.changes("host")
        return flat

    def _on_device(self, to_device: Callable) -> tuple[Any, dict[str, Any]]:
        """The whole vector and the parameters by name in device memory."""
        there = self._vector.on_device(to_device)
        if self._there[0] is not there:
            flat = there[self._part]
            named = {
                name: flat[at : at + prod(s)].reshape(*s) for name, (at, s) in self._layout.items()
            }
            self._there = there, flat, named
        return self._there[1:]

    def on_device(self, to_device: Callable) -> Mapping[str, Any]:
        """The parameters by name in device memory, for reading; ``to_device`` copies them there."""
        return self._on_device(to_device)[1]

    def writing_on_device(self, to_device: Callable) -> Any:
        """The whole vector in device memory for immediate writing; each call counts as a change."""
        flat, _ = self._on_device(to_device)
        self._vector.changes("device")
        return flat

    def __getitem__(self, name: str) -> np.ndarray:
        self._vector.on_host()
        return self._views[name]

    def __iter__(self):
        return iter(self._layout)

    def __len__(self):
        return len(self._layout)

    def sub(self, prefix: str) -> "Parameters":
        """The parameters whose names begin with ``prefix``, under their names without it."""
        names = [name for name in self if name.startswith(prefix)]
        start = self._layout[names[0]][0]
        layout, end = {}, start
        for name in names:
            at, shape = self._layout[name]
            if at != _aligned(end):
                raise ValueError(f"the parameters that begin with {prefix!r} are not contiguous")
            layout[name[len(prefix) :]] = (at - start, shape)
            end = at + prod(shape)
        part = Parameters.__new__(Parameters)
        first = self._part.start
        part._bind(self._vector, slice(first + start, first + end), layout)
        return part

    def renamed(self, names: Mapping[str, str]) -> "Parameters":
        """Some of the parameters under other names, new name to old, to be read."""
        part = Parameters.__new__(Parameters)
        part._bind(self._vector, self._part, {new: self._layout[old] for new, old in names.items()})
        return part

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each parameter begins in the flat vector, and its shape."""
        return dict(self._layout)

    def flatten(self, named: Mapping[str, np.ndarray], out: np.ndarray) -> np.ndarray:
        """Write a gradient given as named arrays into the flat vector ``out``.

        Raises
        ------
        ValueError
            A name is missing or unknown, or a shape differs.
        """
        if named.keys() != self._layout.keys():
            self._check_names("gradient", named)
        self.clear_gaps(out)
        for name, (at, shape) in self._layout.items():
            given = named[name]
            if not isinstance(getattr(given, "dtype", None), np.dtype):
                given = checks.as_array(name, given)
            if getattr(given, "shape", None) != shape or given.dtype.kind not in "fiu":
                raise ValueError(f"{name} must be real {shape}, got {checks.short(given)}")
            out[at : at + prod(shape)] = given.reshape(-1)
        return out

    def clear_gaps(self, out: Any) -> None:
        """Write zeros between the parameters of a flat vector."""
        end = 0
        for at, shape in sorted(self._layout.values()):
            if end < at:
                out[end:at] = np.zeros(at - end, out.dtype)
            end = at + prod(shape)

    def _check_names(self, what: str, named: Mapping) -> None:
        missing = [name for name in self if name not in named]
        unknown = [name for name in named if name not in self]
        if missing or unknown:
            raise ValueError(f"{what} does not fit: missing {missing}, unknown {unknown}")

    def _prefixes(self, mapping: Mapping) -> str:
        """The prefixes of names in a mapping that hold all parameters in their shapes."""
        first = next(iter(self))
        candidates = [k.removesuffix(first) for k in mapping if k.endswith(first)]
        return " or ".join(
            repr(prefix)
            for prefix in candidates
            if all(np.shape(mapping.get(prefix + n, 0)) == self[n].shape for n in self)
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter by name."""
        return {name: np.array(self[name]) for name in self}

    def load_state_dict(self, mapping: Mapping, *, prefix: str = "") -> None:
        """Load values by name, those that begin with ``prefix``; nothing changes unless all fit.

        Raises
        ------
        ValueError
            A name is missing or unknown, a shape differs or a value is not finite.
        TypeError
            ``mapping`` is not a mapping, or a value is not real.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must map names to arrays, got {type(mapping).__name__}")
        whole = mapping = {str(name): value for name, value in mapping.items()}
        if prefix:
            mapping = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
        try:
            self._check_names("mapping", mapping)
        except ValueError as error:
            fitting = self._prefixes(whole)
            if not fitting:
                raise
            more = f"parameters of this layer have the prefix {fitting}"
            raise ValueError(f"{error}; {more}") from None
        arrays = {
            name: checks.real_array(name, mapping[name], self.dtype, self[name].shape)
            for name in self
        }
        flat = self.writing()
        for name, (at, shape) in self._layout.items():
            flat[at : at + prod(shape)] = arrays[name].reshape(-1)


class Gradient:
    """A model's flat gradient, put together in the order in which backpropagation finishes.

    Parameters
    ----------
    parameters : Parameters
    empty : callable
        Makes an array where the gradient is computed, as a backend's ``empty``.

    Attributes
    ----------
    flat : array [parameters.size]
        Where the gradient is written.
    listener : callable or None
        Called with ``first`` when the gradient from position ``first`` to the end is complete.
    """

    def __init__(self, parameters: Parameters, empty: Callable):
        self.flat: Any = empty(parameters.size, parameters.dtype)
        parameters.clear_gaps(self.flat)
        self.listener: Callable[[int], None] | None = None
        self._places = parameters.places()
        self._left: dict[str, tuple[int, tuple[int, ...]]] = {}

    def begin(self) -> None:
        """Forget what was put so far."""
        self._left = dict(self._places)

    def put(self, prefix: str, named: Mapping[str, Any]) -> None:
        """Write the gradients of parameters whose names begin with ``prefix``."""
        for name, value in named.items():
            at, shape = self._left.pop(prefix + name)
            self.flat[at : at + prod(shape)] = value.reshape(-1)
        if self.listener is not None and self._left:
            self.listener(max(at + prod(shape) for at, shape in self._left.values()))

    def take(self) -> Any:
        """The flat vector, which the next gradient overwrites."""
        assert not self._left, f"no gradient of {', '.join(self._left)}"
        return self.flat


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED


def join(layers: Mapping) -> Parameters:
    """Move the parameters of several layers into one vector, under names ``layer.name``."""
    values = {f"{k}.{n}": v for k, layer in layers.items() for n, v in layer.parameters.items()}
    dtypes = {layer.parameters.dtype for layer in layers.values()}
    if len(dtypes) != 1:
        raise ValueError(f"layers must share one dtype, got {sorted(map(str, dtypes))}")
    whole = Parameters(values, dtypes.pop())
    for key, layer in layers.items():
        layer.parameters = whole.sub(f"{key}.")
    return whole
