"""The recurrent layers in tests: the cells by name, random input, all outputs and gradients."""

import numpy as np
import pytest

from cell_cases import CASES

DTYPES = ["float32", "float64"]
CELLS = {name: case.make for name, case in CASES.items()}
each_cell = pytest.mark.parametrize("cell", CELLS)
# The cells of most users are tried at every shape, the others at some.
BASIC = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
OTHERS = [name for name in CELLS if name not in BASIC]
each_torch_cell = pytest.mark.parametrize("cell", [n for n, c in CASES.items() if c.torch])


def pair(state):
    """A state as a tuple, whatever the cell."""
    return state if isinstance(state, tuple) else (state,)


def draw(rng, layer, steps, batch):
    """Random input, state and gradients for a layer, in float64."""
    d, h = layer.directions, layer.output_size
    outer = (batch, steps) if layer.batch_first else (steps, batch)
    x, dy = (rng.standard_normal((*outer, n)) for n in (layer.input_size, d * h))
    states = [
        tuple(rng.standard_normal(shape) for shape in layer._state_shapes(batch)) for _ in range(2)
    ]
    state, dstate = (s if len(s) == 2 else s[0] for s in states)
    return x, state, dy, dstate


def everything(layer, x, state, lengths, dy, dstate):
    """All outputs and gradients by name."""
    y, state_n, tape = layer.forward(x, state, lengths)
    dx, dstate_0, grads = layer.backward(tape, dy, dstate)
    out = {"y": y, "dx": dx} | named("{}_n", state_n) | named("d{}_0", dstate_0)
    return out | grads


def named(name, state):
    return {name.format(part): s for part, s in zip("hc", pair(state), strict=False)}


def of_states(function, state):
    """The function of each part of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name
