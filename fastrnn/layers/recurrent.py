"""What the recurrent layers share: parameters, states and lengths around a backend's kernels."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels import is_on_device
from fastrnn.kernels.rows import Rows

from .base import PackedLayer
from .dropout import new_key
from .initial import glorot, orthogonal

State = tuple[np.ndarray, ...]


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Tape(NamedTuple):
    """What `backward` needs of `forward`. Good for one backward."""

    rows: Rows
    weights: list  # what the parameters were packed to at the time
    layers: list  # the backend's tape of each layer
    keys: list[int | None]  # of the dropout of each layer's input
    unbatched: bool


class Recurrent(PackedLayer):
    """Stacked recurrent cells; a subclass names its cell, gates and states."""

    _cell: str
    _gates: int
    _states: tuple[str, ...]  # "h", and "c" where the cell has it

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype="float32",
        backend: str = "cpu",
        seed: int | None = None,
    ):
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_size = checks.positive_int("hidden_size", hidden_size)
        self.num_layers = checks.positive_int("num_layers", num_layers)
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.bidirectional = bool(bidirectional)
        self.directions = 2 if bidirectional else 1
        self.rng = np.random.default_rng(seed)
        values = {}
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self.directions * self.hidden_size
            for suffix in self._suffixes(layer):
                values.update(self._initial(inputs, suffix))
        super().__init__(values, checks.float_dtype("dtype", dtype), backend)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]

    def _initial(self, inputs: int, suffix: str) -> dict[str, np.ndarray]:
        h = self.hidden_size
        out = {
            f"weight_ih{suffix}": np.vstack(
                [glorot(self.rng, h, inputs) for _ in range(self._gates)]
            ),
            f"weight_hh{suffix}": np.vstack([orthogonal(self.rng, h) for _ in range(self._gates)]),
        }
        if self.bias:
            out[f"bias_ih{suffix}"] = np.zeros(self._gates * h)
            out[f"bias_hh{suffix}"] = np.zeros(self._gates * h)
        return out

    def _pack(self):
        values = self._kernels.values(self.parameters)

        def of(suffix):
            return tuple(values.get(name + suffix) for name in _PARAMETERS)

        return [
            self._kernels.RecurrentWeights(self._cell, [of(s) for s in self._suffixes(layer)])
            for layer in range(self.num_layers)
        ]

    # Rows in, rows out: for models, which keep their batch packed from end to end. A state is a
    # tuple here, whatever the cell.

    def rows_forward(self, x, rows: Rows, state: State | None = None, *, training: bool = False):
        """All layers on packed rows: ``(y [N, D H], state, tape or None)``.

        x is [N, I], or int64 [N] for a one-hot input given by its index. ``state`` is (h, c) or
        (h,), each [L D, B, H] in the order of the rows; zero when left out. Nothing is checked.
        """
        given, x = x, self._kernels.to_device(x)
        state_0 = self._zero_state(rows.batch) if state is None else state
        packed = self._weights()
        tapes, keys, state_n = [], [], []
        for layer, weights in enumerate(packed):
            key = None
            if layer and training and self.dropout:
                key = new_key(self.rng)
                self._kernels.dropout(x, self.dropout, key)
            x, after, tape = self._kernels.recurrent_forward(
                weights, x, rows, self._of_layer(state_0, layer), training=training
            )
            tapes.append(tape)
            keys.append(key)
            state_n.append(after)
        tape = Tape(rows, packed, tapes, keys, False) if training else None
        after = tuple(self._given_back(given, s) for s in self._stacked(state_n))
        return self._given_back(given, x), after, tape

    def rows_backward(self, tape: Tape, dy, dstate: State | None = None, *, need_dx: bool = True):
        """Gradients of `rows_forward`: ``(dx [N, I] or None, dstate of the start, grads)``."""
        if tape.weights is not self._weights():
            raise ValueError(
                "tape is of another layer, or the parameters changed since its forward"
            )
        given, dy = dy, self._kernels.to_device(dy)
        dstate_n = self._zero_state(tape.rows.batch) if dstate is None else dstate
        grads: dict[str, np.ndarray] = {}
        dstate_0: list[State] = []
        for layer in reversed(range(self.num_layers)):
            dy, before, weight_grads = self._kernels.recurrent_backward(
                tape.weights[layer],
                tape.layers[layer],
                dy,
                self._of_layer(dstate_n, layer),
                need_dx=need_dx or layer > 0,
            )
            key = tape.keys[layer]
            if key is not None:
                self._kernels.dropout(dy, self.dropout, key)
            for suffix, values in zip(self._suffixes(layer), weight_grads, strict=True):
                names = _PARAMETERS if self.bias else _PARAMETERS[:2]
                grads.update({n + suffix: v for n, v in zip(names, values, strict=False)})
            dstate_0.insert(0, before)
        before = tuple(self._given_back(given, s) for s in self._stacked(dstate_0))
        grads = {name: self._given_back(given, g) for name, g in grads.items()}
        return self._given_back(given, dy), before, grads

    def _stacked(self, states) -> State:
        """The layers' states one above the other."""
        return tuple(self._kernels.concatenate(parts) for parts in zip(*states, strict=True))

    def _of_layer(self, state: State, layer: int) -> State:
        return tuple(s[layer * self.directions : (layer + 1) * self.directions] for s in state)

    def _zero_state(self, batch: int) -> State:
        shape = (self.num_layers * self.directions, batch, self.hidden_size)
        return (np.zeros(shape, self.dtype),) * len(self._states)

    # Padded arrays in, padded arrays out: the public face. With the backend "cuda" they may lie on
    # the device, and what comes out is then of the same package.

    def _on_device(self, x) -> bool:
        return self.backend == "cuda" and is_on_device(x)

    def _array(self, name: str, value, shape: tuple | None = None, rows: Rows | None = None):
        """``value`` as the kernels take it, checked; what goes with ``rows`` of the host may not
        lie on the device."""
        if not self._on_device(value):
            return checks.real_array(name, value, self.dtype, shape)
        if type(rows) is Rows:
            raise ValueError(f"{name} must be on the host, as x is")
        value = self._kernels.to_device(value)
        if value.dtype != self.dtype:
            raise TypeError(f"{name} must be of dtype {self.dtype}, got {value.dtype}")
        checks.shape_of(name, value.shape, shape)
        return value

    def _stream(self, x):
        """Queue what is done for x where x comes from."""
        return self._kernels.on_stream_of(x) if self._on_device(x) else nullcontext()

    def _given_back(self, x, array):
        """An array as the caller who gave x knows them."""
        return self._kernels.like(x, array) if self.backend == "cuda" else array

    def __call__(self, x, state=None, lengths=None):
        """Run without keeping anything for a gradient; no dropout.

        Parameters
        ----------
        x : array_like of real [T, B, I], or [B, T, I] if ``batch_first``, or [T, I]
            With the backend "cuda" also an array on the device, C-contiguous and of the layer's
            dtype, with the CUDA array interface or DLPack (PyTorch, CuPy, Numba, JAX). Numbers
            there are not looked at; results stay there, as PyTorch's or CuPy's arrays where x is
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
            Something is not numeric.
        """
        with self._stream(x):
            y, state, _ = self._run(x, state, lengths, training=False)
        return y, state

    def forward(self, x, state=None, lengths=None):
        """The same for training, with dropout: ``(y, state, tape)``.

        The tape may refer to x itself: leave it as it is until `backward`.
        """
        with self._stream(x):
            return self._run(x, state, lengths, training=True)

    def _run(self, x, state, lengths, *, training):
        given, x = x, self._array("x", x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            wanted = "(B, T, {0})" if self.batch_first else "(T, B, {0})"
            raise ValueError(
                f"x must have shape {wanted.format(self.input_size)} or "
                f"(T, {self.input_size}), got {x.shape}"
            )
        unbatched = x.ndim == 2
        if unbatched:
            x = x.reshape(*((1, len(x)) if self.batch_first else (len(x), 1)), self.input_size)
        batch, steps = x.shape[:2] if self.batch_first else x.shape[1::-1]
        if lengths is not None:
            lengths = checks.lengths_array("lengths", lengths, batch, steps)
        rows = (self._kernels.DeviceRows if self._on_device(x) else Rows)(steps, batch, lengths)
        if state is not None:
            state = self._state_in("state", "{}_0", state, rows, unbatched)
        y, state_n, tape = self.rows_forward(
            rows.pack(x, batch_first=self.batch_first), rows, state, training=training
        )
        y = rows.unpack(y, batch_first=self.batch_first)
        if unbatched:
            y = y.reshape(steps, y.shape[-1])
        tape = tape and tape._replace(unbatched=unbatched)
        return self._given_back(given, y), self._state_out(given, state_n, rows, unbatched), tape

    def _state_out(self, given, state: State, rows: Rows, unbatched: bool):
        """A state as the caller sees it: in his order, an array if the cell has only h."""
        out = []
        for s in map(rows.unsort, state):
            s = s.reshape(s.shape[0], s.shape[2]) if unbatched else s
            out.append(self._given_back(given, s))
        return tuple(out) if len(out) > 1 else out[0]

    def _state_in(self, name: str, part: str, state, rows: Rows, unbatched: bool) -> State:
        """The inverse, checked; ``part`` makes a name of "h" or "c"."""
        parts = [part.format(s) for s in self._states]
        if len(parts) == 1:
            state = (state,)
        elif not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{name} must be a pair ({', '.join(parts)}), got {type(state).__name__}"
            )
        sizes = (self.num_layers * self.directions, rows.batch, self.hidden_size)
        shape = (sizes[0], sizes[2]) if unbatched else sizes
        return tuple(
            rows.sort(self._array(part, value, shape, rows).reshape(*sizes))
            for part, value in zip(parts, state, strict=True)
        )

    def backward(self, tape: Tape, dy, dstate=None):
        """Gradients of `forward` with respect to everything that went in.

        Parameters
        ----------
        tape : Tape
            From `forward`, with the parameters as they were then; it is used up.
        dy : array_like
            Gradient of y, in its shape; what lies beyond a length is ignored.
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
        rows, first = tape.rows, self.batch_first
        width = self.directions * self.hidden_size
        outer = (rows.batch, rows.steps) if first else (rows.steps, rows.batch)
        shape = (rows.steps, width) if tape.unbatched else (*outer, width)
        with self._stream(dy):
            given, dy = dy, self._array("dy", dy, shape, rows).reshape(*outer, width)
            if dstate is not None:
                dstate = self._state_in("dstate", "d{}_n", dstate, rows, tape.unbatched)
            dx, dstate_0, grads = self.rows_backward(tape, rows.pack(dy, batch_first=first), dstate)
            dx = rows.unpack(dx, batch_first=first)
            if tape.unbatched:
                dx = dx.reshape(rows.steps, self.input_size)
            state_0 = self._state_out(given, dstate_0, rows, tape.unbatched)
            return self._given_back(given, dx), state_0, grads

    def step(self, x_t, state=None):
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
        # A step may take less time than looking at its input with NumPy, so what is already as
        # it should be is left to the kernel, which reports numbers that are not finite.
        if self._on_device(x_t):
            return self._step_there(x_t, state)
        dtype = self.dtype
        batch = x_t.shape[0] if isinstance(x_t, np.ndarray) and x_t.ndim else None
        if not checks.is_plain(x_t, dtype, (batch, self.input_size)):
            x_t = checks.real_array("x_t", x_t, dtype, (None, self.input_size))
        shape = (self.num_layers, x_t.shape[0], self.hidden_size)
        if state is None:
            parts = (np.zeros(shape, dtype),) * len(self._states)
        else:
            parts = state if type(state) is tuple and len(self._states) > 1 else (state,)
            plain = [checks.is_plain(part, dtype, shape) for part in parts]
            if len(parts) != len(self._states) or not all(plain):
                parts = self._state_in("state", "{}", state, Rows(1, len(x_t)), False)
        y, parts_t, finite = self._kernels.recurrent_step(self._weights(), x_t, parts)
        if not finite:
            checks.real_array("x_t", x_t, dtype)
            if state is not None:
                self._state_in("state", "{}", state, Rows(1, len(x_t)), False)
        return y, parts_t if len(parts_t) > 1 else parts_t[0]

    def _step_there(self, x_t, state):
        """`step` on the device."""
        with self._stream(x_t):
            x = self._array("x_t", x_t, (None, self.input_size))
            rows = self._kernels.DeviceRows(1, len(x))
            if state is not None:
                state = self._state_in("state", "{}", state, rows, False)
            y, after, _ = self.rows_forward(x, rows, state)
            return self._given_back(x_t, y), self._state_out(x_t, after, rows, False)

    def _shown(self) -> dict:
        """What a subclass adds to its repr."""
        return {}

    def __repr__(self):
        shown: Mapping = {
            "num_layers": self.num_layers,
            **self._shown(),
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "dtype": self.dtype.name,
            "backend": self.backend,
        }
        options = "".join(f", {k}={v!r}" for k, v in shown.items())
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{options})"
