"""The recurrent layers: parameters, states and lengths around a backend's kernels."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels.rows import Rows

from .base import PackedLayer
from .dropout import drop
from .initial import glorot, orthogonal

State = tuple[np.ndarray, np.ndarray]


class Tape(NamedTuple):
    """What `LSTM.backward` needs of `LSTM.forward`. Good for one backward."""

    rows: Rows
    weights: list  # what the parameters were packed to at the time
    layers: list  # the backend's tape of each layer
    masks: list[np.ndarray | None]  # dropout's factors on each layer's input
    unbatched: bool


class LSTM(PackedLayer):
    """Stacked long short-term memory, in one direction or both.

    The equations, parameter names and shapes are those of ``torch.nn.LSTM`` (Hochreiter &
    Schmidhuber 1997, with the forget gate of Gers et al. 2000; gate order i, f, g, o).

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, features of a step and units of a direction.
    num_layers : int, default 1
        Layers on top of each other.
    bias : bool, default True
        Whether there are ``bias_ih`` and ``bias_hh``.
    batch_first : bool, default False
        Sequences are ``[B, T, I]`` instead of ``[T, B, I]``; states are not affected.
    dropout : float, default 0.0
        Probability with which an output of each layer but the last is zeroed, in
        `forward` only.
    bidirectional : bool, default False
        A second direction runs from each sequence's own end; D is 2, else 1.
    dtype : {"float32", "float64"}
    backend : {"cpu", "reference"}
    seed : int, optional
        Of the initial weights and of dropout. Input weights are Glorot uniform per gate,
        recurrent weights orthogonal per gate, the forget gate's bias is 1, others are 0.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> lstm = fastrnn.LSTM(8, 16, bidirectional=True, seed=0)
    >>> y, (h_n, c_n) = lstm(np.ones((5, 3, 8)), lengths=[5, 0, 2])
    >>> y.shape, h_n.shape
    ((5, 3, 32), (2, 3, 16))
    """

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
            f"weight_ih{suffix}": np.vstack([glorot(self.rng, h, inputs) for _ in range(4)]),
            f"weight_hh{suffix}": np.vstack([orthogonal(self.rng, h) for _ in range(4)]),
        }
        if self.bias:
            out[f"bias_ih{suffix}"] = np.repeat([0.0, 1.0, 0.0, 0.0], h)
            out[f"bias_hh{suffix}"] = np.zeros(4 * h)
        return out

    def _pack(self):
        def of(suffix):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            return tuple(self.parameters.get(name + suffix) for name in names)

        return [
            self._kernels.LSTMWeights([of(suffix) for suffix in self._suffixes(layer)])
            for layer in range(self.num_layers)
        ]

    # Rows in, rows out: for models, which keep their batch packed from end to end.

    def rows_forward(self, x, rows: Rows, state: State | None = None, *, training: bool = False):
        """All layers on packed rows: ``(y [N, D H], (h_n, c_n), tape or None)``.

        x is [N, I], or int64 [N] for a one-hot input given by its index. States are
        [L D, B, H] in the order of the rows; zero when left out. Nothing is checked.
        """
        d = self.directions
        h_0, c_0 = state if state is not None else (self._zero_state(rows.batch),) * 2
        tapes, masks, h_n, c_n = [], [], [], []
        for layer, weights in enumerate(self._weights()):
            mask = None
            if layer and training and self.dropout:
                x, mask = drop(x, self.dropout, self.rng)
            part = slice(layer * d, (layer + 1) * d)
            x, h, c, tape = self._kernels.lstm_forward(
                weights, x, rows, h_0[part], c_0[part], training=training
            )
            tapes.append(tape)
            masks.append(mask)
            h_n.append(h)
            c_n.append(c)
        tape = Tape(rows, self._weights(), tapes, masks, False) if training else None
        return x, (np.concatenate(h_n), np.concatenate(c_n)), tape

    def rows_backward(self, tape: Tape, dy, dstate: State | None = None, *, need_dx: bool = True):
        """Gradients of `rows_forward`: ``(dx [N, I] or None, (dh_0, dc_0), grads)``."""
        if tape.weights is not self._weights():
            raise ValueError(
                "tape is of another layer, or the parameters changed since its forward"
            )
        d = self.directions
        dh_n, dc_n = dstate if dstate is not None else (self._zero_state(tape.rows.batch),) * 2
        grads: dict[str, np.ndarray] = {}
        dh_0: list[np.ndarray] = []
        dc_0: list[np.ndarray] = []
        for layer in reversed(range(self.num_layers)):
            part = slice(layer * d, (layer + 1) * d)
            dy, dh, dc, weight_grads = self._kernels.lstm_backward(
                tape.weights[layer],
                tape.layers[layer],
                dy,
                dh_n[part],
                dc_n[part],
                need_dx=need_dx or layer > 0,
            )
            if tape.masks[layer] is not None:
                dy *= tape.masks[layer]
            for suffix, (dw_ih, dw_hh, db) in zip(self._suffixes(layer), weight_grads, strict=True):
                grads[f"weight_ih{suffix}"], grads[f"weight_hh{suffix}"] = dw_ih, dw_hh
                if self.bias:
                    grads[f"bias_ih{suffix}"], grads[f"bias_hh{suffix}"] = db, db.copy()
            dh_0.insert(0, dh)
            dc_0.insert(0, dc)
        return dy, (np.concatenate(dh_0), np.concatenate(dc_0)), grads

    def _zero_state(self, batch: int) -> np.ndarray:
        return np.zeros((self.num_layers * self.directions, batch, self.hidden_size), self.dtype)

    # Padded arrays in, padded arrays out: the public face.

    def __call__(self, x, state=None, lengths=None) -> tuple[np.ndarray, State]:
        """Run without keeping anything for a gradient; no dropout.

        Parameters
        ----------
        x : array_like of real [T, B, I], or [B, T, I] if ``batch_first``, or [T, I]
        state : (h_0, c_0), optional
            Each [L D, B, H] ([L D, H] for an unbatched x); zero when left out.
        lengths : array_like of int [B], optional
            Steps of each sequence, from 0 to T in any order; all T when left out.

        Returns
        -------
        y : array [T, B, D H] or [B, T, D H] or [T, D H]
            The last layer's outputs, zero beyond a sequence's length.
        (h_n, c_n) : arrays [L D, B, H]
            The state after each sequence's own last step.

        Raises
        ------
        ValueError
            A shape does not fit, a length is out of range or a number is not finite.
        TypeError
            Something is not numeric.
        """
        y, state, _ = self._run(x, state, lengths, training=False)
        return y, state

    def forward(self, x, state=None, lengths=None) -> tuple[np.ndarray, State, Tape]:
        """The same for training, with dropout: ``(y, (h_n, c_n), tape)``.

        The tape may refer to x itself: leave it as it is until `backward`.
        """
        return self._run(x, state, lengths, training=True)

    def _run(self, x, state, lengths, *, training):
        x = checks.real_array("x", x, self.dtype)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            wanted = "(B, T, {0})" if self.batch_first else "(T, B, {0})"
            raise ValueError(
                f"x must have shape {wanted.format(self.input_size)} or "
                f"(T, {self.input_size}), got {x.shape}"
            )
        unbatched = x.ndim == 2
        if unbatched:
            x = x[None] if self.batch_first else x[:, None]
        batch, steps = x.shape[:2] if self.batch_first else x.shape[1::-1]
        if lengths is not None:
            lengths = checks.lengths_array("lengths", lengths, batch, steps)
        rows = Rows(steps, batch, lengths)
        if state is not None:
            state = self._state_in("state", ("h_0", "c_0"), state, rows, unbatched)
        y, state_n, tape = self.rows_forward(
            rows.pack(x, batch_first=self.batch_first), rows, state, training=training
        )
        y = rows.unpack(y, batch_first=self.batch_first)
        h_n, c_n = map(rows.unsort, state_n)
        if unbatched:
            y, h_n, c_n = y.reshape(steps, y.shape[-1]), h_n[:, 0], c_n[:, 0]
        return y, (h_n, c_n), tape and tape._replace(unbatched=unbatched)

    def _state_in(self, name, parts, state, rows, unbatched) -> State:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{name} must be a pair ({', '.join(parts)}), got {type(state).__name__}"
            )
        sizes = (self.num_layers * self.directions, rows.batch, self.hidden_size)
        shape = (sizes[0], sizes[2]) if unbatched else sizes
        h, c = (
            rows.sort(checks.real_array(part, value, self.dtype, shape).reshape(sizes))
            for part, value in zip(parts, state, strict=True)
        )
        return h, c

    def backward(
        self, tape: Tape, dy, dstate=None
    ) -> tuple[np.ndarray, State, dict[str, np.ndarray]]:
        """Gradients of `forward` with respect to everything that went in.

        Parameters
        ----------
        tape : Tape
            From `forward`, with the parameters as they were then; it is used up.
        dy : array_like
            Gradient of y, in its shape; what lies beyond a length is ignored.
        dstate : (dh_n, dc_n), optional
            Gradients of the final states; zero when left out.

        Returns
        -------
        dx : array
            In the shape of x; zero beyond a length.
        (dh_0, dc_0) : arrays
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
        dy = checks.real_array("dy", dy, self.dtype, shape).reshape(*outer, width)
        if dstate is not None:
            dstate = self._state_in("dstate", ("dh_n", "dc_n"), dstate, rows, tape.unbatched)
        dx, dstate_0, grads = self.rows_backward(tape, rows.pack(dy, batch_first=first), dstate)
        dx = rows.unpack(dx, batch_first=first)
        dh_0, dc_0 = map(rows.unsort, dstate_0)
        if tape.unbatched:
            dx, dh_0, dc_0 = dx.reshape(rows.steps, self.input_size), dh_0[:, 0], dc_0[:, 0]
        return dx, (dh_0, dc_0), grads

    def step(self, x_t, state=None) -> tuple[np.ndarray, State]:
        """One step of a stream: ``(y_t [B, H], (h, c))``.

        Parameters
        ----------
        x_t : array_like of real [B, I]
        state : (h, c), optional
            As returned by the step before, each [L, B, H]; zero at the start.

        Raises
        ------
        ValueError
            The layer is bidirectional, or an input does not fit.
        """
        if self.bidirectional:
            raise ValueError("step needs a layer of one direction; this one is bidirectional")
        x_t = checks.real_array("x_t", x_t, self.dtype, (None, self.input_size))
        rows = Rows(1, len(x_t))
        if state is not None:
            state = self._state_in("state", ("h", "c"), state, rows, False)
        y, state, _ = self.rows_forward(x_t, rows, state)
        return y, state

    def __repr__(self):
        shown: Mapping = {
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "dtype": self.dtype.name,
            "backend": self.backend,
        }
        options = "".join(f", {k}={v!r}" for k, v in shown.items())
        return f"LSTM({self.input_size}, {self.hidden_size}{options})"
