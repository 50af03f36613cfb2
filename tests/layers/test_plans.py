"""Small dense calls of a shape that came before run by a plan: the same bits, the same errors."""

import numpy as np
import pytest

import fastrnn
from fastrnn.layers import GRU, LSTM, RNN
from fastrnn.layers.stack import Stack
from fastrnn.packed import PackedBatch
from helpers import from_threads

each_cell = pytest.mark.parametrize("cell", [LSTM, GRU, RNN])


def same(a, b):
    assert np.array_equal(a, b)


def both(layer, x, state=None):
    """``(y, state)`` the plain way and by the plan."""
    batch = x.shape[0] if layer.batch_first and x.ndim == 3 else x.shape[-2]
    steps = x.shape[1] if layer.batch_first and x.ndim == 3 else x.shape[0]
    lengths = [steps] * (1 if x.ndim == 2 else batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "planned", lambda *_: None)
        plain = layer(x, state, lengths=lengths)
    for _ in range(3):
        planned = layer(x, state)
    assert any(map(callable, layer._weights()._plans.values())), "there is no plan"
    return plain, planned


def arrays(result):
    y, state = result
    return [y, *(state if isinstance(state, tuple) else [state])]


@each_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (7, 4)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_bits(rng, cell, dtype, shape, options):
    layer = cell(5, 17, dtype=dtype, seed=0, **options)
    x = rng.standard_normal((*shape, 5)).astype(dtype)
    rows = layer.num_layers * layer.directions
    state = tuple(rng.standard_normal((rows, shape[1], 17)).astype(dtype) for _ in "hc")
    for given in (None, state if cell is LSTM else state[0]):
        plain, planned = both(layer, x, given)
        for a, b in zip(arrays(plain), arrays(planned), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            same(a, b)


@each_cell
def test_rows_of_equally_long_sequences(rng, cell):
    """What models call; sequences of different length, and training, go the plain way."""
    layer = cell(5, 17, bidirectional=True, seed=0)
    x = rng.standard_normal((12, 5), np.float32)
    state = tuple(rng.standard_normal((2, 3, 17)).astype("f") for _ in layer.cell.states)
    dense, ragged = PackedBatch(4, 3), PackedBatch(6, 3, np.array([2, 6, 4]))
    for given in None, state:
        for packed in dense, ragged:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Stack, "planned", lambda *_: None)
                y, after, tape = layer.rows_forward(x, packed, given)
            for _ in range(3):
                got, got_after, none = layer.rows_forward(x, packed, given)
                assert tape is none is None and isinstance(got_after, tuple)
                same(got, y)
                for a, b in zip(got_after, after, strict=True):
                    same(a, b)
            assert layer.rows_forward(x, packed, given, training=True)[2] is not None
    assert sum(map(callable, layer._weights()._plans.values())) == 1


def test_unbatched_and_batch_first(rng):
    layer = LSTM(5, 17, batch_first=True, seed=0)
    for x in (rng.standard_normal((6, 5), np.float32), rng.standard_normal((1, 6, 5), np.float32)):
        plain, planned = both(layer, x)
        for a, b in zip(arrays(plain), arrays(planned), strict=True):
            assert a.shape == b.shape
            same(a, b)


def test_a_plan_follows_the_parameters(rng):
    layer, twin = (LSTM(5, 17, seed=seed) for seed in (0, 1))
    x = rng.standard_normal((3, 2, 5), np.float32)
    both(layer, x)
    layer.load_state_dict(twin.state_dict())
    same(layer(x)[0], twin(x)[0])
    both(layer, x)


def test_results_belong_to_the_caller(rng):
    layer = LSTM(5, 17, seed=0)
    x = rng.standard_normal((1, 2, 5), np.float32)
    results = [arrays(layer(x + k)) for k in range(5)]
    for k, kept in enumerate(results):
        for a, b in zip(kept, arrays(LSTM(5, 17, seed=0)(x + k)), strict=True):
            assert a.flags.writeable
            same(a, b)


@each_cell
def test_what_does_not_fit_is_refused_as_before(rng, cell):
    layer = cell(5, 17, seed=0)
    x = rng.standard_normal((2, 3, 5), np.float32)
    both(layer, x)
    bad = x.copy()
    bad[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="x must be finite"):
        layer(bad)
    h = np.zeros((1, 3, 17), np.float32)
    h[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        layer(x, (h, h) if cell is LSTM else h)
    with pytest.raises((ValueError, TypeError)):
        layer(x, (h[:, :2], h[:, :2]) if cell is LSTM else h[:, :2])
    with pytest.raises((ValueError, TypeError)):
        layer(x, "state")
    # Other types and layouts take the plain way.
    for other in (x.astype(np.float64), np.asfortranarray(x), x.tolist(), x[::1, ::-1][:, ::-1]):
        assert np.allclose(layer(other)[0], layer(x)[0], atol=1e-6)
    read_only = x.copy()
    read_only.flags.writeable = False
    same(layer(read_only)[0], layer(x)[0])


def test_steps_of_a_stream(rng):
    layer = GRU(5, 17, 2, seed=0)
    x = rng.standard_normal((30, 2, 5), np.float32)
    state = None
    for t in range(len(x)):
        y, state = layer.step(x[t], state)
    wanted, final = layer(x)
    same(y, wanted[-1])
    same(state, final)


def test_large_calls_have_no_plan(rng):
    layer = LSTM(64, 256, seed=0)
    x = rng.standard_normal((100, 64, 64), np.float32)
    for _ in range(3):
        layer(x)
    assert not any(map(callable, layer._weights()._plans.values()))


def test_one_plan_and_many_threads(rng):
    layer = LSTM(64, 128, seed=0)
    x = rng.standard_normal((40, 1, 64), np.float32)
    wanted, _ = both(layer, x)[0]
    assert np.array_equal(layer(x)[0], wanted), "threads that share units"
    results = from_threads(lambda: [layer(x)[0] for _ in range(50)])
    assert all(np.array_equal(y, wanted) for ys in results for y in ys)
    fastrnn.set_num_threads(1)
    same(layer(x)[0], wanted)


def test_a_plan_is_for_a_number_of_threads(rng):
    layer = LSTM(64, 128, seed=0)
    x = rng.standard_normal((40, 1, 64), np.float32)
    for count in (2, 1):
        fastrnn.set_num_threads(count)
        for _ in range(3):
            layer(x)
    plans = layer._weights()._plans
    assert sorted(threads for *_, threads in plans) == [1, 2]
    assert all(map(callable, plans.values()))
