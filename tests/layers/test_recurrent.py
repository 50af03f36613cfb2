"""The recurrent layers: PyTorch, the reference, bits, streaming, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
from cell_cases import CASES
from fastrnn.kernels.cpu import recurrent as cpu
from fastrnn.layers import GRU, LSTM, RNN
from fastrnn.packed import PackedBatch
from fastrnn.runtime import threads as threads_module
from helpers import check_close, check_gradient, needs_torch
from recurrent_layers import (
    BASIC,
    CELLS,
    DTYPES,
    OTHERS,
    draw,
    each_cell,
    each_torch_cell,
    everything,
    named,
    of_states,
    pair,
    same_bits,
)


def torch_everything(cell, layer, x, state, lengths, dy, dstate):
    """The same by torch in float64, with this layer's parameters."""
    import torch

    kind, options = CASES[cell].torch
    twin = getattr(torch.nn, kind)(
        layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias,
        batch_first=layer.batch_first, bidirectional=layer.bidirectional, **options,
    ).double()  # fmt: skip
    twin.load_state_dict({k: torch.from_numpy(v).double() for k, v in layer.state_dict().items()})
    x = torch.tensor(x, requires_grad=True)
    state = of_states(lambda s: torch.tensor(s, requires_grad=True), state)
    if lengths is None:
        y, state_n = twin(x, state)
    else:
        first = layer.batch_first
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(lengths), enforce_sorted=False, batch_first=first
        )
        packed, state_n = twin(packed, state)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(
            packed, batch_first=first, total_length=x.shape[1 if first else 0]
        )
    gradients = [torch.from_numpy(g) for g in (dy, *pair(dstate))]
    torch.autograd.backward([y, *pair(state_n)], gradients)
    out = {"y": y, "dx": x.grad} | named("{}_n", state_n)
    out |= named("d{}_0", of_states(lambda s: s.grad, state))
    out |= {name: p.grad for name, p in twin.named_parameters()}
    return {name: v.detach().numpy() for name, v in out.items()}


@needs_torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@each_torch_cell
def test_agrees_with_torch(rng, cell, num_layers, bidirectional, batch_first, ragged, dtype):
    lstm = CELLS[cell](
        11, 21, num_layers, bidirectional=bidirectional, batch_first=batch_first,
        dtype=dtype, seed=1,
    )  # fmt: skip
    x, state, dy, dstate = draw(rng, lstm, 9, 10)
    lengths = np.array([3, 9, 1, 1, 5, 9, 2, 8, 7, 4]) if ragged else None
    got = everything(lstm, x, state, lengths, dy, dstate)
    wanted = torch_everything(cell, lstm, x, state, lengths, dy, dstate)
    assert got.keys() == wanted.keys()
    for name in got:
        check_close(got[name], wanted[name], dtype, name)


@needs_torch
@pytest.mark.parametrize(("units", "batch"), [(96, 23), (256, 9)])
@each_torch_cell
def test_agrees_with_torch_without_bias_and_at_size(rng, cell, units, batch):
    lstm = CELLS[cell](40, units, 2, bidirectional=True, bias=False, seed=2)
    x, state, dy, dstate = draw(rng, lstm, 40, batch)
    lengths = rng.integers(1, 41, batch)
    got = everything(lstm, x, state, lengths, dy, dstate)
    wanted = torch_everything(cell, lstm, x, state, lengths, dy, dstate)
    assert "bias_ih_l0" not in got
    for name in got:
        check_close(got[name], wanted[name], "float32", name)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_agrees_with_the_reference(data):
    """Any shape and lengths: T and B of 1, sizes off the vector width, lengths of 0."""
    steps, batch = data.draw(st.integers(1, 9), "T"), data.draw(st.integers(1, 20), "B")
    inputs, units = data.draw(st.integers(1, 40), "I"), data.draw(st.integers(1, 40), "H")
    ragged = data.draw(st.booleans(), "ragged")
    lengths = (
        data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch), "lengths")
        if ragged
        else None
    )
    options = {
        "num_layers": data.draw(st.integers(1, 2), "layers"),
        "bidirectional": data.draw(st.booleans(), "bidirectional"),
        "bias": data.draw(st.booleans(), "bias"),
        "batch_first": data.draw(st.booleans(), "batch_first"),
    }
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    key = data.draw(st.sampled_from(list(CELLS)), "cell")
    cell, condition = CELLS[key], CASES[key].condition
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    ours = cell(inputs, units, dtype=dtype, seed=0, **options)
    oracle = cell(inputs, units, dtype="float64", backend="reference", **options)
    oracle.load_state_dict(ours.state_dict())
    x, state, dy, dstate = draw(rng, ours, steps, batch)
    got = everything(ours, x, state, lengths, dy, dstate)
    wanted = everything(oracle, x, state, lengths, dy, dstate)
    for name in got:
        assert got[name].dtype == np.dtype(dtype)
        check_close(got[name], wanted[name], dtype, name, 1.0, condition)
    y, state_n = ours(x, state, lengths)
    for name, value in {"y": y, **named("{}_n", state_n)}.items():
        assert np.array_equal(value, got[name]), f"inference and training differ in {name}"


@each_cell
def test_gradient_check_of_the_whole_stack(rng, cell):
    layer = CELLS[cell](3, 5, 2, bidirectional=True, dtype="float64", seed=0)
    lengths = [4, 0, 3, 1]
    x, state, dy, dstate = draw(rng, layer, 4, 4)
    names, parts = list(layer.parameters), len(layer.cell.states)

    def loss(x, *rest):
        layer.load_state_dict(dict(zip(names, rest[parts:], strict=True)))
        y, state_n = layer(x, rest[:parts] if parts == 2 else rest[0], lengths)
        pairs = zip((y, *pair(state_n)), (dy, *pair(dstate)), strict=True)
        return float(sum((a * b).sum() for a, b in pairs))

    weights = list(layer.state_dict().values())
    got = everything(layer, x, state, lengths, dy, dstate)
    exact = [got["dx"], *(got[f"d{s}_0"] for s in layer.cell.states), *(got[n] for n in names)]
    tolerance = 1e-7 * CASES[cell].condition
    check_gradient(loss, [x, *pair(state), *weights], exact, tolerance=tolerance)


SHAPES = [
    ((40, 64, 32, 64), True),
    ((30, 3, 40, 48), True),
    ((20, 1, 40, 256), False),
    ((15, 9, 40, 256), False),
    ((6, 12, 300, 300), False),
]


@pytest.mark.parametrize(
    ("cell", "shape", "bidirectional", "ragged"),
    [(c, *shape, ragged) for c in BASIC for shape in SHAPES for ragged in (False, True)]
    + [(c, (12, 20, 33, 40), True, True) for c in OTHERS],
)
def test_same_bits_for_any_number_of_threads(rng, monkeypatch, cell, shape, bidirectional, ragged):
    steps, batch, inputs, units = shape
    monkeypatch.setattr(threads_module, "MIN_WORK", 1)
    lstm = CELLS[cell](inputs, units, 2, bidirectional=bidirectional, seed=0)
    x, state, dy, dstate = draw(rng, lstm, steps, batch)
    lengths = rng.integers(0, steps + 1, batch) if ragged else None
    results, inference = [], []
    for threads in (1, 2, 3, 4):
        fastrnn.set_num_threads(threads)
        results.append(everything(lstm, x, state, lengths, dy, dstate))
        inference.append(lstm(x, state, lengths)[0])
    for other, y in zip(results, inference, strict=True):
        same_bits(results[0], other)
        assert np.array_equal(y, results[0]["y"])


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [(c, d) for c in BASIC for d in DTYPES] + [(c, "float32") for c in OTHERS],
)
def test_same_bits_alone_and_in_any_batch(rng, cell, dtype):
    lstm = CELLS[cell](19, 37, 2, bidirectional=True, dtype=dtype, seed=0)
    steps, batch = 12, 17
    x, state, dy, dstate = draw(rng, lstm, steps, batch)
    lengths = rng.integers(0, steps + 1, batch)
    lengths[:2] = steps
    got = everything(lstm, x, state, lengths, dy, dstate)
    for b in range(batch):
        n = max(1, lengths[b])  # the padding goes, too
        one = slice(b, b + 1)
        alone = everything(
            lstm, x[:n, one], of_states(lambda s, b=b: s[:, b : b + 1], state), lengths[one],
            dy[:n, one], of_states(lambda s, b=b: s[:, b : b + 1], dstate),
        )  # fmt: skip
        for name in ("y", "dx"):
            assert np.array_equal(alone[name], got[name][:n, one]), (name, b)
            assert not got[name][lengths[b] :, b].any()
        for name in {"h_n", "c_n", "dh_0", "dc_0"} & got.keys():
            assert np.array_equal(alone[name], got[name][:, one]), (name, b)
    order = rng.permutation(batch)
    y, state_n = lstm(x[:, order], of_states(lambda s: s[:, order], state), lengths[order])
    assert np.array_equal(y, got["y"][:, order])
    assert np.array_equal(pair(state_n)[0], got["h_n"][:, order])


@each_cell
def test_padding_is_never_read(rng, cell):
    lstm = CELLS[cell](5, 8, bidirectional=True, seed=0)
    x, state, dy, dstate = draw(rng, lstm, 6, 3)
    lengths = [6, 2, 0]
    clean = everything(lstm, x, state, lengths, dy, dstate)
    for b, n in enumerate(lengths):
        x[n:, b], dy[n:, b] = 1e30, 1e30
    same_bits(clean, everything(lstm, x, state, lengths, dy, dstate))


@each_cell
def test_all_lengths_zero_and_an_empty_batch(rng, cell):
    lstm = CELLS[cell](4, 6, 2, bidirectional=True, seed=0)
    x, state, dy, dstate = draw(rng, lstm, 3, 2)
    got = everything(lstm, x, state, [0, 0], dy, dstate)
    assert not got["y"].any() and not got["dx"].any() and not got["weight_hh_l1"].any()
    check_close(got["h_n"], pair(state)[0], "float32")
    check_close(got[f"d{lstm.cell.states[-1]}_0"], pair(dstate)[-1], "float32")
    y, state_n = lstm(np.zeros((3, 0, 4)))
    size = lstm.output_size
    assert y.shape == (3, 0, 2 * size) and pair(state_n)[0].shape == (4, 0, size)
    y, state_n = lstm(np.zeros((0, 2, 4)), state)
    assert y.shape == (0, 2, 2 * size)
    check_close(pair(state_n)[0], pair(state)[0], "float32")


@pytest.mark.parametrize(
    ("cell", "units", "batch", "dtype", "backend"),
    [
        (cell, *sizes, dtype, backend)
        for cell in BASIC for sizes in ((20, 3), (64, 1)) for dtype in DTYPES
        for backend in ("cpu", "reference")
    ]
    + [(cell, 20, 3, "float32", backend) for cell in OTHERS for backend in ("cpu", "reference")],
)  # fmt: skip
def test_step_streams_what_forward_computes(rng, cell, units, batch, dtype, backend):
    lstm = CELLS[cell](7, units, 2, dtype=dtype, backend=backend, seed=0)
    x = rng.standard_normal((9, batch, 7))
    y, state_n = lstm(x)
    state = None
    for t in range(9):
        before = of_states(np.copy, state) if t else None
        y_t, state_t = lstm.step(x[t], state)
        assert np.array_equal(y_t, y[t]) and y_t.dtype == dtype
        if t:
            assert all(map(np.array_equal, pair(before), pair(state))), "the state was changed"
        state = state_t
    assert all(map(np.array_equal, pair(state), pair(state_n)))


def test_step_refuses_what_is_not_finite(rng):
    lstm = LSTM(3, 4, 2, seed=0)
    x = rng.standard_normal((2, 3)).astype("f")
    state = lstm.step(x)[1]
    for bad in (np.nan, np.inf):
        worse = x.copy()
        worse[1, 2] = bad
        with pytest.raises(ValueError, match="x_t must be finite"):
            lstm.step(worse)
        for part, name in enumerate("hc"):
            spoilt = [s.copy() for s in state]
            spoilt[part][1, 1, 3] = bad
            with pytest.raises(ValueError, match=f"{name} must be finite"):
                lstm.step(x, tuple(spoilt))
    with pytest.raises(ValueError, match=r"c must have shape \(2, 2, 4\), got \(1, 2, 4\)"):
        lstm.step(x, (state[0], state[1][:1]))
    y, h = GRU(3, 4, seed=0).step(x.astype(float).tolist(), np.zeros((1, 2, 4)))
    assert y.dtype == np.float32 and np.array_equal(y, h[0])
    assert lstm.step(np.zeros((0, 3), "f"))[0].shape == (0, 4)
    # What overflows between the layers is not the caller's fault.
    rnn = RNN(3, 4, 2, nonlinearity="relu", seed=0)
    rnn.parameters.writing()[:] = 1e30
    assert not np.isfinite(rnn.step(np.full((1, 3), 1e10, "f"))[0]).all()


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(rng, batch_first):
    lstm = LSTM(5, 6, 2, bidirectional=True, batch_first=batch_first, seed=0)
    x, dy = rng.standard_normal((7, 5)), rng.standard_normal((7, 12))
    y, (h_n, c_n), tape = lstm.forward(x)
    dx, (dh_0, _), grads = lstm.backward(tape, dy)
    axis = 0 if batch_first else 1
    full = everything(lstm, np.expand_dims(x, axis), None, None, np.expand_dims(dy, axis), None)
    assert y.shape == (7, 12) and h_n.shape == c_n.shape == dh_0.shape == (4, 6)
    assert np.array_equal(y, full["y"].squeeze(axis))
    assert np.array_equal(dx, full["dx"].squeeze(axis))
    assert np.array_equal(grads["weight_hh_l1"], full["weight_hh_l1"])
    y, _, tape = lstm.forward(np.zeros((0, 5)))
    assert y.shape == (0, 12) and lstm.backward(tape, y)[0].shape == (0, 5)


def test_any_real_array_like(rng):
    lstm = LSTM(4, 5, seed=0)
    x = rng.integers(-3, 4, (6, 2, 4))
    y, _ = lstm(x.astype(np.float32))
    for other in (x, x.tolist(), np.asfortranarray(x), x.astype(np.float16), x.astype(np.int8)):
        assert np.array_equal(lstm(other)[0], y)
    wide = np.zeros((6, 2, 8))
    wide[..., ::2] = x
    assert np.array_equal(lstm(wide[..., ::2])[0], y)
    assert np.array_equal(lstm(x > 0)[0], lstm((x > 0).astype(float))[0])
    frozen = x.astype(np.float32)
    frozen.flags.writeable = False
    assert np.array_equal(lstm(frozen)[0], y)


def test_dropout_only_between_layers_and_only_in_training(rng):
    lstm = LSTM(4, 50, 2, dropout=0.5, dtype="float64", seed=3)
    x = rng.standard_normal((5, 3, 4))
    plain = LSTM(4, 50, 2, dtype="float64", seed=3)
    assert np.array_equal(lstm(x)[0], plain(x)[0])
    before = lstm.rng.bit_generator.state
    y, _, tape = lstm.forward(x)
    assert not np.array_equal(y, plain(x)[0])
    dropped = tape.layers[1].x
    assert tape.keys[0] is None and 0.4 < (dropped == 0).mean() < 0.6
    dy = rng.standard_normal(y.shape)
    dx, _, _ = lstm.backward(tape, dy)

    def loss(x):
        lstm.rng.bit_generator.state = before
        return float((lstm.forward(x)[0] * dy).sum())

    check_gradient(loss, [x], [dx])


def test_initial_weights():
    lstm = LSTM(30, 16, seed=0)
    weights = lstm.state_dict()
    assert list(weights) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    for gate in np.split(weights["weight_hh_l0"], 4):
        assert np.allclose(gate @ gate.T, np.eye(16), atol=1e-5)
    limit = np.sqrt(6 / (30 + 16))
    assert limit * 0.95 < np.abs(weights["weight_ih_l0"]).max() <= limit
    assert (weights["bias_ih_l0"].reshape(4, 16)[1] == 1).all()
    assert weights["bias_ih_l0"].sum() == 16 and not weights["bias_hh_l0"].any()
    again, other = LSTM(30, 16, seed=0), LSTM(30, 16, seed=1)
    same_bits(weights, again.state_dict())
    assert not np.array_equal(weights["weight_ih_l0"], other.state_dict()["weight_ih_l0"])


def test_new_weights_take_effect_and_views_are_read_only(rng):
    a, b = LSTM(4, 5, seed=0), LSTM(4, 5, seed=1)
    x = rng.standard_normal((3, 2, 4))
    before = a(x)[0]
    a.load_state_dict(b.state_dict())
    assert np.array_equal(a(x)[0], b(x)[0]) and not np.array_equal(a(x)[0], before)
    a.parameters.writing()[:] = 0
    assert not a(x)[0].any()
    with pytest.raises(ValueError, match="read-only"):
        a.parameters["weight_ih_l0"][0, 0] = 1
    copy = b.state_dict()
    copy["bias_ih_l0"][:] = 9
    assert b.parameters["bias_ih_l0"].max() == 1


def test_a_tape_is_good_for_one_backward(rng):
    lstm = LSTM(4, 5, seed=0)
    y, _, tape = lstm.forward(rng.standard_normal((3, 2, 4)))
    lstm.backward(tape, y)
    with pytest.raises(ValueError, match="tape was used"):
        lstm.backward(tape, y)


def test_a_tape_is_of_its_layer_and_its_weights(rng):
    lstm, other = LSTM(4, 5, seed=0), LSTM(4, 64, seed=0)
    y, _, tape = lstm.forward(rng.standard_normal((3, 2, 4)))
    with pytest.raises(ValueError, match="tape is of another layer"):
        other.rows_backward(tape, np.zeros((6, 64), "f"))
    lstm.load_state_dict(lstm.state_dict())
    with pytest.raises(ValueError, match="the parameters changed since its forward"):
        lstm.backward(tape, y)


def test_tapes_do_not_share_memory(rng):
    """Two passes under way at once, large enough for the buffers that are used again."""
    lstm = LSTM(16, 64, seed=0)
    x = rng.standard_normal((2, 30, 40, 16))
    dy = rng.standard_normal((2, 30, 40, 64))
    apart = [lstm.backward(lstm.forward(a)[2], g)[0] for a, g in zip(x, dy, strict=True)]
    (y0, _, tape0), (y1, _, tape1) = lstm.forward(x[0]), lstm.forward(x[1])
    kept = y0.copy()
    assert np.array_equal(lstm.backward(tape1, dy[1])[0], apart[1])
    assert np.array_equal(lstm.backward(tape0, dy[0])[0], apart[0])
    assert np.array_equal(y0, kept) and not np.array_equal(y0, y1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size must be an int, got float"),
        ({"num_layers": True}, TypeError, "num_layers must be an int, got bool"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0.0, 1.0\), got 1.0"),
        ({"dropout": "a"}, TypeError, "dropout must be a number"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, float64; got 'int8'"),
        ({"dtype": "nonsense"}, ValueError, "dtype must be one of"),
        ({"backend": "tpu"}, ValueError, "backend must be one of cpu, cuda, reference; got 'tpu'"),
    ],
)
@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
def test_refused_arguments(cell, arguments, error, message):
    with pytest.raises(error, match=message):
        cell(**({"input_size": 3, "hidden_size": 4} | arguments))


def test_the_public_face_of_every_cell(rng):
    with pytest.raises(ValueError, match="nonlinearity must be one of tanh, relu; got 'gelu'"):
        RNN(3, 4, nonlinearity="gelu")
    for cell in (GRU, RNN):
        layer = cell(3, 4, bidirectional=True, seed=0)
        x = rng.standard_normal((5, 2, 3))
        y, h_n = layer(x, np.zeros((2, 2, 4)))
        assert np.array_equal(h_n[0], y[-1, :, :4]) and np.array_equal(h_n[1], y[0, :, 4:])
        with pytest.raises(ValueError, match=r"h_0 must have shape \(2, 2, 4\), got \(2, 4\)"):
            layer(x, np.zeros((2, 4)))
        with pytest.raises(ValueError, match="dh_n must be finite"):
            layer.backward(layer.forward(x)[2], y, np.full((2, 2, 4), np.nan))
        assert repr(layer).startswith(f"{cell.__name__}(3, 4, num_layers=1")
        assert ("nonlinearity='tanh'" in repr(layer)) == (cell is RNN)
        gates = len(layer.state_dict()["bias_hh_l0"]) // 4
        assert gates == {"GRU": 3, "RNN": 1}[cell.__name__]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.zeros((5, 2, 4))}, ValueError, r"x must have shape \(T, B, 3\).*\(5, 2, 4\)"),
        ({"x": np.zeros(3)}, ValueError, "x must have shape"),
        ({"x": np.zeros((5, 4))}, ValueError, r"x must have shape .* got \(5, 4\)"),
        ({"x": np.full((5, 2, 3), np.nan)}, ValueError, "x must be finite"),
        ({"x": np.full((5, 2, 3), 1e39)}, ValueError, "x must be finite"),
        ({"x": np.zeros((5, 2, 3), complex)}, TypeError, "x must be an array of real numbers"),
        ({"x": [["a"]]}, TypeError, "x must be an array of real numbers"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths must have shape \(2,\), got \(3,\)"),
        ({"lengths": [1, 6]}, ValueError, "lengths must be between 0 and 5, got 1 to 6"),
        ({"lengths": [-1, 5]}, ValueError, "lengths must be between 0 and 5"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got dtype float64"),
        ({"state": np.zeros((1, 2, 4))}, TypeError, r"state must be a pair \(h_0, c_0\)"),
        (
            {"state": (np.zeros((1, 2, 4)), np.zeros((1, 3, 4)))},
            ValueError,
            r"c_0 must have shape \(1, 2, 4\), got \(1, 3, 4\)",
        ),
        ({"state": (np.full((1, 2, 4), np.inf),) * 2}, ValueError, "h_0 must be finite"),
    ],
)
def test_refused_input(arguments, error, message):
    lstm = LSTM(3, 4, seed=0)
    with pytest.raises(error, match=message):
        lstm(**({"x": np.zeros((5, 2, 3))} | arguments))


def test_refused_in_backward_and_step(rng):
    lstm = LSTM(3, 4, seed=0)
    _, _, tape = lstm.forward(rng.standard_normal((5, 2, 3)))
    with pytest.raises(ValueError, match=r"dy must have shape \(5, 2, 4\), got \(5, 2, 3\)"):
        lstm.backward(tape, np.zeros((5, 2, 3)))
    with pytest.raises(ValueError, match="dh_n must have shape"):
        lstm.backward(tape, np.zeros((5, 2, 4)), (np.zeros(4), np.zeros(4)))
    with pytest.raises(TypeError, match="tape must come from forward, got NoneType"):
        lstm.backward(None, np.zeros((5, 2, 4)))
    with pytest.raises(ValueError, match=r"x_t must have shape \(\*, 3\), got \(3,\)"):
        lstm.step(np.zeros(3))
    with pytest.raises(ValueError, match="step needs a layer of one direction"):
        LSTM(3, 4, bidirectional=True).step(np.zeros((1, 3)))


def test_refused_state_dict():
    lstm = LSTM(3, 4, seed=0)
    good = lstm.state_dict()
    with pytest.raises(ValueError, match=r"missing \['bias_hh_l0'\], unknown \['extra'\]"):
        lstm.load_state_dict({k: v for k, v in good.items() if k != "bias_hh_l0"} | {"extra": 1})
    with pytest.raises(ValueError, match=r"weight_hh_l0 must have shape \(16, 4\), got \(4, 16\)"):
        lstm.load_state_dict(good | {"weight_hh_l0": good["weight_hh_l0"].T})
    with pytest.raises(ValueError, match="bias_ih_l0 must be finite"):
        lstm.load_state_dict(good | {"bias_ih_l0": np.full(16, np.nan)})
    with pytest.raises(TypeError, match="mapping must map names to arrays"):
        lstm.load_state_dict([1, 2])
    same_bits(lstm.state_dict(), good)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_threads_share_large_weights(rng, precision, monkeypatch):
    """Whoever computes a unit, it has the same bits; also where sequences end."""
    layer = LSTM(24, 700, precision=precision, seed=0)
    x = rng.standard_normal((4, 20, 24), np.float32)
    lengths = rng.integers(0, 5, 20)
    results = []
    for threads, most in ((1, 1 << 40), (2, 1 << 40), (2, 0), (3, 0)):
        fastrnn.set_num_threads(threads)
        monkeypatch.setattr(cpu, "MOST_CACHED", most)
        y, (h, c), tape = layer.forward(x, lengths=lengths)
        grads = layer.backward(tape, y)[2]
        results.append([y, h, c, *grads.values(), layer(x, lengths=lengths)[0]])
    for other in results[1:]:
        assert all(map(np.array_equal, other, results[0]))


@pytest.mark.parametrize(("more", "parties"), [(0, 1), (1, 2)])
def test_only_large_weights_are_shared(more, parties):
    packed = PackedBatch(4, 64)
    slices = cpu._slices(packed, 6, 1e9, 1, 44, cpu.MOST_CACHED + more)
    of_rows = [(0, 32, 0, 44), (32, 64, 0, 44)]
    of_units = [(0, 64, 0, 22), (0, 64, 22, 44)]
    assert slices == (of_units if more else of_rows, parties)
