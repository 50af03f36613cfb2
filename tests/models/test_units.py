"""Language models of words and byte pairs, and of other cells, softmaxes and dropouts."""

import math

import numpy as np
import pytest

from fastrnn.data.text import Chunk, TextStream, Vocabulary
from fastrnn.data.vocabularies import BytePairs, WordVocabulary
from fastrnn.models import LanguageModel
from fastrnn.optim import ASGD, SGD, Adam
from fastrnn.trainer import Trainer
from helpers import check_close, check_gradient, needs_torch

TEXT = "the cat sat on the mat . the dog sat on the log . a bird sang to the cat . \n" * 80
WORDS = WordVocabulary.of(TEXT, size=12, tokenised=True)
VARIANTS = {
    "gru": {"cell": "gru"},
    "relu": {"cell": "rnn", "cell_options": {"nonlinearity": "relu"}},
    "peephole": {"cell_options": {"variant": "peephole"}},
    "layer norm": {"cell_options": {"variant": "layer_norm"}},
    "projected": {"cell_options": {"proj_size": 4}},
    "tied": {"tied": True, "embedding_dim": 9},
    "tied projected": {"tied": True, "embedding_dim": 4, "cell_options": {"proj_size": 4}},
    "adaptive": {"cutoffs": [3, 7]},
    "zaremba": {"dropout": 0.3, "input_dropout": 0.3, "num_layers": 2},
    "weight dropout": {"weight_dropout": 0.4, "num_layers": 2},
    "gru weight dropout": {"cell": "gru", "weight_dropout": 0.4},
    "all": {"tied": True, "embedding_dim": 9, "dropout": 0.2, "input_dropout": 0.2,
            "weight_dropout": 0.2, "num_layers": 2},
}  # fmt: skip


def model(**options):
    return LanguageModel(WORDS, **{"embedding_dim": 5, "hidden_size": 9, "seed": 0} | options)


def chunks(rng, steps=6, batch=3):
    for first in (True, False):
        yield Chunk(*(rng.integers(0, len(WORDS), (steps, batch)) for _ in range(2)), first)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient(rng, name):
    ours = model(dtype="float64", **VARIANTS[name])
    first, chunk = chunks(rng)
    ours.loss_and_gradient(first)
    state, dice = ours.carried(), ours.rng.bit_generator.state
    flat = ours.parameters.flat.copy()
    gradient = ours.loss_and_gradient(chunk)[1].copy()

    def loss(w):
        ours.parameters.writing()[:] = w
        ours.carry(state)
        ours.rng.bit_generator.state = dice
        return ours.loss_and_gradient(chunk)[0]

    check_gradient(loss, [flat], [gradient])


@pytest.mark.parametrize("steps", [2, 9])  # below and above the size at which vectors are shared
@pytest.mark.parametrize("name", VARIANTS)
def test_the_reference_gives_the_same(rng, name, steps):
    ours, oracle = model(**VARIANTS[name]), model(
        dtype="float64", backend="reference", **VARIANTS[name]
    )  # fmt: skip
    oracle.parameters.load_state_dict(ours.parameters.state_dict())
    for chunk in chunks(rng, steps):
        loss, gradient, _ = ours.loss_and_gradient(chunk)
        wanted = oracle.loss_and_gradient(chunk)
        check_close(loss, wanted[0], "float32")
        check_close(gradient, wanted[1], "float32")


@pytest.mark.parametrize("name", VARIANTS)
def test_files_and_text(rng, name, tmp_path):
    ours = model(**VARIANTS[name])
    ours.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.config() == ours.config()
    assert again.perplexity(TEXT) == ours.perplexity(TEXT)
    assert ours.sample(20, seed=1) == again.sample(20, seed=1)
    scored = ours.score(TEXT[:200])
    assert [unit for unit, _ in scored[:3]] == ["the", "cat", "sat"]
    whole = np.concatenate([WORDS.encode("\n"), WORDS.encode(TEXT[:200])])
    mean = -np.mean([p for _, p in scored])
    assert mean == pytest.approx(ours.cross_entropy(whole, batch=1), rel=1e-5)


@needs_torch
def test_tied_weights_agree_with_torch(rng):
    import torch

    ours = model(dtype="float64", tied=True, embedding_dim=9)
    state = {k: torch.from_numpy(v) for k, v in ours.parameters.state_dict().items()}
    embedding = torch.nn.Embedding(len(WORDS), 9).double()
    lstm, linear = torch.nn.LSTM(9, 9).double(), torch.nn.Linear(9, len(WORDS)).double()
    embedding.load_state_dict({"weight": state["embedding.weight"]})
    lstm.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("lstm.")})
    linear.weight = embedding.weight
    linear.bias.data = state["linear.bias"]
    chunk = next(chunks(rng))
    logits = linear(lstm(embedding(torch.from_numpy(chunk.ids)))[0])
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(chunk.targets.reshape(-1))
    )
    loss.backward()
    got, gradient, _ = ours.loss_and_gradient(chunk)
    check_close(got, loss.item(), "float64")
    wanted = {"embedding.weight": embedding.weight.grad, "linear.bias": linear.bias.grad}
    wanted |= {f"lstm.{k}": p.grad for k, p in lstm.named_parameters()}
    wanted = {k: v.numpy() for k, v in wanted.items()}
    check_close(gradient, ours.parameters.flatten(wanted, np.empty_like(gradient)), "float64")


def test_weight_dropout_keeps_inference_and_its_mean(rng):
    ours = model(weight_dropout=0.5, dtype="float64")
    plain = model(dtype="float64")
    plain.parameters.load_state_dict(ours.parameters.state_dict())
    assert ours.perplexity(TEXT) == plain.perplexity(TEXT)
    chunk = next(chunks(rng))
    losses = {ours.loss_and_gradient(chunk)[0] for _ in range(5)}
    assert len(losses) == 5  # a mask of its own each time
    lstm = ours.recurrent
    x = rng.standard_normal((4, 2, 5))
    tapes = [lstm.forward(x)[2] for _ in range(2)]  # two may be outstanding
    w = np.ones((4, 2, 9))
    grads = [lstm.backward(t, w)[2]["weight_hh_l0"] for t in tapes]
    dropped = [g == 0 for g in grads]
    assert all(0.3 < d.mean() < 0.7 for d in dropped) and (dropped[0] != dropped[1]).any()
    tape = lstm.forward(x)[2]
    ours.parameters.writing()[:] *= 1.0
    with pytest.raises(ValueError, match="the parameters changed"):
        lstm.backward(tape, w)


def test_a_model_of_byte_pairs_counts_bits_of_characters(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pairs = BytePairs.of(TEXT, size=270)
    ours = LanguageModel(pairs, embedding_dim=8, hidden_size=16, seed=0)
    ours.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.perplexity(TEXT) == ours.perplexity(TEXT)
    ids = pairs.encode(TEXT)
    bits = ours.cross_entropy(ids) / math.log(2)
    assert ours.bits_per_character(TEXT) == pytest.approx(bits * len(ids) / len(TEXT))
    assert ours.bits_per_character(ids) == pytest.approx(bits)
    assert "".join(unit for unit, _ in ours.score("the cat")) == "the cat"


def test_top_k_and_top_p():
    vocabulary = Vocabulary.of("abcdefgh" * 20, min_count=1)
    ours = LanguageModel(vocabulary, embedding_dim=4, hidden_size=8, seed=0)
    best = ours.sample(30, temperature=0)
    assert ours.sample(30, top_k=1, seed=3) == best
    assert ours.sample(30, top_p=1e-9, seed=3) == best
    assert len(set(ours.sample(300, temperature=5.0, seed=0))) == 8
    assert ours.sample(50, top_p=1.0, seed=5) == ours.sample(50, seed=5) == ours.sample(
        50, top_k=9, seed=5
    )  # fmt: skip
    for wrong in ({"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ours.sample(1, **wrong)


def test_top_p_takes_the_most_likely_first():
    from fastrnn.models.sampling import draw

    p = np.array([0.1, 0.5, 0.15, 0.25])
    rng = np.random.default_rng(0)
    for top_p, wanted in ((0.5, {1}), (0.6, {1, 3}), (0.76, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        drawn = {draw(rng, np.log(p), 1.0, None, top_p) for _ in range(200)}
        assert drawn == wanted, top_p
    counts = np.bincount([draw(rng, np.log(p), 1.0, 2, None) for _ in range(3000)], minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0] and counts[1] / 3000 == pytest.approx(2 / 3, abs=0.04)


@pytest.mark.parametrize("n", [9, 500, 5000])
def test_variable_chunks_cover_the_text(n):
    stream = TextStream(np.arange(n), 2, 20, variable=True, seed=3)
    seen = []
    for epoch in range(3):
        made = list(stream.batches(epoch))
        assert len(made) == len(stream)
        ids = np.concatenate([c.ids for c in made])
        assert np.array_equal(ids.T.reshape(-1), np.arange(2 * stream.length))
        assert all(c.rate == len(c.ids) / 20 for c in made)
        seen.append([len(c.ids) for c in made])
        rest = stream.batches(epoch, skip=len(made) - 1)
        assert [c.ids.tolist() for c in rest] == [made[-1].ids.tolist()]
    if n == 5000:
        assert seen[0] != seen[1] and 1 < np.std(seen[0]) < 8
        assert np.mean(seen[0]) == pytest.approx(20, rel=0.02)


def test_the_rate_of_a_batch_scales_the_step(tmp_path):
    stream = TextStream(WORDS.encode(TEXT), 4, 20, variable=True)
    trainer = Trainer(model(), SGD(0.1), stream, tmp_path, progress=False)
    trainer.train(steps=3)
    import json

    rates = [json.loads(line)["lr"] for line in trainer.history.read_text().splitlines()]
    lengths = [len(c.ids) for c in list(stream.batches())[:3]]
    assert rates == pytest.approx([0.1 * n / 20 for n in lengths])


def test_averaged_weights_are_evaluated_and_saved(tmp_path):
    ids = WORDS.encode(TEXT)
    seen = []

    def run(folder, steps, resume=False):
        ours = model(seed=1)
        trainer = Trainer(
            ours, ASGD(2.0, start=10), TextStream(ids, 4, 10), folder, progress=False,
            evaluate=lambda: seen.append(ours.parameters.flat.copy()) or ours.cross_entropy(ids),
            evaluate_every=10,
        )  # fmt: skip
        if resume:
            trainer.resume()
        trainer.train(steps=steps)
        return ours, trainer

    # The mean of the weights, followed by hand.
    plain, optimizer, mean = model(seed=1), SGD(2.0), 0.0
    data = list(TextStream(ids, 4, 10).batches())[:30]
    for k, chunk in enumerate(data):
        _, gradient, _ = plain.loss_and_gradient(chunk)
        optimizer.step(plain.parameters, gradient)
        if k >= 10:
            mean = mean + plain.parameters.flat.astype(np.float64)
    ours, trainer = run(tmp_path / "a", 30)
    check_close(seen[-1], mean / 20, "float32")
    assert not np.array_equal(seen[-1], plain.parameters.flat)
    first = run(tmp_path / "b", 20)[1]
    again, second = run(tmp_path / "b", 30, resume=True)
    assert first.best is not None and second.best == trainer.best
    assert np.array_equal(ours.parameters.flat, again.parameters.flat)


def test_averaging_begins_when_evaluations_stop_improving():
    optimizer = ASGD(0.1, patience=2)
    optimizer.steps = 7
    for value in (5.0, 4.0, 4.5, 4.9):
        optimizer.observe(value)
        assert optimizer.start is None
    optimizer.observe(4.2)  # worse than 4.0, three evaluations ago
    assert optimizer.start == 7
    again = ASGD(0.1, patience=2)
    vectors = {"velocity": np.zeros(1), "average": np.ones(1)}
    again.load_state_dict(optimizer.state_dict() | vectors)
    assert again.start == 7 and again.state_dict()["values"].tolist() == [5.0, 4.0, 4.5, 4.9, 4.2]


def test_it_learns_a_text_of_words(tmp_path):
    ours = model(hidden_size=32, tied=True, embedding_dim=32, dropout=0.1)
    before = ours.perplexity(TEXT)
    Trainer(
        ours, Adam(1e-2), TextStream(WORDS.encode(TEXT), 8, 20), tmp_path, max_norm=1.0,
        progress=False,
    ).train(steps=60)  # fmt: skip
    assert ours.perplexity(TEXT) < 2 < 8 < before


def test_refused():
    with pytest.raises(ValueError, match="tied weights need an embedding_dim of 9"):
        model(tied=True)
    with pytest.raises(ValueError, match="input_dropout must be 0 for a one-hot input"):
        model(embedding_dim=0, input_dropout=0.1)
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, rnn"):
        model(cell="transformer")
    with pytest.raises(ValueError, match="cell_options must be one of variant"):
        model(cell_options={"bidirectional": True})
    with pytest.raises(ValueError, match="changed must be one of dropout"):
        LanguageModel.load("x", hidden_size=3)
