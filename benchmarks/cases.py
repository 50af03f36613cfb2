"""What is timed: each case, its check against a reference, and the same in PyTorch.

A case is a function that returns a `Case`: `ours` and `peers` take no arguments and do the
same work; `check` raises AssertionError if ours is wrong. Set-up is not timed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.testing import assert_allclose

import fastrnn
from fastrnn.cells.activations import fma
from fastrnn.data.text import UNKNOWN, Chunk, Vocabulary
from fastrnn.kernels.cpu.compiler import kernel
from fastrnn.kernels.cpu.simd import lane_count, load, pointer, store
from fastrnn.kernels.threads import run
from fastrnn.models import LanguageModel
from fastrnn.optim import Adam

try:
    import torch
except ImportError:
    torch = None

THREADS = fastrnn.get_num_threads()
if torch is not None:
    torch.set_num_threads(THREADS)

# (T, B, I, H): from a step to a language model.
DENSE = [
    (1, 1, 128, 256),
    (100, 1, 128, 256),
    (50, 16, 128, 128),
    (50, 32, 128, 256),
    (100, 64, 256, 512),
    (200, 128, 64, 128),
    (35, 20, 650, 650),
]


@dataclass
class Case:
    ours: Callable[[], object]
    check: Callable[[], None]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    flops: float = 0.0  # of one call, 2 for a multiply-add
    moved: float = 0.0  # bytes read and written by one call
    items: float = 0.0  # characters, rows or sentences of one call


def close(got, wanted, tolerance=2e-5):
    """Largest difference relative to the largest wanted number."""
    assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def _lstm(shape):
    steps, batch, inputs, units = shape
    rng = np.random.default_rng(0)
    lstm = fastrnn.LSTM(inputs, units, seed=0)
    oracle = fastrnn.LSTM(inputs, units, dtype="float64", backend="reference")
    oracle.load_state_dict(lstm.state_dict())
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    dy = rng.standard_normal((steps, batch, units)).astype(np.float32)
    twin = None
    if torch is not None:
        twin = torch.nn.LSTM(inputs, units)
        twin.load_state_dict({k: torch.from_numpy(v) for k, v in lstm.state_dict().items()})
    flops = 2.0 * steps * batch * 4 * units * (inputs + units)
    return lstm, oracle, twin, x, dy, flops


def lstm_forward(shape):
    """Inference of one layer."""
    lstm, oracle, twin, x, _, flops = _lstm(shape)

    def check():
        close(lstm(x)[0], oracle(x)[0])

    peers = {}
    if twin is not None:
        x_t = torch.from_numpy(x)

        def torch_forward():
            with torch.no_grad():
                return twin(x_t)

        peers["torch"] = torch_forward
    return Case(lambda: lstm(x), check, peers, flops)


def lstm_training(shape):
    """Forward and backward of one layer with new weights each time, dx included."""
    lstm, oracle, twin, x, dy, flops = _lstm(shape)

    def step(layer):
        layer.parameters.writing()  # as after an optimizer's step: what is packed is stale
        y, _, tape = layer.forward(x)
        dx, _, grads = layer.backward(tape, dy)
        return {"y": y, "dx": dx, **grads}

    def check():
        wanted = step(oracle)
        for name, got in step(lstm).items():
            close(got, wanted[name])

    peers = {}
    if twin is not None:
        x_t, dy_t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

        def torch_step():
            x_t.grad = None
            twin.zero_grad(set_to_none=True)
            twin(x_t)[0].backward(dy_t)

        peers["torch"] = torch_step
    return Case(lambda: step(lstm), check, peers, 3 * flops)


def language_model(embedding_dim, against=None):
    """A whole training step of ``fastrnn train lm``: loss, gradient, clipping, Adam."""
    size, hidden, steps, batch = 129, 512, 100, 64
    symbols = [UNKNOWN] + [chr(33 + i) for i in range(size - 1)]

    def ours(embedding_dim):
        model = LanguageModel(
            Vocabulary(symbols), embedding_dim=embedding_dim, hidden_size=hidden, seed=0
        )
        optimizer = Adam(2e-3)

        def step():
            loss, gradient, _ = model.loss_and_gradient(chunk)
            optimizer.step(model.parameters, gradient, max_norm=1.0)
            return loss

        return model, step

    ids = np.random.default_rng(0).integers(1, size, (steps, batch))
    chunk = Chunk(ids, np.roll(ids, -1, 0), False)
    model, step = ours(embedding_dim)

    def check():
        small = Chunk(ids[:10, :4], chunk.targets[:10, :4], True)
        oracle = LanguageModel(
            model.vocabulary, embedding_dim=embedding_dim, hidden_size=hidden,
            dtype="float64", backend="reference",
        )  # fmt: skip
        oracle.parameters.load_state_dict(model.parameters.state_dict())
        loss, gradient, _ = model.loss_and_gradient(small)
        wanted_loss, wanted, _ = oracle.loss_and_gradient(small)
        close(loss, np.asarray(wanted_loss))
        close(gradient, wanted)

    width = embedding_dim or 0
    flops = 3 * 2.0 * steps * batch * (4 * hidden * (width + hidden) + hidden * size)
    peers = {}
    if against is not None:
        peers["fastrnn, embedding"] = ours(against)[1]
    elif torch is not None:
        peers["torch"] = _torch_language_model(size, embedding_dim, hidden, chunk)
    return Case(step, check, peers, flops, items=steps * batch)


def _torch_language_model(size, embedding_dim, hidden, chunk):
    embedding = torch.nn.Embedding(size, embedding_dim)
    lstm = torch.nn.LSTM(embedding_dim, hidden)
    linear = torch.nn.Linear(hidden, size)
    parameters = [*embedding.parameters(), *lstm.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, fused=True)
    ids, targets = torch.from_numpy(chunk.ids), torch.from_numpy(chunk.targets.reshape(-1))
    state = [None]

    def step():
        optimizer.zero_grad(set_to_none=True)
        h, carried = lstm(embedding(ids), state[0])
        state[0] = tuple(s.detach() for s in carried)
        loss = torch.nn.functional.cross_entropy(linear(h).view(-1, size), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def gather():
    """64,000 rows of 100 out of 400,000."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((400_000, 100), np.float32)
    ids = rng.integers(0, len(table), 64_000)
    out = np.empty((len(ids), 100), np.float32)
    source = np.empty_like(out)

    def check():
        assert np.array_equal(fastrnn.gather_rows(table, ids, out), table[ids])

    peers = {"memcpy of the same bytes": lambda: np.copyto(out, source)}
    if torch is not None:
        table_t, ids_t = torch.from_numpy(table), torch.from_numpy(ids)
        peers["torch"] = lambda: torch.nn.functional.embedding(ids_t, table_t)
    return Case(
        lambda: fastrnn.gather_rows(table, ids, out), check, peers, moved=2 * out.nbytes,
        items=len(ids),
    )  # fmt: skip


def scatter_sparse():
    """The gradient of the same embedding, as the rows that occurred and their sums."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 400_000, 64_000)
    grads = rng.standard_normal((len(ids), 100), np.float32)

    def check():
        rows, sums = fastrnn.scatter_add_rows(grads, ids, num_rows=400_000)
        wanted = np.zeros((400_000, 100), np.float32)
        np.add.at(wanted, ids, grads)
        assert np.array_equal(rows, np.unique(ids)) and np.array_equal(sums, wanted[rows])

    peers = {}
    if torch is not None:
        ids_t, grads_t = torch.from_numpy(ids)[None], torch.from_numpy(grads)

        def torch_sparse():
            sparse = torch.sparse_coo_tensor(ids_t, grads_t, (400_000, 100), check_invariants=False)
            return sparse.coalesce()

        peers["torch"] = torch_sparse
    return Case(
        lambda: fastrnn.scatter_add_rows(grads, ids, num_rows=400_000), check, peers,
        moved=2 * grads.nbytes, items=len(ids),
    )  # fmt: skip


def padding(form):
    """4,096 sentences as lists or arrays into one array."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(3.0, 8.0, 4096), 1, 150).astype(int)
    arrays = [rng.integers(0, 30_000, n) for n in lengths]
    sequences = arrays if form == "arrays" else [a.tolist() for a in arrays]

    def check():
        ids, got = fastrnn.pad_sequences(sequences)
        assert np.array_equal(got, lengths) and ids.shape == (lengths.max(), 4096)
        for b, a in enumerate(arrays):
            assert np.array_equal(ids[: len(a), b], a) and not ids[len(a) :, b].any()

    peers = {}
    if torch is not None:
        pad = torch.nn.utils.rnn.pad_sequence
        if form == "arrays":
            peers["torch"] = lambda: pad([torch.from_numpy(a) for a in arrays])
        else:
            peers["torch"] = lambda: pad([torch.tensor(s) for s in sequences])
    return Case(
        lambda: fastrnn.pad_sequences(sequences), check, peers, items=len(sequences)
    )  # fmt: skip


@kernel
def _multiply_adds(out, at, count):
    """Twelve independent chains of multiply-adds, nothing else."""
    p = pointer(out)
    n = lane_count(p)
    m, x = load(p, at), load(p, at + n)
    a, b, c, d, e, f, g, h, i, j, k, o = (x, x, x, x, x, x, x, x, x, x, x, x)
    for _ in range(count):
        a, b, c, d = fma(a, m, x), fma(b, m, x), fma(c, m, x), fma(d, m, x)
        e, f, g, h = fma(e, m, x), fma(f, m, x), fma(g, m, x), fma(h, m, x)
        i, j, k, o = fma(i, m, x), fma(j, m, x), fma(k, m, x), fma(o, m, x)
    store(p, at + n, a + b + c + d + e + f + g + h + i + j + k + o)


def fma_peak(seconds=0.5) -> float:
    """Multiply-adds that the machine does now on THREADS threads, in floating operations/s."""
    out = np.full((THREADS, 64), 0.5, np.float32).reshape(-1)
    lanes, count, best = fastrnn.kernels.cpu.simd.width("float32"), 1_000_000, 0.0
    tasks = [(_multiply_adds, out, 64 * t, count) for t in range(THREADS)]
    run(tasks)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        out[:] = 0.5
        started = time.perf_counter()
        run(tasks)
        done = THREADS * count * 12 * lanes * 2
        best = max(best, done / (time.perf_counter() - started))
    return best
