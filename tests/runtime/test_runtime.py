"""Memory that is reused, and the team of threads."""

import multiprocessing
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastrnn
from fastrnn.runtime import buffers, threads

# Buffers


def test_memory_is_used_again_only_when_nobody_looks_at_it(monkeypatch):
    monkeypatch.setattr(buffers, "_free", [])
    a = buffers.empty((1 << 16,), "float32")
    address = a.ctypes.data
    assert address % 64 == 0
    view = a[10:20].reshape(2, 5)
    view[:] = 7
    del a
    other = buffers.empty((1 << 16,), "float32")
    other[:] = 1
    assert other.ctypes.data != address and (view == 7).all()
    del view
    again = buffers.empty((1 << 15,), "float64")
    assert again.ctypes.data == address and again.dtype == np.float64


def test_memory_does_not_grow_with_the_number_of_shapes(monkeypatch):
    monkeypatch.setattr(buffers, "_free", [])
    for size in range(20_000, 120_000, 100):
        buffers.empty((size,), "float32")
    assert sum(block.nbytes for block in buffers._free) < 2 * 120_000 * 4


# Threads


def test_set_num_threads():
    fastrnn.set_num_threads(3)
    assert fastrnn.get_num_threads() == 3
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        fastrnn.set_num_threads(0)
    with pytest.raises(TypeError, match="n must be an int, got float"):
        fastrnn.set_num_threads(2.0)
    assert fastrnn.get_num_threads() == 3


def test_callers_from_several_threads(rng):
    twin, layer = (fastrnn.LSTM(16, 64, bidirectional=True, seed=0) for _ in range(2))
    x = rng.standard_normal((20, 30, 16))
    wanted, _ = twin(x)  # the layer itself packs its weights under the callers' feet
    wrong = []

    def call():
        for _ in range(5):
            if not np.array_equal(layer(x)[0], wanted):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def _in_child(connection, layer, x):
    connection.send(layer(x)[0])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes(rng):
    layer = fastrnn.LSTM(16, 64, bidirectional=True, seed=0)
    x = rng.standard_normal((20, 30, 16))
    wanted, _ = layer(x)  # the team is running now
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(theirs, layer, x))
    child.start()
    assert ours.poll(60) and np.array_equal(ours.recv(), wanted)
    child.join()


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 5))
def test_balanced_slices(weights, shares):
    slices = threads.split_by_weight(weights, shares)
    assert len(slices) <= shares
    assert [i for a, b in slices for i in range(a, b)] == list(range(len(weights)))
    if weights:
        heaviest = max(sum(weights[a:b]) for a, b in slices)
        assert heaviest <= sum(weights) / shares + max(weights)
