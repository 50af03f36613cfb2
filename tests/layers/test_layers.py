"""Embedding, Linear and Dropout; the LSTM has a file of its own."""

import numpy as np
import pytest

import fastrnn
from fastrnn.parameters import Gradient, Parameters, join
from helpers import check_close, check_gradient, needs_torch


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_agrees_with_torch(rng, dtype, bias):
    import torch

    layer = fastrnn.Linear(13, 70, bias=bias, dtype=dtype, seed=0)
    twin = torch.nn.Linear(13, 70, bias=bias).double()
    twin.load_state_dict({k: torch.from_numpy(v).double() for k, v in layer.state_dict().items()})
    x, dy = rng.standard_normal((3, 4, 13)), rng.standard_normal((3, 4, 70))
    leaf = torch.tensor(x, requires_grad=True)
    out = twin(leaf)
    out.backward(torch.from_numpy(dy))
    y, tape = layer.forward(x)
    dx, grads = layer.backward(tape, dy)
    check_close(y, out.detach().numpy(), dtype)
    check_close(dx, leaf.grad.numpy(), dtype)
    assert grads.keys() == layer.state_dict().keys()
    for name, p in twin.named_parameters():
        check_close(grads[name], p.grad.numpy(), dtype, name)
    assert np.array_equal(layer(x), y)


def test_embedding(rng):
    layer = fastrnn.Embedding(9, 4, dtype="float64", seed=0)
    table = layer.state_dict()["weight"]
    ids = np.array([[0, 8, 3], [3, 3, 1]])
    y, tape = layer.forward(ids)
    assert np.array_equal(y, table[ids]) and np.array_equal(layer(ids.tolist()), y)
    dy = rng.standard_normal(y.shape)
    dense = layer.backward(tape, dy)["weight"]

    def loss(weight):
        layer.load_state_dict({"weight": weight})
        return float((layer(ids) * dy).sum())

    check_gradient(loss, [table], [dense])
    rows, sums = layer.backward(tape, dy, sparse=True)["weight"]
    assert rows.tolist() == [0, 1, 3, 8] and np.array_equal(sums, dense[rows])
    with pytest.raises(IndexError, match=r"id 9 at position 1 is not in \[0, 9\)"):
        layer([0, 9])
    with pytest.raises(TypeError, match="ids must be integers, got dtype float64"):
        layer([0.5])


def test_dropout(rng):
    layer = fastrnn.Dropout(0.25, seed=0)
    x = np.ones((100, 50), "f")
    y, tape = layer.forward(x)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)} and abs(y.mean() - 1) < 0.05
    assert np.array_equal(layer.backward(tape, x), y) and layer(x) is x
    assert np.array_equal(fastrnn.Dropout(0.25, seed=0).forward(x)[0], y)
    with pytest.raises(ValueError, match=r"p must be in \[0.0, 1.0\), got 1.0"):
        fastrnn.Dropout(1.0)


def test_linear_refuses():
    layer = fastrnn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 3\), got \(2, 4\)"):
        layer(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="x must be finite"):
        layer(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 2\), got \(2, 3\)"):
        layer.backward(layer.forward(np.zeros((2, 3)))[1], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="out_features must be at least 1"):
        fastrnn.Linear(3, 0)


def test_joined_parameters_are_one_vector():
    a, b = fastrnn.Linear(2, 3, seed=0), fastrnn.Embedding(4, 5, seed=0)
    before = a(np.ones((1, 2))), b([1])
    whole = join({"a": a, "b": b})
    assert list(whole) == ["a.weight", "a.bias", "b.weight"]
    assert whole.size == 8 + 4 + 20 and all(at % 4 == 0 for at, _ in whole.places().values())
    assert np.array_equal(a(np.ones((1, 2))), before[0]) and np.array_equal(b([1]), before[1])
    whole.writing()[:] = 1
    assert (a(np.ones((1, 2))) == 3).all() and (b([1]) == 1).all()
    grads = {name: np.full(whole[name].shape, n) for n, name in enumerate(whole)}
    flat = whole.flatten(grads, np.full(32, np.nan, "f"))
    assert flat.tolist() == [0] * 8 + [1] * 3 + [0] + [2] * 20
    unwritten = Gradient(whole, lambda size, dtype: np.full(size, np.nan, dtype)).flat
    assert np.array_equal(np.flatnonzero(unwritten == 0), [6, 7, 11])
    with pytest.raises(ValueError, match="layers must share one dtype"):
        join({"a": fastrnn.Linear(2, 3), "b": fastrnn.Linear(2, 3, dtype="float64")})
    assert isinstance(whole, Parameters) and whole.sub("b.").size == 20


def test_other_byte_orders_are_refused_or_converted():
    """Kernels are compiled for the machine's own."""
    with pytest.raises(ValueError, match="dtype must be one of float32, float64"):
        fastrnn.Linear(3, 2, dtype=np.dtype("f4").newbyteorder())
    x = np.ones((4, 3), np.dtype("f4").newbyteorder())
    assert set(np.unique(fastrnn.Dropout(0.5, seed=0).forward(x)[0])) <= {0, 2}
    layer = fastrnn.Linear(3, 2, seed=0)
    y, tape = layer.forward(x)
    assert np.array_equal(y, layer(np.ones((4, 3), "f4")))
    wide = np.ones((4, 6), "f4")
    wide[:, 1::2] = 7
    got, wanted = (layer.backward(t, y)[1]["weight"] for t in (wide[:, ::2], tape))
    assert np.array_equal(got, wanted)
