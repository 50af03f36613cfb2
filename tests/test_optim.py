"""Optimizers step by step against PyTorch, clipping, schedules."""

import math

import numpy as np
import pytest

import fastrnn
from fastrnn import optim
from fastrnn.kernels.cpu import optim as kernels
from fastrnn.kernels.native.records import CHUNK
from fastrnn.parameters import Parameters
from helpers import check_close, needs_torch

SIZE = 3 * CHUNK + 7


def run(optimizer, gradients, w_0, **options):
    parameters = Parameters({"w": w_0}, w_0.dtype)
    path = []
    for g in gradients:
        optimizer.step(parameters, g.astype(w_0.dtype), **options)
        path.append(parameters.flat.copy())
    return path


@needs_torch
# Torch adds its eps before the correction of the second moment, so here it is nothing.
@pytest.mark.parametrize("ours, theirs, options", [
    (optim.Adam, "SparseAdam", {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-15}),
    (optim.SGD, "SGD", {"lr": 0.1}),
])  # fmt: skip
def test_some_rows_of_a_table_with_torch(rng, ours, theirs, options):
    import torch

    table = rng.standard_normal((9, 4))
    twin = torch.nn.Parameter(torch.from_numpy(table.copy()))
    judge = getattr(torch.optim, theirs)([twin], **options)
    optimizer, parameters = ours(**options), Parameters({"w": np.zeros(3)}, "float64")
    for number in range(20):
        before = table.copy()
        rows = rng.permutation(9)[: 1 + number % 4]
        values = rng.standard_normal((len(rows), 4))
        norm = optimizer.step(
            parameters, np.zeros(3), rows={"t": optim.RowGradient(table, rows, values)}
        )
        assert norm == pytest.approx(np.sqrt((values**2).sum()))
        twin.grad = torch.sparse_coo_tensor(rows[None], values, (9, 4), check_invariants=True)
        judge.step()
        check_close(table, twin.detach().numpy(), "float64")
        others = np.setdiff1d(np.arange(9), rows)
        assert np.array_equal(table[others], before[others])
        # The state between steps goes through a file.
        state, optimizer = optimizer.state_dict(), ours(**options)
        optimizer.load_state_dict(state)
    optimizer.step(parameters, np.zeros(3), rows={"t": optim.RowGradient(table, rows, values)})
    before = parameters.flat.copy(), table.copy()
    for bad, error, message in (
        ((table, rows, values[:1]), ValueError, "t: values must be float64"),
        ((table, rows, values.astype("f")), ValueError, "t: values must be float64"),
        ((table, rows + 9, values), IndexError, "t: rows: row"),
        ((table, -rows - 1, values), IndexError, "t: rows: row"),
        ((table, rows[[0, *range(len(rows) - 1)]], values), ValueError, "t: rows must differ"),
    ):
        with pytest.raises(error, match=message):
            optimizer.step(parameters, np.ones(3), rows={"t": optim.RowGradient(*bad)})
    assert np.array_equal(parameters.flat, before[0]) and np.array_equal(table, before[1])
    with pytest.raises(ValueError, match="must be float64 \\(5, 4\\), got float64 \\(9, 4\\)"):
        smaller = optim.RowGradient(table[:5], rows[:1] * 0, values[:1])
        optimizer.step(parameters, np.zeros(3), rows={"t": smaller})


def test_asgd_refuses_tables():
    rows = {"words": optim.RowGradient(np.ones((4, 2)), np.array([1]), np.ones((1, 2)))}
    with pytest.raises(ValueError, match="rows must be empty: ASGD averages no tables, got words"):
        optim.ASGD(0.1).step(Parameters({"w": np.zeros(3)}, "float64"), np.ones(3), rows=rows)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (optim.Adam, "Adam", {"lr": 1e-2}),
        (optim.Adam, "Adam", {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}),
        (optim.AdamW, "AdamW", {"lr": 1e-2}),
        (optim.AdamW, "AdamW", {"lr": 1e-2, "weight_decay": 0.3}),
        (optim.SGD, "SGD", {"lr": 0.1}),
        (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (optim.SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_step_by_step_with_torch(rng, ours, theirs, options, dtype):
    import torch

    w_0 = rng.standard_normal(50).astype(dtype)
    # From tiny to large, so that eps and the corrections of the moments matter.
    gradients = rng.standard_normal((30, 50)) * np.geomspace(1e-6, 10, 50)
    twin = torch.nn.Parameter(torch.from_numpy(w_0.astype(np.float64)))
    judge = getattr(torch.optim, theirs)([twin], **options)
    for g, w in zip(gradients, run(ours(**options), gradients, w_0), strict=True):
        twin.grad = torch.from_numpy(g)
        judge.step()
        check_close(w, twin.detach().numpy(), dtype)


@needs_torch
def test_clipping_with_torch(rng):
    import torch

    w_0 = rng.standard_normal(40)
    gradients = rng.standard_normal((10, 40)) * np.geomspace(0.01, 10, 10)[:, None]
    parameters, optimizer = Parameters({"w": w_0}, "float64"), optim.Adam(0.01)
    twin = torch.nn.Parameter(torch.from_numpy(w_0.copy()))
    judge = torch.optim.Adam([twin], lr=0.01)
    for g in gradients:
        norm = optimizer.step(parameters, g, max_norm=1.0)
        twin.grad = torch.from_numpy(g.copy())
        theirs = torch.nn.utils.clip_grad_norm_([twin], 1.0)
        judge.step()
        assert norm == pytest.approx(float(theirs), rel=1e-12)
        # torch adds 1e-6 to the norm it divides by.
        assert np.allclose(parameters.flat, twin.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_adam_by_hand():
    """Two steps of one weight, from the paper's algorithm."""
    w, m, v = 1.0, 0.0, 0.0
    parameters, optimizer = Parameters({"w": np.array([w])}, "float64"), optim.Adam(0.1)
    for t, g in ((1, 0.5), (2, -2.0)):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        optimizer.step(parameters, np.array([g]))
        assert parameters.flat[0] == pytest.approx(w, abs=1e-14)


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW, lambda: optim.SGD(momentum=0.9)])
def test_same_bits_for_any_number_of_threads_and_after_a_reload(rng, make):
    w_0 = rng.standard_normal(SIZE).astype("f")
    gradients = rng.standard_normal((4, SIZE))
    paths = []
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        paths.append(run(make(), gradients, w_0, max_norm=1.0))
    for other in paths[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(paths[0], other, strict=True))
    first, second = make(), make()
    w_2 = run(first, gradients[:2], w_0, max_norm=1.0)[-1]
    second.load_state_dict(first.state_dict())
    assert np.array_equal(run(second, gradients[2:], w_2, max_norm=1.0)[-1], paths[0][-1])


def test_norm(rng):
    x = rng.standard_normal(SIZE).astype("f")
    assert kernels.norm(x) == pytest.approx(np.linalg.norm(x.astype(float)), rel=1e-12)
    assert kernels.norm(np.full(10, 1e30, "f")) == pytest.approx(1e30 * math.sqrt(10), rel=1e-6)
    assert kernels.norm(np.empty(0, "f")) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(rng, bad):
    w_0 = rng.standard_normal(20)
    parameters, optimizer = Parameters({"w": w_0}, "float64"), optim.Adam()
    g = np.ones(20)
    g[7] = bad
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        optimizer.step(parameters, g)
    assert np.array_equal(parameters.flat, w_0) and optimizer.steps == 0


def test_a_gradient_by_names(rng):
    layer, twin = fastrnn.LSTM(3, 4, seed=0), fastrnn.LSTM(3, 4, seed=0)
    y, _, tape = layer.forward(rng.standard_normal((5, 2, 3)))
    _, _, grads = layer.backward(tape, np.ones_like(y))
    optim.Adam(0.1).step(layer.parameters, grads)
    flat = np.concatenate([grads[name].reshape(-1) for name in twin.parameters])
    optim.Adam(0.1).step(twin.parameters, flat)
    assert np.array_equal(layer.parameters.flat, twin.parameters.flat)
    with pytest.raises(ValueError, match=r"gradient does not fit: missing \['bias_hh_l0'\]"):
        del grads["bias_hh_l0"]
        optim.Adam().step(layer.parameters, grads)


def test_one_optimizer_for_one_set_of_parameters():
    small, large = (Parameters({"w": np.zeros(n)}, "float32") for n in (3, 4))
    optimizer = optim.Adam()
    optimizer.step(small, np.ones(3, "f"))
    with pytest.raises(ValueError, match="parameters are not those of the steps before"):
        optimizer.step(large, np.ones(4, "f"))
    other = optim.Adam()
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(
        ValueError, match=r"first_moment must be float32 \(4,\), got float32 \(3,\)"
    ):
        other.step(large, np.ones(4, "f"))
    for max_norm in (0, -1, np.nan):
        with pytest.raises(ValueError, match="max_norm must be above 0"):
            optim.Adam().step(small, np.ones(3, "f"), max_norm=max_norm)
    assert not large.flat.any() and np.isfinite(small.flat).all()


def test_refused():
    parameters = Parameters({"w": np.zeros(3)}, "float32")
    with pytest.raises(ValueError, match=r"gradient must be float32 \(3,\), got float64 \(3,\)"):
        optim.Adam().step(parameters, np.zeros(3))
    with pytest.raises(ValueError, match=r"lr must be in \[0.0, 3.4.*e\+38\), got -1.0"):
        optim.Adam(-1)
    with pytest.raises(ValueError, match=r"betas must be in \[0.0, 1.0\), got 1.0"):
        optim.Adam(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas must be a pair of numbers"):
        optim.Adam(betas=0.9)
    with pytest.raises(TypeError, match="momentum must be a number, got str"):
        optim.SGD(momentum="high")
    with pytest.raises(ValueError, match="state must have steps and first_moment"):
        optim.Adam().load_state_dict({"steps": np.asarray(3)})


def test_cosine_with_warm_up():
    schedule = optim.Cosine(110, warmup=10, final=0.1)
    factors = [schedule.factor(s) for s in range(120)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.55) and factors[110] == factors[119] == 0.1
    assert np.all(np.diff(factors[10:111]) < 0)
    with pytest.raises(ValueError, match=r"warmup must be below total \(5\), got 5"):
        optim.Cosine(5, warmup=5)
    assert optim.Constant().factor(10**6) == 1


def test_reduce_on_plateau():
    schedule = optim.ReduceOnPlateau(shrink=0.5, patience=2, least=0.2)
    seen = []
    for value in (3.0, 2.0, 2.5, 2.1, 2.0, 2.0, 1.0, 5, 5, 5, 5):
        schedule.observe(value)
        seen.append(schedule.factor(0))
    assert seen == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]
    other = optim.ReduceOnPlateau(shrink=0.5, patience=2, least=0.2)
    other.load(schedule.state())
    assert other.factor(0) == 0.2 and other.state() == schedule.state()


def test_a_gradient_with_strides(rng):
    whole = rng.standard_normal(12)
    for gradient in (whole[::2], whole[:6][::-1]):
        parameters = Parameters({"w": np.zeros(6)}, "float64")
        norm = optim.SGD(1.0).step(parameters, gradient)
        assert np.array_equal(parameters.flat, -gradient)
        assert norm == pytest.approx(np.linalg.norm(gradient))
