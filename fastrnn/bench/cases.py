"""The benchmark cases: each with a check against a reference and the same in other packages.

`CASES` lists them all. Each entry's ``make`` creates a `timing.Case`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.testing import assert_allclose

import fastrnn
from fastrnn.data.text import UNKNOWN, Chunk, Vocabulary
from fastrnn.kernels.native.library import find
from fastrnn.models import LanguageModel
from fastrnn.optim import Adam
from fastrnn.runtime.threads import MOVE_COST, Job, parallel_for

from . import modules, peers, tagger
from .timing import Case

# (T, B, I, H): from a single step to the size of a language model.
DENSE = [
    (1, 1, 128, 256),
    (100, 1, 128, 256),
    (50, 16, 128, 128),
    (50, 32, 128, 256),
    (100, 64, 256, 512),
    (200, 128, 64, 128),
    (35, 20, 650, 650),
    (128, 64, 64, 512),
    (30, 256, 40, 64),
]
# (B, I, H) of bidirectional layers over sentences.
RAGGED = [(32, 100, 100), (32, 100, 200), (64, 128, 256), (8, 100, 100)]
# T, B or H grows while the other two stay as in (T, B, H) = (50, 32, 256); I = H.
GROWING = {
    "T": [(t, 32, 256, 256) for t in (1, 5, 25, 50, 100, 200)],
    "B": [(50, b, 256, 256) for b in (1, 2, 4, 8, 16, 32, 64, 128)],
    "H": [(50, 32, h, h) for h in (32, 64, 100, 128, 200, 256, 400, 512)],
}
STEPS = 100  # of a stream, per timed call


def close(got, wanted, tolerance=2e-5):
    """Assert that no difference, relative to the largest wanted value, exceeds ``tolerance``."""
    assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def _pair(cell, *sizes, **options):
    """A layer, and the same layer in float64 on the reference backend."""
    layer = cell(*sizes, **options, seed=0)
    oracle = cell(*sizes, **options, dtype="float64", backend="reference")
    oracle.load_state_dict(layer.state_dict())
    return layer, oracle


def _batch(layer, steps, batch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, layer.input_size), np.float32)
    dy = rng.standard_normal((steps, batch, layer.directions * layer.hidden_size), np.float32)
    return x, dy


def _flops(layer, rows) -> float:
    """Floating-point operations of the matrix products in one forward pass."""
    weights = sum(v.size for v in layer.state_dict().values() if v.ndim == 2)
    return 2.0 * rows * weights


def forward(cell, shape) -> Case:
    """Inference of one layer."""
    steps, batch, inputs, units = shape
    layer, oracle = _pair(cell, inputs, units)
    x, _ = _batch(layer, steps, batch)
    others = peers.forward(layer, x)

    def check():
        wanted = oracle(x)[0]
        close(layer(x)[0], wanted)
        for peer in others.values():
            close(peer(), wanted, 1e-3)

    return Case(lambda: layer(x), check, others, _flops(layer, steps * batch))


def _train(layer, x, dy, lengths=None) -> dict:
    layer.parameters.writing()  # as after an optimizer step: the packed copy is stale
    y, _, tape = layer.forward(x, lengths=lengths)
    dx, _, grads = layer.backward(tape, dy)
    return {"y": y, "dx": dx, **grads}


def _check_training(layer, oracle, *batch, tolerance=2e-5):
    wanted = _train(oracle, *batch)
    for name, got in _train(layer, *batch).items():
        close(got, wanted[name], tolerance)


def training(cell, shape, only_torch=False) -> Case:
    """Forward and backward of one layer, dx included, with new weights at every call."""
    steps, batch, inputs, units = shape
    layer, oracle = _pair(cell, inputs, units)
    x, dy = _batch(layer, steps, batch)
    others = peers.training(layer, x, dy)
    if only_torch:
        others = {name: peer for name, peer in others.items() if name == "torch"}
    return Case(
        lambda: _train(layer, x, dy), lambda: _check_training(layer, oracle, x, dy), others,
        3 * _flops(layer, steps * batch),
    )  # fmt: skip


def ragged(cell, shape) -> Case:
    """Training of a bidirectional layer on sentences of different lengths, I and H as given."""
    batch, inputs, units = shape
    layer, oracle = _pair(cell, inputs, units, bidirectional=True)
    lengths = np.clip(np.random.default_rng(0).gamma(3.0, 8.0, batch), 1, 150).astype(np.int64)
    x, dy = _batch(layer, int(lengths.max()), batch)
    inside = np.arange(len(x))[:, None] < lengths
    x *= inside[..., None]
    return Case(
        lambda: _train(layer, x, dy, lengths),
        lambda: _check_training(layer, oracle, x, dy, lengths),
        peers.torch_ragged(layer, x, lengths, dy),
        3 * _flops(layer, lengths.sum()), items=batch,
    )  # fmt: skip


def stream(cell, shape) -> Case:
    """Single steps of one sequence, one call per step, on one thread."""
    inputs, units = shape
    layer, oracle = _pair(cell, inputs, units)
    x, _ = _batch(layer, STEPS, 1)
    threads = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    try:
        others = peers.steps(layer, x)
    finally:
        fastrnn.set_num_threads(threads)

    def ours():
        state = None
        for x_t in x:
            y, state = layer.step(x_t, state)
        return y

    def check():
        wanted = oracle(x)[0][-1:]
        close(ours()[None], wanted)
        for peer in others.values():
            close(peer(), wanted, 1e-3)

    return Case(ours, check, others, _flops(layer, STEPS), calls=STEPS, threads=1)


def language_model(embedding_dim, against=None, precision="float32", wrap=None) -> Case:
    """A whole training step of ``fastrnn train lm``: loss, gradient, clipping, Adam."""
    size, hidden, steps, batch = 129, 512, 100, 64
    symbols = [UNKNOWN] + [chr(33 + i) for i in range(size - 1)]

    def ours(embedding_dim):
        model = LanguageModel(
            Vocabulary(symbols), embedding_dim=embedding_dim, hidden_size=hidden,
            precision=precision, seed=0,
        )  # fmt: skip
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
        tolerance = 2e-5 if precision == "float32" else 2e-2
        close(loss, np.asarray(wanted_loss), tolerance)
        close(gradient, wanted, tolerance)

    width = embedding_dim or 0
    flops = 3 * 2.0 * steps * batch * (4 * hidden * (width + hidden) + hidden * size)
    others: dict[str, Callable] = {}
    if against is not None:
        others["fastrnn, embedding"] = ours(against)[1]
    elif peers.has("torch"):
        others["torch"] = _torch_language_model(size, embedding_dim, hidden, chunk, wrap)
    return Case(step, check, others, flops, items=steps * batch)


def _torch_language_model(size, embedding_dim, hidden, chunk, wrap=None):
    import torch

    embedding = torch.nn.Embedding(size, embedding_dim)
    lstm = torch.nn.LSTM(embedding_dim, hidden)
    linear = torch.nn.Linear(hidden, size)
    parameters = [*embedding.parameters(), *lstm.parameters(), *linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3, fused=True)
    ids, targets = torch.from_numpy(chunk.ids), torch.from_numpy(chunk.targets.reshape(-1))
    state: list = [None]

    def loss_of():
        h, carried = lstm(embedding(ids), state[0])
        state[0] = tuple(s.detach() for s in carried)
        return torch.nn.functional.cross_entropy(linear(h).view(-1, size), targets)

    forward = wrap(loss_of) if wrap else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def gather() -> Case:
    """Gather 64,000 rows of 100 values from a table of 400,000 rows."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((400_000, 100), np.float32)
    ids = rng.integers(0, len(table), 64_000)
    out = np.empty((len(ids), 100), np.float32)
    source = np.empty_like(out)

    def check():
        assert np.array_equal(fastrnn.gather_rows(table, ids, out), table[ids])

    sums = np.zeros(16 * len(ids), np.float32)
    read = Job(
        find("peak.read_rows", table.dtype), (table, ids, sums), len(ids), out.size * MOVE_COST
    )
    others: dict[str, Callable] = {
        "memcpy of the same bytes": lambda: np.copyto(out, source),
        "reading the rows alone": lambda: parallel_for(read),
    }
    if peers.has("torch"):
        import torch

        table_t, ids_t = torch.from_numpy(table), torch.from_numpy(ids)
        others["torch"] = lambda: torch.nn.functional.embedding(ids_t, table_t)
    return Case(
        lambda: fastrnn.gather_rows(table, ids, out), check, others, moved=2 * out.nbytes,
        items=len(ids),
    )  # fmt: skip


def scatter_sparse() -> Case:
    """The sparse gradient of the same embedding: the rows that occur and their sums."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 400_000, 64_000)
    grads = rng.standard_normal((len(ids), 100), np.float32)

    def check():
        rows, sums = fastrnn.scatter_add_rows(grads, ids, num_rows=400_000)
        wanted = np.zeros((400_000, 100), np.float32)
        np.add.at(wanted, ids, grads)
        assert np.array_equal(rows, np.unique(ids)) and np.array_equal(sums, wanted[rows])

    others: dict[str, Callable] = {}
    if peers.has("torch"):
        import torch

        ids_t, grads_t = torch.from_numpy(ids)[None], torch.from_numpy(grads)

        def torch_sparse():
            sparse = torch.sparse_coo_tensor(ids_t, grads_t, (400_000, 100), check_invariants=False)
            return sparse.coalesce()

        others["torch"] = torch_sparse
    return Case(
        lambda: fastrnn.scatter_add_rows(grads, ids, num_rows=400_000), check, others,
        moved=2 * grads.nbytes, items=len(ids),
    )  # fmt: skip


def padding(form) -> Case:
    """Pad 4,096 sentences, given as lists or arrays, into one array."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(3.0, 8.0, 4096), 1, 150).astype(int)
    arrays = [rng.integers(0, 30_000, n) for n in lengths]
    sequences = arrays if form == "arrays" else [a.tolist() for a in arrays]

    def check():
        ids, got = fastrnn.pad_sequences(sequences)
        assert np.array_equal(got, lengths) and ids.shape == (lengths.max(), 4096)
        for b, a in enumerate(arrays):
            assert np.array_equal(ids[: len(a), b], a) and not ids[len(a) :, b].any()

    others: dict[str, Callable] = {}
    if peers.has("torch"):
        import torch

        pad = torch.nn.utils.rnn.pad_sequence
        if form == "arrays":
            others["torch"] = lambda: pad([torch.from_numpy(a) for a in arrays])
        else:
            others["torch"] = lambda: pad([torch.tensor(s) for s in sequences])
    return Case(
        lambda: fastrnn.pad_sequences(sequences), check, others, items=len(sequences)
    )  # fmt: skip


class Entry(NamedTuple):
    """A case by group and name; ``quick`` ones make up the two-minute version."""

    group: str
    name: str
    make: Callable[[], Case]
    quick: bool = False


def _entries():
    cells = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": fastrnn.RNN}
    quick = {(50, 16, 128, 128), (50, 32, 128, 256)}
    for kind, make in (("inference", forward), ("training", training)):
        for name, cell in cells.items():
            for shape in DENSE:
                fast = shape in quick and (name == "LSTM" or kind == "training")
                yield Entry(
                    f"{name} {kind}, (T, B, I, H)", str(shape), partial(make, cell, shape), fast
                )
    group = "ragged BiLSTM training, (B, I, H)"
    for batch in RAGGED:
        yield Entry(group, str(batch), partial(ragged, fastrnn.LSTM, batch), batch[0] == 32)
    group = "one step of one sequence, 1 thread, (I, H)"
    for name, cell in cells.items():
        for sizes in ((64, 64), (128, 256)):
            yield Entry(group, f"{name} {sizes}", partial(stream, cell, sizes), sizes == (64, 64))
    yield Entry("data", "gather", gather, True)
    yield Entry("data", "sparse gradient", scatter_sparse, True)
    yield Entry("data", "padding lists", partial(padding, "lists"), True)
    yield Entry("data", "padding arrays", partial(padding, "arrays"), True)
    group = "language model, training step"
    yield Entry(group, "embedding 64", partial(language_model, 64), True)
    yield Entry(group, "one-hot", partial(language_model, 0, against=64))
    yield Entry("tagger, training", "20 batches of 32 sentences", tagger.training, True)
    for count in (1, 2000):
        name = f"{count:,} sentence{'s' * (count > 1)}"
        yield Entry("tagger, tagging", name, partial(tagger.tagging, count), True)
    if peers.has("torch"):
        group = "fastrnn.torch, the same training loop"
        for kind in cells:
            for shape in ((50, 16, 128, 128), (50, 32, 128, 256), (35, 20, 650, 650)):
                yield Entry(group, f"{kind} {shape}", partial(modules.layer, kind, shape))
            name = f"packed Bi{kind} (32, 100, 100)"
            yield Entry(group, name, partial(modules.packed_layer, kind, 32, 100, 100))
        yield Entry(group, "tagger", modules.tagger)
        yield Entry(group, "language model", modules.language_model)
    yield from _lower_precision(cells)
    for letter, shapes in GROWING.items():
        for shape in shapes:
            make = partial(training, fastrnn.LSTM, shape, only_torch=True)
            yield Entry(f"LSTM training as {letter} grows, (T, B, I, H)", str(shape), make)


def _lower_precision(cells):
    from . import precision

    for name, cell in cells.items():
        for shape in DENSE if name == "LSTM" else DENSE[2:5]:
            make = partial(precision.training, cell, shape)
            yield Entry(f"{name} training in bf16, (T, B, I, H)", str(shape), make)
    for batch in RAGGED:
        make = partial(precision.ragged, fastrnn.LSTM, batch)
        yield Entry("ragged BiLSTM training in bf16, (B, I, H)", str(batch), make)
    group = "one step of one sequence in lower precision, 1 thread, (I, H)"
    for kind in ("bf16", "int8"):
        for sizes in ((128, 256), (512, 1024)):
            yield Entry(group, f"LSTM {sizes}, {kind}", partial(precision.stream, kind, sizes))
    group = "language model in bf16, training step"
    yield Entry(group, "embedding 64", precision.language_model)


CASES = list(_entries())
