"""Public functions called with junk: an error that names the argument, or a result.

Each target is a function and valid arguments, of which one is replaced. An error must be one of
the documented kinds, and its message must have the argument's name. A result must be finite.
"""
# ruff: noqa: C408

import atexit
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import optim
from fastrnn.data.corpus import encode_sentences, load_sentences
from fastrnn.data.encoded import EncodedText, encode_text
from fastrnn.data.sentences import read_sentences
from fastrnn.data.text import TextStream, Vocabulary
from fastrnn.data.vectors import WordVectors, load_vectors
from fastrnn.data.vocabularies import WordVocabulary
from fastrnn.distributed import Group
from fastrnn.metrics import entity_scores
from fastrnn.models import LanguageModel, Tagger, TaggerEnsemble, load_once
from fastrnn.parameters import Parameters
from fastrnn.plots import plot_runs

X = np.random.default_rng(0).standard_normal((4, 3, 5)).astype("f")
LSTM = fastrnn.LSTM(5, 4, seed=0)
GRU = fastrnn.GRU(5, 4, bidirectional=True, batch_first=True, seed=0)
LINEAR, EMBEDDING = fastrnn.Linear(5, 2, seed=0), fastrnn.Embedding(7, 3, seed=0)
CRF, DROPOUT = fastrnn.CRF(3, seed=0), fastrnn.Dropout(0.5, seed=0)
ADAPTIVE = fastrnn.AdaptiveSoftmax(5, 9, [3, 6], seed=0)
IDS = np.array([[0, 1, 2], [3, 4, 0]])
VOCABULARY = Vocabulary.of("abcab", min_count=1)
MODEL = LanguageModel(VOCABULARY, embedding_dim=3, hidden_size=4, seed=0)
SENTENCES, TAGS = [["Ann", "ran"], ["x"]], [["B-PER", "O"], ["O"]]
TAGGER = Tagger(word_dim=4, hidden_size=4, epochs=1).fit(SENTENCES, TAGS)
FRESH = object()  # stands for what each call makes anew
STATE = np.zeros((1, 3, 4), "f"), np.zeros((1, 3, 4), "f")


class Target(NamedTuple):
    call: object
    arguments: dict
    also: dict = {}  # further names under which an argument may be named  # noqa: RUF012


def lstm_backward(**arguments):
    tape = LSTM.forward(X)[2] if arguments["tape"] is FRESH else arguments["tape"]
    return LSTM.backward(tape, arguments["dy"], arguments["dstate"])


def encoded(**arguments):
    with tempfile.TemporaryDirectory() as folder:
        encode_text(**arguments, folder=folder)


def sentences(**arguments):
    with tempfile.TemporaryDirectory() as folder:
        encode_sentences(**arguments, folder=folder)


def step(kind):
    def call(**arguments):
        layer = fastrnn.Linear(2, 2, seed=0)
        rows = arguments.pop("row", None)
        table = np.ones((4, 2), "f")
        if isinstance(rows, tuple):
            arguments["rows"] = {"t": (table, *rows)}
        given = {"parameters": FRESH} | arguments
        if given["parameters"] is FRESH:
            given["parameters"] = layer.parameters
        if not isinstance(rows, tuple | None):
            given["rows"] = rows
        return kind(0.1).step(**given), np.array(layer.parameters.flat), table

    return call


def state_dict_into(layer):
    def call(state):
        copy = fastrnn.Linear(5, 2) if layer is LINEAR else fastrnn.LSTM(5, 4)
        copy.load_state_dict(state)
        return copy.parameters.flat

    return call


class Line:
    """A model of one number."""

    def __init__(self):
        self.parameters = Parameters({"w": np.zeros(1)}, "float32")
        self.rng = np.random.default_rng(0)

    def loss_and_gradient(self, batch):
        return 1.0, np.ones(1, "f"), 1

    def carried(self):
        return {}

    def carry(self, carried):
        pass


class Ones:
    def __len__(self):
        return 2

    def batches(self, epoch, skip):
        return iter([1, 1][skip:])


def trainer(**arguments):
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": Line(), "optimizer": fastrnn.SGD(0.1), "data": Ones(), "run": folder}
        times = {k: arguments.pop(k) for k in ("steps", "epochs") if k in arguments}
        fastrnn.Trainer(**given | arguments).train(**times or {"steps": 2})


FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER)
CONLL = FOLDER / "a.tsv"
CONLL.write_text("Ann\tB-PER\n")
MODEL.save(FOLDER / "lm")
TAGGER.save(FOLDER / "tagger")
encode_text(["abc"], VOCABULARY, FOLDER / "encoded")
encode_sentences([CONLL], FOLDER / "sentences")
(FOLDER / "history.jsonl").write_text('{"step": 1, "seconds": 1, "loss": 2, "smoothed": 2}\n')
STATE_NAMES = {"state": ("h_0", "c_0", "h", "c"), "dstate": ("dh_n", "dc_n")}
# An error about two arguments that do not fit may name the other one.
FITTING = STATE_NAMES | {"x": ("lengths", "h_0")}
TARGETS = {
    "LSTM": Target(fastrnn.LSTM, dict(
        input_size=5, hidden_size=4, num_layers=1, variant=None, proj_size=0, bias=True,
        batch_first=False, dropout=0.0, bidirectional=False, activations=None, zoneout=0.0,
        recurrent_dropout=0.0, weight_dropout=0.0, constants=None, dtype="float32",
        precision="bf16", backend="cpu",
        seed=0)),
    "GRU": Target(fastrnn.GRU, dict(input_size=5, hidden_size=4, num_layers=2, dropout=0.5)),
    "RNN": Target(fastrnn.RNN, dict(input_size=5, hidden_size=4, nonlinearity="tanh")),
    "LSTM call": Target(LSTM, dict(x=X, state=STATE, lengths=[1, 2, 3]), FITTING),
    "LSTM forward": Target(LSTM.forward, dict(x=X, state=STATE, lengths=[4, 0, 3]), FITTING),
    "LSTM backward": Target(lstm_backward, dict(dy=X[:, :, :4], tape=FRESH, dstate=STATE),
                            STATE_NAMES),
    "LSTM step": Target(LSTM.step, dict(x_t=X[0], state=STATE), STATE_NAMES),
    "GRU call": Target(GRU, dict(x=X, state=None, lengths=[1, 2, 3, 0]), FITTING),
    "Linear": Target(fastrnn.Linear, dict(in_features=5, out_features=2, bias=True,
                                          dtype="float32", precision="int8", backend="reference",
                                          seed=1)),
    "Linear call": Target(LINEAR, dict(x=X)),
    "Linear backward": Target(LINEAR.backward, dict(tape=X, dy=np.ones((4, 3, 2), "f")),
                              {"tape": ("dy",)}),
    "Embedding": Target(fastrnn.Embedding, dict(num_embeddings=7, embedding_dim=3,
                                                dtype="float32", backend="cpu", seed=0)),
    "Embedding call": Target(EMBEDDING, dict(ids=IDS)),
    "Embedding backward": Target(EMBEDDING.backward, dict(
        tape=IDS, dy=np.ones((2, 3, 3)), sparse=False), {"tape": ("dy",)}),
    "Dropout": Target(fastrnn.Dropout, dict(p=0.5, backend="cpu", seed=0)),
    "Dropout forward": Target(DROPOUT.forward, dict(x=X)),
    "Dropout backward": Target(DROPOUT.backward, dict(tape=DROPOUT.forward(X)[1], dy=X)),
    "CRF": Target(fastrnn.CRF, dict(num_tags=3, allowed=None, dtype="float32", seed=0)),
    "CRF forward": Target(CRF.forward, dict(scores=X[..., :3], tags=np.zeros((4, 3), int),
                                            lengths=[1, 2, 3])),
    "CRF backward": Target(CRF.backward, dict(
        tape=CRF.forward(X[..., :3], np.zeros((4, 3), int))[1])),
    "CRF decode": Target(CRF.decode, dict(scores=X[..., :3], lengths=[1, 2, 3])),
    "CRF marginals": Target(CRF.marginals, dict(scores=X[..., :3], lengths=None)),
    "cross_entropy": Target(fastrnn.cross_entropy, dict(
        logits=X, targets=np.zeros((4, 3), int), ignore_index=-100, weight=np.ones(5),
        label_smoothing=0.1),
        {"logits": ("targets", "weight")}),
    "AdaptiveSoftmax": Target(fastrnn.AdaptiveSoftmax, dict(
        in_features=5, n_classes=9, cutoffs=[3, 6], div_value=2.0, head_bias=True,
        dtype="float32", precision="float32", backend="cpu", seed=0)),
    "AdaptiveSoftmax forward": Target(ADAPTIVE.forward, dict(
        h=X, targets=np.zeros((4, 3), int)), {"h": ("targets",)}),
    "AdaptiveSoftmax backward": Target(ADAPTIVE.backward, dict(
        tape=ADAPTIVE.forward(X, np.zeros((4, 3), int))[1])),
    "AdaptiveSoftmax log_prob": Target(ADAPTIVE.log_prob, dict(h=X)),
    "SGD": Target(fastrnn.SGD, dict(lr=0.1, momentum=0.5, weight_decay=0.1, nesterov=True)),
    "Adam": Target(fastrnn.Adam, dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)),
    "AdamW": Target(fastrnn.AdamW, dict(lr=0.1, weight_decay=0.01)),
    "ASGD": Target(fastrnn.ASGD, dict(lr=0.1, weight_decay=0.0, start=None, patience=2)),
    "SGD step": Target(step(fastrnn.SGD), dict(
        parameters=FRESH, gradient=np.ones(6, "f"), lr=0.1, max_norm=1.0, rows={},
        row=(np.array([1, 2]), np.ones((2, 2), "f"))), {"row": ("rows", "t")}),
    "Adam step": Target(step(fastrnn.Adam), dict(
        gradient=dict(weight=np.ones((2, 2), "f"), bias=np.ones(2, "f")), lr=None,
        max_norm=None), {"gradient": ("weight", "bias")}),
    "StepDecay": Target(optim.StepDecay, dict(every=3, gamma=0.5, start=None, warmup=2)),
    "Cosine": Target(optim.Cosine, dict(total=10, warmup=2, final=0.1)),
    "ReduceOnPlateau": Target(optim.ReduceOnPlateau, dict(shrink=0.5, patience=2, least=0.1)),
    "pad_sequences": Target(fastrnn.pad_sequences, dict(
        sequences=[[1, 2], [3]], max_len=3, padding="pre", truncating="post", value=0,
        batch_first=True)),
    "gather_rows": Target(fastrnn.gather_rows, dict(table=np.ones((4, 2), "f"), ids=[0, 3]),
                          {"table": ("ids",)}),
    "scatter_add_rows": Target(fastrnn.scatter_add_rows, dict(
        grads=np.ones((2, 3), "f"), ids=[0, 3], num_rows=4), {"num_rows": ("ids",)}),
    "set_num_threads": Target(fastrnn.set_num_threads, dict(n=2)),
    "load_state_dict": Target(state_dict_into(LINEAR), dict(state=LINEAR.state_dict()),
                              {"state": ("mapping", "weight", "bias")}),
    "from_torch": Target(fastrnn.from_torch, dict(source=LSTM.state_dict()),
                         {"source": ("weight_ih_l0", "no such file")}),
    "LanguageModel": Target(LanguageModel, dict(
        vocabulary=VOCABULARY, embedding_dim=4, hidden_size=4, num_layers=1, cell="lstm",
        cell_options=None, tied=True, cutoffs=None, dropout=0.0, input_dropout=0.1,
        weight_dropout=0.1, dtype="float32", backend="cpu", seed=0), {
            "embedding_dim": ("tied", "input_dropout"), "hidden_size": ("tied",),
            "cutoffs": ("tied",)}),
    "LanguageModel sample": Target(MODEL.sample, dict(
        length=3, prime="a", temperature=0.5, top_k=3, top_p=0.9, seed=0)),
    "LanguageModel score": Target(MODEL.score, dict(text="ab", prime="a")),
    "WordVocabulary.of": Target(WordVocabulary.of, dict(text="a b", size=5, lower=False,
                                                        tokenised=True)),
    "bits_per_character": Target(MODEL.bits_per_character, dict(text="abcabc", batch=2, bptt=2)),
    "cross_entropy of a model": Target(MODEL.cross_entropy, dict(
        text="abcabc", batch=2, bptt=2, group=None)),
    "Group": Target(Group, dict(shards=2, comm=None)),
    "EncodedText": Target(EncodedText, dict(folder=FOLDER / "encoded"),
                          {"folder": ("no such file",)}),
    "encode_text": Target(encoded, dict(parts=["abc"], vocabulary=VOCABULARY), {
        "parts": ("text",)}),
    "encode_sentences": Target(sentences, dict(paths=[CONLL], scheme="IOB2", token_column=0), {
        "paths": ("path", "no such file"), "token_column": ("column", "columns")}),
    "load_sentences": Target(load_sentences, dict(folder=FOLDER / "sentences"),
                             {"folder": ("no such file",)}),
    "load_once": Target(load_once, dict(folder=str(FOLDER / "lm"), threads=1), {
        "folder": ("no such file",)}),
    "TextStream": Target(TextStream, dict(ids=np.arange(9), batch=2, bptt=2, variable=True,
                                          seed=0)),
    "Vocabulary.of": Target(Vocabulary.of, dict(text="abc", min_count=1)),
    "Vocabulary.encode": Target(VOCABULARY.encode, dict(text="abc")),
    "Vocabulary.decode": Target(VOCABULARY.decode, dict(ids=[0, 1])),
    "WordVectors": Target(WordVectors, dict(words=["a", "b"], table=np.ones((2, 3), "f"),
                                            mean=0.0, std=1.0, seed=0)),
    "load_vectors": Target(load_vectors, dict(source={"a": [1.0, 2.0]}, seed=0),
                           {"source": ("vectors", "words", "no such file")}),
    "entity_scores": Target(entity_scores, dict(true=TAGS, predicted=TAGS, scheme="IOB2"),
                            {"true": ("predicted",)}),
    "Tagger fit": Target(lambda X, y, **more: Tagger(word_dim=4, hidden_size=4, epochs=1).fit(
        X, y, **more), dict(X=SENTENCES, y=TAGS, dev=(SENTENCES, TAGS), group=None),
        {"X": ("y",)}),
    "Tagger parameter": Target(lambda **params: Tagger(**dict(
        word_dim=4, hidden_size=4, epochs=1) | params).fit(SENTENCES, TAGS), dict(
            vectors=None, word_dim=4, unknown="normal", fine_tune=True, hidden_size=4,
            num_layers=1, char_hidden=2, char_filters=2, char_width=3, char_dim=2,
            class_weight=None, label_smoothing=0.1, schedule="cosine", warmup_ratio=0.1, crf=False,
            constrain=True, dropout=0.5, input_dropout=0.25,
            tag_names=None, scheme="IOB2", optimizer="sgd", lr=0.1,
            max_norm=None, epochs=1, patience=0, batch_size=2, max_tokens=None, max_len=None,
            seed=0, vector_seed=0, dtype="float32", backend="cpu"),
            {"vectors": ("no such file", "words"), "crf": ("label_smoothing",),
             "schedule": ("warmup_ratio",)}),
    "Trainer": Target(trainer, dict(
        max_norm=1.0, schedule=optim.Constant(), evaluate=lambda: 1.0, metric="valid_loss",
        maximize=False, evaluate_every=1, patience=2, checkpoint_every=1, progress=False,
        report=None, unit="nats", group=None), {
            # Functions are called, and say themselves what they miss.
            "evaluate": ("len",), "report": ("len", "int"), "metric": ("metric",)}),
    "Trainer train": Target(trainer, dict(steps=2), {"steps": ("epochs",)}),
    "Trainer parts": Target(trainer, dict(model=Line(), optimizer=fastrnn.SGD(0.1), data=Ones())),
    "get_num_threads": Target(fastrnn.get_num_threads, {}),
    "read_sentences": Target(lambda **a: list(read_sentences(**a)), dict(path=CONLL, scheme="IOB2",
        token_column=0, tag_column=-1), {
            "path": ("no such file",), "token_column": ("column", "columns"),
            "tag_column": ("column", "columns", "tag")}),
    "plot_runs": Target(plot_runs, dict(runs=[FOLDER], out=FOLDER / "x.png", against="step"),
                        {"out": ("runs",), "against": ("runs",), "runs": ("no such file",)}),
    "LanguageModel.load": Target(LanguageModel.load, dict(folder=FOLDER / "lm", backend="cpu"),
                                 {"folder": ("no such file",), "backend": ("no such file",)}),
    "Tagger.load": Target(Tagger.load, dict(folder=FOLDER / "tagger", backend="cpu"),
                          {"folder": ("no such file",), "backend": ("no such file",)}),
    "Tagger entities": Target(TAGGER.entities, dict(texts=["Ann ran."], tokenize=str.split),
                              {"tokenize": ("int",)}),  # functions are called
    "TaggerEnsemble": Target(TaggerEnsemble, dict(taggers=[TAGGER, TAGGER])),
    "Tagger predict": Target(TAGGER.predict, dict(X=SENTENCES)),
    "Tagger predict_proba": Target(TAGGER.predict_proba, dict(X=SENTENCES)),
    "Tagger evaluate": Target(TAGGER.evaluate, dict(X=SENTENCES, y=TAGS, group=None),
                              {"X": ("y",)}),
}  # fmt: skip


class Unhelpful:
    """Whose methods all fail."""

    def __getattr__(self, name):
        raise AttributeError(name)

    def __repr__(self):
        return "<Unhelpful>"


JUNK = [
    None, True, False, 0, -1, 1, 2, 3, 7, -100, 10**400, -(10**400), 0.0, 0.5, 1.0, -0.5, 1e308,
    float("inf"), float("-inf"), float("nan"), 1j, "", "x", "cpu", "\ud800", "a\0b", "B-", "glove/",
    b"x", b"", [], {}, (), set(), [None], [[]], ["a"], [[1], [2, 3]], [[["a"]]], {"a": 1},
    {"weight": "x"}, {1: 2}, (1, 2), (1, 2, 3), ("a", "b"), (None, None), object(), Unhelpful(),
    int, len, range(3), range(-2, 0), Ellipsis, NotImplemented, [[0, 1], [1, 0]],
    [float("nan")] * 3, [True, False, True], [0, 10**30, 1],
]  # fmt: skip
ARRAYS = [
    np.zeros(0), np.zeros((4, 3, 0), "f"), np.zeros((0, 3, 5), "f"), np.zeros((4, 0, 5), "f"),
    np.zeros((4, 3, 6), "f"), np.zeros((3, 5)), np.zeros((4, 3), int), np.full((4, 3), 99),
    np.full((4, 3), -1), np.full((4, 3, 5), np.nan, "f"), np.full((4, 3, 5), np.inf),
    np.full((4, 3, 5), 1e300), np.full((4, 3, 5), 3e38, "f"), np.full((4, 3, 3), -3.4e38, "f"),
    X.astype(complex), X.astype(object), X.astype("U8"), X.astype(">f4"), X.astype("f2"),
    X.astype(np.longdouble), np.asfortranarray(X), X[::-1], X[..., ::-1], X > 0,
    np.zeros((4, 3, 5), "M8[s]"), np.zeros(3, [("a", "f")]), np.array(1.5), np.array("x"),
    np.array(None), np.full(3, 2**63, np.uint64), np.full(3, -(2**63)), np.zeros(3, "u1"),
    np.ma.masked_all((4, 3, 5)), np.zeros((2, 2, 2, 2)), np.zeros(2**16, "i1"),
]  # fmt: skip
KINDS = (TypeError, ValueError, IndexError, FileNotFoundError, FloatingPointError)


def calm(junk) -> bool:
    """Whether junk has only numbers whose products are finite."""
    numbers = np.array(junk if isinstance(junk, np.ndarray | list | float | int) else 0, object)
    return all(
        abs(n) < 1e30 for n in numbers.reshape(-1) if isinstance(n, float | int | np.floating)
    )


def finite(value) -> bool:
    """Whether all numbers in a result are finite."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return bool(np.isfinite(value).all())
    if isinstance(value, (tuple, list)):
        return all(map(finite, value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if hasattr(value, "parameters"):
        return finite(value.parameters.flat)
    return not isinstance(value, float) or bool(np.isfinite(value))


def check(name: str, argument: str, junk) -> None:
    target = TARGETS[name]
    threads = fastrnn.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".* longer than max_len")
            warnings.filterwarnings("ignore", "NotImplemented should not be used in a bool")
            result = target.call(**target.arguments | {argument: junk})
    except KINDS as error:
        names = argument, *target.also.get(argument, ())
        said = re.search("|".join(rf"\b{re.escape(n)}\b" for n in names), str(error))
        assert said and len(str(error)) < 2000, f"{name}({argument}={junk!r:.80}): {error!r}"
    else:
        assert finite(result) or not calm(junk), (
            f"{name}({argument}={junk!r:.80}) gave {result!r:.200}"
        )
    finally:
        fastrnn.set_num_threads(threads)


def calls():
    """Strategy: a target, one of its arguments and junk for it."""
    numbers = st.integers(-(2**70), 2**20) | st.floats() | st.text(max_size=5)
    nested = st.recursive(numbers | st.none(), lambda inner: st.lists(inner, max_size=4))
    junk = st.sampled_from(range(len(JUNK) + len(ARRAYS))).map(lambda i: [*JUNK, *ARRAYS][i])
    named = [(name, a) for name, target in TARGETS.items() for a in target.arguments]
    return st.tuples(st.sampled_from(named), junk | nested)


SIZES = {
    "input_size", "hidden_size", "num_layers", "in_features", "out_features", "embedding_dim",
    "num_embeddings", "num_tags", "word_dim", "char_hidden", "char_dim", "length", "epochs",
    "max_len", "num_rows", "proj_size", "n", "total",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def elsewhere():
    """Junk that is taken for a path ends up in a folder of the tests."""
    before = os.getcwd()
    os.chdir(FOLDER)
    yield
    os.chdir(before)


def test_every_public_name_has_a_row():
    rows = {name.split()[0].split(".")[0] for name in TARGETS}
    assert {name for name in fastrnn.__all__ if callable(getattr(fastrnn, name))} <= rows


@pytest.mark.parametrize("name", TARGETS)
def test_valid_arguments(name):
    target = TARGETS[name]
    assert finite(target.call(**target.arguments))


@pytest.mark.parametrize("name", TARGETS)
def test_junk(name):
    failed = []
    for argument in TARGETS[name].arguments:
        for junk in [*JUNK, *ARRAYS]:
            try:
                check(name, argument, junk)
            except AssertionError as error:
                failed.append(str(error).splitlines()[0])
            except Exception as error:
                failed.append(f"{name}({argument}={junk!r:.80}) raised {error!r:.300}")
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(calls())
def test_drawn_junk(call):
    (name, argument), junk = call
    if argument in SIZES and isinstance(junk, int) and 50 < junk < 2**62:
        junk = 50  # more is a question of memory
    check(name, argument, junk)
