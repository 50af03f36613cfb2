"""The tagger: its network, its estimator and its command line."""

import json
import zipfile

import numpy as np
import pytest

import fastrnn
from fastrnn import optim
from fastrnn.data.batches import Lexicon, make_batch
from fastrnn.data.tags import read_entities, strict_entities, write_tags
from fastrnn.data.text import Vocabulary
from fastrnn.data.vectors import WordVectors
from fastrnn.models import LanguageModel, Tagger
from fastrnn.models.bilstm import BiLSTMTagger
from fastrnn.trainer import Trainer
from helpers import check_close, check_gradient
from helpers import fastrnn as command

DRUGS = ["naloxone", "Clonidine", "aspirin", "Lidocaine", "cocaine", "ibuprofen"]
FILLERS = ["the", "patients", "were", "given", "in", "of", "induced", "by", "and", ".", "Rats"]


def sentences(count, seed=0):
    """A language in which drugs are entities, and "acid" after one is a part of it."""
    rng = np.random.default_rng(seed)
    X, y = [], []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(int(rng.integers(2, 9))):
            if rng.random() < 0.3:
                long = rng.random() < 0.5
                tokens += [DRUGS[rng.integers(len(DRUGS))]] + ["acid"] * long
                tags += ["B-Drug"] + ["I-Drug"] * long
            else:
                tokens.append(FILLERS[rng.integers(len(FILLERS))])
                tags.append("O")
        X.append(tokens)
        y.append(tags)
    return X, y


X, Y = sentences(120)
QUICK = {"word_dim": 12, "hidden_size": 16, "epochs": 6, "lr": 2e-2, "batch_size": 8}


@pytest.fixture(scope="module")
def tagger():
    return Tagger(char_hidden=5, char_dim=4, crf=True, **QUICK).fit(X, Y, dev=(X[:40], Y[:40]))


# The network


def network(dtype, backend="cpu", *, crf, chars, words=True, **more):
    vectors = WordVectors.none(6)
    keys = sorted({t.lower() for x in X for t in x})
    characters = Vocabulary.of("".join(t for x in X for t in x), min_count=1)
    trained = {k: i for i, k in enumerate(keys)} if words else None
    lexicon = Lexicon(vectors, characters if chars else None, trained, dtype)
    net = BiLSTMTagger(
        lexicon.table.shape[1], 3, words=vectors(keys) if words else None, num_layers=2,
        characters=len(characters) if chars else 0, char_dim=4, char_hidden=3, hidden_size=5,
        crf=crf, dtype=dtype, backend=backend, seed=0, **more,
    )  # fmt: skip
    return net, lexicon


def batch_of(lexicon, chosen, number=8):
    tags = {"O": 0, "B-Drug": 1, "I-Drug": 2}
    tokens = lexicon.encode(X[:number])
    numbers = np.array([tags[t] for y in Y[:number] for t in y])
    return make_batch(lexicon, tokens, np.array(chosen), numbers)


@pytest.mark.parametrize("chars", [False, True], ids=["words", "chars"])
@pytest.mark.parametrize("crf", [False, True], ids=["softmax", "crf"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_whole_gradient(crf, chars, backend):
    net, lexicon = network("float64", backend, crf=crf, chars=chars)
    batch = batch_of(lexicon, [3, 0, 5, 1])
    state = net.rng.bit_generator.state

    def loss(flat, table):
        net.parameters.writing()[:] = flat
        net.tables["words"][:] = table
        net.rng.bit_generator.state = state  # the same dropout each time
        return net.loss_and_gradient(batch)[0]

    flat, table = net.parameters.flat.copy(), net.tables["words"].copy()
    loss(flat, table)
    net.rng.bit_generator.state = state
    gradient = net.loss_and_gradient(batch)[1].copy()
    rows = net.row_gradients()["words"]
    of_table = np.zeros_like(table)
    of_table[rows.rows] = rows.values
    assert set(rows.rows) == set(batch.words)
    check_gradient(loss, [flat, table], [gradient, of_table])


@pytest.mark.parametrize("chars", [False, True], ids=["words", "chars"])
def test_float32_is_close_to_the_reference(chars):
    results = []
    for dtype, backend in (("float32", "cpu"), ("float64", "reference")):
        net, lexicon = network(dtype, backend, crf=True, chars=chars, dropout=0, input_dropout=0)
        loss, gradient, count = net.loss_and_gradient(batch_of(lexicon, range(8)))
        results.append((loss, gradient, net.row_gradients()["words"].values, count))
    (loss, gradient, rows, count), (wanted, judge, judged, other) = results
    assert count == other == sum(map(len, X[:8])) and loss == pytest.approx(wanted, rel=1e-5)
    check_close(gradient, judge, "float32")
    check_close(rows, judged, "float32")


def test_dropout_is_shared_over_time():
    net, lexicon = network("float32", crf=False, chars=False)
    packed = batch_of(lexicon, range(8)).packed
    mask = net._mask(packed, 40, 0.5)
    assert mask.shape == (8, 40) and set(np.unique(mask)) == {0, 2}
    x = np.ones((packed.size, 40), np.float32)
    net._kernels.scale(x, mask, packed.ranks)
    for row, rank in enumerate(packed.ranks):
        assert (x[row] == mask[rank]).all()
    assert not (mask[0] == mask[1]).all() and net._mask(packed, 40, 0.0) is None


# The estimator


def test_it_learns(tagger):
    assert tagger.score(X, Y) > 0.95
    assert tagger.classes_ == ["O", "B-Drug", "I-Drug", "E-Drug", "S-Drug"]
    assert tagger.predict([["the", "aspirin", "acid", "."]]) == [["O", "B-Drug", "I-Drug", "O"]]
    scores = tagger.evaluate(X, Y)
    assert set(scores.by_type) == {"Drug"} and scores.accuracy > 0.95
    plain = Tagger(fine_tune=False, **QUICK).fit(X, Y)
    assert plain.score(X, Y) > 0.9 and plain.network_.tables == {}


def test_schemes_come_in_and_go_out():
    # IOB1: B only where an entity follows another.
    iob1 = [["I" + t[1:] if t[0] == "B" and before == "O" else t
             for before, t in zip(["O", *y], y, strict=False)] for y in Y[:60]]  # fmt: skip
    bioes = [write_tags(read_entities(y), len(y), "BIOES") for y in Y[:60]]
    wanted = Tagger(**QUICK).fit(X[:60], Y[:60])
    for given in (iob1, bioes):
        model = Tagger(**QUICK).fit(X[:60], given)
        assert np.array_equal(model.network_.parameters.flat, wanted.network_.parameters.flat)
        assert 0.3 < model.score(X, Y) == wanted.score(X, Y)
    assert {t[0] for y in wanted.predict(X) for t in y} == {"O", "B", "I"}
    found = model.predict(X)  # of the one that was trained on BIOES
    assert {t[0] for y in found for t in y} == {"O", "B", "I", "E", "S"} - {"I"}
    assert [read_entities(y) for y in found] == [read_entities(y) for y in wanted.predict(X)]
    plain = Tagger(scheme="IOB2", **QUICK).fit(X[:60], Y[:60])
    assert plain.classes_ == ["O", "B-Drug", "I-Drug"] and plain.score(X, Y) > 0.3


def test_what_is_no_entity_is_o(monkeypatch, tagger):
    stray = lambda batch: np.full(batch.packed.size, 3)  # E-Drug everywhere  # noqa: E731
    monkeypatch.setattr(tagger.network_, "decode", stray)
    assert tagger.predict([["a", "b"]]) == [["O", "O"]]


def test_same_bits_alone_in_any_batch_and_for_any_number_of_threads(tagger, monkeypatch):
    monkeypatch.setattr("fastrnn.runtime.threads.MIN_WORK", 1)
    unknown = [[*x, "Unknownase", "1,4-x"] for x in X]
    wanted, tags = tagger.predict_proba(unknown), tagger.predict(unknown)
    for threads in (1, 3):
        fastrnn.set_num_threads(threads)
        monkeypatch.setattr("fastrnn.models.fitted._AT_ONCE", 17 * threads)
        order = np.random.default_rng(threads).permutation(len(unknown))
        shuffled = [unknown[i] for i in order]
        for i, p, t in zip(order, tagger.predict_proba(shuffled), tagger.predict(shuffled),
                           strict=True):  # fmt: skip
            assert np.array_equal(p, wanted[i]) and t == tags[i]
    assert all(np.array_equal(tagger.predict_proba([x])[0], p)
               for x, p in zip(unknown[:20], wanted, strict=False))  # fmt: skip


def test_probabilities(tagger):
    softmax = Tagger(crf=False, **QUICK | {"epochs": 1}).fit(X, Y)
    for model in (tagger, softmax):
        for x, p in zip(X[:9], model.predict_proba(X[:9]), strict=True):
            assert p.shape == (len(x), 5) and p.sum(axis=1) == pytest.approx(np.ones(len(x)))
    for p, tags in zip(softmax.predict_proba(X), softmax.predict(X), strict=True):
        best = [softmax.classes_[k] for k in p.argmax(axis=1)]
        assert write_tags(strict_entities(best, "BIOES"), len(best)) == tags
    assert [p.shape for p in softmax.predict_proba([[], []])] == [(0, 5)] * 2
    assert softmax.predict([]) == [] == softmax.predict_proba([])
    assert softmax.predict([[], ["the"], []]) == [[], ["O"], []] and softmax.predict([[]]) == [[]]


def test_a_fit_is_reproducible(tagger):
    again = Tagger(**tagger.get_params()).fit(X, Y, dev=(X[:40], Y[:40]))
    assert np.array_equal(again.network_.parameters.flat, tagger.network_.parameters.flat)
    assert np.array_equal(again.network_.tables["words"], tagger.network_.tables["words"])
    losses = [[line["loss"] for line in t.history_] for t in (again, tagger)]
    assert losses[0] == losses[1] and "valid_f1" in again.history_[-1]


def test_only_rows_that_were_met_are_trained(tagger):
    net, lexicon = network("float32", crf=False, chars=False)
    before, batch = net.tables["words"].copy(), batch_of(lexicon, [0, 1])
    _, gradient, _ = net.loss_and_gradient(batch)
    optim.Adam().step(net.parameters, gradient, rows=net.row_gradients())
    changed = (net.tables["words"] != before).any(axis=1)
    assert set(np.flatnonzero(changed)) == set(batch.words) and not changed.all()
    moments = tagger.trainer_.optimizer.state_dict()
    assert moments["rows.words.first_moment"].shape == tagger.network_.tables["words"].shape


def test_a_batch_may_have_words_that_are_not_trained():
    net, lexicon = network("float32", crf=False, chars=False)
    batch = batch_of(lexicon, [0, 1])
    batch.words[1] = -1
    net.loss_and_gradient(batch)
    assert set(net.row_gradients()["words"].rows) == set(batch.words) - {-1}


def test_scikit_learn_habits():
    model = Tagger(hidden_size=7, crf=False)
    assert repr(model) == "Tagger(hidden_size=7, crf=False)"
    params = model.get_params()
    assert params["hidden_size"] == 7 and Tagger(**params).get_params() == params
    assert model.set_params(lr=0.5) is model and model.lr == 0.5
    with pytest.raises(ValueError, match="unknown parameters: nonsense"):
        model.set_params(nonsense=1)
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    assert base.clone(model).get_params() == model.get_params()


def test_save_and_load(tagger, tmp_path):
    tagger.save(tmp_path)
    other = Tagger.load(tmp_path)
    assert other.get_params() == tagger.get_params()
    for a, b in zip(other.predict_proba(X), tagger.predict_proba(X), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="does not belong to a language model"):
        LanguageModel.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="backend must be one of"):
        Tagger.load(tmp_path, backend="gpu")
    for change in ({"writes": "XX"}, {"tags": ["O", "foo"]}, {"params": {"nonsense": 1}}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            Tagger.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"words": ["a"]}))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit .*words must have"):
        Tagger.load(tmp_path)
    del config["tags"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is damaged: tags must be of type list"):
        Tagger.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Tagger.load(tmp_path / "missing")


def test_precision(tagger, tmp_path):
    """Trained in bf16, used in all; a file keeps the precision, and `load` may change it."""
    model = Tagger(char_hidden=5, precision="bf16", **QUICK).fit(X, Y)
    assert model.score(X, Y) > 0.95
    model.save(tmp_path)
    again = Tagger.load(tmp_path)
    assert again.precision == again.network_.precision == "bf16"
    assert again.network_.encoders[0].lstm.precision == "bf16"
    wanted = model.predict_proba(X)
    for precision in "bf16", "float32", "int8":
        other = Tagger.load(tmp_path, precision=precision)
        assert other.precision == other.network_.precision == precision
        worst = max(
            np.abs(a - b).max() for a, b in zip(other.predict_proba(X), wanted, strict=True)
        )
        assert worst == 0 if precision == "bf16" else 0 < worst < 0.05
        alone = other.predict_proba(X[3:4])[0]
        assert np.array_equal(alone, other.predict_proba(X)[3])
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, int8; got 'x'"):
        Tagger.load(tmp_path, precision="x")
    with pytest.raises(ValueError, match="precision must be one of float32, bf16; got 'int8'"):
        Tagger(precision="int8", **QUICK).fit(X, Y)
    tagger.save(tmp_path / "old")  # a config of before there was a precision
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["params"]["precision"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert Tagger.load(tmp_path / "old").network_.precision == "float32"


def test_vectors_stay_where_they_are(tmp_path):
    rng = np.random.default_rng(0)
    words = sorted({w.lower() for x in X for w in x})
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, rng.standard_normal((len(words), 8)).astype("f"))
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    model = Tagger(vectors, fine_tune=False, **QUICK | {"epochs": 1}).fit(X, Y)
    model.save(tmp_path / "run")
    wanted = model.predict_proba([["naloxone", "never-seen"]])[0]
    moved = vectors.rename(tmp_path / "elsewhere.npy")
    with pytest.raises(FileNotFoundError, match=r"vectors\.npy"):
        Tagger.load(tmp_path / "run")
    other = Tagger.load(tmp_path / "run", vectors=moved)
    assert np.array_equal(other.predict_proba([["naloxone", "never-seen"]])[0], wanted)
    for size in (8, 9):  # others of the same size are others too
        np.save(moved, rng.standard_normal((len(words), size)).astype("f"))
        with pytest.raises(ValueError, match=r"elsewhere\.npy must be the vectors that .* 8 numb"):
            Tagger.load(tmp_path / "run", vectors=moved)


def test_vectors_are_found_from_the_folder(tmp_path):
    """The folder and the vectors move together."""
    home = tmp_path / "here"
    words = sorted({t.lower() for x in X for t in x})
    table = np.random.default_rng(0).standard_normal((len(words), 8)).astype("f")
    WordVectors(words, table).save(home / "data")
    model = Tagger(home / "data", **QUICK | {"epochs": 1}).fit(X, Y)
    model.save(home / "models" / "tagger")
    home.rename(tmp_path / "there")
    assert Tagger.load(tmp_path / "there/models/tagger").predict(X) == model.predict(X)
    (tmp_path / "there/models/tagger").rename(tmp_path / "tagger")
    with pytest.raises(FileNotFoundError, match=r"word vectors of the tagger in .*--vectors"):
        Tagger.load(tmp_path / "tagger")


@pytest.mark.parametrize("unknown", ["normal", "mean"])
def test_vectors_may_be_in_the_folder(tmp_path, unknown):
    words = sorted({t.lower() for x in X for t in x})[1:]
    rng = np.random.default_rng(0)
    vectors = {word: rng.standard_normal(8) for word in words}
    model = Tagger(vectors, unknown=unknown, **QUICK | {"epochs": 1}).fit(X, Y)
    assert len(repr(model)) < 1000
    model.save(tmp_path / "run", include_vectors=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    other = Tagger.load(tmp_path / "moved")
    X2 = [[*x, "new"] for x in X]
    for ours, wanted in zip(other.predict_proba(X2), model.predict_proba(X2), strict=True):
        assert np.array_equal(ours, wanted)
    assert other.fit(X, Y).predict(X2)


def test_a_tagger_with_its_vectors_is_saved_again(tmp_path):
    model = Tagger({w.lower(): [len(w), 1.0] for x in X for w in x}, **QUICK | {"epochs": 1})
    model.fit(X, Y).save(tmp_path / "a", include_vectors=True)
    Tagger.load(tmp_path / "a").save(tmp_path / "a")
    Tagger.load(tmp_path / "a").save(tmp_path / "b")
    for name in "a", "b":
        assert Tagger.load(tmp_path / name).predict(X) == model.predict(X)


def test_vectors_in_an_archive_are_found_from_the_folder(tmp_path):
    lines = "".join(f"{w} {len(w)} 1\n" for w in {w.lower() for x in X for w in x})
    (tmp_path / "here").mkdir()
    with zipfile.ZipFile(tmp_path / "here" / "v.zip", "w") as archive:
        archive.writestr("one.txt", lines)
        archive.writestr("two.txt", lines)
    model = Tagger(tmp_path / "here/v.zip/one.txt", **QUICK | {"epochs": 1}).fit(X, Y)
    model.save(tmp_path / "here" / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Tagger.load(tmp_path / "there" / "run").predict(X) == model.predict(X)


def test_unknown_words_are_reported():
    said = []
    Tagger({X[0][0].lower(): [0.5, 1.0]}, **QUICK | {"epochs": 1}).fit(X, Y, report=said.append)
    words, tokens = {t for x in X for t in x}, [t for x in X for t in x]
    first = sum(t.lower() == X[0][0].lower() for t in tokens)
    lacking = len({t for t in words if t.lower() != X[0][0].lower()})
    share = (len(tokens) - first) / len(tokens)
    assert said[0] == f"{lacking} of {len(words)} words have no vector, {share:.1%} of tokens"


def test_the_seed_of_given_vectors_is_kept(tmp_path):
    given = WordVectors.none(8, seed=3)
    model = Tagger(given, **QUICK | {"epochs": 1}).fit(X, Y)
    model.save(tmp_path)
    with pytest.raises(ValueError, match="must be the vectors that"):
        Tagger.load(tmp_path)
    other = Tagger.load(tmp_path, vectors=WordVectors.none(8, seed=3))
    for a, b in zip(other.predict_proba([["new"]]), model.predict_proba([["new"]]), strict=True):
        assert np.array_equal(a, b)


def test_what_is_fitted_stays_as_it_is(tmp_path):
    model = Tagger(**QUICK).fit(X, Y, run=tmp_path / "run")
    wanted = model.predict(X)
    with pytest.raises(ValueError, match="holds a run"):
        model.fit(X, Y, run=tmp_path / "run")
    for params in ({"lr": -1.0}, {"dropout": 2.0}, {"scheme": "IOB1"}):
        with pytest.raises(ValueError):
            model.set_params(**params).fit(X, Y)
    model.set_params(scheme="IOB2", hidden_size=3)
    assert model.predict(X) == wanted
    model.save(tmp_path / "saved")
    assert Tagger.load(tmp_path / "saved").predict(X) == wanted


def test_settings_from_a_search_are_saved(tmp_path):
    sizes = {"hidden_size": np.int64(8), "dtype": np.float32, "lr": np.float64(0.01)}
    Tagger(**QUICK | {"epochs": 1} | sizes).fit(X, Y).save(tmp_path)
    assert Tagger.load(tmp_path).get_params()["hidden_size"] == 8


def test_an_interrupted_lexicon_is_whole(monkeypatch):
    known = Lexicon(WordVectors.none(4), Vocabulary.of("abc", min_count=1))
    known.encode([["a"]])

    def interrupt(word):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(known.vectors, "unknown", interrupt)
        with pytest.raises(KeyboardInterrupt):
            known.encode([["b", "c"]])
    ids = known.encode([["c", "a"]]).ids
    assert np.array_equal(known.table[ids[0], :4], known.vectors.unknown("c"))
    assert [len(known.spellings(ids[k : k + 1]).ids) for k in (0, 1)] == [1, 1]


def test_one_vector_for_all_unknown_words(tmp_path):
    options = {"fine_tune": False, "char_filters": 0, "epochs": 1, "hidden_size": 8}
    vectors = {"the": np.ones(6), "rats": -np.ones(6)}
    model = Tagger(vectors, **options).fit(X, Y)
    model.save(tmp_path, include_vectors=True)
    p = Tagger.load(tmp_path).predict_proba([["one"], ["another"]])
    assert np.array_equal(p[0], p[1])
    for apart in (Tagger(vectors, unknown="normal", **options), Tagger(word_dim=6, **options)):
        p = apart.fit(X, Y).predict_proba([["one"], ["another"]])
        assert not np.array_equal(p[0], p[1])


def test_long_sentences_are_counted():
    with pytest.warns(UserWarning, match="of 120 sentences are longer than max_len=4: .* tokens"):
        model = Tagger(max_len=4, **QUICK | {"epochs": 1}).fit(X, Y)
    assert len(model.predict([["the"] * 9])[0]) == 9
    with pytest.raises(ValueError, match="max_len must be at least 1"):
        Tagger(max_len=0).fit(X, Y)
    with pytest.warns(UserWarning, match="max_len=1"):  # what is cut is still of the scheme
        Tagger(max_len=1, crf=True, **QUICK | {"epochs": 1}).fit(X, Y)


@pytest.mark.parametrize("error, message, params, data", [
    (ValueError, "scheme must be one of", {"scheme": "IOB1"}, (X, Y)),
    (ValueError, "unknown must be one of mean, normal; got 'zero'", {"unknown": "zero"}, (X, Y)),
    (ValueError, "optimizer must be one of", {"optimizer": "lbfgs"}, (X, Y)),
    (TypeError, r"y\[0\] must be a list of tags, got str", {}, ([["a", "b"]], ["OO"])),
    (TypeError, "y must be a sequence of lists of tags, got NoneType", {}, (X, None)),
    (TypeError, r"y\[0\] must hold strings .*, got \[1\]", {}, ([["a"]], [[1]])),
    (ValueError, "max_tokens must be at least 1", {"max_tokens": 0}, (X, Y)),
    (TypeError, "seed must be an int", {"seed": None}, (X, Y)),
    (TypeError, "max_norm must be a number", {"max_norm": "a"}, (X, Y)),
    (ValueError, "patience needs dev", {"patience": 2}, (X, Y)),
    (ValueError, "epochs must be at least 1", {"epochs": 0}, (X, Y)),
    (ValueError, r"dropout must be in \[0.0, 1.0\)", {"dropout": 1.0}, (X, Y)),
    (ValueError, "y must have 120 sentences, got 1", {}, (X, Y[:1])),
    (ValueError, r"y\[0\] must have 1 tags, got 2", {}, ([["a"]], [["O", "O"]])),
    (ValueError, r"y\[0\]: 'x' is not a tag", {}, ([["a"]], [["x"]])),
    (TypeError, r"X\[0\] must be a list of tokens, got str", {}, (["a sentence"], [["O"]])),
    (TypeError, r"X\[0\] must hold strings that are not empty, got \['']", {}, ([[""]], [["O"]])),
    (TypeError, r"X\[0\] must hold strings", {}, ([["a", 1]], [["O", "O"]])),
    (ValueError, "X has no tokens", {}, ([[]], [[]])),
    (FileNotFoundError, "no such file: nowhere", {"vectors": "nowhere"}, (X, Y)),
])  # fmt: skip
def test_wrong_input(error, message, params, data):
    with pytest.raises(error, match=message):
        Tagger(**params).fit(*data)


def test_not_fitted():
    for use in (lambda m: m.predict(X), lambda m: m.save("nowhere")):
        with pytest.raises(ValueError, match="not fitted yet: call fit or load first"):
            use(Tagger())
    with pytest.raises(ValueError, match="resume needs the folder of a run"):
        Tagger().fit(X, Y, resume=True)


def test_a_resumed_run_is_the_same(tmp_path):
    options = QUICK | {"crf": True, "char_hidden": 3, "lr": 2e-3}

    def fit(epochs, folder, **more):
        model = Tagger(**options | {"epochs": epochs})
        return model.fit(X, Y, dev=(X[:40], Y[:40]), run=tmp_path / folder, **more)

    def losses(folder):
        lines = (tmp_path / folder / "history.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    whole = fit(6, "whole")
    fit(2, "parts")
    with pytest.raises(ValueError, match="holds a run"):
        fit(6, "parts")
    for what, message in (((X[:50], Y[:50]), "data"), ((X, [["O"] * len(x) for x in X]), "tags")):
        with pytest.raises(ValueError, match=f"holds another run: .*{message}.* differ"):
            Tagger(**options).fit(*what, run=tmp_path / "parts", resume=True)
    with pytest.raises(ValueError, match="holds another run: hidden_size differ"):
        Tagger(**options | {"hidden_size": 9}).fit(X, Y, run=tmp_path / "parts", resume=True)
    model = fit(6, "parts", resume=True)
    assert losses("parts") == losses("whole") and len(losses("whole")) == 6 * 15
    for name, last in whole.trainer_._last_weights.items():
        assert np.array_equal(model.trainer_._last_weights[name], last), name
    assert Tagger.load(tmp_path / "parts").predict(X) == model.predict(X) == whole.predict(X)


def test_a_run_without_dev_keeps_a_checkpoint_for_each_epoch(tmp_path):
    Tagger(**QUICK | {"epochs": 3}).fit(X, Y, run=tmp_path)
    kept = []
    whole_save = Trainer.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", lambda self: (kept.append(self.step), whole_save(self)))
        Tagger(**QUICK | {"epochs": 5}).fit(X, Y, run=tmp_path, resume=True)
    assert kept == [4 * 15, 5 * 15]


# The command line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    for name, part in (("train", slice(0, 90)), ("dev", slice(90, 120))):
        text = "".join(
            "".join(f"{a} {b}\n" for a, b in zip(x, y, strict=True)) + "\n"
            for x, y in zip(X[part], Y[part], strict=True)
        )
        (folder / f"{name}.conll").write_text(text)
    return folder


@pytest.fixture(scope="module")
def run(files):
    pytest.importorskip("typer", reason="the extra [cli] is not installed")
    said = command(
        "train", "tagger", "--train", files / "train.conll", "--dev", files / "dev.conll",
        "--test", files / "dev.conll", "--out", files / "run", "--word-dim", 12, "--hidden", 16,
        "--lr", 0.02, "--batch", 8, "--epochs", 5, "--crf",
    )  # fmt: skip
    assert "90 sentences" in said and "valid_f1" in said and "best F1" in said
    assert "Drug" in said and "token accuracy" in said
    return files / "run"


@pytest.mark.slow
def test_commands(run, files):
    assert "all types" in command("eval", run, files / "dev.conll")
    wanted = Tagger.load(run).predict(X[90:])
    columns = command("tag", run, files / "dev.conll")
    parts = [s.splitlines() for s in columns.strip("\n").split("\n\n")]
    assert [[line.split("\t")[1] for line in s] for s in parts] == wanted
    text = "".join(" ".join(x) + "\n" for x in X[90:])
    assert command("tag", run, "-", "--at-once", 7, input=text) == columns
    (files / "dev.txt").write_text(text)
    assert command("tag", run, files / "dev.txt") == columns
    (files / "dev.jsonl").write_text("".join(json.dumps({"tokens": x}) + "\n" for x in X[90:]))
    assert command("tag", run, files / "dev.jsonl") == columns
    assert command("tag", run, "-", input="") == ""


def test_commands_refuse_what_is_wrong(run, files):
    (files / "bad.conll").write_text("a O\nb\n")
    train = ["train", "tagger", "--train"]
    said = command(*train, files / "bad.conll", "--out", files / "x", code=1)
    assert "bad.conll, line 2 must have at least 2 columns" in said
    said = command(*train, files / "train.conll", "--out", run, code=1)
    assert "holds a run already: add --resume" in said
    said = command(*train, files / "train.conll", "--out", run, "--resume", "--hidden", 9, code=1)
    assert "cannot be resumed with other options: --hidden was 16" in said
    said = command("tag", run, files / "dev.conll", "--format", "xml", code=1)
    assert "--format must be columns, jsonl, lines or text" in said
    assert "no such file" in command("tag", files / "nothing", code=1)


def test_resume_makes_a_run_longer(run, files):
    said = command(
        "train", "tagger", "--out", run, "--resume", "--epochs", 6, "--lr", 0.01,
    )  # fmt: skip
    assert f"{6 * 12} steps" in said
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    assert command("plot", run).strip().endswith("curve.png")
