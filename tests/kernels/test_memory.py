"""What a training step needs at its peak, by the formula of docs/memory.md, and no growth."""

import tracemalloc

import numpy as np
import pytest

from fastrnn.kernels.native.isa import ISA, width
from fastrnn.layers import GRU, LSTM, RNN
from fastrnn.runtime import buffers


def formula(layer, steps, batch) -> int:
    """docs/memory.md, for one layer with dense input."""
    w, size = width(layer.dtype), layer.dtype.itemsize
    i, h, d = layer.input_size, layer.hidden_size, layer.directions
    gates, states = {LSTM: (4, 2), GRU: (3, 1), RNN: (1, 1)}[type(layer)]
    n, hp = steps * batch, -(-h // w) * w
    saved = 4 * hp if gates > 1 else hp
    weights = d * gates * hp * (i + h)
    if layer.precision == "bf16" and ISA.bf16:
        rows = 4 * (i + d * h + states * d * (hp + w)) + 2 * (d * saved + 2 * i + 2 * d * hp)
        return n * rows + 12 * weights
    rows = n * (i + d * h + d * saved + states * d * (hp + w))
    return size * (rows + 4 * weights)


@pytest.fixture
def traced():
    buffers.release()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_peak_of_a_training_step(traced, cell, bidirectional, precision):
    steps, batch = 64, 32
    layer = cell(96, 160, bidirectional=bidirectional, precision=precision, seed=0)
    x = np.zeros((steps, batch, 96), "f")
    dy = np.zeros((steps, batch, layer.directions * 160), "f")
    layer.backward(layer.forward(x)[2], dy)
    buffers.release()
    layer.parameters.writing()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    y, _, tape = layer.forward(x)
    dx, _, grads = layer.backward(tape, dy)
    peak = tracemalloc.get_traced_memory()[1] - before
    wanted = formula(layer, steps, batch)
    print(f"{cell.__name__} {layer.directions}: peak over formula {peak / wanted:.2f}")
    assert 0.8 * wanted < peak < 1.1 * wanted + 200_000, (peak, wanted)
    assert y.shape == dy.shape and dx.shape == x.shape and grads


def test_no_growth_over_a_thousand_shapes(traced, rng):
    seen = []
    for number in range(1000):
        cell = (LSTM, GRU, RNN)[number % 3]
        steps, batch, inputs, units = (int(n) for n in rng.integers(1, (30, 40, 60, 60)))
        layer = cell(inputs, units, seed=0)
        y, _, tape = layer.forward(np.zeros((steps, batch, inputs), "f"))
        layer.backward(tape, y)
        del layer, y, tape
        seen.append(tracemalloc.get_traced_memory()[0])
    # What is kept stops growing: the last 500 shapes add nothing to what the first 500 left.
    assert max(seen[500:]) < 1.25 * max(seen[:500]) + 100_000, (max(seen[:500]), max(seen[500:]))
