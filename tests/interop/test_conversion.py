"""`from_torch`, `load_state_dict` with a prefix, and arrays of other packages."""

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import checks
from fastrnn.checkpoint import load_tensors
from fastrnn.data.text import Vocabulary
from fastrnn.models import LanguageModel, Tagger


def state_of(**layers):
    return {
        f"{name}.{k}": v for name, layer in layers.items() for k, v in layer.state_dict().items()
    }


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


LAYERS = [
    fastrnn.LSTM(3, 5, 2, bidirectional=True, seed=0),
    fastrnn.LSTM(3, 5, proj_size=2, seed=0),
    fastrnn.GRU(4, 6, bias=False, dtype="float64", seed=0),
    fastrnn.RNN(4, 6, seed=0),
    fastrnn.Linear(3, 4, seed=0),
    fastrnn.Embedding(7, 4, seed=0),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_of_a_state_dict(layer):
    alone = fastrnn.from_torch(layer.state_dict())
    equal(alone, layer)
    assert repr(alone) == repr(layer)
    state = state_of(**{"encoder.part": layer, "other": fastrnn.GRU(2, 2, seed=1)})
    equal(fastrnn.from_torch(state, "encoder.part"), layer)
    equal(fastrnn.from_torch(state, "encoder.part."), layer)
    both = fastrnn.from_torch(state | {"norm.weight": np.ones(3), "steps": np.array(4)})
    assert both.keys() == {"encoder.part", "other"}


def test_what_does_not_fit():
    state = state_of(a=LAYERS[0])
    with pytest.raises(ValueError, match=r"prefix must be one of \['a'\], got 'b\.'"):
        fastrnn.from_torch(state, "b.")
    with pytest.raises(ValueError, match=r"source has no layer, only \['x'\]"):
        fastrnn.from_torch({"x": np.ones(3)})
    with pytest.raises(TypeError, match="source must be a module, a state_dict or a path, got int"):
        fastrnn.from_torch(3)
    with pytest.raises(ValueError, match=r"missing \['weight_hh_l1'\]"):
        del state["a.weight_hh_l1"]
        fastrnn.from_torch(state)
    with pytest.raises(ValueError, match="weight_hh_l0 must have 1, 3 or 4 times 5 rows, got 10"):
        fastrnn.from_torch({"weight_ih_l0": np.ones((10, 3)), "weight_hh_l0": np.ones((10, 5))})
    with pytest.raises(ValueError, match="must have weight_hh_l0 beside"):
        fastrnn.from_torch({"weight_ih_l0": np.ones((10, 3))})


def test_only_the_layer_of_the_prefix_is_read():
    state = state_of(a=LAYERS[0], b=LAYERS[3])
    state["b.weight_hh_l0"] = np.full_like(state["b.weight_hh_l0"], np.nan)
    equal(fastrnn.from_torch(state, "a"), LAYERS[0])
    with pytest.raises(ValueError, match="b: weight_hh_l0 must be finite"):
        fastrnn.from_torch(state)


def test_load_state_dict_with_a_prefix():
    source, target = LAYERS[0], fastrnn.LSTM(3, 5, 2, bidirectional=True, seed=9)
    state = state_of(**{"encoder.lstm": source, "x.lstm": source, "y": fastrnn.LSTM(4, 5, 2)})
    target.load_state_dict(state, prefix="encoder.lstm.")
    equal(target, source)
    with pytest.raises(ValueError, match=re.escape("have the prefix 'encoder.lstm.' or 'x.lstm.'")):
        target.load_state_dict(state)
    with pytest.raises(ValueError, match=r"have the prefix 'encoder\.lstm\.'"):
        target.load_state_dict(state, prefix="encoder.")


def test_safetensors_of_any_origin(tmp_path):
    from safetensors.numpy import save_file

    state = state_of(lstm=LAYERS[0])
    save_file(state, tmp_path / "model.safetensors")
    equal(fastrnn.from_torch(tmp_path / "model.safetensors")["lstm"], LAYERS[0])
    with pytest.raises(FileNotFoundError, match="no such file: missing"):
        fastrnn.from_torch("missing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.safetensors is damaged or not a safetensors file"):
        fastrnn.from_torch(str(tmp_path / "bad.safetensors"))


# With PyTorch


def test_modules_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import save_file

    import fastrnn.torch

    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3, bias=False))
    model.rnn = torch.nn.RNN(3, 6, 2, nonlinearity="relu", batch_first=True, dropout=0.25)
    model.norm = torch.nn.LayerNorm(3)
    layers = fastrnn.from_torch(model)
    assert [type(v).__name__ for v in layers.values()] == ["Embedding", "Linear", "RNN"]
    rnn = layers["rnn"]
    assert rnn.batch_first and rnn.nonlinearity == "relu" and rnn.dropout == 0.25
    x = np.random.default_rng(0).standard_normal((2, 5, 3), np.float32)
    model.eval()
    wanted = model.rnn(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(rnn(x)[0], wanted, atol=1e-5)
    equal(fastrnn.from_torch(model.rnn), rnn)
    # And back, and through a file in bfloat16.
    twin = torch.nn.RNN(3, 6, 2, nonlinearity="relu")
    twin.load_state_dict(fastrnn.torch.state_dict(rnn))
    assert torch.equal(twin.weight_hh_l1, model.rnn.weight_hh_l1)
    low = model.rnn.bfloat16()
    save_file(low.state_dict(), tmp_path / "low.safetensors")
    for source in (low, low.state_dict(), tmp_path / "low.safetensors"):
        weights = fastrnn.from_torch(source, nonlinearity="relu").parameters["weight_hh_l1"]
        assert np.array_equal(weights, low.weight_hh_l1.detach().float().numpy())


def test_tensors_are_taken_or_refused():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = fastrnn.LSTM(3, 5, seed=0)
    x = torch.randn(4, 2, 3, requires_grad=True)
    wanted = layer(x.detach().numpy())[0]
    assert np.array_equal(layer(x)[0], wanted)
    low = x.bfloat16()
    assert np.array_equal(layer(low)[0], layer(low.detach().float().numpy())[0])
    short = torch.tensor([4, 2], dtype=torch.int16)
    assert np.array_equal(layer(x, lengths=short)[0], layer(x, lengths=[4, 2])[0])
    packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])
    with pytest.raises(TypeError, match="x must be an array, got a PackedSequence: use pad_packed"):
        layer(packed)
    with pytest.raises(TypeError, match="x must be an array, got Tensor"):
        layer(x.detach().to_sparse())


# Arrays of others


class Interface:
    def __init__(self, array):
        self.__array_interface__, self._kept = array.__array_interface__, array


class Dlpack:
    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Array:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


@pytest.mark.parametrize("wrap", [Interface, Dlpack, Array, memoryview, lambda a: a.tolist()])
def test_arrays_of_others(wrap, rng):
    layer, x = fastrnn.GRU(3, 5, dtype="float64", seed=0), rng.standard_normal((4, 2, 3))
    assert np.array_equal(layer(wrap(x))[0], layer(x)[0])
    if wrap not in (Dlpack, Array, Interface, memoryview):
        return
    assert np.shares_memory(checks.as_array("x", wrap(x)), x)  # no copy


def test_columns_of_pandas_and_pyarrow():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    X, y = [["Take", "aspirin"], ["Rest"]] * 4, [["O", "B-Drug"], ["O"]] * 4
    options = {"word_dim": 4, "hidden_size": 4, "epochs": 2}
    wanted = Tagger(**options).fit(X, y).predict(X)
    frame = pandas.DataFrame({"tokens": X, "tags": y}).set_index(np.arange(8)[::-1])
    table = pyarrow.table({"tokens": X, "tags": y})
    for a, b in ((frame.tokens, frame.tags), (table["tokens"], table["tags"])):
        assert Tagger(**options).fit(a, b).predict(a) == wanted
    with pytest.raises(TypeError, match="expected one column, got a DataFrame"):
        Tagger(**options).fit(frame, frame.tags)
    ids = [[3, 1], [4], []]
    for column in (pandas.Series(ids, index=[5, 6, 7]), pyarrow.array(ids)):
        padded, lengths = fastrnn.pad_sequences(column)
        assert padded.T.tolist() == [[3, 1], [4, 0], [0, 0]] and lengths.tolist() == [2, 1, 0]


def test_integer_tags_with_names():
    X, y = [["Take", "aspirin"], ["Rest"]] * 4, [["O", "B-Drug"], ["O"]] * 4
    options = {"word_dim": 4, "hidden_size": 4, "epochs": 2}
    wanted = Tagger(**options).fit(X, y)
    names = ["O", "B-Drug", "I-Drug"]
    ids = [[names.index(t) for t in ts] for ts in y]
    got = Tagger(**options, tag_names=names).fit(X, ids)
    assert got.predict(X) == wanted.predict(X) and got.score(X, ids) == wanted.score(X, y)
    with pytest.raises(ValueError, match=r"y\[0\] has the tag 3, but tag_names has 3 names"):
        Tagger(**options, tag_names=names).fit([["a"]], [[3]])
    with pytest.raises(ValueError, match="tag_names has 'PER', which is not a tag"):
        Tagger(**options, tag_names=["O", "PER"]).fit([["a"]], [[1]])
    with pytest.raises(TypeError, match=r"y\[1\] must be a list of tags, got float"):
        Tagger(**options, tag_names=names).fit([["a"], ["b"]], [[1], float("nan")])
    assert "tag_names" in repr(Tagger(tag_names=np.array(names)))
    with pytest.raises(TypeError, match=r"y\[0\] must hold strings"):
        Tagger(**options).fit([["a"]], [[3]])


# Pickles and copies


@pytest.mark.parametrize("backend", ["cpu", "reference", "cuda"])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_layers_pickle_and_copy(make, backend, rng):
    x = rng.standard_normal((4, 2, 3), np.float32)
    for layer in (
        fastrnn.LSTM(3, 5, seed=0, backend=backend),
        fastrnn.Linear(3, 5, seed=0, backend=backend),
        fastrnn.Dropout(0.5, seed=0, backend=backend),
    ):
        forward = layer.forward(x)[0]  # advances the generator of a dropout
        twin = make(layer)
        same, wanted = twin(x), layer(x)
        assert np.array_equal(np.asarray(same[0]), np.asarray(wanted[0]))
        assert np.array_equal(twin.forward(x)[0], layer.forward(x)[0])
        assert forward.shape[-1] in (3, 5)
    crf = fastrnn.CRF(3, seed=0, backend=backend)
    scores = rng.standard_normal((4, 2, 3), np.float32)
    assert np.array_equal(make(crf).decode(scores)[0], crf.decode(scores)[0])


@pytest.mark.parametrize("make", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_models_pickle_and_copy(make):
    text = "a rose is a rose is a rose. " * 50
    model = LanguageModel(Vocabulary.of(text), embedding_dim=4, hidden_size=8, seed=0)
    twin = make(model)
    assert twin.sample(20, seed=0) == model.sample(20, seed=0)
    # All layers of a copy still share one vector.
    twin.parameters.writing()[:] = 0
    assert not twin.recurrent.parameters["weight_hh_l0"].any()
    assert model.recurrent.parameters["weight_hh_l0"].any()
    X, y = [["Take", "aspirin"], ["Rest"]] * 4, [["O", "B-Drug"], ["O"]] * 4
    tagger = Tagger(word_dim=4, hidden_size=4, epochs=2, char_hidden=3, crf=True).fit(X, y)
    twin = make(tagger)
    assert twin.predict(X) == tagger.predict(X) and not hasattr(twin, "trainer_")
    assert twin.fit(X, y).predict(X) == tagger.predict(X)


def test_scikit_learn():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.utils.validation import check_is_fitted

    X, y = (
        [["Take", "aspirin"], ["Rest"], ["No", "ibuprofen"]] * 6,
        [["O", "B-D"], ["O"], ["O", "B-D"]] * 6,
    )
    tagger = Tagger(word_dim=8, hidden_size=8, epochs=15, lr=0.02)
    assert clone(tagger).get_params() == tagger.get_params()
    pipeline = Pipeline([("same", FunctionTransformer()), ("tagger", tagger)]).fit(X, y)
    check_is_fitted(pipeline)
    assert pipeline.predict(X[:2]) == y[:2]
    scores = cross_val_score(tagger, X, y, cv=3, n_jobs=2)
    assert scores.shape == (3,) and scores.min() > 0.9
    search = GridSearchCV(tagger, {"hidden_size": [4, 8]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.9 and search.predict(X[:1]) == y[:1]


def test_joblib(tmp_path):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    layer = fastrnn.LSTM(3, 5, seed=0)
    joblib.dump(layer, tmp_path / "layer")
    equal(joblib.load(tmp_path / "layer"), layer)
    x = np.ones((2, 1, 3), np.float32)
    results = joblib.Parallel(n_jobs=2)(joblib.delayed(layer)(x) for _ in range(2))
    assert all(np.array_equal(y, layer(x)[0]) for y, _ in results)


@pytest.mark.parametrize(("module", "package", "needed"), [
    ("torch", "torch", "torch>=2.5"), ("onnx", "onnx", "onnx>=1.17"),
])  # fmt: skip
def test_without_the_package_the_error_says_what_to_install(tmp_path, module, package, needed):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package}')")
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import fastrnn.{module}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert re.search(rf'ImportError: .* pip install "{needed}"', done.stderr)


def test_load_tensors(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": np.arange(3), "b": np.ones((2, 2), np.float16), "c": np.array([True])}
    save_file(arrays, tmp_path / "x.safetensors")
    for name, array in load_tensors(tmp_path / "x.safetensors").items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
