"""Compare two installations of fastrnn bit by bit over a few hundred seeded public calls.

    python tests/compare_bits.py OLD/bin/python NEW/bin/python

Each interpreter makes the same calls and prints a hash of every array that comes back; the script
lists what differs and exits with 1 if anything does. Not part of the test run.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np


def _hashed(value) -> str:
    array = np.ascontiguousarray(value)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def _flat(prefix: str, value) -> Iterator[tuple[str, str]]:
    """Every array in a nested result by name."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{prefix}.{name}", part)
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from _flat(f"{prefix}.{i}", part)
    elif isinstance(value, str):
        yield prefix, hashlib.sha256(value.encode()).hexdigest()[:16]
    elif value is not None:
        yield prefix, _hashed(value)


def _layer(fastrnn, rng, *, largest: int, backend: str):
    cell = rng.integers(4)
    kind = (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN, fastrnn.RNN)[cell]
    options = {"nonlinearity": "relu"} if cell == 3 else {}
    inputs, units = (int(n) for n in rng.integers(1, largest, 2))
    return kind(
        inputs, units, int(rng.integers(1, 3)), bidirectional=bool(rng.integers(2)),
        batch_first=bool(rng.integers(2)), bias=bool(rng.integers(4)),
        dropout=0.25 * rng.integers(2), dtype=("float32", "float64")[rng.integers(2)],
        backend=backend, seed=int(rng.integers(100)), **options,
    )  # fmt: skip


def recurrent(fastrnn, rng, *, largest=70, steps=12, batch=20, backend="cpu"):
    layer = _layer(fastrnn, rng, largest=largest, backend=backend)
    t, b = (int(n) for n in (rng.integers(1, steps), rng.integers(1, batch)))
    outer = (b, t) if layer.batch_first else (t, b)
    x = rng.standard_normal((*outer, layer.input_size))
    lengths = rng.integers(0, t + 1, b) if rng.integers(2) else None
    y, state, tape = layer.forward(x, lengths=lengths)
    out = {"y": y, "state": state}
    out["gradients"] = layer.backward(tape, rng.standard_normal(y.shape))
    out["inference"] = layer(x, state, lengths)
    if not layer.bidirectional:
        first = x[:, 0] if layer.batch_first else x[0]
        out["step"] = layer.step(first, state)
    return out


def linear(fastrnn, rng):
    inputs, outputs, rows = (int(n) for n in rng.integers(1, 200, 3))
    layer = fastrnn.Linear(inputs, outputs, seed=1, dtype=("float32", "float64")[rng.integers(2)])
    y, tape = layer.forward(rng.standard_normal((rows, inputs)))
    return y, layer.backward(tape, rng.standard_normal(y.shape))


def pointwise(fastrnn, rng):
    table = fastrnn.Embedding(30, 7, seed=2)
    ids = rng.integers(0, 30, (5, 6))
    y, tape = table.forward(ids)
    dy = rng.standard_normal(y.shape)
    dropout = fastrnn.Dropout(0.3, seed=int(rng.integers(9)))
    return {
        "embedding": (y, table.backward(tape, dy), table.backward(tape, dy, sparse=True)),
        "dropout": dropout.forward(dy)[0],
        "loss": fastrnn.cross_entropy(dy, rng.integers(0, 7, (5, 6)))[:2],
        "gather": fastrnn.gather_rows(dy[0], ids[0] % 6),
        "padded": fastrnn.pad_sequences([ids[0], ids[1, :2]]),
    }


def crf(fastrnn, rng):
    layer = fastrnn.CRF(4, seed=3, dtype=("float32", "float64")[rng.integers(2)])
    scores, tags = rng.standard_normal((6, 5, 4)), rng.integers(0, 4, (6, 5))
    lengths = rng.integers(0, 7, 5)
    loss, tape = layer.forward(scores, tags, lengths)
    decoded = layer.decode(scores, lengths), layer.marginals(scores, lengths)
    return loss, layer.backward(tape), decoded


def optimizers(fastrnn, rng):
    out = {}
    for name in ("SGD", "Adam", "AdamW"):
        layer = fastrnn.Linear(40, 30, seed=4)
        optimizer = getattr(fastrnn, name)(0.01, weight_decay=0.1)
        for _ in range(3):
            gradient = rng.standard_normal(layer.parameters.size).astype("f")
            optimizer.step(layer.parameters, gradient, max_norm=0.5)
        out[name] = layer.state_dict(), optimizer.state_dict()
    return out


def language_model(fastrnn, rng, *, backend="cpu", units=48):
    from fastrnn.data.text import TextStream, Vocabulary
    from fastrnn.models import LanguageModel

    text = "".join("abcdef"[i] for i in rng.integers(0, 6, 800))
    vocabulary = Vocabulary.of(text)
    model = LanguageModel(
        vocabulary, embedding_dim=5 * int(rng.integers(2)), hidden_size=units,
        num_layers=int(rng.integers(1, 3)), dropout=0.2, backend=backend, seed=5,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        stream = TextStream(vocabulary.encode(text), 4, 20)
        trainer = fastrnn.Trainer(
            model, fastrnn.Adam(0.01), stream, folder, max_norm=1.0, progress=False
        )
        trainer.train(steps=4)
    return model.parameters.state_dict(), model.bits_per_character(text), model.sample(30, seed=1)


def tagger(fastrnn, rng):
    from fastrnn.models import Tagger

    words = np.array(["Aspirin", "helps", "against", "pain", "."])
    X = [list(words[rng.integers(0, 5, rng.integers(1, 9))]) for _ in range(40)]
    y = [["B-x" if word == "Aspirin" else "O" for word in sentence] for sentence in X]
    model = Tagger(
        word_dim=6, hidden_size=10, char_hidden=3, char_dim=4, epochs=2,
        crf=bool(rng.integers(2)), seed=6,
    )  # fmt: skip
    return model.fit(X, y).predict_proba(X)


def cases():
    """``(name, function, options)`` of every call."""
    for i in range(200):
        yield f"recurrent {i}", recurrent, {}
    for i in range(20):
        yield f"large {i}", recurrent, {"largest": 300, "steps": 30, "batch": 80}
    for i in range(40):
        yield f"reference {i}", recurrent, {"backend": "reference"}
    for i in range(20):
        options = {"largest": 8, "steps": 4, "batch": 5, "backend": "cuda"}
        yield f"cuda {i}", recurrent, options
    yield "cuda model", language_model, {"backend": "cuda", "units": 4}
    for function in (linear, pointwise, crf, optimizers, language_model, tagger):
        for i in range(8):
            yield f"{function.__name__} {i}", function, {}


def hashes() -> None:
    """Make all calls here and print what came back."""
    import fastrnn

    for number, (name, function, options) in enumerate(cases()):
        fastrnn.set_num_threads(1 + number % 2)
        result = function(fastrnn, np.random.default_rng(number), **options)
        print(json.dumps([name, dict(_flat("", result))]), flush=True)


def main(*interpreters: str) -> int:
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    outputs = []
    for python in interpreters:
        done = subprocess.run(
            [python, os.path.abspath(__file__)], cwd=tempfile.gettempdir(), env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            print(done.stderr)
            return 2
        outputs.append(dict(map(json.loads, done.stdout.splitlines())))
    old, new = outputs
    arrays, wrong = sum(map(len, old.values())), []
    for name in old:
        wrong += [f"{name}{k}" for k, v in old[name].items() if new.get(name, {}).get(k) != v]
    print(f"{len(old)} calls, {arrays} arrays, {len(wrong)} differ", *wrong[:40], sep="\n  ")
    return bool(wrong) or old.keys() != new.keys()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        hashes()
    elif len(sys.argv) == 3:
        sys.exit(main(*sys.argv[1:]))
    else:
        sys.exit(__doc__)
