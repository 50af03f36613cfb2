"""What the processes of a test do: train, and let the lead print what came out, as JSON.

mpiexec -n N python job.py KIND STEPS RUN [resume]
"""

import hashlib
import json
import sys

import numpy as np
from mpi4py import MPI

import fastrnn
from fastrnn.data.text import TextStream, Vocabulary
from fastrnn.distributed import Group, dense
from fastrnn.models import LanguageModel, Tagger
from fastrnn.trainer import Trainer

SHARDS = 4
dense.LEAST = 1  # so that even a small model is sent in several parts
rng = np.random.default_rng(0)


def language_model(run, steps, resume, optimizer):
    """With all kinds of dropout and tied weights; the last chunk of an epoch is short."""
    text = "".join(rng.choice(list("abcdefgh \n"), 3000))
    model = LanguageModel(
        Vocabulary.of(text), embedding_dim=24, hidden_size=24, num_layers=2, tied=True,
        dropout=0.3, input_dropout=0.1, weight_dropout=0.2, seed=1,
    )  # fmt: skip
    data = TextStream(model.vocabulary.encode(text), 10, 20, variable=True)
    trainer = Trainer(
        model, optimizer, data, run, max_norm=0.5, group=group, progress=False,
        evaluate=lambda: model.cross_entropy(text[:900], bptt=10, group=group), evaluate_every=8,
    )  # fmt: skip
    if resume:
        assert trainer.resume()
    trainer.train(steps=steps)
    return model, trainer


def tagger(run, epochs, resume):
    """With trained vectors, a CRF, characters, and batches of fewer sentences than shards."""
    words = [f"{'Aa'[i % 2]}{i}" for i in range(300)]
    X = [[words[j] for j in rng.integers(0, 300, rng.integers(1, 20))] for _ in range(83)]
    y = [["B-P" if w in words[:30] else "O" for w in x] for x in X]
    model = Tagger(
        epochs=epochs, hidden_size=10, char_filters=6, batch_size=8, seed=2, lr=0.01
    ).fit(X, y, dev=(X[:30], y[:30]), run=run, resume=resume, progress=False, group=group)
    return model.network_, model.trainer_


group = Group(SHARDS, MPI.COMM_WORLD)
kind, steps, run, *resume = sys.argv[1:]
fastrnn.set_num_threads(1)
if kind == "tagger":
    model, trainer = tagger(run, int(steps), bool(resume))
else:
    optimizers = {"adam": fastrnn.Adam(0.01), "asgd": fastrnn.ASGD(1.0, start=4)}
    model, trainer = language_model(run, int(steps), bool(resume), optimizers[kind])
digest = hashlib.sha256()
for of in (trainer._last_weights, model.parameters, getattr(model, "tables", {})):
    for name in sorted(of):
        digest.update(of[name].tobytes())
digests = group.comm.gather(digest.hexdigest())
if group.lead:
    numbers = sum(map(np.size, model.parameters.values()))
    facts = {"step": trainer.step, "best": trainer.best, "sent": trainer.sent, "numbers": numbers}
    print(json.dumps({"digests": sorted(set(digests))} | facts))
