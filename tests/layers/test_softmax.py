"""Adaptive softmax: PyTorch, finite differences, files, what is refused."""

import pickle

import numpy as np
import pytest

import fastrnn
from helpers import check_close, check_gradient, needs_torch


def layer(**options):
    return fastrnn.AdaptiveSoftmax(12, 23, [5, 9, 17], **{"dtype": "float64", "seed": 0} | options)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("head_bias", [False, True])
def test_agrees_with_torch(rng, dtype, head_bias):
    import torch

    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(
        12, 23, [5, 9, 17], div_value=2.0, head_bias=head_bias
    ).double()
    ours = layer(dtype=dtype, head_bias=head_bias, div_value=2.0)
    ours.load_state_dict(theirs.state_dict())
    x, targets = rng.standard_normal((40, 12)), rng.integers(0, 23, 40)
    h = torch.tensor(x, requires_grad=True)
    wanted = theirs(h, torch.from_numpy(targets))
    wanted.loss.backward()
    loss, tape = ours.forward(x, targets)
    dh, grads = ours.backward(tape)
    check_close(loss, wanted.loss.item(), dtype)
    check_close(dh, h.grad.numpy(), dtype)
    for name, parameter in theirs.named_parameters():
        check_close(grads[name], parameter.grad.numpy(), dtype)
    log_p = ours.log_prob(x)
    check_close(log_p, theirs.log_prob(h).detach().numpy(), dtype)
    assert np.exp(log_p).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("targets", [[0, 4, 5, 22, 9], [1, 1, 1, 1, 1], [22] * 5])
def test_gradients(rng, targets):
    ours, h = layer(), rng.standard_normal((5, 12))
    flat = ours.parameters.flat.copy()
    dh, grads = ours.backward(ours.forward(h, targets)[1])
    assert grads.keys() == ours.parameters.keys()

    def loss(x, w):
        ours.parameters.writing()[:] = w
        return ours.forward(x, targets)[0]

    named = ours.parameters.flatten(grads, np.empty_like(flat))
    check_gradient(loss, [h, flat], [dh, named])
    assert -ours.log_prob(h)[range(5), targets].mean() == pytest.approx(loss(h, flat))


def test_backends_and_copies(rng):
    ours = layer(dtype="float32")
    oracle = layer(backend="reference")
    oracle.load_state_dict(ours.state_dict())
    h, targets = rng.standard_normal((3, 4, 12)), rng.integers(0, 23, (3, 4))
    loss, (dh, _) = ours.forward(h, targets)
    wanted, (wanted_dh, _) = oracle.forward(h, targets)
    check_close(loss, wanted, "float32")
    check_close(dh, wanted_dh, "float32")
    assert dh.shape == h.shape and ours.log_prob(h).shape == (3, 4, 23)
    twin = pickle.loads(pickle.dumps(ours))
    assert twin.forward(h, targets)[0] == loss
    twin.parameters.writing()[:] = 0  # of all its parts, and of no other layer's
    assert twin.forward(h, targets)[0] != loss == ours.forward(h, targets)[0]
    ours.precision = "bf16"
    assert ours.forward(h, targets)[0] == pytest.approx(loss, rel=1e-2)


def test_refused(rng):
    for cutoffs in ([], [0, 3], [3, 3], [9, 5], [23]):
        with pytest.raises(ValueError, match="cutoffs must ascend and be between 1 and 22"):
            fastrnn.AdaptiveSoftmax(12, 23, cutoffs)
    with pytest.raises(IndexError, match=r"class 23 at position 1 is not in \[0, 23\)"):
        layer().forward(rng.standard_normal((2, 12)), [0, 23])
    with pytest.raises(ValueError, match=r"h must have shape \(..., 12\), got \(2, 11\)"):
        layer().log_prob(np.zeros((2, 11)))
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), got \(3,\)"):
        layer().forward(np.zeros((2, 12)), [0, 1, 2])
