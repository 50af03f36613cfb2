"""`fastrnn.torch` against PyTorch's modules in the same training loop, one line changed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.runtime.threads import get_num_threads

from .timing import Case

WORDS, TAGS, SYMBOLS = 5000, 9, 129


def _case(make: Callable, step: Callable, flops: float = 0.0, items: float = 0.0) -> Case:
    """``make()`` a model, twice; ``step(model)`` returns a function that makes a training step.

    Losses of the first ten steps are compared.
    """
    import torch

    import fastrnn.torch

    torch.set_num_threads(get_num_threads())

    def sides() -> list[Callable]:
        models = [make(), make()]
        models[1].load_state_dict(models[0].state_dict())
        fastrnn.torch.accelerate(models[1])
        return [step(model) for model in models]

    def check() -> None:
        theirs, ours = sides()
        for _ in range(10):
            np.testing.assert_allclose(ours().item(), theirs().item(), rtol=1e-4)

    theirs, ours = sides()
    return Case(ours, check, {"torch": theirs}, flops, items=items)


def _adam(scores_of: Callable, targets: Any) -> Callable:
    """The training step of a classifier with Adam."""
    import torch

    def step(model):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

        def run():
            scores = scores_of(model)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return run

    return step


def layer(kind: str, shape: tuple[int, int, int, int], lengths: Any = None) -> Case:
    """A layer in one direction, or in both on packed sequences of these ``lengths``."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence

    steps, batch, width, units = shape
    ragged = lengths is not None
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape[:3], np.float32))

    def make():
        return nn.ModuleDict({"rnn": getattr(nn, kind)(width, units, bidirectional=ragged)})

    def step(model):
        given = x.clone().requires_grad_()

        def run():
            model.zero_grad()
            given.grad = None
            if ragged:
                packed = pack_padded_sequence(given, lengths, enforce_sorted=False)
                y = model["rnn"](packed)[0].data
            else:
                y = model["rnn"](given)[0]
            loss = y.square().mean()
            loss.backward()
            return loss

        return run

    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    rows = 2 * int(lengths.sum()) if ragged else steps * batch
    return _case(make, step, 6.0 * rows * gates * units * (width + units))


def sentence_lengths(count: int) -> Any:
    """Like those of biomedical abstracts."""
    import torch

    drawn = np.random.default_rng(0).gamma(3.0, 8.6, count)
    return torch.from_numpy(np.clip(drawn, 2, 150).astype(np.int64))


def packed_layer(kind: str, batch: int, width: int, units: int) -> Case:
    """In both directions, on packed sequences."""
    lengths = sentence_lengths(batch)
    return layer(kind, (int(lengths.max()), batch, width, units), lengths)


def tagger() -> Case:
    """A BiLSTM tagger on packed sequences, with Adam."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(WORDS, 50)
            self.lstm = nn.LSTM(50, 100, bidirectional=True, batch_first=True)
            self.linear = nn.Linear(200, TAGS)

        def forward(self, ids, lengths):
            x = self.embedding(ids)
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.lstm(x)[0], batch_first=True)
            return self.linear(y)

    lengths = sentence_lengths(32)
    steps = int(lengths.max())
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, WORDS, (32, steps)))
    tags = torch.where(torch.arange(steps) < lengths[:, None], ids % TAGS, -100)

    return _case(Model, _adam(lambda model: model(ids, lengths), tags), items=32)


def language_model() -> Case:
    """129 characters, embedding 64, LSTM 512, batch 64 x 100, with Adam."""
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(SYMBOLS, 64)
            self.lstm = nn.LSTM(64, 512)
            self.linear = nn.Linear(512, SYMBOLS)

        def forward(self, ids):
            return self.linear(self.lstm(self.embedding(ids))[0])

    ids = torch.from_numpy(np.random.default_rng(0).integers(0, SYMBOLS, (101, 64)))

    return _case(Model, _adam(lambda model: model(ids[:-1]), ids[1:]), items=6400)
