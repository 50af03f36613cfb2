"""The CUDA backend, as plain Python: every block and thread at once, on small tiles."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda

import fastrnn
from cell_cases import CASES
from fastrnn import optim
from fastrnn.cells import CELLS as RECORDS
from fastrnn.data.text import UNKNOWN, Chunk, TextStream, Vocabulary
from fastrnn.kernels.backend import PRECISIONS, get_backend
from fastrnn.kernels.cuda import (
    blas,
    driver,
    fused,
    gemm,
    launch,
    memory,
    placement,
    simulated,
    tensor,
    weights,
)  # fmt: skip
from fastrnn.kernels.cuda.matrix import Matrix, Sizes
from fastrnn.kernels.cuda.ptx import (
    cluster_rank,
    cluster_sync,
    expect,
    grid_sync,
    initialise,
    store_remote,
    wait_for,
)
from fastrnn.kernels.device import is_on_device
from fastrnn.models import LanguageModel, Tagger
from fastrnn.packed import PackedBatch
from fastrnn.parameters import Parameters
from helpers import TOLERANCE, check_close, difference
from recurrent_layers import CELLS, DTYPES, draw, each_cell, everything, of_states

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not memory.SIMULATED and not cuda.is_available(),
        reason="NUMBA_ENABLE_CUDASIM is 0 and there is no GPU",
    ),
]
simulated_only = pytest.mark.skipif(not memory.SIMULATED, reason="of the simulation")


def twins(cell, *sizes, dtype="float32", **options):
    """A layer on the device, and the same by the reference in float64."""
    ours = CELLS[cell](*sizes, **options, dtype=dtype, backend="cuda", seed=0)
    oracle = CELLS[cell](*sizes, **options, dtype="float64", backend="reference")
    oracle.load_state_dict(ours.state_dict())
    return ours, oracle


def check(rng, cell, steps, batch, sizes, *, lengths=None, dtype="float32", **options):
    ours, oracle = twins(cell, *sizes, dtype=dtype, **options)
    x, state, dy, dstate = draw(rng, ours, steps, batch)
    got = everything(ours, x, state, lengths, dy, dstate)
    for name, wanted in everything(oracle, x, state, lengths, dy, dstate).items():
        assert got[name].dtype == np.dtype(dtype)
        check_close(got[name], wanted, dtype, name, 1.0, CASES[cell].condition)


@pytest.mark.parametrize("dtype", DTYPES)
@each_cell
def test_agrees_with_the_reference(rng, cell, dtype):
    check(rng, cell, 4, 5, (3, 7), dtype=dtype)
    check(
        rng, cell, 4, 6, (3, 5, 2), lengths=[2, 4, 0, 1, 4, 3], dtype=dtype,
        bidirectional=True, batch_first=True,
    )  # fmt: skip


@each_cell
def test_smallest_and_widest(rng, cell):
    check(rng, cell, 1, 1, (1, 1), bias=False)
    check(rng, cell, 3, 1, (2, 6))
    # More units than all blocks own at once, and more weights than a block can keep.
    check(rng, cell, 2, 3, (2, 40))
    check(rng, cell, 2, 13, (2, 3), lengths=np.arange(13) % 3)


@simulated_only
def test_which_loops_keep_their_weights():
    kept = fused.forward_loop(RECORDS["lstm"], 3, np.dtype("float32"))
    assert kept.kept and kept.units > 1
    assert not fused.forward_loop(RECORDS["lstm"], 40, np.dtype("float32")).kept
    assert not fused.forward_loop(RECORDS["lstm"], 3, np.dtype("float32"), keep=False).kept


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    steps, batch = data.draw(st.integers(1, 4), "T"), data.draw(st.integers(1, 9), "B")
    inputs, units = data.draw(st.integers(1, 6), "I"), data.draw(st.integers(1, 12), "H")
    lengths = data.draw(
        st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch), "lengths"
    )
    check(
        np.random.default_rng(0), data.draw(st.sampled_from(list(CELLS)), "cell"),
        steps, batch, (inputs, units), lengths=lengths,
        bidirectional=data.draw(st.booleans(), "bidirectional"),
    )  # fmt: skip


@each_cell
def test_one_hot(rng, cell):
    ours, oracle = twins(cell, 5, 4)
    ids, packed = rng.integers(0, 5, 12), PackedBatch(4, 3)
    dy = rng.standard_normal((12, ours.output_size))
    out = []
    for layer in (ours, oracle):
        kernels = get_backend(layer.backend)
        y, state, tape = layer.rows_forward(kernels.to_device(ids), packed, training=True)
        dy_there = kernels.to_device(dy.astype(layer.dtype))
        dx, dstate, grads = layer.rows_backward(tape, dy_there)
        assert dx is None
        results = {"y": y, "h": state[0], "dh": dstate[0], **grads}
        out.append({name: kernels.to_host(value) for name, value in results.items()})
    for name, wanted in out[1].items():
        check_close(out[0][name], wanted, "float32", name, least=1.0)


@each_cell
def test_a_row_does_not_depend_on_its_batch(rng, monkeypatch, cell):
    monkeypatch.setattr(blas, "is_used", lambda: False)
    layer, _ = twins(cell, 3, 6)
    x, lengths = rng.standard_normal((4, 7, 3)), [4, 1, 3, 4, 2, 4, 4]
    y, _ = layer(x, lengths=lengths)
    for b in (0, 2, 5):
        alone, _ = layer(x[:, b : b + 1], lengths=lengths[b : b + 1])
        assert np.array_equal(alone[:, 0], y[:, b])


def test_step_and_a_used_tape(rng):
    layer, oracle = twins("lstm", 3, 4, 2)
    x, state = rng.standard_normal((3, 2, 3)), None
    for x_t in x:
        y, state = layer.step(x_t, state)
    wanted, (h, c) = oracle(x)
    check_close(y, wanted[-1], "float32")
    check_close(state[0], h, "float32")
    check_close(state[1], c, "float32")
    _, _, tape = layer.forward(x)
    layer.backward(tape, np.zeros((3, 2, 4)))
    with pytest.raises(ValueError, match="tape was used"):
        layer.backward(tape, np.zeros((3, 2, 4)))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (9, 7, 5), (4, 3, 8), (2, 0, 3)])
def test_product(rng, sizes, turned, add):
    m, k, n = sizes
    a, b, bias, c = (rng.standard_normal(s) for s in ((m, k), (k, n), n, (m, n)))
    parts = []
    for name, x in (("a", a), ("b", b)):
        stored = x.T if name in turned else x
        flat = memory.to_device(np.concatenate([[9.0, 9.0], stored.ravel()]))
        matrix = Matrix(flat, 2, stored.shape[1])
        parts.append(matrix.transposed if name in turned else matrix)
    out = memory.to_device(c)
    gemm.product(
        *parts,
        Matrix(out.reshape(-1), 0, n),
        Sizes(*sizes),
        bias=None if add else memory.to_device(bias),
        add=add,
    )
    check_close(memory.to_host(out), a @ b + (c if add else bias), "float64")


# Tensor cores


def small_plan(units, precision, slots, gates, _, *, is_cluster):
    """Small blocks, so that there are several: 49 units take four, the last nearly empty."""
    size = 16 if slots == 4 else 32
    return placement.Plan(precision, -(-units // size), size, slots, is_cluster)


@pytest.mark.parametrize(
    ("cell", "precision"),
    [
        (name, precision) for name, cell in RECORDS.items() for precision in PRECISIONS["cuda"]
        if cell in tensor.ON_TENSOR_CORES and (name != "rnn_relu" or precision == "float32")
    ],
)  # fmt: skip
@pytest.mark.parametrize("loop", ["cluster", "group"])
@pytest.mark.parametrize(
    ("steps", "sizes", "lengths"),
    [
        (1, (2, 3), [1]),
        (3, (2, 16), [3, 2, 3]),
        # More tiles of the batch than groups of blocks.
        (3, (3, 21), [3, 0, 2, 1, 3, 3, 1, 2, 2, 3]),
        (2, (2, 49), [2]),
    ],
)
def test_tensor_cores(rng, monkeypatch, loop, precision, cell, steps, sizes, lengths):
    if loop == "cluster" and not memory.SIMULATED and not launch.has_clusters():
        pytest.skip("this GPU has no clusters")
    monkeypatch.setattr(weights, "loop", loop)
    monkeypatch.setattr(placement, "plan", small_plan)
    ours, oracle = twins(cell, *sizes, bidirectional=precision == "bf16")
    ours.precision = precision
    x, state, dy, dstate = draw(rng, ours, steps, len(lengths))
    got = everything(ours, x, state, lengths, dy, dstate)
    tolerance = TOLERANCE[f"tensor cores, {precision}"]
    for name, wanted in everything(oracle, x, state, lengths, dy, dstate).items():
        assert difference(got[name], wanted, least=1.0) < tolerance, name
    assert np.array_equal(got["y"], ours(x, state, lengths)[0])  # inference
    monkeypatch.setattr(weights, "loop", "grid")
    assert not np.array_equal(got["y"], ours(x, state, lengths)[0])


def test_plans():
    def plan(units, precision, slots=4, gates=4, room=227, *, is_cluster=True):
        return placement.plan(units, precision, slots, gates, room << 10, is_cluster=is_cluster)

    made = plan(256, "bf16")
    assert (made.blocks, made.block_units, made.words) == (8, 32, 128)
    assert plan(1, "float32").units == 16
    assert plan(513, "bf16") is None and plan(320, "float32") is None
    assert plan(256, "float32", room=99) is None
    made = plan(1024, "bf16", 1, 1)  # too much for 8 blocks
    assert (made.blocks, made.block_units, made.threads) == (16, 64, 64)
    assert plan(256, "bf16", 1, 1).blocks == 2
    assert plan(800, "bf16", is_cluster=False).block_units == 16
    assert plan(800, "bf16", gates=1, is_cluster=False).block_units == 32  # sends less
    for units, blocks in ((512, 16), (1024, 64)):
        assert plan(units, "bf16", is_cluster=False).blocks == blocks
    assert plan(2000, "bf16", is_cluster=False) is None
    assert set(placement.PRECISIONS) == set(PRECISIONS["cuda"])
    with pytest.raises(
        ValueError, match="precision must be one of float32, tf32, bf16; got 'int8'"
    ):
        fastrnn.LSTM(2, 3, precision="int8", backend="cuda")


# Other layers: on the GPU whatever comes in, and results where the input was


@pytest.mark.parametrize("make", [
    lambda backend: fastrnn.Linear(3, 7, backend=backend, dtype="float64", seed=0),
    lambda backend: fastrnn.Dropout(0.4, backend=backend, seed=0),
])  # fmt: skip
def test_layers_take_arrays_from_both_sides(rng, monkeypatch, make):
    def refused(*args, **kwargs):
        raise AssertionError("a layer of the GPU called a kernel of the CPU")

    other = make("cpu")
    x, results = rng.standard_normal((4, 5, 3)), []
    wanted, tape = other.forward(x)
    dwanted = other.backward(tape, np.ones_like(wanted))
    for name in ("linear_forward", "linear_backward", "dropout"):
        monkeypatch.setattr(get_backend("cpu"), name, refused)
    for there in (False, True):
        ours, move = make("cuda"), memory.to_device if there else np.asarray
        y, tape = ours.forward(move(x))
        out = ours.backward(tape, move(np.ones(y.shape)))
        for got in (y, out[0] if isinstance(out, tuple) else out):
            assert isinstance(got, memory.DeviceArray) == there
        results.append((y, out))
    for y, out in results:
        check_close(memory.to_host(y) if y is results[1][0] else y, wanted, "float64")
        if isinstance(out, tuple):
            for name, gradient in out[1].items():
                host = gradient if isinstance(gradient, np.ndarray) else memory.to_host(gradient)
                check_close(host, dwanted[1][name], "float64", name)


@pytest.mark.parametrize("tags", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 2000.0])
def test_crf(rng, tags, scale):
    allowed = np.ones((tags + 1, tags + 1), bool)
    allowed[0, 1] = False
    ours, oracle = (
        fastrnn.CRF(tags, allowed=allowed, dtype="float64", backend=backend)
        for backend in ("cuda", "reference")
    )
    values = {n: scale * rng.standard_normal(v.shape) for n, v in oracle.parameters.items()}
    for crf in (ours, oracle):
        crf.load_state_dict(values)
    scores, lengths = scale * rng.standard_normal((4, 5, tags)), [4, 0, 1, 3, 4]
    right = oracle.decode(scores, lengths)
    assert np.array_equal(ours.decode(memory.to_device(scores), lengths), right)
    check_close(ours.marginals(scores, lengths), oracle.marginals(scores, lengths), "float64")
    other = oracle.decode(rng.standard_normal(scores.shape), lengths)
    (loss, tape), (wanted, judged) = (crf.forward(scores, other, lengths) for crf in (ours, oracle))
    assert loss == pytest.approx(wanted, rel=1e-12)
    check_close(tape.d_scores, judged.d_scores, "float64")
    for name, gradient in tape.grads.items():
        check_close(gradient, judged.grads[name], "float64", name)


# Whole models


@pytest.mark.parametrize("embedding_dim", [0, 3])
def test_a_language_model(rng, embedding_dim):
    models = [
        LanguageModel(
            Vocabulary([UNKNOWN, *"abcd"]), embedding_dim=embedding_dim, hidden_size=4,
            dtype="float64", backend=backend, seed=0,
        )
        for backend in ("cuda", "reference")
    ]  # fmt: skip
    ids = rng.integers(0, 5, (3, 2))
    for first in (True, False):  # the second goes on from the state of the first
        (loss, gradient, _), (wanted, wanted_gradient, _) = (
            model.loss_and_gradient(Chunk(ids, ids[::-1], first)) for model in models
        )
        assert loss == pytest.approx(wanted, rel=1e-12)
        check_close(gradient.copy_to_host(), wanted_gradient, "float64")


@pytest.mark.parametrize("crf", [False, True])
def test_a_tagger(crf):
    X, y = [["a", "B", "c"], ["d"]], [["O", "B-x", "I-x"], ["O"]]
    out = []
    for backend in ("cuda", "reference"):
        tagger = Tagger(
            word_dim=3, hidden_size=4, char_hidden=2, char_dim=2, epochs=2, crf=crf,
            dtype="float64", backend=backend,
        )  # fmt: skip
        out.append(tagger.fit(X, y).predict_proba(X))
    for ours, wanted in zip(*out, strict=True):
        check_close(ours, wanted, "float64")


# Without a GPU, and the simulation itself


@simulated_only
@pytest.mark.slow
def test_with_the_tiles_of_a_gpu():
    """One shape or more for each kernel, as tiles are where they are not kept small for tests."""
    if not driver.SMALL:
        pytest.skip("these are the tiles of a GPU")
    chosen = (
        "tensor_cores and 3-sizes1 and (lstm-float32 or gru-tf32 or rnn_tanh-bf16) or crf "
        "or test_product and sizes1 or one_hot and (lstm] or gru] or norm) or test_loss "
        "or optimizers or test_embedding or dropout_is"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env=os.environ | {"FASTRNN_CUDA_TILES": "real", "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (1, 6), (4, 1), (1, 1), (3, 2)])
def test_operands_of_cublas(size, turned):
    """Its columns are our rows, at least as far from each other as they are long."""
    (rows, columns), flat = size, memory.empty(99, np.float32)
    for stride in (columns, columns + 5):
        matrix = Matrix(flat, 0, stride)
        if turned:
            matrix, (rows, columns) = matrix.transposed, size[::-1]
        operation, leading = blas.operand(matrix, rows, columns)
        assert leading >= (rows if operation else columns)
        for i, j in np.ndindex(rows, columns):
            at = j * leading + i if operation else i * leading + j
            assert at == i * matrix.row + j * matrix.column


class RequiresGradient:
    requires_grad = True
    is_cuda = True


def test_a_tensor_that_requires_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"x requires a gradient.*give x.detach\(\)"):
        memory.device_view(RequiresGradient())


@pytest.mark.parametrize("before", ["", "import sys; sys.modules['numba'] = None; "])
def test_what_is_missing_is_said(tmp_path, before):
    code = before + "import fastrnn; fastrnn.LSTM(2, 2, backend='cuda')"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, cwd=tmp_path
    )
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    last = done.stderr.decode().strip().splitlines()[-1]
    assert 'pip install "numba-cuda[cu13]' in last or "needs an NVIDIA GPU" in last


def run(function, grid, block, out, *others, cluster=1):
    simulated.run(function, cuda, grid, block, (out, *others), cluster=cluster)
    return out.copy_to_host()


def _turned(out):
    shared = cuda.shared.array(4, np.float32)
    t = cuda.threadIdx.x
    shared[t] = t
    cuda.syncthreads()
    out[cuda.blockIdx.x * 4 + t] = shared[3 - t]


def _turned_too_soon(out):
    shared = cuda.shared.array(4, np.float32)
    t = cuda.threadIdx.x
    shared[t] = t
    out[cuda.blockIdx.x * 4 + t] = shared[3 - t]


def _all_write(out):
    out[0] = 1


def _blocks_do_not_wait(out):
    if cuda.threadIdx.x == 0:
        out[cuda.blockIdx.x] = 1
    cuda.syncthreads()
    if cuda.blockIdx.x == 0 and cuda.threadIdx.x == 1:
        out[1] += 1


def _passed_on(out):
    for step in range(3):
        out[2 * step + 2 + cuda.blockIdx.x] = out[2 * step + 1 - cuda.blockIdx.x] + 1
        grid_sync(None)


def _some_do_not_come(out):
    if cuda.threadIdx.x:
        cuda.syncthreads()


def _sent_around(out, expected, is_waiting):
    """Each of 4 threads in 2 blocks sends a number to both, three times, and goes on from what
    another one sent."""
    shared = cuda.shared.array(12, np.float32)  # two buffers and two barriers
    t, rank = cuda.threadIdx.x, cluster_rank()
    if t == 0:
        for barrier in (8, 10):
            initialise(shared, barrier)
            expect(shared, barrier, expected)
    cluster_sync()
    me = 2 * rank + t
    value = np.float32(me)
    for step in range(3):
        first, barrier = 4 * (step & 1), 8 + 2 * (step & 1)
        for to in range(2):
            store_remote(shared, first + me, to, value, barrier)
        if is_waiting:
            wait_for(shared, barrier, step >> 1)
        if t == 0:
            expect(shared, barrier, expected)
        value = shared[first + 3 - me] + 1
    out[me] = value


def _out_of_bounds(out):
    out[cuda.threadIdx.x - 1] = 0


@simulated_only
def test_the_simulation_waits_and_notices_who_does_not():
    out = memory.empty((2, 4), "float32")
    assert np.array_equal(run(_turned, (2, 1), 4, out), [[3, 2, 1, 0]] * 2)
    with pytest.raises(RuntimeError, match="data race at index"):
        run(_turned_too_soon, (2, 1), 4, memory.empty((2, 4), "float32"))
    with pytest.raises(RuntimeError, match="data race at index 0"):
        run(_all_write, (1, 1), 2, memory.empty(1, "float32"))
    with pytest.raises(RuntimeError, match="data race at index 1"):  # other blocks do not wait
        run(_blocks_do_not_wait, (2, 1), 2, memory.empty(2, "float32"))
    out = memory.to_device(np.array([[1.0, 5.0]] + [[np.nan] * 2] * 3))
    assert np.array_equal(run(_passed_on, (2, 1), 1, out)[-1], [8, 4])
    with pytest.raises(RuntimeError, match=r"threads wait for ever, at \{'block': 3\}"):
        run(_some_do_not_come, (1, 1), 4, out)
    out = memory.empty(4, "float32")
    assert np.array_equal(run(_sent_around, (2, 1), 2, out, 16, True, cluster=2), [6, 5, 4, 3])
    with pytest.raises(RuntimeError, match="data race at index"):
        run(_sent_around, (2, 1), 2, out, 16, False, cluster=2)
    with pytest.raises(RuntimeError, match=r"threads wait for ever, at \{'arrivals': 4\}"):
        run(_sent_around, (2, 1), 2, out, 20, True, cluster=2)
    with pytest.raises(IndexError, match="below 0"):
        run(_out_of_bounds, (1, 1), 1, memory.empty(3, "float32"))


# Arrays on the device


@pytest.mark.parametrize("cell", ["lstm", "gru", "lstm_projected"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 4, 0, 3, 4]])
def test_device_arrays_in_device_arrays_out(rng, cell, batch_first, lengths):
    layer, _ = twins(cell, 3, 5, 2, bidirectional=True, batch_first=batch_first)

    def there(x):
        return of_states(lambda s: memory.to_device(np.asarray(s, np.float32)), x)

    def here(x):
        assert isinstance(x, memory.DeviceArray)
        return x.copy_to_host()

    x, state, dy, dstate = draw(rng, layer, 4, 5)
    wanted = everything(layer, x, state, lengths, dy, dstate)
    got = everything(layer, there(x), there(state), lengths, there(dy), there(dstate))
    assert got.keys() == wanted.keys()
    for name in got:
        assert np.array_equal(here(got[name]), wanted[name]), name
    for a, b in itertools.combinations(got.values(), 2):  # a caller may change one in place
        assert a.memory is not b.memory or a._at + a.size <= b._at or b._at + b.size <= a._at
    # A state from the host may go with an x on the device; the third call is one by a plan.
    for start in (state, of_states(np.ndarray.tolist, state), there(state), there(state)):
        y, _ = layer(there(x), start, lengths)
        assert np.array_equal(here(y), wanted["y"])


def test_device_arrays_one_by_one(rng):
    layer, _ = twins("lstm", 3, 4, 2)
    x = rng.standard_normal((3, 2, 3), np.float32)
    wanted, (h, _) = layer(x)
    state = None
    for x_t in x:
        y, state = layer.step(memory.to_device(x_t), state)
    assert np.array_equal(y.copy_to_host(), wanted[-1])
    assert np.array_equal(state[0].copy_to_host(), h)
    y, (h, _) = layer(memory.to_device(x[:, 0]))
    assert y.shape == (3, 4) and h.shape == (2, 4)
    assert np.allclose(y.copy_to_host(), wanted[:, 0])


def test_device_arrays_that_do_not_fit(rng):
    layer, _ = twins("lstm", 3, 4)
    x = rng.standard_normal((2, 5, 3))
    with pytest.raises(TypeError, match="x must be of dtype float32, got float64"):
        layer(memory.to_device(x))
    there = memory.to_device(x.astype(np.float32))
    with pytest.raises(ValueError, match=r"x must have shape \(T, B, 3\)"):
        layer(there.reshape(2, 3, 5))
    state = memory.to_device(np.zeros((1, 5, 4), np.float32))
    with pytest.raises(ValueError, match="h_0 must be on the host, as x is"):
        layer(x, (state, state))
    with pytest.raises(ValueError, match=r"c_0 must have shape \(1, 5, 4\), got \(1, 4, 5\)"):
        layer(there, (state, state.reshape(1, 4, 5)))
    _, _, tape = layer.forward(x)
    # The gradients lie where dy does.
    dx, _, grads = layer.backward(tape, memory.to_device(np.zeros((2, 5, 4), np.float32)))
    assert all(isinstance(g, memory.DeviceArray) for g in (dx, *grads.values()))


def test_parts_of_device_arrays():
    x = memory.to_device(np.arange(24.0).reshape(4, 3, 2))
    assert np.array_equal(x[1].copy_to_host(), [[6, 7], [8, 9], [10, 11]])
    assert np.array_equal(x[1:3].reshape(-1, 4).copy_to_host()[2], [14, 15, 16, 17])
    assert x[3:].shape == (1, 3, 2) and len(x[4:]) == 0
    with pytest.raises(ValueError, match="cannot become"):
        x.reshape(5, 5)
    with pytest.raises(IndexError):
        x[4]
    with pytest.raises(TypeError, match="copy_to_host"):
        np.asarray(x)


class Described:
    """Somebody else's array, as far as it is looked at."""

    def __init__(self, shape, strides):
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": "<f4", "data": (4096, False),
            "version": 3,
        }  # fmt: skip


def test_arrays_of_others():
    for shape, strides in (((3, 4), None), ((3, 4), (16, 4)), ((1, 4), (64, 4)), ((), ())):
        out = memory.device_view(Described(shape, strides))
        assert out.shape == shape and out.dtype == np.float32 and out.pointer == 4096
    with pytest.raises(ValueError, match="C-contiguous"):
        memory.device_view(Described((3, 4), (4, 12)))
    assert is_on_device(Described((1,), None)) and not is_on_device(np.zeros(3))
    layer, _ = twins("lstm", 3, 4)
    with pytest.raises(ValueError, match=r"x must have shape \(T, B, 3\)"):
        layer(Described((3, 4), None))


def test_arrays_of_others_by_dlpack(monkeypatch):
    pytest.importorskip("cuda.core")
    monkeypatch.setattr(driver, "stream", lambda: -1)  # NumPy has none
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    _, pointer, shape, strides, dtype, _ = memory._described(x)  # as NumPy knows DLPack too
    assert (pointer, shape, strides, dtype) == (x.ctypes.data, (2, 3), (3, 1), x.dtype)


def test_dropout_is_that_of_the_cpu(rng):
    x = rng.standard_normal((3, 50), np.float32)
    for key in (5, 2**64 - 3):
        here, there = x.copy(), memory.to_device(x)
        get_backend("cpu").dropout(here, 0.3, key)
        get_backend("cuda").dropout(there, 0.3, key)
        assert np.array_equal(there.copy_to_host(), here)


# Training on the device


@pytest.mark.parametrize("classes", [1, 3, 9])
def test_loss(rng, classes):
    logits = rng.standard_normal((5, classes)) * 5
    targets = rng.integers(0, classes, 5)
    targets[3] = -100
    loss, gradient, count = fastrnn.cross_entropy(memory.to_device(logits), targets)
    wanted, wanted_gradient, wanted_count = fastrnn.cross_entropy(logits, targets)
    assert count == wanted_count and loss == pytest.approx(wanted, rel=1e-12)
    check_close(gradient.copy_to_host(), wanted_gradient, "float64")
    with pytest.raises(IndexError, match="class 7 at position 0"):
        fastrnn.cross_entropy(memory.to_device(logits[:, :1]), np.full(5, 7))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weighted_loss(rng, label_smoothing):
    logits, targets = rng.standard_normal((5, 3)), np.array([0, 2, -100, 1, 1])
    options = {"weight": [0.5, 2.0, 0.0], "label_smoothing": label_smoothing}
    loss, gradient, _ = fastrnn.cross_entropy(memory.to_device(logits), targets, **options)
    wanted, wanted_gradient, _ = fastrnn.cross_entropy(logits, targets, **options)
    assert loss == pytest.approx(wanted, rel=1e-12)
    check_close(gradient.copy_to_host(), wanted_gradient, "float64")


def test_adaptive_softmax(rng):
    ours, other = (
        fastrnn.AdaptiveSoftmax(6, 9, [3, 5], backend=b, seed=0) for b in ("cuda", "cpu")
    )
    h = rng.standard_normal((4, 6), np.float32)
    for targets in ([0, 4, 8, 2], [1, 1, 2, 0]):  # the second leaves clusters without a row
        (loss, tape), (wanted, judge) = ours.forward(h, targets), other.forward(h, targets)
        assert loss == pytest.approx(wanted, rel=1e-5)
        check_close(tape[0], judge[0], "float32")
        for name, gradient in judge[1].items():
            check_close(tape[1][name], gradient, "float32", name)
    check_close(ours.log_prob(h), other.log_prob(h), "float32")


@pytest.mark.parametrize("options", [
    {"tied": True, "embedding_dim": 6}, {"cutoffs": [2, 4]},
    {"weight_dropout": 0.3, "input_dropout": 0.2, "dropout": 0.2},
])  # fmt: skip
def test_language_models(rng, options):
    vocabulary = Vocabulary.of("abcdef", min_count=1)
    sides = [
        LanguageModel(
            vocabulary, **{"embedding_dim": 3} | options, hidden_size=6, backend=b, seed=0
        )
        for b in ("cuda", "cpu")
    ]
    for first in (True, False):
        chunk = Chunk(rng.integers(0, 7, (2, 2)), rng.integers(0, 7, (2, 2)), first)
        (loss, gradient, _), (wanted, judge, _) = [m.loss_and_gradient(chunk) for m in sides]
        assert loss == pytest.approx(wanted, rel=1e-5)
        check_close(gradient.copy_to_host(), judge, "float32")


def test_character_cnn(rng):
    X, y = [["aspirin", "helps"], ["a"]], [["B-Drug", "O"], ["O"]]
    options = {"word_dim": 3, "hidden_size": 3, "char_filters": 3, "char_dim": 2, "epochs": 1}
    here, there = (Tagger(backend=b, **options).fit(X, y) for b in ("cpu", "cuda"))
    for a, b in zip(here.predict_proba(X), there.predict_proba(X), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_embedding(rng):
    ours, other = (fastrnn.Embedding(6, 3, backend=b, seed=0) for b in ("cuda", "cpu"))
    ids, dy = np.array([4, 0, 4, 4, 5]), rng.standard_normal((5, 3), np.float32)
    assert np.array_equal(ours(ids), other(ids))
    for got, wanted in zip(
        ours.backward(ids, dy).values(), other.backward(ids, dy).values(), strict=True
    ):
        check_close(got, wanted, "float32")
    with pytest.raises(IndexError, match="id 6 at position 1"):
        ours([0, 6])


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastrnn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda: fastrnn.AdamW(0.1, weight_decay=0.2),
        lambda: fastrnn.Adam(0.1, weight_decay=0.1),
        lambda: optim.ASGD(0.1, start=1),
    ],
)
def test_optimizers(rng, make):
    sides = []
    for there in (False, True):
        parameters = Parameters({"w": np.linspace(-1, 1, 19)}, "float64")
        optimizer, norms = make(), []
        for step in range(4):
            g = np.sin(np.arange(19.0) + step)
            g = memory.to_device(g) if there and step != 2 else g  # back and forth
            norms.append(optimizer.step(parameters, g, max_norm=1.0))
        sides.append((parameters["w"], norms, optimizer.state_dict()))
    (w, norms, state), (w_there, norms_there, state_there) = sides
    check_close(w_there, w, "float64")
    assert np.allclose(norms_there, norms, rtol=1e-12)
    for name, kept in state.items():
        assert isinstance(state_there[name], np.ndarray)
        check_close(state_there[name], kept, "float64")
    with pytest.raises(FloatingPointError):
        make().step(Parameters({"w": np.zeros(3)}, "float64"), memory.to_device(np.full(3, np.nan)))


def test_parameters_on_both_sides():
    whole = Parameters({"a.w": np.arange(4.0), "b.w": np.arange(4.0, 10).reshape(2, 3)}, "float64")
    part = whole.sub("b.")
    assert np.array_equal(part.on_device(memory.to_device)["w"].copy_to_host(), part["w"])
    there = part.writing_on_device(memory.to_device)
    there[0:6] = memory.to_device(np.full(6, 7.0))
    assert (part["w"] == 7).all() and np.array_equal(whole.flat, [0, 1, 2, 3] + [7] * 6)
    whole.writing()[:] = 1
    again = part.on_device(memory.to_device)["w"]
    assert (again.copy_to_host() == 1).all()
    assert again.memory is there.memory  # where a CUDA graph looks for it
    assert whole.version == part.version == 2


@pytest.mark.slow
def test_a_language_model_trains_on_the_device(tmp_path):
    """Some steps with Adam, a checkpoint in between, an evaluation and a sample."""
    texts, out = "abcd" * 12, []
    for backend in ("cuda", "cpu"):
        vocabulary = Vocabulary.of(texts)
        run = tmp_path / backend
        for steps in (2, 4):
            model = LanguageModel(
                vocabulary, embedding_dim=3, hidden_size=4, dropout=0.25, dtype="float64",
                backend=backend, seed=0,
            )  # fmt: skip
            stream = TextStream(vocabulary.encode(texts), 2, 4)
            trainer = fastrnn.Trainer(
                model, fastrnn.Adam(0.05), stream, run, max_norm=1.0, progress=False
            )
            if steps == 4:
                trainer.resume()
            trainer.train(steps=steps)
        bits = model.bits_per_character(texts)
        out.append((model.parameters.flat, bits, model.sample(5, prime="a", temperature=0)))
    (ours, bits, text), (wanted, wanted_bits, wanted_text) = out
    check_close(ours, wanted, "float64")
    assert bits == pytest.approx(wanted_bits, rel=1e-10) and text == wanted_text
