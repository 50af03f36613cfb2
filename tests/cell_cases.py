"""The test table of the cells: one row each. Everything else is derived from the cell's record."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from fastrnn.layers import GRU, LSTM, RNN


class CellCase(NamedTuple):
    """How a cell is made and judged."""

    make: Callable  # the layer, with the arguments of `LSTM`
    hand: Callable  # ``(x, h, state, p) -> new state`` for one unit, written out in floats;
    # x and h are the sums W_ih x + b_ih and W_hh h + b_hh of each gate in PyTorch's order
    torch: tuple[str, dict] | None = None  # the class in torch.nn and its options


def s(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def _lstm(x, h, state, p):
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = s(f) * state[1] + s(i) * math.tanh(g)
    return s(o) * math.tanh(c), c


def _lstm_peephole(x, h, state, p):
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    i, f = s(i + p["weight_ci"] * state[1]), s(f + p["weight_cf"] * state[1])
    c = f * state[1] + i * math.tanh(g)
    return s(o + p["weight_co"] * c) * math.tanh(c), c


def _lstm_coupled(x, h, state, p):
    i, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = (1 - s(i)) * state[1] + s(i) * math.tanh(g)
    return s(o) * math.tanh(c), c


def _lstm_clipped(x, h, state, p):
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = s(f) * state[1] + s(i) * math.tanh(g)
    c = max(min(c, p["cell_clip"]), -p["cell_clip"])
    return s(o) * math.tanh(c), c


def _gru(x, h, state, p):
    n = math.tanh(x[2] + s(x[0] + h[0]) * h[2])
    u = s(x[1] + h[1])
    return ((1 - u) * n + u * state[0],)


def _rnn(function):
    return lambda x, h, state, p: (function(x[0] + h[0]),)


def _variant(name, **options):
    return functools.partial(LSTM, variant=name, **options)


CASES = {
    "lstm": CellCase(LSTM, _lstm, ("LSTM", {})),
    "lstm_peephole": CellCase(_variant("peephole"), _lstm_peephole),
    "lstm_coupled": CellCase(_variant("coupled"), _lstm_coupled),
    "lstm_clipped": CellCase(_variant("clipped", constants={"cell_clip": 0.5}), _lstm_clipped),
    "gru": CellCase(GRU, _gru, ("GRU", {})),
    "rnn_tanh": CellCase(RNN, _rnn(math.tanh), ("RNN", {})),
    "rnn_relu": CellCase(
        functools.partial(RNN, nonlinearity="relu"),
        _rnn(lambda z: max(z, 0.0)),
        ("RNN", {"nonlinearity": "relu"}),
    ),
}
