"""The oracle itself: hand values, gradients and PyTorch, without any other code of ours."""

import functools
import math

import numpy as np
import pytest

from fastrnn.kernels import reference
from helpers import check_close, check_gradient, needs_torch

# Gates, states, forward, backward, and the same in torch.
CELLS = {
    "lstm": (4, 2, reference.lstm_forward, reference.lstm_backward, ("LSTM", {})),
    "gru": (3, 1, reference.gru_forward, reference.gru_backward, ("GRU", {})),
    "tanh": (1, 1, reference.rnn_forward, reference.rnn_backward, ("RNN", {})),
    "relu": (
        1, 1, functools.partial(reference.rnn_forward, relu=True), reference.rnn_backward,
        ("RNN", {"nonlinearity": "relu"}),
    ),
}  # fmt: skip
each_cell = pytest.mark.parametrize("cell", CELLS)
each_direction = pytest.mark.parametrize("reverse", [False, True])


def problem(rng, cell, steps, batch, inputs, units):
    """``x, w_ih, w_hh, b_ih, b_hh`` and the states."""
    rows, states = CELLS[cell][0] * units, CELLS[cell][1]
    shapes = [(steps, batch, inputs), (rows, inputs), (rows, units), (rows,), (rows,)]
    shapes += [(batch, units)] * states
    return [rng.standard_normal(s) for s in shapes]


def s(z):
    return 1 / (1 + math.exp(-z))


X, H, C = 0.5, -0.25, 0.75
W, U, B, B2 = (1.0, -2.0, 0.5, 3.0), (0.1, 0.2, -0.3, 0.4), (0.01, 0.02, 0.03, 0.04), (0.5,) * 4


def one_step(cell):
    """One unit, one input: z = w x + u h + b + b' with a different w for every gate."""
    gates, states, forward, *_ = CELLS[cell]
    y, state, _ = forward(
        np.array([[[X]]]), np.array([1]), np.array(W[:gates])[:, None],
        np.array(U[:gates])[:, None], np.array(B[:gates]), np.array(B2[:gates]),
        tuple(np.array([[v]]) for v in (H, C)[:states]),
    )  # fmt: skip
    assert y[0, 0, 0] == state[0][0, 0]
    return [float(v[0, 0]) for v in state]


def test_one_step_by_hand():
    of_x = [w * X + b for w, b in zip(W, B, strict=True)]
    of_h = [u * H + b for u, b in zip(U, B2, strict=True)]
    z = [a + b for a, b in zip(of_x, of_h, strict=True)]
    c = s(z[1]) * C + s(z[0]) * math.tanh(z[2])
    assert one_step("lstm") == pytest.approx([s(z[3]) * math.tanh(c), c], abs=1e-15)
    n = math.tanh(of_x[2] + s(z[0]) * of_h[2])
    assert one_step("gru") == pytest.approx([(1 - s(z[1])) * n + s(z[1]) * H], abs=1e-15)
    assert one_step("tanh") == pytest.approx([math.tanh(z[0])], abs=1e-15)
    assert one_step("relu") == pytest.approx([z[0]], abs=1e-15) and z[0] > 0


@each_direction
@each_cell
def test_gradients_of_every_input(rng, cell, reverse):
    _, states, forward, backward, _ = CELLS[cell]
    lengths = np.array([4, 0, 2, 1])
    inputs = problem(rng, cell, 4, 4, 3, 2)
    dy, *dstates = (rng.standard_normal(s) for s in ((4, 4, 2), *[(4, 2)] * states))

    def loss(x, *rest):
        y, state, _ = forward(x, lengths, *rest[:4], rest[4:], reverse=reverse)
        return float(
            (y * dy).sum() + sum((a * b).sum() for a, b in zip(state, dstates, strict=True))
        )

    x, w_ih, w_hh = inputs[:3]
    cache = forward(x, lengths, *inputs[1:5], inputs[5:], reverse=reverse)[2]
    dx, dstate, *rest = backward(x, cache, w_ih, w_hh, dy, dstates)
    check_gradient(loss, inputs, [dx, *rest, *dstate])


@each_cell
def test_nothing_beyond_a_length(rng, cell):
    forward = CELLS[cell][2]
    lengths = np.array([3, 0, 1])
    x, *rest = problem(rng, cell, 3, 3, 2, 2)
    weights, states = rest[:4], rest[4:]
    y, state_n, _ = forward(x, lengths, *weights, states)
    assert not y[:, 1].any() and not y[1:, 2].any()
    assert all((a[1] == b[1]).all() for a, b in zip(state_n, states, strict=True))
    assert (state_n[0][2] == y[0, 2]).all()
    moved = x.copy()
    moved[1:, 2] += 5
    assert (forward(moved, lengths, *weights, states)[0] == y).all()


@each_cell
def test_reverse_is_forward_on_the_flipped_sequence(rng, cell):
    forward = CELLS[cell][2]
    lengths = np.array([4, 2])
    x, *rest = problem(rng, cell, 4, 2, 3, 2)
    weights, states = rest[:4], rest[4:]
    y, state_n, _ = forward(x, lengths, *weights, states, reverse=True)
    for b, n in enumerate(lengths):
        own = [s[b : b + 1] for s in states]
        flipped, last, _ = forward(x[:n, b : b + 1][::-1], np.array([n]), *weights, own)
        check_close(flipped[::-1, 0], y[:n, b], "float64")
        for got, wanted in zip(last, state_n, strict=True):
            check_close(got[0], wanted[b], "float64")


@needs_torch
@each_direction
@each_cell
def test_agrees_with_torch(rng, cell, reverse):
    import torch

    _, _, forward, backward, (name, options) = CELLS[cell]
    steps, batch, inputs, units = 5, 3, 4, 6
    lengths = np.array([5, 2, 3])
    x, *rest = problem(rng, cell, steps, batch, inputs, units)
    weights, states = rest[:4], rest[4:]
    twin = getattr(torch.nn, name)(inputs, units, bidirectional=True, **options).double()
    suffix = "_reverse" if reverse else ""
    names = [f"{n}_l0{suffix}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    with torch.no_grad():
        for parameter, value in zip(names, weights, strict=True):
            getattr(twin, parameter).copy_(torch.from_numpy(value))
    leaf = [torch.tensor(v, requires_grad=True) for v in (x, *states)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(leaf[0], lengths, enforce_sorted=False)
    zero = torch.zeros(batch, units, dtype=torch.float64)
    both = tuple(torch.stack([zero, s] if reverse else [s, zero]) for s in leaf[1:])
    out, state_n = twin(packed, both if len(both) == 2 else both[0])
    out = torch.nn.utils.rnn.pad_packed_sequence(out)[0]
    d = int(reverse)
    state_n = state_n if len(both) == 2 else (state_n,)
    theirs = [out[..., d * units : (d + 1) * units], *(s[d] for s in state_n)]
    dy, *dstates = (rng.standard_normal(v.shape) for v in theirs)
    torch.autograd.backward(theirs, [torch.from_numpy(g) for g in (dy, *dstates)])

    y, state, cache = forward(x, lengths, *weights, states, reverse=reverse)
    for got, wanted in zip((y, *state), theirs, strict=True):
        check_close(got, wanted.detach().numpy(), "float64")
    dx, dstate, *grads = backward(x, cache, *weights[:2], dy, dstates)
    wanted = [leaf[0].grad, *(v.grad for v in leaf[1:]), *(getattr(twin, n).grad for n in names)]
    for got, theirs in zip((dx, *dstate, *grads), wanted, strict=True):
        check_close(got, theirs.numpy(), "float64")
