"""The pieces that the layers are put together from: activations, rows, products, threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn.cells import CELLS, activations
from fastrnn.kernels import host
from fastrnn.kernels.backend import get_backend
from fastrnn.kernels.cpu import linear, pointwise
from fastrnn.kernels.native import jit
from fastrnn.kernels.native.formats import plain
from fastrnn.kernels.native.layouts import plain_columns
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import BLOCK, CHUNK, Panels, Products, Runs, Sums
from fastrnn.kernels.native.source import simd
from fastrnn.kernels.native.source.compiler import kernel
from fastrnn.kernels.signature import F1
from fastrnn.packed import PackedBatch
from helpers import check_close, check_gradient, needs_torch


@kernel
def _activate(x: F1, tanh: F1, sigmoid: F1):
    x_p, tanh_p, sigmoid_p = simd.pointer(x), simd.pointer(tanh), simd.pointer(sigmoid)
    for i in range(0, x.shape[0], simd.lane_count(x_p)):
        v = simd.load_first(x_p, i, x.shape[0] - i)
        simd.store_first(tanh_p, i, activations.tanh(v), x.shape[0] - i)
        simd.store_first(sigmoid_p, i, activations.sigmoid(v), x.shape[0] - i)


def _activate_now(x, tanh, sigmoid):
    jit.load("activate", plain(x.dtype), lambda: _activate, keep=False)(x, tanh, sigmoid)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 3e-7), ("float64", 4e-16)])
def test_activations_everywhere(dtype, error):
    x = np.concatenate([
        np.linspace(-30, 30, 200_001), np.geomspace(1e-30, 1e6, 5000),
        -np.geomspace(1e-30, 1e6, 5000), [0.0, -0.0, np.inf, -np.inf],
    ]).astype(dtype)  # fmt: skip
    wide = x.astype(np.longdouble)
    tanh, sigmoid = np.full((2, len(x)), 9, dtype)
    _activate_now(x, tanh, sigmoid)
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-wide))
    assert np.abs(tanh - np.tanh(wide)).max() < error
    assert np.abs(sigmoid - exact).max() < error
    small = np.abs(wide) < 1e-3
    relative = np.abs(tanh[small & (x != 0)] / np.tanh(wide[small & (x != 0)]) - 1)
    assert relative.max() < 4 * np.finfo(dtype).eps
    # The same source in plain Python.
    assert np.abs(activations.tanh(x) - tanh).max() < 2 * error
    assert np.abs(activations.sigmoid(x) - sigmoid).max() < 2 * error


def test_nan_is_not_hidden():
    x = np.array([0, np.nan, 1], np.float32)
    tanh, sigmoid = np.zeros((2, 3), np.float32)
    _activate_now(x, tanh, sigmoid)
    assert np.isnan(tanh).tolist() == np.isnan(sigmoid).tolist() == [False, True, False]


@pytest.mark.parametrize("name", [n for n, cell in CELLS.items() if not cell.program])
def test_the_gradients_of_the_equations(rng, name):
    """In plain Python; the values are checked by the layers' tests."""
    cell = CELLS[name]
    equations, states = cell.step_equations(), len(cell.states)
    count = cell.accumulators + states
    inputs = list(rng.standard_normal((count + len(cell.unit_inputs), 5)))
    for i in range(count + len(cell.unit_parameters), len(inputs)):
        inputs[i] = np.abs(inputs[i])  # constants, such as a limit
    dstate = tuple(rng.standard_normal((states, 5)))

    def parts(values):
        return (
            tuple(values[: cell.accumulators]),
            tuple(values[cell.accumulators : count]),
            tuple(values[count:]),
        )

    def loss(*values):
        new = equations.forward(*parts(values))[1]
        return float(sum((a * b).sum() for a, b in zip(new, dstate, strict=True)))

    z, state, p = parts(inputs)
    saved, _ = equations.forward(z, state, p)
    dz, dprevious, dp = equations.backward(saved, state, p, dstate)
    trained = inputs[: count + len(cell.unit_parameters)]
    rest = inputs[len(trained) :]
    gradients = [np.broadcast_to(g, 5) for g in (*dz, *dprevious, *dp)]
    check_gradient(lambda *values: loss(*values, *rest), trained, gradients)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(0, 3))
def test_pack_and_unpack(lengths, extra):
    steps = max(lengths) + extra
    packed = PackedBatch(steps, len(lengths), np.array(lengths))
    assert packed.size == sum(lengths) == packed.batch_sizes.sum()
    assert (np.diff(packed.batch_sizes) <= 0).all()
    x = np.arange(steps * len(lengths) * 2.0).reshape(steps, len(lengths), 2) + 1
    rows = host.pack(x, packed)
    assert rows.shape == (packed.size, 2)
    order = packed.sorted_indices
    order = np.arange(len(lengths)) if order is None else order
    for t, n in enumerate(packed.batch_sizes):
        for r in range(n):
            assert (rows[packed.offsets[t] + r] == x[t, order[r]]).all()
    inside = np.arange(steps)[:, None] < np.array(lengths)
    wanted = np.where(inside[..., None], x, 0)
    assert np.array_equal(host.unpack(rows, packed), wanted)
    assert np.array_equal(host.pack(x.swapaxes(0, 1), packed, batch_first=True), rows)
    assert np.array_equal(host.unpack(rows, packed, batch_first=True), wanted.swapaxes(0, 1))
    state = np.arange(len(lengths) * 3).reshape(1, len(lengths), 3)
    assert np.array_equal(host.unsort(host.sort(state, packed), packed), state)


@needs_torch
def test_the_layout_is_that_of_torch(rng):
    import torch

    lengths = np.array([3, 6, 1, 6, 2])
    x = rng.standard_normal((6, 5, 2))
    theirs = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False
    )
    packed = PackedBatch(6, 5, lengths)
    assert np.array_equal(theirs.batch_sizes, packed.batch_sizes)
    assert sorted(theirs.sorted_indices.tolist()) == sorted(packed.sorted_indices)
    by_length = lengths[theirs.sorted_indices]
    assert np.array_equal(by_length, packed.lengths)
    if np.array_equal(theirs.sorted_indices, packed.sorted_indices):  # ties may be in any order
        assert np.array_equal(theirs.data, host.pack(x, packed))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 220), inputs=st.integers(1, 70), outputs=st.integers(1, 140),
    dtype=st.sampled_from(["float32", "float64"]), bias=st.booleans(),
)  # fmt: skip
def test_linear_kernels(n, inputs, outputs, dtype, bias):
    rng = np.random.default_rng(n)
    x, w, b, dy = (
        rng.standard_normal(s).astype(dtype)
        for s in ((n, inputs), (outputs, inputs), (outputs,), (n, outputs))
    )
    weights = linear.LinearWeights(w, b if bias else None)
    wide = [v.astype(np.float64) for v in (x, w, b, dy)]
    got = linear.linear_forward(weights, x), *linear.linear_backward(weights, x, dy)
    wanted = (
        wide[0] @ wide[1].T + wide[2] * bias,
        wide[3] @ wide[1],
        wide[3].T @ wide[0],
        wide[3].sum(axis=0),
    )
    for a, b in zip(got, wanted, strict=True):
        check_close(a, b, dtype, least=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (64, 64), (33, 65), (1, 129)])
def test_kernels_write_only_what_is_theirs(rng, inputs, outputs, dtype):
    """Outputs in the middle of larger arrays whose other numbers must survive."""
    n, first, last = 11, 2, 9
    x, w = rng.standard_normal((n, inputs)), rng.standard_normal((outputs, inputs))
    weights = linear.LinearWeights(w.astype(dtype), None)
    out = np.full((n, outputs + 8), 9, dtype)
    packed = weights.forward(weights.inference)
    q, depth, panel = packed.shape
    to = Panels(out, 0, panel, outputs)
    runs = Runs(1, inputs, 0)
    product = find("gemm.product", np.dtype(dtype))
    product(x.astype(dtype), runs, packed, weights.bias, to, first, last)
    check_close(out[first:last, :outputs], x[first:last] @ w.T, dtype)
    out[first:last, :outputs] = 9
    assert (out == 9).all()
    b = rng.standard_normal((n, q * panel)).astype(dtype)
    columns, gradient = (
        plain_columns(q * panel, np.dtype(dtype)),
        find("gemm.weight_gradient", np.dtype(dtype)),
    )
    total = q * depth
    a, z = total // 3, 2 * total // 3
    results = []
    for part in (a, z), (0, total):
        sums = Sums(np.full((q, depth, panel), 9, dtype), np.full((q, panel), 9, dtype))
        out = np.full((q * panel, depth), 9, dtype)
        args = (x.astype(dtype), depth, Products(b, 0, panel, q * panel), sums, columns, out)
        gradient(*args, *part)
        results.append((sums.packed.reshape(total, panel), out))
    (got, got_out), (wanted, wanted_out) = results
    check_close(wanted_out, b.T @ x, dtype)
    assert np.array_equal(got[a:z], wanted[a:z])
    assert (got[:a] == 9).all() and (got[z:] == 9).all()
    done = np.zeros(total, bool)
    done[a:z] = True
    where = done.reshape(q, 1, depth).repeat(panel, axis=1).reshape(q * panel, depth)
    assert np.array_equal(got_out[where], wanted_out[where]) and (got_out[~where] == 9).all()


def test_linear_has_the_same_bits_for_any_number_of_threads(rng):
    n = 3 * BLOCK + 5
    x, w, dy = (rng.standard_normal(s).astype("f") for s in ((n, 130), (257, 130), (n, 257)))
    results = []
    for count in (1, 2, 3):
        fastrnn.set_num_threads(count)
        weights = linear.LinearWeights(w, None)
        results.append([linear.linear_forward(weights, x), *linear.linear_backward(weights, x, dy)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_hot_input_is_the_product(rng):
    """A row of a table instead of a product with zeros: the same outputs to the last bit."""
    layer = fastrnn.LSTM(9, 20, bidirectional=True, seed=0)
    lengths = np.array([6, 2, 0, 5])
    packed = PackedBatch(6, 4, lengths)
    ids = rng.integers(0, 9, packed.size)
    dy = rng.standard_normal((packed.size, 40)).astype("f")
    y, _, tape = layer.rows_forward(ids, packed, training=True)
    dx, _, grads = layer.rows_backward(tape, dy)
    eye = np.eye(9, dtype="f")[ids]
    y_dense, _, tape = layer.rows_forward(eye, packed, training=True)
    _, _, grads_dense = layer.rows_backward(tape, dy)
    assert dx is None and np.array_equal(y, y_dense)
    assert np.array_equal(y, layer.rows_forward(ids, packed)[0])
    for name in grads:
        check_close(grads[name], grads_dense[name], "float32", name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_is_a_function_of_key_and_place(dtype):
    x = np.ones((300, 200), dtype)
    results = []
    for backend, key in (("cpu", 7), ("reference", 7), ("cpu", 2**64 - 1)):
        y = x.copy()
        get_backend(backend).dropout(y, 0.3, key)
        results.append(y)
    assert np.array_equal(results[0], results[1]) and results[0].dtype == dtype
    assert set(np.unique(results[0])) == {0, np.dtype(dtype).type(1 / 0.7)}
    kept = [y > 0 for y in results]
    assert abs(kept[0].mean() - 0.7) < 0.01  # 5 standard deviations
    for a, b in (
        (kept[0], kept[2]),
        (kept[0][1:], kept[0][:-1]),
        (kept[0][:, 1:], kept[0][:, :-1]),
    ):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 129])
def test_cross_entropy_is_that_of_the_reference(rng, dtype, classes):
    logits = (rng.standard_normal((53, classes)) * 5).astype(dtype)
    logits[7] = -300  # exponentials of differences, not of the numbers
    logits[7, 0] = 300
    targets, weights = rng.integers(0, classes, 53), rng.random(53)
    weights[rng.random(53) < 0.2] = 0
    targets[weights == 0] = -100
    wanted = get_backend("reference").cross_entropy(logits.astype("float64"), targets, weights)
    for threads in (1, 3):
        fastrnn.set_num_threads(threads)
        got = get_backend("cpu").cross_entropy(logits, targets, weights)
        assert got[0] == pytest.approx(wanted[0], rel=1e-6)
        check_close(got[1], wanted[1], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 15, 50])
def test_largest_of_runs(rng, dtype, width):
    lengths = rng.integers(1, 9, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x = rng.integers(-3, 4, (starts[-1], width)).astype(dtype)  # with ties
    dy = rng.standard_normal((40, width)).astype(dtype)
    for threads in (1, 3):
        fastrnn.set_num_threads(threads)
        out, where = pointwise.largest(x, starts)
        dx = pointwise.largest_gradient(dy, starts, where)
        wanted = np.zeros_like(x)
        for s in range(40):
            run = x[starts[s] : starts[s + 1]]
            assert np.array_equal(out[s], run.max(axis=0))
            wanted[starts[s] + run.argmax(axis=0), np.arange(width)] = dy[s]
        assert np.array_equal(dx, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scale_and_insert(rng, dtype):
    x, mask = rng.standard_normal((41, 19)).astype(dtype), rng.standard_normal((5, 19))
    indices, mask = rng.integers(0, 5, 41), mask.astype(dtype)
    scaled = x.copy()
    get_backend("cpu").scale(scaled, mask, indices)
    assert np.array_equal(scaled, x * mask[indices])
    table, rows = rng.standard_normal((6, 7)).astype(dtype), rng.integers(-1, 6, 41)
    wanted = x.copy()
    wanted[rows >= 0, :7] = table[rows[rows >= 0]]
    before = x.copy()
    assert np.array_equal(pointwise.insert(x, table, rows), wanted)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 5, CHUNK, 3 * CHUNK + 5])
def test_all_finite_finds_every_place(dtype, size):
    x = np.full(size, np.finfo(dtype).max, dtype)
    assert pointwise.all_finite(x)
    for at in {0, size // 2, size - 2, size - 1} & set(range(size)):
        for bad in (np.nan, np.inf, -np.inf):
            y = x.copy()
            y[at] = bad
            assert not pointwise.all_finite(y), (at, bad)


def test_backends_by_name():
    assert get_backend("cpu").recurrent_forward
    assert get_backend("reference").recurrent_forward
    with pytest.raises(ValueError, match="backend must be one of cpu, cuda, reference; got 'gpu'"):
        get_backend("gpu")
