"""The tagger against the same model in other packages: training, and tagging text."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.data.batches import CASES, SentenceBatches, Tokens, by_length, case_of, make_batch
from fastrnn.data.corpus import Corpus
from fastrnn.data.vectors import WordVectors
from fastrnn.models import Tagger
from fastrnn.models.fitted import FittedTagger
from fastrnn.optim import Adam
from fastrnn.runtime.threads import get_num_threads

from . import peers
from .timing import Case

WORDS, SENTENCES, BATCH, UNITS = 17_000, 640, 32, 100
DROP_IN, DROP_OUT = 0.25, 0.5


def sentences(count: int = SENTENCES):
    """Synthetic sentences with lengths and word frequencies like biomedical abstracts."""
    rng = np.random.default_rng(0)
    X, y = [], []
    for n in np.clip(rng.gamma(3.0, 8.6, count), 2, 150).astype(int):
        words = np.minimum((WORDS ** rng.random(n)).astype(int), WORDS - 1)
        X.append([f"Word{w}" if rng.random() < 0.2 else f"word{w}" for w in words])
        y.append(["O" if rng.random() < 0.9 else f"S-{'CD'[w % 2]}" for w in words])
    return X, y


def _tagger(dtype="float32", backend="cpu", vectors=None):
    """A tagger ready to be trained, its sentences as `Tokens`, and their tags as ids."""
    X, y = sentences()
    # All words and tags, some of which the sentences may lack.
    words = [f"word{i}" for i in range(WORDS)]
    corpus = Corpus.of([words, *X], [["S-C", "S-D", *["O"] * (WORDS - 2)], *y], "BIOES", "BIOES")
    model = Tagger(vectors or WordVectors.none(50), hidden_size=UNITS, dropout=DROP_OUT,
                   input_dropout=DROP_IN, char_filters=0, crf=False, dtype=dtype)  # fmt: skip
    fitted = FittedTagger(model._config(corpus), model._vectors(), backend)
    fitted.lexicon.encode([corpus.distinct])  # gives them the indices of the corpus
    tokens, tags = corpus.tokens, corpus.tags[WORDS:]
    return fitted, Tokens.of(tokens.ids[WORDS:], tokens.lengths[1:]), tags


def _check(model, tokens, tags):
    """Compare loss and gradients of some sentences with the reference, without dropout."""
    oracle, others, _ = _tagger("float64", "reference", model.vectors)
    oracle.network.parameters.load_state_dict(model.network.parameters.state_dict())
    results = []
    for m, t in ((model, tokens), (oracle, others)):
        net = m.network
        kept = net.dropout, net.input_dropout
        net.dropout = net.input_dropout = 0.0
        loss, gradient, _ = net.loss_and_gradient(make_batch(m.lexicon, t, np.arange(4), tags))
        results.append((loss, gradient.copy(), net.row_gradients()["words"].values))
        net.dropout, net.input_dropout = kept
    for got, wanted in zip(*results, strict=True):
        worst = np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max()
        assert worst < 2e-5, worst


def training() -> Case:
    """One epoch of 20 batches: loss, gradient, clipping, Adam; word vectors are trained too."""
    model, tokens, tags = _tagger()
    net, optimizer = model.network, Adam(3e-3)
    batches = list(SentenceBatches(model.lexicon, tokens, tags, batch_size=BATCH).batches())

    def ours():
        for batch in batches:
            _, gradient, _ = net.loss_and_gradient(batch)
            optimizer.step(net.parameters, gradient, max_norm=5.0, rows=net.row_gradients())

    parts = by_length(tokens.lengths, batch_size=BATCH)
    padded = [_padded(model, tokens, tags, part) for part in parts]
    others: dict[str, Callable] = {}
    if peers.has("torch"):
        for name in ("padded", "packed"):
            others[f"torch, {name}"] = _torch_training(model, padded, packed=name == "packed")
    if peers.has("keras", "jax"):
        others["keras"] = _keras_training(model, padded)
    flops = 3 * _flops(model, len(tokens.ids))
    return Case(ours, lambda: _check(model, tokens, tags), others, flops, items=SENTENCES)


def _flops(model, tokens: int) -> float:
    """Floating-point operations of the matrix products in one forward pass."""
    width = model.lexicon.table.shape[1]
    return 2.0 * tokens * (8 * UNITS * (width + UNITS) + 2 * UNITS * len(model.tags))


def _padded(model, tokens, tags, part):
    """``(ids, cases, tags, lengths)`` as padded arrays, -100 where there is no tag."""
    lengths = tokens.lengths[part]
    ids = np.zeros((len(part), int(lengths.max())), np.int64)
    cases, own = np.zeros_like(ids), np.full_like(ids, -100)
    for i, s in enumerate(part):
        at = slice(tokens.starts[s], tokens.starts[s] + lengths[i])
        ids[i, : lengths[i]] = model.lexicon.words[tokens.ids[at]]
        cases[i, : lengths[i]] = model.lexicon.table[tokens.ids[at], -CASES:].argmax(axis=1)
        own[i, : lengths[i]] = tags[at]
    return ids, cases, own, lengths


def _torch_model(model, packed: bool) -> Any:
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(get_num_threads())
    net = model.network

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            vectors = torch.from_numpy(net.tables["words"].copy())
            self.words = nn.Embedding.from_pretrained(vectors, freeze=False, sparse=True)
            self.cases = nn.Embedding.from_pretrained(torch.eye(CASES))
            self.drop_in, self.drop_out = nn.Dropout(DROP_IN), nn.Dropout(DROP_OUT)
            self.lstm = nn.LSTM(50 + CASES, UNITS, bidirectional=True, batch_first=True)
            self.linear = nn.Linear(2 * UNITS, len(model.tags))
            for part in ("lstm", "linear"):
                weights = getattr(net, part).state_dict()
                getattr(self, part).load_state_dict(
                    {k: torch.from_numpy(v) for k, v in weights.items()}
                )

        def forward(self, ids, cases, lengths):
            x = self.drop_in(torch.cat([self.words(ids), self.cases(cases)], dim=2))
            if packed:
                rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                h = pad_packed_sequence(self.lstm(rows)[0], batch_first=True)[0]
            else:
                h = self.lstm(x)[0]
            return self.linear(self.drop_out(h))

    return Twin()


def _torch_training(model, padded, *, packed: bool) -> Callable:
    import torch

    twin = _torch_model(model, packed)
    dense = [p for n, p in twin.named_parameters() if not n.startswith(("words", "cases"))]
    optimizers = [
        torch.optim.Adam(dense, lr=3e-3, fused=True),
        torch.optim.SparseAdam(list(twin.words.parameters()), lr=3e-3),
    ]
    data = [tuple(map(torch.from_numpy, batch)) for batch in padded]

    def run():
        for ids, cases, tags, lengths in data:
            scores = twin(ids, cases, lengths)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tags.flatten())
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(dense, 5.0)
            for optimizer in optimizers:
                optimizer.step()

    return run


def _keras_training(model, padded) -> Callable:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras import layers

    ids, cases = (keras.Input((None,), dtype="int32") for _ in range(2))
    words = model.network.tables["words"]
    x = layers.Concatenate()([
        layers.Embedding(WORDS, 50, embeddings_initializer=lambda *a, **k: words)(ids),
        layers.Embedding(CASES, CASES, trainable=False, embeddings_initializer="identity")(cases),
    ])  # fmt: skip
    h = layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))(layers.Dropout(DROP_IN)(x))
    scores = layers.Dense(len(model.tags))(layers.Dropout(DROP_OUT)(h))
    theirs = keras.Model([ids, cases], scores)
    theirs.compile(
        keras.optimizers.Adam(3e-3, clipnorm=5.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = []
    for i, c, t, _ in padded:  # padded to a multiple of 16, or it would compile for every length
        more = ((0, 0), (0, -i.shape[1] % 16))
        i, c, t = np.pad(i, more), np.pad(c, more), np.pad(t, more, constant_values=-100)
        data.append(([i, c], np.maximum(t, 0), (t >= 0).astype(np.float32)))

    def run():
        for inputs, tags, weights in data:
            theirs.train_on_batch(inputs, tags, sample_weight=weights)

    return run


def tagging(count: int) -> Case:
    """Tag many sentences, or one."""
    model, _, _ = _tagger()
    X = sentences(count)[0] if count > 1 else [sentences(40)[0][7][:26]]
    others: dict[str, Callable] = {}
    if peers.has("torch"):
        for name in ("padded", "packed"):
            others[f"torch, {name}"] = _torch_tagging(model, X, packed=name == "packed")

    def check():
        # A sentence gets the same tags alone and among others, and packed torch agrees; padded
        # torch need not, as its backward direction reads the padding first.
        wanted = model.tag(X)
        for i in range(0, len(X), max(1, len(X) // 10)):
            assert model.tag(X[i : i + 1])[0] == wanted[i]
        if "torch, packed" in others:
            theirs: Any = others["torch, packed"]()
            ours = [[model.tags[k] for k in p.argmax(axis=1)] for p in model.probabilities(X)]
            same = [a == b for t, o in zip(theirs, ours, strict=True)
                    for a, b in zip(t, o, strict=True)]  # fmt: skip
            assert np.mean(same) > 0.999, np.mean(same)  # except for ties within rounding error

    flops = _flops(model, sum(map(len, X)))
    return Case(lambda: model.tag(X), check, others, flops, items=len(X))


def _torch_tagging(model, X, *, packed: bool) -> Callable:
    import torch

    twin = _torch_model(model, packed).eval()
    rows = {word: i for i, word in enumerate(model.config["words"])}
    names = model.tags

    @torch.no_grad()
    def run():
        out: list = [None] * len(X)
        lengths = np.array([len(x) for x in X])
        for part in by_length(lengths, max_tokens=4096):
            shape = len(part), int(lengths[part].max())
            ids, cases = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            for i, s in enumerate(part):
                ids[i, : lengths[s]] = [rows[w.lower()] for w in X[s]]
                cases[i, : lengths[s]] = [case_of(w) for w in X[s]]
            args = map(torch.from_numpy, (ids, cases, lengths[part]))
            best = twin(*args).argmax(2).numpy()
            for i, s in enumerate(part):
                out[s] = [names[k] for k in best[i, : lengths[s]]]
        return out

    return run
