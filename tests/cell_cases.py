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
    condition: float = 1.0  # how much it amplifies rounding, for tolerances


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


def _projected(inputs, units, *sizes, **options):
    return LSTM(inputs, units, *sizes, proj_size=5, **options)


def _variant(name, **options):
    return functools.partial(LSTM, variant=name, **options)


def _lstm_layer_norm(x, h, state, p):
    """Of a single unit: the norm of 4 gates, and of one number, which is 0."""

    def norm(v):
        mean = sum(v) / len(v)
        variance = sum((a - mean) ** 2 for a in v) / len(v)
        return [(a - mean) / math.sqrt(variance + 1e-5) for a in v]

    # x and h come with their biases, which are added after the norm.
    pre = [
        gain_x * a + bias_x + gain_h * b + bias_h
        for gain_x, a, bias_x, gain_h, b, bias_h in zip(
            p["gain_ih"],
            norm([a - b for a, b in zip(x, p["bias_ih"], strict=True)]),
            p["bias_ih"],
            p["gain_hh"],
            norm([a - b for a, b in zip(h, p["bias_hh"], strict=True)]),
            p["bias_hh"],
            strict=True,
        )
    ]
    i, f, g, o = pre
    c = s(f) * state[1] + s(i) * math.tanh(g)
    return s(o) * math.tanh(p["bias_c"][0]), c


def _lstm_projected(x, h, state, p):
    m, c = _lstm(x, h, state, p)
    return p["weight_hr"][0] * m, c


def _gru_reset_before(x, h, state, p):
    r, u = s(x[0] + h[0]), s(x[1] + h[1])
    n = math.tanh(x[2] + r * (h[2] - p["bias_hh"][2]) + p["bias_hh"][2])
    return ((1 - u) * n + u * state[0],)


CASES = {
    "lstm": CellCase(LSTM, _lstm, ("LSTM", {})),
    "lstm_peephole": CellCase(_variant("peephole"), _lstm_peephole),
    "lstm_coupled": CellCase(_variant("coupled"), _lstm_coupled),
    "lstm_clipped": CellCase(_variant("clipped", constants={"cell_clip": 0.5}), _lstm_clipped),
    "lstm_projected": CellCase(_projected, _lstm_projected, ("LSTM", {"proj_size": 5})),
    "lstm_layer_norm": CellCase(
        # The norm of a few numbers divides by their small deviation.
        _variant("layer_norm"),
        _lstm_layer_norm,
        condition=20.0,
    ),
    "gru_reset_before": CellCase(functools.partial(GRU, variant="reset_before"), _gru_reset_before),
    "gru": CellCase(GRU, _gru, ("GRU", {})),
    "rnn_tanh": CellCase(RNN, _rnn(math.tanh), ("RNN", {})),
    "rnn_relu": CellCase(
        functools.partial(RNN, nonlinearity="relu"),
        _rnn(lambda z: max(z, 0.0)),
        ("RNN", {"nonlinearity": "relu"}),
    ),
}
