"""The oracle itself: hand values, gradients and PyTorch, without any other code of ours."""

import math

import numpy as np
import pytest

from fastrnn.kernels import reference
from helpers import check_close, check_gradient, needs_torch


def problem(rng, steps, batch, inputs, units):
    shapes = [
        (steps, batch, inputs), (4 * units, inputs), (4 * units, units), (4 * units,),
        (4 * units,), (batch, units), (batch, units),
    ]  # fmt: skip
    return [rng.standard_normal(s) for s in shapes]


def test_one_step_by_hand():
    s = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    # One unit, one input: z = w x + u h + b + b' with a different w for every gate.
    x, h, c = 0.5, -0.25, 0.75
    w, u, b, b2 = (1.0, -2.0, 0.5, 3.0), (0.1, 0.2, -0.3, 0.4), (0.01, 0.02, 0.03, 0.04), (0.5,) * 4
    z = [wi * x + ui * h + bi + bj for wi, ui, bi, bj in zip(w, u, b, b2, strict=True)]
    c_new = s(z[1]) * c + s(z[0]) * math.tanh(z[2])
    h_new = s(z[3]) * math.tanh(c_new)
    y, h_n, c_n, _ = reference.lstm_forward(
        np.array([[[x]]]), np.array([1]), np.array(w)[:, None], np.array(u)[:, None],
        np.array(b), np.array(b2), np.array([[h]]), np.array([[c]]),
    )  # fmt: skip
    assert y[0, 0, 0] == pytest.approx(h_new, abs=1e-15)
    assert h_n[0, 0] == pytest.approx(h_new, abs=1e-15)
    assert c_n[0, 0] == pytest.approx(c_new, abs=1e-15)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_every_input(rng, reverse):
    lengths = np.array([4, 0, 2, 1])
    inputs = problem(rng, 4, 4, 3, 2)
    dy, dh_n, dc_n = (rng.standard_normal(s) for s in ((4, 4, 2), (4, 2), (4, 2)))

    def loss(x, *rest):
        y, h_n, c_n, _ = reference.lstm_forward(x, lengths, *rest, reverse=reverse)
        return float((y * dy).sum() + (h_n * dh_n).sum() + (c_n * dc_n).sum())

    x, w_ih, w_hh = inputs[:3]
    cache = reference.lstm_forward(x, lengths, *inputs[1:], reverse=reverse)[3]
    dx, dh_0, dc_0, dw_ih, dw_hh, db = reference.lstm_backward(x, cache, w_ih, w_hh, dy, dh_n, dc_n)
    check_gradient(loss, inputs, [dx, dw_ih, dw_hh, db, db, dh_0, dc_0])


def test_nothing_beyond_a_length(rng):
    lengths = np.array([3, 0, 1])
    x, *rest = problem(rng, 3, 3, 2, 2)
    y, h_n, c_n, _ = reference.lstm_forward(x, lengths, *rest)
    assert not y[:, 1].any() and not y[1:, 2].any()
    assert (h_n[1] == rest[4][1]).all() and (c_n[1] == rest[5][1]).all()
    assert (h_n[2] == y[0, 2]).all()
    moved = x.copy()
    moved[1:, 2] += 5
    assert (reference.lstm_forward(moved, lengths, *rest)[0] == y).all()


def test_reverse_is_forward_on_the_flipped_sequence(rng):
    lengths = np.array([4, 2])
    x, *rest = problem(rng, 4, 2, 3, 2)
    y, h_n, c_n, _ = reference.lstm_forward(x, lengths, *rest, reverse=True)
    for b, n in enumerate(lengths):
        state = [s[b : b + 1] for s in rest[4:]]
        flipped = reference.lstm_forward(x[:n, b : b + 1][::-1], np.array([n]), *rest[:4], *state)
        pairs = ((flipped[0][::-1, 0], y[:n, b]), (flipped[1][0], h_n[b]), (flipped[2][0], c_n[b]))
        for got, wanted in pairs:
            check_close(got, wanted, "float64")


@needs_torch
@pytest.mark.parametrize("reverse", [False, True])
def test_agrees_with_torch(rng, reverse):
    import torch

    steps, batch, inputs, units = 5, 3, 4, 6
    lengths = np.array([5, 2, 3])
    x, w_ih, w_hh, b_ih, b_hh, h_0, c_0 = problem(rng, steps, batch, inputs, units)
    lstm = torch.nn.LSTM(inputs, units, bidirectional=True).double()
    suffix = "_reverse" if reverse else ""
    with torch.no_grad():
        for name, value in zip(
            ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), (w_ih, w_hh, b_ih, b_hh), strict=True
        ):
            getattr(lstm, f"{name}_l0{suffix}").copy_(torch.from_numpy(value))
    leaf = [torch.tensor(v, requires_grad=True) for v in (x, h_0, c_0)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(leaf[0], lengths, enforce_sorted=False)
    zero = torch.zeros(batch, units, dtype=torch.float64)
    state = tuple(torch.stack([zero, s] if reverse else [s, zero]) for s in leaf[1:])
    out, (h_n, c_n) = lstm(packed, state)
    out = torch.nn.utils.rnn.pad_packed_sequence(out)[0]
    d = int(reverse)
    out, h_n, c_n = out[..., d * units : (d + 1) * units], h_n[d], c_n[d]
    dy, dh, dc = (rng.standard_normal(v.shape) for v in (out, h_n, c_n))
    torch.autograd.backward([out, h_n, c_n], [torch.from_numpy(g) for g in (dy, dh, dc)])

    y, h, c, cache = reference.lstm_forward(
        x, lengths, w_ih, w_hh, b_ih, b_hh, h_0, c_0, reverse=reverse
    )
    ours = reference.lstm_backward(x, cache, w_ih, w_hh, dy, dh, dc)
    names = ("weight_ih", "weight_hh", "bias_ih")
    weights = [getattr(lstm, f"{n}_l0{suffix}").grad for n in names]
    theirs = [leaf[0].grad, leaf[1].grad, leaf[2].grad, *weights]
    for got, wanted in zip((y, h, c), (out, h_n, c_n), strict=True):
        check_close(got, wanted.detach().numpy(), "float64")
    for got, wanted in zip(ours, theirs, strict=True):
        check_close(got, wanted.numpy(), "float64")
