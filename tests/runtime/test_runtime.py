"""Memory that is reused, and the team of threads."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastrnn
from fastrnn._native import Kernel
from fastrnn.kernels.cpu import sgd
from fastrnn.kernels.native.library import find
from fastrnn.kernels.options import SGDStep
from fastrnn.runtime import buffers, threads
from helpers import from_threads, needs_torch

# Buffers


def test_memory_is_used_again_only_when_nobody_looks_at_it():
    buffers.release()
    a = buffers.empty((1 << 16,), "float32")
    address = a.ctypes.data
    assert address % 64 == 0 and a.flags.carray
    view = a[10:20].reshape(2, 5)
    view[:] = 7
    del a
    other = buffers.empty((1 << 16,), "float32")
    other[:] = 1
    assert other.ctypes.data != address and (view == 7).all()
    del view
    again = buffers.empty((1 << 15,), "float64")
    assert again.ctypes.data == address and again.dtype == np.float64


def test_memory_does_not_grow_with_the_number_of_shapes():
    buffers.release()
    in_use = buffers.held()[0]
    for size in range(20_000, 120_000, 100):
        buffers.empty((size,), "float32")
    assert buffers.held()[0] == in_use
    assert buffers.held()[1] < 2.2 * (in_use + 120_000 * 4)
    buffers.release()
    assert buffers.held()[1] == 0


def test_sizes_that_no_memory_has():
    with pytest.raises(ValueError, match="shape must be"):
        buffers.empty((1 << 40, 1 << 40), "float32")
    with pytest.raises(ValueError, match="shape must be"):
        buffers.empty((-1, 3), "float32")
    with pytest.raises(MemoryError):
        buffers.empty((1 << 60,), "uint8")
    assert buffers.empty((0, 5), "float32").shape == (0, 5)


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
    results = from_threads(lambda: [layer(x)[0] for _ in range(5)])
    assert all(np.array_equal(y, wanted) for ys in results for y in ys)


def test_tasks_of_a_phase_follow_those_before(rng):
    """Rows move from array to array, a phase each: none may start before the last has ended."""
    copy = find("rows.copy", np.dtype("float32"))
    for size in (1, 3, 64, 1000):
        arrays = [np.zeros((size, 5), "f") for _ in range(30)]
        arrays[0][:] = rng.standard_normal((size, 5))
        phases = [[threads.Job(copy, (a, 0, b), size, 1e12)] for a, b in pairwise(arrays)]
        for count in (1, 2, 3, 5):
            for array in arrays[1:]:
                array[:] = 0
            threads.run([[], *phases, []], count)
            assert np.array_equal(arrays[0], arrays[-1])


def test_jobs_are_divided_by_their_cost():
    copy = find("rows.copy", np.dtype("float32"))
    a, b = np.ones((10, 3), "f"), np.zeros((10, 3), "f")
    for cost, group in product((0, 1e3, 1e7, 1e12), (1, 2, 3, 5, 10, 11)):
        b[:] = 0
        threads.run([[threads.Job(copy, (a, 0, b), 10, cost, group)]], 3)
        assert (b == 1).all()


def test_what_is_no_program_is_refused():
    copy = find("rows.copy", np.dtype("float32"))
    a = np.ones((4, 3), "f")
    for item, message in (
        ((copy, (a, 0, a.T)), "expected a task"),
        ((copy, (a, 0, a.T), 0, 4, 1), "expected a C-contiguous array 'f2'"),
        ((copy, (a, 0, a.astype("d")), 0, 4, 1), "expected a C-contiguous array 'f2'"),
        ((copy, (a, 0), 0, 4, 1), "arguments do not fit the signature"),
        ((copy, (a, "0", a), 0, 4, 1), "int"),
    ):
        with pytest.raises(TypeError, match=message):
            threads.run([[item]], 2)
    w = np.ones((3, 4), "f")
    update = find("optim.sgd", np.dtype("float32"))
    with pytest.raises(TypeError):
        update(w[0], w[1], w[2], (np.ones(2, "f"), 0.1, 0.0, 0.0, False), 0, 4)
    assert (w == 1).all()
    with pytest.raises(ValueError, match="bad signature"):
        Kernel("wrong", "f2(q", 0, None)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_the_team_survives_signals(rng):
    """A call that is interrupted ends first, and the next ones are right."""
    layer = fastrnn.LSTM(16, 64, bidirectional=True, seed=0)
    x = rng.standard_normal((20, 30, 16))
    wanted, _ = layer(x)
    caught = 0

    def raise_it(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.004)
            try:
                for _ in range(1000):
                    layer(x)
            except KeyboardInterrupt:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == 20
    assert np.array_equal(layer(x)[0], wanted)


def test_a_process_ends_while_others_compute():
    code = """
import threading, numpy as np, fastrnn
fastrnn.set_num_threads(3)
layer = fastrnn.LSTM(16, 64, bidirectional=True, seed=0)
x = np.ones((20, 30, 16), "f")
def work():
    while True:
        layer(x)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
layer(x)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=os.sep
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


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


@needs_torch
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_beside_torch():
    """Its threads run our regions: the same bits, also in a forked child and with other numbers."""
    code = """
import multiprocessing, warnings
import numpy as np, fastrnn
warnings.simplefilter("ignore")
layer = fastrnn.LSTM(16, 64, bidirectional=True, seed=0)
x = np.random.default_rng(0).standard_normal((20, 30, 16))
wanted, _ = layer(x)
import torch
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
for ours, theirs in (2, 2), (1, 2), (2, 1), (3, 3), (2, 3):
    torch.set_num_threads(theirs)
    fastrnn.set_num_threads(ours)
    for _ in range(3):
        torch.ones(300, 300) @ torch.ones(300, 300)
        assert np.array_equal(layer(x)[0], wanted)
def child(results):
    results.put(np.array_equal(layer(x)[0], wanted))
context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
process = context.Process(target=child, args=(results,))
process.start()
process.join(60)
print(process.exitcode, results.get())
"""
    # In the second the parent has not run anything of ours since torch was imported.
    quiet = code.replace("    for _ in range(3):", "    for _ in ():")
    assert quiet != code
    for each in (code, quiet):
        done = subprocess.run(
            [sys.executable, "-c", each], capture_output=True, text=True, timeout=120, cwd=os.sep
        )
        assert done.stdout == "0 True\n", done.stderr


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 5))
def test_balanced_slices(weights, shares):
    slices = threads.split_by_weight(weights, shares)
    assert len(slices) <= shares
    assert [i for a, b in slices for i in range(a, b)] == list(range(len(weights)))
    if weights:
        heaviest = max(sum(weights[a:b]) for a, b in slices)
        assert heaviest <= sum(weights) / shares + max(weights)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64")
    or (sys.platform == "win32" and "arm" in platform.machine().lower()),
    reason="only there do kernels change how the CPU treats denormal numbers",
)
@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_are_zero_in_kernels_only(monkeypatch, threads):
    """They make a saturated network ten times as slow."""
    monkeypatch.setattr("fastrnn.runtime.threads.MIN_WORK", 1)
    fastrnn.set_num_threads(threads)
    tiny = np.full(1 << 16, 1e-40, np.float32)
    assert tiny[0] != 0
    w = tiny.copy()
    sgd(w, np.zeros_like(w), np.zeros_like(w), SGDStep(1.0, 0.1, 0.0, 0.0, False))
    assert not w.any()
    assert (tiny * np.float32(0.5)).all()  # NumPy's are as before
