"""Text, vocabulary and the character language model."""

import json
import math

import numpy as np
import pytest

from fastrnn import optim
from fastrnn.data.text import UNKNOWN, Chunk, TextStream, Vocabulary, read_text
from fastrnn.models import LanguageModel
from fastrnn.trainer import Diverged, Trainer
from helpers import CORPORA, check_close, check_gradient

TEXT = "abracadabra, says the wizard; and the toad is a prince. " * 60


def test_vocabulary():
    vocabulary = Vocabulary.of("aaabbc\nü😀😀", min_count=2)
    assert vocabulary.symbols == [UNKNOWN, "a", "b", "😀"] and len(vocabulary) == 4
    ids = vocabulary.encode("abc😀\U0010ffff\x00")
    assert ids.tolist() == [1, 2, 0, 3, 0, 0] and vocabulary.decode(ids[:4]) == "ab\ufffd😀"
    assert len(Vocabulary.of("abcd")) == 5  # every character of a short text is known
    assert len(Vocabulary.of("a" * 300_000 + "bb" + "ccc")) == 3  # once in 100,000
    assert vocabulary.encode("").shape == (0,)
    with pytest.raises(ValueError, match="symbols must differ"):
        Vocabulary([UNKNOWN, "a", "a"])
    with pytest.raises(ValueError, match="min_count must be at least 1"):
        Vocabulary.of("a", min_count=0)


def test_read_text(tmp_path):
    path = tmp_path / "text.txt"
    with pytest.raises(FileNotFoundError, match=r"text\.txt"):
        read_text(path)
    path.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8: byte 3"):
        read_text(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.txt is empty"):
        read_text(path)
    path.write_bytes("a\r\nü".encode())
    assert read_text(path) == "a\r\nü"


@pytest.mark.parametrize("n", [7, 8, 30, 31, 100])
def test_streams_cover_the_text_in_order(n):
    stream = TextStream(np.arange(n), 3, 4)
    chunks = list(stream.batches())
    assert len(chunks) == len(stream) and [c.first for c in chunks] == [True] + [False] * (
        len(chunks) - 1
    )
    ids, targets = (np.concatenate([c[k] for c in chunks]) for k in (0, 1))
    length = (n - 1) // 3
    assert np.array_equal(ids.T.reshape(-1), np.arange(3 * length))
    assert np.array_equal(targets, ids + 1)
    rest = list(stream.batches(epoch=5, skip=1))
    assert len(rest) == len(chunks) - 1
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(rest, chunks[1:], strict=True))


def test_a_text_too_short_is_refused():
    with pytest.raises(ValueError, match="has 3 units, batch 3 needs at least 4"):
        TextStream(np.arange(3), 3, 4)


@pytest.mark.parametrize("embedding_dim", [0, 5])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradient_of_the_whole_model(rng, embedding_dim, layers):
    vocabulary = Vocabulary(list(UNKNOWN + "abcdef"))
    model = LanguageModel(
        vocabulary, embedding_dim=embedding_dim, hidden_size=9, num_layers=layers,
        dropout=0.3, dtype="float64", seed=0,
    )  # fmt: skip
    ids = rng.integers(0, 7, (5, 4))
    model.loss_and_gradient(Chunk(ids, ids, True))
    state, dice = model.carried(), model.rng.bit_generator.state
    chunk = Chunk(ids, rng.integers(0, 7, (5, 4)), False)
    flat = model.parameters.flat.copy()
    gradient = model.loss_and_gradient(chunk)[1].copy()

    def loss(w):
        model.parameters.writing()[:] = w
        model.carry(state)
        model.rng.bit_generator.state = dice
        return model.loss_and_gradient(chunk)[0]

    for seed in range(3):
        check_gradient(loss, [flat], [gradient], seed=seed)


@pytest.mark.parametrize("embedding_dim", [0, 6])
def test_the_reference_backend_gives_the_same_loss_and_gradient(rng, embedding_dim):
    vocabulary = Vocabulary(list(UNKNOWN + "abcdef"))
    options = {"embedding_dim": embedding_dim, "hidden_size": 20, "num_layers": 2, "seed": 0}
    ours = LanguageModel(vocabulary, **options)
    oracle = LanguageModel(vocabulary, dtype="float64", backend="reference", **options)
    oracle.parameters.load_state_dict(ours.parameters.state_dict())
    for k in range(2):  # the second chunk goes on from the first one's state
        chunk = Chunk(rng.integers(0, 7, (6, 3)), rng.integers(0, 7, (6, 3)), k == 0)
        loss, gradient, count = ours.loss_and_gradient(chunk)
        wanted = oracle.loss_and_gradient(chunk)
        assert count == wanted[2] == 18
        check_close(loss, wanted[0], "float32")
        check_close(gradient, wanted[1], "float32")


def test_truncated_bptt_carries_the_state(rng):
    vocabulary = Vocabulary.of(TEXT)
    model = LanguageModel(vocabulary, embedding_dim=4, hidden_size=8, seed=0)
    ids = vocabulary.encode(TEXT)[:41]

    def losses(bptt):
        return [model.loss_and_gradient(c)[0] for c in TextStream(ids, 1, bptt).batches()]

    assert np.mean(losses(10)) == pytest.approx(losses(40)[0], rel=1e-6)
    assert losses(10)[1:] != losses(10)[:3] and losses(10) == losses(10)
    first = model.loss_and_gradient(Chunk(ids[:10, None], ids[1:11, None], True))[0]
    later = model.loss_and_gradient(Chunk(ids[:10, None], ids[1:11, None], False))[0]
    assert first != later


def test_bits_per_character():
    vocabulary = Vocabulary.of(TEXT)
    model = LanguageModel(vocabulary, embedding_dim=4, hidden_size=8, seed=0)
    assert model.bits_per_character(TEXT[:500]) == pytest.approx(
        model.bits_per_character(vocabulary.encode(TEXT[:500]), bptt=7, batch=1), rel=1e-2
    )
    model.parameters.writing()[:] = 0  # knows nothing: the same probability for each symbol
    assert model.bits_per_character(TEXT) == pytest.approx(math.log2(len(vocabulary)), rel=1e-6)
    with pytest.raises(ValueError, match="text must have at least 2 characters, got 1"):
        model.bits_per_character("a")


@pytest.mark.parametrize("embedding_dim", [0, 4])
def test_ids_of_another_vocabulary_are_refused(embedding_dim):
    model = LanguageModel(Vocabulary.of("abc"), embedding_dim=embedding_dim, hidden_size=8, seed=0)
    with pytest.raises(IndexError, match=r"text: id 4 at position 0 is not in \[0, 4\)"):
        model.bits_per_character(np.array([4, 1, 2, 3]))
    with pytest.raises(IndexError, match="ids: id -1 at position 1"):
        ids = np.array([[1], [-1]])
        model.loss_and_gradient(Chunk(ids, np.abs(ids), True))


def test_a_model_that_blows_up_is_reported_as_such(tmp_path):
    vocabulary = Vocabulary.of(TEXT)
    model = LanguageModel(vocabulary, embedding_dim=4, hidden_size=8, seed=0)
    data = TextStream(vocabulary.encode(TEXT), 4, 20)
    with pytest.raises(Diverged, match="at step"), np.errstate(all="ignore"):
        Trainer(model, optim.SGD(1e30), data, tmp_path, progress=False).train(steps=50)


@pytest.mark.parametrize("embedding_dim", [0, 16])
def test_learns_a_text_by_heart(tmp_path, embedding_dim):
    vocabulary = Vocabulary.of(TEXT)
    model = LanguageModel(vocabulary, embedding_dim=embedding_dim, hidden_size=64, seed=0)
    data = TextStream(vocabulary.encode(TEXT), 8, 40)
    trainer = Trainer(
        model, optim.Adam(1e-2), data, tmp_path, max_norm=1.0, progress=False,
        evaluate=lambda: model.bits_per_character(TEXT), metric="valid_bpc", evaluate_every=50,
    )  # fmt: skip
    assert model.bits_per_character(TEXT) > 4
    trainer.train(steps=250)
    assert trainer.best < 0.2
    assert "says the wizard; and the toad" in model.sample(120, prime="abracadabra", temperature=0)


def test_precision(tmp_path):
    """Trained in bf16, used in all; a file keeps the precision, and `load` may change it."""
    model = LanguageModel(Vocabulary.of(TEXT), hidden_size=64, precision="bf16", seed=0)
    data = TextStream(model.vocabulary.encode(TEXT), 8, 40)
    trainer = Trainer(model, optim.Adam(1e-2), data, tmp_path / "run", progress=False)
    trainer.train(steps=150)
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.precision == "bf16" and again.config() == model.config()
    bits = {"bf16": again.bits_per_character(TEXT)}
    assert bits["bf16"] == model.bits_per_character(TEXT) < 0.5
    for precision in "float32", "int8":
        other = LanguageModel.load(tmp_path, precision=precision)
        bits[precision] = other.bits_per_character(TEXT)
        assert 0 < abs(bits[precision] - bits["bf16"]) < 0.02
        again.precision = precision
        assert again.bits_per_character(TEXT) == bits[precision]
        assert other.sample(30, prime="abracadabra", temperature=0) == model.sample(
            30, prime="abracadabra", temperature=0
        )
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, int8; got 'x'"):
        LanguageModel.load(tmp_path, precision="x")
    with pytest.raises(ValueError, match=r"^backend must be one of cpu, cuda, reference"):
        LanguageModel.load(tmp_path, precision="bf16", backend="gpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"precision": "tf32"}))
    assert LanguageModel.load(tmp_path, precision="int8").precision == "int8"
    wide = config | {"precision": "float32", "dtype": "float64"}
    (tmp_path / "config.json").write_text(json.dumps(wide))
    with pytest.raises(ValueError, match=r"^precision must be float32 with dtype float64"):
        LanguageModel.load(tmp_path, precision="bf16")
    with pytest.raises(
        ValueError, match="precision must be float32 or bf16 for training, got 'int8'"
    ):
        other.loss_and_gradient(next(iter(data.batches())))


def test_sampling():
    model = LanguageModel(Vocabulary.of(TEXT), embedding_dim=4, hidden_size=8, seed=0)
    one = model.sample(200, prime="the ", seed=3)
    assert len(one) == 200 and one == model.sample(200, prime="the ", seed=3)
    assert one != model.sample(200, prime="the ", seed=4) and UNKNOWN not in one
    assert model.sample(20, temperature=0) == model.sample(20, temperature=0, seed=9)
    hot, cold = (len(set(model.sample(300, temperature=t, seed=0))) for t in (5.0, 0.02))
    assert hot > cold
    assert model.sample(0) == "" and len(model.sample(5, prime="\U0010ffff")) == 5
    with pytest.raises(ValueError, match="prime must have at least one character"):
        model.sample(5, prime="")
    with pytest.raises(ValueError, match="temperature must be in"):
        model.sample(5, temperature=-1)


@pytest.mark.parametrize("embedding_dim", [0, 4])
def test_save_and_load(tmp_path, embedding_dim):
    model = LanguageModel(
        Vocabulary.of(TEXT), embedding_dim=embedding_dim, hidden_size=8, num_layers=2,
        dropout=0.1, dtype="float64", seed=0,
    )  # fmt: skip
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.config() == model.config()
    assert np.array_equal(again.parameters.flat, model.parameters.flat)
    assert again.sample(50, seed=1) == model.sample(50, seed=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 9}))
    with pytest.raises(ValueError, match=r"config\.json does not fit the weights"):
        LanguageModel.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))
    with pytest.raises(ValueError, match=r"config\.json does not fit the weights"):
        LanguageModel.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json does not belong to a language model"):
        LanguageModel.load(tmp_path)


@pytest.mark.skipif(not (CORPORA / "wikipedia_en").exists(), reason="the corpus is not here")
def test_learns_on_wikipedia(tmp_path):
    text = read_text(CORPORA / "wikipedia_en" / "train.txt")[:2_000_000]
    valid = read_text(CORPORA / "wikipedia_en" / "valid.txt")[:50_000]
    vocabulary = Vocabulary.of(text, min_count=100)
    model = LanguageModel(vocabulary, embedding_dim=32, hidden_size=128, seed=0)
    data = TextStream(vocabulary.encode(text), 32, 100)
    trainer = Trainer(
        model, optim.Adam(4e-3), data, tmp_path, max_norm=1.0, progress=False,
        evaluate=lambda: model.bits_per_character(valid), metric="valid_bpc",
    )  # fmt: skip
    trainer.train(steps=150)
    assert trainer.best < 3.5  # 4.66 for the characters' frequencies alone
