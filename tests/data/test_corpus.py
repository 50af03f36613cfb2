"""Tagged sentences on disk as indices."""

import numpy as np
import pytest

from fastrnn.data import corpus as module
from fastrnn.data.corpus import Corpus, encode_sentences, load_sentences
from fastrnn.models import Tagger

X = [["Ann", "Lee", "ran"], ["She", "saw", "Ann", "."], [], ["ran"]] * 5
Y = [["B-PER", "I-PER", "O"], ["O", "O", "B-PER", "O"], [], ["O"]] * 5


def write(path, X, Y):
    path.write_text("\n".join("".join(f"{a}\t{b}\n" for a, b in zip(x, y, strict=True))
                              for x, y in zip(X, Y, strict=True)))  # fmt: skip
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "train.conll", X, Y)


@pytest.mark.parametrize("scheme", ["BIOES", "IOB2"])
def test_training_from_disk_is_that_from_memory(path, tmp_path, monkeypatch, scheme):
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    encode_sentences([path], tmp_path / "out", scheme=scheme)
    corpus = load_sentences(tmp_path / "out")
    assert isinstance(corpus.tags, np.memmap) and len(corpus.tags) == 40
    options = {"word_dim": 5, "hidden_size": 6, "epochs": 2, "batch_size": 3, "scheme": scheme}
    here = Tagger(**options).fit(X, Y, progress=False)
    there = Tagger(**options).fit(corpus, dev=(X[:4], Y[:4]), progress=False)
    a, b = here.trainer_._last_weights, there.trainer_._last_weights
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert here.fitted_.config | {"data": 0} == there.fitted_.config | {"data": 0}
    weights = Tagger(**options, class_weight="balanced", crf=False)
    assert weights._class_weights(corpus) == weights._class_weights(weights._corpus(X, Y))


def test_features_and_the_scheme_of_predictions(tmp_path):
    X = [[("Ann", "NN"), ("ran", "VB")], [("ran", "VB")]]
    path = tmp_path / "train.conll"
    path.write_text("Ann\tNN\tS-PER\nran\tVB\tO\n\nran\tVB\tO\n")
    encode_sentences([path, path], tmp_path / "out", feature_columns=[1])
    corpus = load_sentences(tmp_path / "out")
    assert corpus.distinct == [("Ann", "NN"), ("ran", "VB")] and corpus.writes == "BIOES"
    tagger = Tagger(word_dim=4, hidden_size=4, epochs=1).fit(corpus, progress=False)
    assert len(tagger.predict(X)) == 2


def test_what_does_not_fit_is_refused(path, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="paths must have tagged sentences, got none"):
        encode_sentences([write(tmp_path / "empty", [], [])], out)
    with pytest.raises(ValueError, match="scheme must be one of"):
        encode_sentences([path], out, scheme="IOB")
    encode_sentences([path], out)
    with pytest.raises(ValueError, match="holds something already"):
        encode_sentences([path], out)
    corpus = load_sentences(out)
    with pytest.raises(ValueError, match="X must be encoded with the scheme IOB2"):
        Tagger(scheme="IOB2").fit(corpus)
    for arguments, tagger in (
        ((corpus, Y), Tagger()),
        ((corpus,), Tagger(max_len=3)),
        ((corpus,), Tagger(tag_names=["O"])),
    ):
        with pytest.raises(ValueError, match="y, max_len and tag_names must be None"):
            tagger.fit(*arguments)
    with pytest.raises(TypeError, match="y must"):
        Tagger().fit(X)
    tags = np.load(out / "tags.npy")
    np.save(out / "tags.npy", tags + np.uint16(9))
    with pytest.raises(ValueError, match=r"tags\.npy must have indices below 5, got"):
        load_sentences(out)
    np.save(out / "tags.npy", tags)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"tokens": [["a", "x"], "b"], "tags": ["O", "O"]}\n')
    with pytest.raises(ValueError, match="paths must have as many features for each token"):
        encode_sentences([mixed], tmp_path / "other")
    np.save(out / "lengths.npy", np.ones(15, np.uint32))
    with pytest.raises(ValueError, match=r"lengths\.npy must have 40 tokens, got 15"):
        load_sentences(out)
    (out / "tags.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"tags\.npy is damaged"):
        load_sentences(out)
    (out / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="does not belong to fastrnn encoded sentences"):
        load_sentences(out)


def test_a_corpus_counts(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    corpus = Corpus.of(X, Y, "IOB2", "IOB2")
    assert corpus.counts(corpus.tokens.ids, 6).tolist() == [10, 5, 10, 5, 5, 5]
    assert corpus.counts(corpus.tags, 4).tolist() == [25, 10, 5, 0]
