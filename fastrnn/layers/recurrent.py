"""What the recurrent layers share: parameters, states and lengths around a backend's kernels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from fastrnn import checks
from fastrnn.cells import CELLS, Cell
from fastrnn.kernels.device import Door, is_on_device
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, DType, Grads, Input, Precision

from .base import PackedLayer
from .dropout import new_key
from .initial import glorot, orthogonal
from .stack import Stack, State, Tape

S = TypeVar("S")  # of the state: an array, or a pair of arrays


class Recurrent(PackedLayer, Generic[S]):
    """Stacked recurrent cells; a subclass names their family in the table `fastrnn.cells.CELLS`."""

    _family: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        variant: str | None = None,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        activations: Sequence[str] | None = None,
        zoneout: float | tuple[float, ...] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        constants: Mapping[str, float] | None = None,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        self.proj_size = checks.integer("proj_size", proj_size, 0)
        if self.proj_size:
            if variant not in (None, "projected") or f"{self._family}_projected" not in CELLS:
                raise ValueError(
                    f"proj_size must be 0 for {type(self).__name__} and the variant {variant!r}, "
                    f"got {proj_size}"
                )
            variant = "projected"
        cell = self.cell = self._choose(variant)
        if variant == "projected" and not self.proj_size:
            raise ValueError(
                f"proj_size must be above 0 for the variant 'projected', got {proj_size}"
            )
        if activations is not None:
            if isinstance(activations, str) or not isinstance(activations, Sequence):
                raise TypeError(
                    f"activations must be a sequence of names, got {type(activations).__name__}"
                )
            self.cell = cell.with_activations(*activations)
        self.variant = variant
        self.activations = None if activations is None else tuple(activations)
        self.zoneout = self._checked_zoneout(zoneout)
        self.recurrent_dropout = checks.number("recurrent_dropout", recurrent_dropout, 0.0, 1.0)
        self.weight_dropout = checks.number("weight_dropout", weight_dropout, 0.0, 1.0)
        if not isinstance(constants, Mapping | None):
            raise TypeError(f"constants must be a mapping, got {type(constants).__name__}")
        self.constants = {
            name: checks.number(f"constants[{name!r}]", value, 0.0, math.inf)
            for name, value in (constants or {}).items()
        }
        if set(self.constants) != set(cell.unit_constants):
            wanted = ", ".join(cell.unit_constants) or "none"
            raise ValueError(f"constants must be {wanted}, got {sorted(self.constants)}")
        self.input_size = checks.integer("input_size", input_size)
        self.hidden_size = checks.integer("hidden_size", hidden_size)
        self.num_layers = checks.integer("num_layers", num_layers)
        self.output_size = self.proj_size or self.hidden_size  # of h, for each direction
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.bias = checks.flag("bias", bias)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        self.directions = 2 if self.bidirectional else 1
        self.rng = checks.generator("seed", seed)
        values = {}
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self.directions * self.output_size
            for suffix in self._suffixes(layer):
                initial = self._initial(inputs)
                values.update({k + suffix: v for k, v in initial.items()})
        self._names = list(initial)  # of a direction's parameters
        super().__init__(values, checks.float_dtype("dtype", dtype), backend, precision)

    @classmethod
    def _choose(cls, variant: str | None) -> Cell:
        """A cell of the family."""
        prefix = f"{cls._family}_"
        name = cls._family if variant is None else prefix + str(variant)
        if name not in CELLS:
            variants = [n.removeprefix(prefix) for n in CELLS if n.startswith(prefix)]
            raise ValueError(f"variant must be one of {', '.join(variants)}; got {variant!r}")
        return CELLS[name]

    def _checked_zoneout(self, value) -> tuple[float, ...]:
        """A probability for each state."""
        states = self.cell.states
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(states)
        if len(values) != len(states):
            raise ValueError(
                f"zoneout must be a number or one for each of {', '.join(states)}, got {value!r}"
            )
        return tuple(checks.number("zoneout", v, 0.0, 1.0, closed=True) for v in values)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    def _initial(self, inputs: int) -> dict[str, np.ndarray]:
        """The initial parameters of one direction of one layer."""
        h, gates = self.hidden_size, self.cell.gates
        out = {
            "weight_ih": np.vstack([glorot(self.rng, h, inputs) for _ in gates]),
            "weight_hh": np.vstack([self._initial_recurrent() for _ in gates]),
        }
        if self.bias:
            initial = dict(self.cell.initial_biases)
            out["bias_ih"] = np.repeat([initial.get(gate, 0.0) for gate in gates], h)
            out["bias_hh"] = np.zeros(len(gates) * h)
        out |= {name: np.zeros(h) for name in self.cell.unit_parameters}
        for parameter in self.cell.parameters:
            shape = self.cell.shape(parameter, h, self.output_size)
            if parameter.initial == "glorot":
                out[parameter.name] = glorot(self.rng, *shape)
            else:
                out[parameter.name] = np.full(shape, float(parameter.initial == "ones"))
        return out

    def _initial_recurrent(self) -> np.ndarray:
        """Of one gate, [H, size of h]."""
        if self.output_size == self.hidden_size:
            return orthogonal(self.rng, self.hidden_size)
        return glorot(self.rng, self.hidden_size, self.output_size)

    def _state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """Of each state, for all layers."""
        rows = self.num_layers * self.directions
        sizes = [self.output_size if s == "h" else self.hidden_size for s in self.cell.states]
        return [(rows, batch, size) for size in sizes]

    def _pack(self, precision):
        return self._stack(precision, self._kernels.parameters_on(self.parameters), {})

    def _stack(self, precision, by_name: Mapping[str, Any], dropped: dict[str, int]) -> Stack:
        kernels, h = self._kernels, self.hidden_size
        constants = {
            name: kernels.to_device(np.full(h, value, self.dtype))
            for name, value in self.constants.items()
        }

        def direction(suffix):
            return {n: by_name[n + suffix] for n in self._names} | constants

        layers = [
            kernels.RecurrentWeights(
                self.cell, list(map(direction, self._suffixes(layer))), precision
            )
            for layer in range(self.num_layers)
        ]
        made_from = id(self.parameters), self.parameters.version
        return Stack(kernels, layers, self.directions, self.dropout, dropped, made_from)

    def _training_stack(self) -> Stack:
        """The weights of a training step, with those of h dropped out."""
        if not self.weight_dropout:
            return self._weights()
        by_name, dropped = dict(self._kernels.parameters_on(self.parameters)), {}
        for name in by_name:
            if name.startswith("weight_hh"):
                by_name[name] = self._kernels.copy(by_name[name])
                dropped[name] = new_key(self.rng)
                self._kernels.dropout(by_name[name], self.weight_dropout, dropped[name])
        return self._stack(self.precision, by_name, dropped)

    def _is_current(self, stack: Stack) -> bool:
        """Whether the parameters are those that ``stack`` was made from."""
        if stack.dropped:
            return stack.made_from == (id(self.parameters), self.parameters.version)
        return stack is self._weights()

    def _masks(self, packed: PackedBatch, training: bool) -> StepMasks | None:
        """Zoneout and recurrent dropout for one layer and one call."""
        drop = self.recurrent_dropout if training else 0.0
        if not (any(self.zoneout) or drop):
            return None
        d, sizes = self.directions, [shape[2] for shape in self._state_shapes(packed.batch)]
        zoneout = np.repeat(self.zoneout, sizes)
        if training and any(self.zoneout):
            keep = self.rng.random((d, packed.size, len(zoneout))) >= zoneout
        else:  # the expected value
            keep = np.broadcast_to(1 - zoneout, (d, 1, len(zoneout)))
        recurrent = np.ones((d, packed.batch, self.output_size))
        if drop:
            recurrent = (self.rng.random(recurrent.shape) >= drop) / (1 - drop)
        move = self._kernels.to_device
        return StepMasks(*(move(m.astype(self.dtype)) for m in (keep, recurrent)))

    # Rows in, rows out: for models, which keep their batch packed from end to end. Arrays lie where
    # the backend computes, a state is always a tuple, and nothing is checked.

    def rows_forward(
        self, x, packed: PackedBatch, state: State | None = None, *, training: bool = False
    ):
        """All layers on packed rows: ``(y [N, D H], state, tape or None)``.

        x is [N, I], or int64 [N] for a one-hot input given by its index, or `Embedded` if the
        backend takes it and the cell has no program. ``state`` is (h, c) or
        (h,), each [L D, B, H] in the sorted order of the sequences; zero when left out.
        """
        if training:
            self._check_trains()
        else:
            done = self._rows_planned(x, packed, state)
            if done is not None:
                return done
        keys, masks = list[int | None](), list[StepMasks | None]()
        for layer in range(self.num_layers):
            keys.append(new_key(self.rng) if layer and training and self.dropout else None)
            masks.append(self._masks(packed, training))
        state = self._zero_state(packed.batch) if state is None else state
        weights = self._training_stack() if training else self._weights()
        return weights.forward(x, packed, state, training=training, keys=keys, masks=masks)

    def _rows_planned(self, x, packed: PackedBatch, state: State | None):
        """The same for equally long sequences by the plan of their shape, or None."""
        if packed.sorted_indices is not None or not self._is_plain(x) or x.ndim != 2:
            return None
        if self.batch_first or any(self.zoneout):  # plans belong to shapes [T, B, I]
            return None
        has_pair = len(self.cell.states) > 1
        given = state if state is None or has_pair else state[0]
        dense = x.reshape(packed.steps, packed.batch, x.shape[1])
        done = self._weights().planned(dense, given, False, self._dense_size)
        if done is None:
            return None
        y, state_n = done
        return y.reshape(len(x), y.shape[2]), state_n if has_pair else (state_n,), None

    def rows_backward(
        self,
        tape: Tape,
        dy,
        dstate: State | None = None,
        *,
        need_dx: bool = True,
        put: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Gradients of `rows_forward`: ``(dx [N, I] or None, dstate of the start, grads)``.

        ``put`` is called with the gradients of each layer as soon as they are known, those of the
        last layer first.
        """
        if not self._is_current(tape.stack):
            raise ValueError(
                "tape is of another layer, or the parameters changed since its forward"
            )
        dstate = self._zero_state(tape.packed.batch) if dstate is None else dstate
        grads: dict[str, Any] = {}
        dropped = tape.stack.dropped

        def add(layer: int, of_layer: list[dict[str, Any]]) -> None:
            named = {
                name + suffix: value
                for suffix, own in zip(self._suffixes(layer), of_layer, strict=True)
                for name, value in own.items()
            }
            for name in dropped.keys() & named.keys():
                self._kernels.dropout(named[name], self.weight_dropout, dropped[name])
            grads.update(named)
            if put is not None:
                put(named)

        dx, dstate = tape.stack.backward(tape, dy, dstate, add, need_dx=need_dx)
        return dx, dstate, grads

    def _zero_state(self, batch: int) -> State:
        shapes = self._state_shapes(batch)
        return tuple(self._kernels.zero_state(shape, self.dtype) for shape in shapes)

    # Padded arrays in, padded arrays out: the public interface.

    def __call__(self, x: Input, state: Any = None, lengths: Input = None) -> tuple[np.ndarray, S]:
        """Inference: nothing is kept for a gradient, and there is no dropout.

        Parameters
        ----------
        x : array_like of real [T, B, I], or [B, T, I] if ``batch_first``, or [T, I]
            With the backend "cuda" also an array on the device, C-contiguous and of the layer's
            dtype, with the CUDA array interface or DLPack (PyTorch, CuPy, Numba, JAX). Its numbers
            are not checked. Results then stay on the device, as arrays of PyTorch or CuPy if x is
            one, else with the CUDA array interface.
        state : (h_0, c_0), or h_0 where the cell has no c, optional
            Each [L D, B, H] ([L D, H] for an unbatched x); zero when left out.
        lengths : array_like of int [B], optional
            Steps of each sequence, from 0 to T in any order; all T when left out.

        Returns
        -------
        y : array [T, B, D H] or [B, T, D H] or [T, D H]
            The last layer's outputs, zero beyond a sequence's length.
        state : (h_n, c_n), or h_n
            The state after each sequence's own last step, each [L D, B, H].

        Raises
        ------
        ValueError
            A shape does not fit, a length is out of range or a number is not finite.
        TypeError
            An argument is not numeric.
        """
        if lengths is None:
            done = self._planned(x, state, unbatched=getattr(x, "ndim", 0) == 2)
            if done is not None:
                return done
        y, state, _ = self._run(x, state, lengths, training=False)
        return y, state

    def _planned(self, x, state, *, unbatched: bool) -> Any:
        """``(y, state)`` by the plan of this shape, or None, see `Stack.planned`."""
        if not self._is_plain(x) or any(self.zoneout):
            return None
        return self._weights().planned(x, state, unbatched, self._dense_size)

    def _is_plain(self, x: Any) -> bool:
        """Whether x is an array where the backend computes."""
        if type(x) is np.ndarray:
            return not self._kernels.on_device
        return self._kernels.on_device and is_on_device(x) and hasattr(x, "shape")

    def _dense_size(self, shape: tuple[int, ...], unbatched: bool) -> tuple[int, int] | None:
        """``(T, B)`` of an x whose rows lie step after step, else None."""
        if len(shape) not in (2, 3) or shape[-1] != self.input_size:
            return None
        if len(shape) == 2:
            return (shape[0], 1) if unbatched else (1, shape[0])
        batch, steps = shape[:2] if self.batch_first else shape[1::-1]
        return None if self.batch_first and steps > 1 and batch > 1 else (steps, batch)

    def forward(
        self, x: Input, state: Any = None, lengths: Input = None
    ) -> tuple[np.ndarray, S, Tape]:
        """The same for training, with dropout: ``(y, state, tape)``.

        The tape may refer to x itself: do not change x before `backward`.
        """
        return self._run(x, state, lengths, training=True)

    def _run(self, x, state, lengths, *, training) -> tuple[Any, Any, Any]:
        door, kernels, first = Door(self._kernels, x), self._kernels, self.batch_first
        with door.stream():
            x = door.take("x", x, self.dtype)
            if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
                wanted = "(B, T, {0})" if first else "(T, B, {0})"
                raise ValueError(
                    f"x must have shape {wanted.format(self.input_size)} or "
                    f"(T, {self.input_size}), got {x.shape}"
                )
            unbatched = x.ndim == 2
            if unbatched:
                x = x.reshape(*((1, len(x)) if first else (len(x), 1)), self.input_size)
            batch, steps = x.shape[:2] if first else x.shape[1::-1]
            if lengths is not None:
                lengths = checks.lengths_array("lengths", lengths, batch, steps)
            packed = PackedBatch(steps, batch, lengths)
            if state is not None:
                state = self._state_in(door, "state", "{}_0", state, packed, unbatched)
            rows = kernels.pack(x, packed, batch_first=first)
            y, state_n, tape = self.rows_forward(rows, packed, state, training=training)
            y = kernels.unpack(y, packed, batch_first=first)
            if unbatched:
                y = y.reshape(steps, y.shape[-1])
            tape = tape and tape._replace(unbatched=unbatched)
            return door.give(y), self._state_out(door, state_n, packed, unbatched), tape

    def _state_out(self, door: Door, state: State, packed: PackedBatch, unbatched: bool) -> Any:
        """A state for the caller: in the original order, an array if the cell has only h."""
        out = []
        for s in state:
            s = self._kernels.unsort(s, packed)
            s = s.reshape(s.shape[0], s.shape[2]) if unbatched else s
            out.append(door.give(s))
        return tuple(out) if len(out) > 1 else out[0]

    def _state_in(
        self, door: Door, name: str, part: str, state, packed: PackedBatch, unbatched: bool
    ) -> State:
        """The inverse, checked; ``part`` turns "h" or "c" into a name."""
        parts = [part.format(s) for s in self.cell.states]
        if len(parts) == 1:
            state = (state,)
        elif not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{name} must be a pair ({', '.join(parts)}), got {type(state).__name__}"
            )
        out = []
        for part, value, sizes in zip(parts, state, self._state_shapes(packed.batch), strict=True):
            shape = (sizes[0], sizes[2]) if unbatched else sizes
            array = door.take(part, value, self.dtype, shape).reshape(*sizes)
            out.append(self._kernels.sort(array, packed))
        return tuple(out)

    def backward(self, tape: Tape, dy: Input, dstate: Any = None) -> tuple[np.ndarray, S, Grads]:
        """Gradients of `forward` with respect to its inputs and the parameters.

        Parameters
        ----------
        tape : Tape
            From `forward`; the parameters must not have changed since. It can be used once.
        dy : array_like
            Gradient of y, in its shape; values beyond a length are ignored.
        dstate : (dh_n, dc_n), or dh_n, optional
            Gradients of the final states; zero when left out.

        Returns
        -------
        dx : array
            In the shape of x; zero beyond a length.
        dstate : (dh_0, dc_0), or dh_0
        grads : dict
            Gradient of each parameter by its name.

        Raises
        ------
        ValueError
            A shape does not fit, a number is not finite, or the tape was used before, is of
            another layer or older than a change of the parameters.
        TypeError
            ``tape`` is not a tape.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must come from forward, got {type(tape).__name__}")
        packed, first, kernels = tape.packed, self.batch_first, self._kernels
        width = self.directions * self.output_size
        outer = (packed.batch, packed.steps) if first else (packed.steps, packed.batch)
        shape = (packed.steps, width) if tape.unbatched else (*outer, width)
        door = Door(kernels, dy, "dy")
        with door.stream():
            dy = door.take("dy", dy, self.dtype, shape).reshape(*outer, width)
            if dstate is not None:
                dstate = self._state_in(door, "dstate", "d{}_n", dstate, packed, tape.unbatched)
            rows = kernels.pack(dy, packed, batch_first=first)
            dx, dstate_0, grads = self.rows_backward(tape, rows, dstate)
            dx = kernels.unpack(dx, packed, batch_first=first)
            if tape.unbatched:
                dx = dx.reshape(packed.steps, self.input_size)
            state_0 = self._state_out(door, dstate_0, packed, tape.unbatched)
            return door.give(dx), state_0, {name: door.give(g) for name, g in grads.items()}

    def step(self, x_t: Input, state: Any = None) -> tuple[np.ndarray, S]:
        """One step of a stream: ``(y_t [B, H], state)``.

        Parameters
        ----------
        x_t : array_like of real [B, I]
        state : (h, c), or h, optional
            As returned by the step before, each [L, B, H]; zero at the start.

        Raises
        ------
        ValueError
            The layer is bidirectional, or an input does not fit.
        """
        if self.bidirectional:
            raise ValueError("step needs a layer of one direction; this one is bidirectional")
        done = self._planned(x_t, state, unbatched=False) if getattr(x_t, "ndim", 0) == 2 else None
        if done is not None:
            return done
        door = Door(self._kernels, x_t, "x_t")
        with door.stream():
            x = door.take("x_t", x_t, self.dtype, (None, self.input_size))
            packed = PackedBatch(1, len(x))
            if state is not None:
                state = self._state_in(door, "state", "{}", state, packed, False)
            y, after, _ = self.rows_forward(x, packed, state)
            return door.give(y), self._state_out(door, after, packed, False)

    def _shown(self) -> dict:
        """Further options of a subclass, for the repr."""
        return {}

    def __repr__(self) -> str:
        shown: Mapping = {
            "num_layers": self.num_layers,
            **({"variant": self.variant} if self.variant else {}),
            **({"proj_size": self.proj_size} if self.proj_size else {}),
            **({"constants": self.constants} if self.constants else {}),
            **({"activations": self.activations} if self.activations else {}),
            **self._shown(),
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            **({"zoneout": self.zoneout} if any(self.zoneout) else {}),
            **({"recurrent_dropout": self.recurrent_dropout} if self.recurrent_dropout else {}),
            **({"weight_dropout": self.weight_dropout} if self.weight_dropout else {}),
            "dtype": self.dtype.name,
            **({"precision": self.precision} if self.precision != "float32" else {}),
            "backend": self.backend,
        }
        options = "".join(f", {k}={v!r}" for k, v in shown.items())
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{options})"
