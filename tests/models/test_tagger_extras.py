"""The tagger: character CNN, features, raw text, ensembles, the loss, and their commands."""

import json

import numpy as np
import pytest

from fastrnn.data.batches import CASES, Lexicon, Tokens, make_batch
from fastrnn.data.sentences import read_sentences
from fastrnn.data.text import Vocabulary
from fastrnn.data.tokens import token_spans
from fastrnn.data.vectors import WordVectors
from fastrnn.models import Tagger, TaggerEnsemble
from fastrnn.models.bilstm import BiLSTMTagger
from fastrnn.models.characters import CharacterCNN
from helpers import check_close, check_gradient, needs_torch
from helpers import fastrnn as command

DRUGS = ["aspirin", "codeine", "ibuprofen"]
TEXTS = [f"We gave {drug} to {n} rats, and {drug} helped." for drug in DRUGS for n in (2, 3, 14)]
QUICK = {"word_dim": 12, "hidden_size": 16, "epochs": 25, "lr": 2e-2, "batch_size": 4}
WORDS = [[text[a:b] for a, b in token_spans(text)] for text in TEXTS]
TAGS = [["B-Drug" if w in DRUGS else "O" for w in x] for x in WORDS]


@pytest.fixture(scope="module")
def tagger():
    return Tagger(char_filters=8, char_dim=4, crf=True, **QUICK).fit(WORDS, TAGS)


# Characters


def lexicon(dtype="float64"):
    vectors, characters = WordVectors.none(6), Vocabulary.of("".join(TEXTS), min_count=1)
    return Lexicon(vectors, characters, dtype=dtype)


def spelling(words, dtype="float64"):
    lex = lexicon(dtype)
    return make_batch(lex, lex.encode(words), np.arange(len(words))).spelling, len(lex.characters)


@needs_torch
@pytest.mark.parametrize("width", [1, 3, 5])
def test_the_cnn_agrees_with_torch(rng, width):
    import torch

    words = [["abc", "x", "rats"], ["rats", "aaaaaa"]]
    spelled, count = spelling(words)
    cnn = CharacterCNN(
        count, 4, 7, width, seeds=(0, 1), dtype="float64", precision="float32", backend="cpu"
    )
    y, tape = cnn.forward(spelled, training=True)
    # Padding before and after a word is a symbol of its own.
    conv = torch.nn.Conv1d(4, 7, width).double()
    weight = cnn.conv.parameters["weight"].reshape(7, width, 4).transpose(0, 2, 1)
    conv.weight.data = torch.from_numpy(weight.copy())
    conv.bias.data = torch.from_numpy(cnn.conv.parameters["bias"].copy())
    table = torch.tensor(cnn.embedding.parameters["weight"], requires_grad=True)
    characters, half = lexicon().characters, width // 2
    flat = [w for x in words for w in x]
    by_word = {}
    for word in flat:
        ids = [count] * half + characters.encode(word).tolist() + [count] * half
        by_word[word] = conv(table[ids].T[None])[0].max(dim=1).values
    distinct = sorted(dict.fromkeys(flat))
    assert len(distinct) == spelled.packed.batch
    order = {tuple(np.round(by_word[w].detach().numpy(), 9)): w for w in distinct}
    named = [order[tuple(np.round(row, 9))] for row in y]
    assert sorted(named) == sorted(flat)
    dy = rng.standard_normal(y.shape)
    loss = sum((by_word[w] * torch.from_numpy(row)).sum() for w, row in zip(named, dy, strict=True))
    loss.backward()
    grads = cnn.backward(spelled, tape, dy)
    check_close(grads["cnn_embedding.weight"], table.grad.numpy(), "float64")
    wanted = conv.weight.grad.numpy().transpose(0, 2, 1).reshape(7, -1)
    check_close(grads["char_cnn.weight"], wanted, "float64")
    check_close(grads["char_cnn.bias"], conv.bias.grad.numpy(), "float64")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [
    {"char_filters": 5, "char_hidden": 0}, {"char_filters": 5, "char_hidden": 3},
    {"char_hidden": 3, "class_weight": np.array([0.2, 1.0, 3.0]), "label_smoothing": 0.1},
])  # fmt: skip
def test_the_whole_gradient(backend, options):
    lex = lexicon()
    net = BiLSTMTagger(
        lex.table.shape[1], 3, characters=len(lex.characters), char_dim=4, hidden_size=5,
        dtype="float64", backend=backend, seed=0, **options,
    )  # fmt: skip
    tokens = lex.encode(WORDS[:4])
    tags = np.random.default_rng(0).integers(0, 3, len(tokens.ids))
    batch = make_batch(lex, tokens, np.array([2, 0, 3]), tags)
    state = net.rng.bit_generator.state

    def loss(flat):
        net.parameters.writing()[:] = flat
        net.rng.bit_generator.state = state
        return net.loss_and_gradient(batch)[0]

    flat = net.parameters.flat.copy()
    loss(flat)
    net.rng.bit_generator.state = state
    check_gradient(loss, [flat], [net.loss_and_gradient(batch)[1].copy()])


def test_it_learns_and_is_saved(tagger, tmp_path):
    assert tagger.score(WORDS, TAGS) > 0.95
    tagger.save(tmp_path)
    again = Tagger.load(tmp_path)
    assert again.predict(WORDS) == tagger.predict(WORDS)
    assert again.get_params()["char_filters"] == 8
    config = json.loads((tmp_path / "config.json").read_text())
    config["params"]["char_filters"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json does not fit .*char_filters must be 8"):
        Tagger.load(tmp_path)


def test_the_same_alone_and_in_a_batch(tagger):
    together = tagger.predict_proba(WORDS)
    for words, p in zip(WORDS, together, strict=True):
        assert np.array_equal(tagger.predict_proba([words])[0], p)
    assert tagger.predict([[], []]) == [[], []] and tagger.predict([]) == []


# Features


def test_features_beside_the_word(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [[str(rng.choice(["N", "V", "X"])) for _ in x] for x in WORDS]
    X = [[(w, k) for w, k in zip(x, ks, strict=True)] for x, ks in zip(WORDS, kinds, strict=True)]
    y = [["B-Verb" if k == "V" else "O" for k in ks] for ks in kinds]  # only the feature knows
    options = QUICK | {"epochs": 30, "input_dropout": 0.0, "dropout": 0.2, "char_filters": 0}
    tagger = Tagger(**options).fit(X, y, dev=(X, y))
    assert tagger.score(X, y) == 1.0 and tagger.fitted_.features == [["N", "V", "X"]]
    tagger.save(tmp_path)
    again = Tagger.load(tmp_path)
    assert again.predict(X) == tagger.predict(X)
    assert len(again.predict([[["rats", "new"]]])[0]) == 1  # a value that is not known
    for wrong in ([["rats"]], [[("rats", "N", "V")]], [[("rats", "N"), "x"]]):
        with pytest.raises(ValueError, match=r"X\[0\] must have 1 features for each token"):
            tagger.predict(wrong)
    with pytest.raises(TypeError, match=r"X\[0\] must hold strings that are not empty, or tuples"):
        tagger.predict([[("rats", 3)]])
    with pytest.raises(ValueError, match=r"dev\[0\]\[0\] must have 1 features"):
        Tagger(**QUICK).fit(X, y, dev=(WORDS, y))


def test_features_are_columns_of_the_input():
    lex = Lexicon(WordVectors.none(2), features=[["N", "V"], ["no", "yes"]])
    tokens = lex.encode([[("a", "V", "no"), ("a", "N", "yes"), ("b", "?", "?")]])
    assert isinstance(tokens, Tokens)
    columns = lex.table[tokens.ids, 2 + CASES :]
    assert columns.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert np.array_equal(lex.table[tokens.ids[0], :2], lex.table[tokens.ids[1], :2])


def test_feature_columns_of_files(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ann NNP yes B-PER\nran VBD no O\n")
    (sentence,) = read_sentences(path, feature_columns=[1, 2])
    assert sentence.tokens == [("Ann", "NNP", "yes"), ("ran", "VBD", "no")]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text(json.dumps({"tokens": [["Ann", "NNP"], ["x", "y"]], "tags": ["O", "O"]}))
    assert next(read_sentences(jsonl)).tokens == [("Ann", "NNP"), ("x", "y")]
    with pytest.raises(ValueError, match="line 1 must have at least 10 columns"):
        list(read_sentences(path, feature_columns=[9]))


# Text


def test_entities_of_texts(tagger):
    found = tagger.entities(TEXTS)
    for text, entities in zip(TEXTS, found, strict=True):
        drug = next(d for d in DRUGS if d in text)
        assert [e.text for e in entities] == [drug, drug]
        assert all(text[e.start : e.end] == e.text and e.type == "Drug" for e in entities)
        assert all(0.5 < e.confidence <= 1 for e in entities)
    assert tagger.entities([]) == [] and tagger.entities(["", "rats"]) == [[], []]
    assert tagger.entities([""]) == [[]] and tagger.entities(np.array(["", " "])) == [[], []]
    assert tagger.fitted_.label(WORDS)[0] == tagger.predict(WORDS)
    by_words = tagger.entities(TEXTS[:1], tokenize=str.split)
    assert [e.start for e in by_words[0]] == [e.start for e in found[0]]


def test_confidence_is_the_lowest_probability(tagger):
    p = tagger.predict_proba(WORDS[:1])[0]
    (first, *_) = tagger.fitted_.entities(WORDS[:1])[0]
    kind, a, b, confidence = first
    assert (kind, a, b) == ("Drug", 2, 3)
    assert confidence == pytest.approx(p[2, tagger.classes_.index("S-Drug")], rel=1e-6)


def test_token_spans():
    text = "It's 3.5 mg/day (patients)."
    assert [text[a:b] for a, b in token_spans(text)] == [
        "It's", "3.5", "mg", "/", "day", "(", "patients", ")", "."
    ]  # fmt: skip
    assert token_spans("a  b", str.split) == [(0, 1), (3, 4)]
    assert token_spans('"a"', lambda text: ["``", "a", "''"]) == [(0, 1), (1, 2), (2, 3)]
    with pytest.raises(ValueError, match="tokenize returned 'x', which is not in the rest"):
        token_spans("a b", lambda text: ["x"])
    with pytest.raises(TypeError, match="tokenize must return strings, got int"):
        token_spans("a b", lambda text: [1])


# The loss and the schedule


def test_class_weights():
    balanced = Tagger(class_weight="balanced", crf=False, **QUICK).fit(WORDS, TAGS)
    weights = dict(zip(balanced.classes_, balanced.network_.class_weight, strict=True))
    drugs, total = 2 * len(WORDS), sum(map(len, WORDS))
    assert weights["S-Drug"] == pytest.approx(total / (2 * drugs))
    assert weights["O"] == pytest.approx(total / (2 * (total - drugs))) and weights["B-Drug"] == 1
    options = QUICK | {"crf": False, "label_smoothing": 0.1}
    given = Tagger(class_weight={"Drug": 5.0}, **options).fit(WORDS, TAGS)
    assert set(given.network_.class_weight[1:]) == {5.0} and given.network_.class_weight[0] == 1
    assert given.score(WORDS, TAGS) > 0.9


def test_cosine_with_warm_up(tmp_path):
    options = QUICK | {"schedule": "cosine", "warmup_ratio": 0.25}
    tagger = Tagger(**options).fit(WORDS, TAGS, run=tmp_path)
    rates = [line["lr"] for line in tagger.history_]
    assert max(rates) == pytest.approx(2e-2) and rates.index(max(rates)) == len(rates) // 4 - 1
    assert rates[0] < 0.3 * max(rates) and rates[-1] < 0.02 * max(rates)
    with pytest.raises(ValueError, match="holds another run: epochs differ"):
        Tagger(**options | {"epochs": 26}).fit(WORDS, TAGS, run=tmp_path, resume=True)


@pytest.mark.parametrize("params, message", [
    ({"class_weight": "x"}, "class_weight must be one of balanced"),
    ({"class_weight": {"B-Drug": 1.0}}, "class_weight must be one of O, Drug"),
    ({"class_weight": {"Drug": -1.0}}, "class_weight must be"),
    ({"crf": True, "label_smoothing": 0.1}, "label_smoothing and class_weight need crf=False"),
    ({"schedule": "step"}, "schedule must be one of constant, cosine"),
    ({"schedule": "constant", "warmup_ratio": 0.1}, "warmup_ratio needs the schedule cosine"),
    ({"char_width": 4}, "char_width must be odd, got 4"),
])  # fmt: skip
def test_refused(params, message):
    with pytest.raises(ValueError, match=message):
        Tagger(**QUICK | {"crf": False, "schedule": "constant"} | params).fit(WORDS, TAGS)


# Ensembles


@pytest.mark.parametrize("crf", [False, True])
def test_an_ensemble_is_the_mean_of_its_members(crf, tmp_path):
    taggers = [
        Tagger(crf=crf, seed=seed, **QUICK | {"epochs": 12}).fit(WORDS, TAGS) for seed in range(3)
    ]
    ensemble = TaggerEnsemble(taggers)
    parts = [tagger.predict_proba(WORDS) for tagger in taggers]
    for got, *each in zip(ensemble.predict_proba(WORDS), *parts, strict=True):
        np.testing.assert_allclose(got, np.mean(each, axis=0), rtol=1e-6)
    assert TaggerEnsemble(taggers[:1]).score(WORDS, TAGS) == taggers[0].score(WORDS, TAGS)
    assert ensemble.score(WORDS, TAGS) >= min(t.score(WORDS, TAGS) for t in taggers)
    assert [len(t) for t in ensemble.predict([[], ["rats"]])] == [0, 1]
    assert ensemble.entities(TEXTS[:1])[0][0]._fields[0] == "type"
    for number, tagger in enumerate(taggers):
        tagger.save(tmp_path / str(number))
    again = TaggerEnsemble.load([tmp_path / str(n) for n in range(3)])
    assert again.predict(WORDS) == ensemble.predict(WORDS)
    other = Tagger(scheme="IOB2", **QUICK | {"epochs": 1}).fit(WORDS, TAGS)
    with pytest.raises(ValueError, match=r"taggers\[1\] must have the tags of the first one"):
        TaggerEnsemble([taggers[0], other])
    with pytest.raises(ValueError, match="taggers must be at least one"):
        TaggerEnsemble([])
    with pytest.raises(TypeError, match=r"taggers\[0\] must be a Tagger, got str"):
        TaggerEnsemble(["x"])


# The command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("typer", reason="the extra [cli] is not installed")
    folder = tmp_path_factory.mktemp("extras")
    lines = []
    for x, y in zip(WORDS, TAGS, strict=True):
        lines += [f"{w} {len(w) > 3} {t.replace('B-', 'S-')}\n" for w, t in zip(x, y, strict=True)]
        lines.append("\n")
    (folder / "train.conll").write_text("".join(lines))
    for seed in range(2):
        command(
            "train", "tagger", "--train", folder / "train.conll", "--out", folder / f"run{seed}",
            "--word-dim", 12, "--hidden", 16, "--lr", 0.02, "--batch", 4, "--epochs", 25,
            "--char-filters", 6, "--schedule", "cosine", "--seed", seed,
        )  # fmt: skip
    return folder


def test_a_file_that_was_bioes_comes_out_as_bioes(run):
    said = command("tag", run / "run0", run / "train.conll")
    assert "aspirin\tS-Drug\n" in said and "B-Drug" not in said
    assert " 100.00" in command("eval", run / "run0", run / "train.conll")


def test_text_in_and_json_out(run):
    (run / "notes").write_text("\n".join(TEXTS))
    said = command("tag", run / "run0", run / "notes", "--format", "text", "--output", "jsonl")
    for line, text in zip(said.splitlines(), TEXTS, strict=True):
        entry = json.loads(line)
        assert entry["text"] == text and len(entry["entities"]) == 2
        for e in entry["entities"]:
            assert text[e["start"] : e["end"]] == e["text"] and 0 < e["confidence"] <= 1
    said = command("tag", run / "run0", run / "notes", "--format", "text")
    assert "helped\tO\n.\tO\n\n" in said
    both = command("tag", run / "run0", run / "train.conll", "--with", run / "run1", "--output",
                   "jsonl")  # fmt: skip
    assert json.loads(both.splitlines()[0])["entities"][0]["start"] == 2
    said = command("tag", run / "run0", run / "notes", "--format", "text", "--tokenizer",
                   "shlex:split")  # fmt: skip
    assert "helped.\tO\n" in said
    said = command("tag", run / "run0", run / "notes", "--format", "text", "--tokenizer", "x:y",
                   code=1)  # fmt: skip
    assert "--tokenizer x:y was not found" in said


def test_features_on_the_command_line(run):
    command(
        "train", "tagger", "--train", run / "train.conll", "--out", run / "features", "--word-dim",
        12, "--epochs", 1, "--feature-columns", "1", "--balanced", "--no-crf",
    )  # fmt: skip
    said = command("tag", run / "features", run / "train.conll", "--feature-columns", "1")
    assert said.startswith("We\t")
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    said = command("report", run / "features", "--data", run / "train.conll")
    assert "token accuracy" in (run / "features" / "report.html").read_text()
    said = command("tag", run / "features", run / "train.conll", code=1)
    assert "X[0] must have 1 features for each token, got 0" in said
