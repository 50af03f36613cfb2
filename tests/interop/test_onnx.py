"""`fastrnn.onnx`: the standard's own node tests, other runtimes, and what is refused."""

import re
import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.onnx as ours  # noqa: E402
from fastrnn.data.text import Vocabulary  # noqa: E402
from fastrnn.models import LanguageModel, Tagger  # noqa: E402

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def test_node_tests_of_the_standard():
    from onnx.backend.test.case.node import collect_testcases  # takes seconds

    with warnings.catch_warnings(action="ignore"):  # of cases of other operators
        cases = [c for c in collect_testcases() if c.model.graph.node[0].op_type in GATES]
    assert len(cases) >= 12
    for case in cases:
        names = [value.name for value in case.model.graph.input]
        for inputs, wanted in case.data_sets:
            outputs = ours.run_node(case.model, dict(zip(names, inputs, strict=True)))
            assert len(outputs) == len(wanted)
            for got, want in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6, err_msg=case.name)


def random_node(seed: int, *, plain: bool = False):
    """``(model, inputs, kind)`` of a random node, a ``plain`` one without lengths, other
    activations and coupled gates."""
    rng = np.random.default_rng(seed)
    kind = ("LSTM", "GRU", "RNN")[seed % 3]
    width, units, batch, steps = (int(n) for n in rng.integers(1, [9, 20, 7, 9]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions, rows = (2 if direction == "bidirectional" else 1), GATES[kind] * units
    attributes: dict = {"hidden_size": units, "direction": direction}
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    inputs = {
        "X": rng.standard_normal((steps, batch, width)),
        "W": rng.uniform(-0.5, 0.5, (directions, rows, width)),
        "R": rng.uniform(-0.5, 0.5, (directions, rows, units)),
    }
    if rng.random() < 0.7:
        inputs["B"] = rng.uniform(-0.5, 0.5, (directions, 2 * rows))
    if rng.random() < 0.6:
        inputs["initial_h"] = rng.standard_normal((directions, batch, units))
    if kind == "LSTM":
        names += ["initial_c", "P"]
        if rng.random() < 0.6:
            inputs["initial_c"] = rng.standard_normal((directions, batch, units))
        if rng.random() < 0.3:
            inputs["P"] = rng.uniform(-0.5, 0.5, (directions, 3 * units))
        elif rng.random() < 0.2 and not plain:
            attributes["input_forget"] = 1
    if kind == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if rng.random() < 0.15 and not plain:
        chosen = {"LSTM": ["HardSigmoid", "Tanh", "Tanh"], "GRU": ["HardSigmoid", "Tanh"],
                  "RNN": ["Relu"]}[kind]  # fmt: skip
        attributes["activations"] = chosen * directions
        if kind != "RNN":
            attributes["activation_alpha"] = [0.25] * directions
            attributes["activation_beta"] = [0.4] * directions
    inputs = {k: v.astype(np.float32) for k, v in inputs.items()}
    if rng.random() < 0.5 and not plain:
        inputs["sequence_lens"] = rng.integers(1, steps + 1, batch).astype(np.int32)
    given = [name if name in inputs else "" for name in names]
    while not given[-1]:
        given.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(kind, given, outputs, name="node", **attributes)
    kinds = {"sequence_lens": TensorProto.INT32}
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), inputs[n].shape)
         for n in given if n],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, inputs, kind


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_random_nodes_against_onnxruntime(first):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for seed in range(first, first + 25):
        model, inputs, _ = random_node(seed)
        session = runtime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for got, want in zip(ours.run_node(model, inputs), session.run(None, inputs), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"seed {seed}")


def test_random_nodes_against_the_reference_evaluator():
    """Plain ones: it ignores lengths, coupled gates and activations of the LSTM and the GRU."""
    for seed in range(200):
        model, inputs, _ = random_node(seed, plain=True)
        wanted = ReferenceEvaluator(model).run(None, inputs)
        for got, want in zip(ours.run_node(model, inputs), wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"seed {seed}")


def with_constants(model, inputs, keep=("X", "sequence_lens", "initial_h", "initial_c")):
    """The weights as constants of the model."""
    weights = {k: v for k, v in inputs.items() if k not in keep}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    for value in [v for v in model.graph.input if v.name in weights]:
        model.graph.input.remove(value)
    return model


def test_load_layers(tmp_path):
    seed = next(s for s in range(100) if "bidirectional" in str(random_node(s)[0].graph.node[0]))
    model, inputs, kind = random_node(seed)
    path = tmp_path / "model.onnx"
    onnx.save(with_constants(model, inputs), path)
    layers = ours.load_layers(path)
    layer = layers["node"]
    assert type(layer).__name__ == kind and layer.bidirectional
    x = np.random.default_rng(0).standard_normal((5, 3, layer.input_size), np.float32)
    y, _ = layer(x)
    got = ours.run_node(
        model,
        {"X": x}
        | {
            k: np.zeros((2, 3, layer.hidden_size), np.float32)
            for k in ("initial_h", "initial_c")
            if k in inputs
        }
        | ({"sequence_lens": np.full(3, 5)} if "sequence_lens" in inputs else {}),
    )
    assert np.array_equal(got[0].transpose(0, 2, 1, 3).reshape(y.shape), y)
    assert ours.load_layers(str(path), ["node"]).keys() == {"node"}
    with pytest.raises(ValueError, match=r"names must be of \['node'\], got \['x'\]"):
        ours.load_layers(path, ["x"])


def test_axes_and_names_of_layers():
    """``layout`` 1 is ``batch_first``; nodes of one name are told apart by their outputs."""
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.uniform(-1, 1, (1, 20, 3)).astype(np.float32),
        "R": rng.uniform(-1, 1, (1, 20, 5)).astype(np.float16),
    }
    nodes = [helper.make_node("LSTM", ["X", "W", "R"], [f"Y{k}"], "n", hidden_size=5, layout=1)
             for k in range(2)]  # fmt: skip
    value = helper.make_tensor_value_info("X", TensorProto.FLOAT, [4, 6, 3])
    model = helper.make_model(helper.make_graph(nodes[:1], "g", [value], []))
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    x = rng.standard_normal((4, 6, 3), np.float32)
    (y,) = ours.run_node(model, {"X": x})
    assert np.array_equal(ours.load_layers(model)["n"](x)[0], y[:, :, 0])
    model.graph.node.append(nodes[1])
    assert ours.load_layers(model).keys() == {"n", "Y1"}
    with pytest.raises(TypeError, match="names must be a sequence of str, got 'n'"):
        ours.load_layers(model, "n")
    del model.graph.node[:]
    with pytest.raises(ValueError, match="model has no node of LSTM, GRU, RNN"):
        ours.load_layers(model)


def changed(seed, **attributes):
    """A random node with these attributes, and its weights as constants."""
    model, inputs, _ = random_node(seed)
    model = with_constants(model, inputs)
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])
    return model


@pytest.mark.parametrize(("attributes", "message"), [
    ({"clip": 3.0}, "node node: the attribute clip is not supported, got 3.0"),
    ({"direction": "reverse"}, "node node: direction 'reverse' is not one of a layer"),
    ({"direction": "both"}, "node node: direction must be one of forward, reverse, bidirectional"),
    ({"activations": ["Swish"], "direction": "forward"}, "node node: activations"),
    ({"direction": "bidirectional"}, "node node: W must have shape (2,"),
])  # fmt: skip
def test_what_is_refused(attributes, message):
    seed = next(
        s for s in range(2, 100, 3) if "bidirectional" not in str(random_node(s)[0].graph.node)
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ours.load_layers(changed(seed, **attributes))


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.onnx"):
        ours.load_layers("nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 30)
    with pytest.raises(ValueError, match=r"bad\.onnx is damaged or not an ONNX file"):
        ours.load_layers(tmp_path / "bad.onnx")
    with pytest.raises(TypeError, match=r"model must be a path or an onnx\.ModelProto, got int"):
        ours.load_layers(3)
    model, inputs, _ = random_node(0)
    with pytest.raises(ValueError, match=r"node node: W \(W\) must be given or a constant"):
        ours.load_layers(model)
    del inputs["X"]
    with pytest.raises(ValueError, match=r"node node: X \(X\) must be given"):
        ours.run_node(model, inputs)
    with pytest.raises(ValueError, match="ONNX has no operator for the cell lstm_projected"):
        ours.save(fastrnn.LSTM(3, 4, proj_size=2), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="ONNX has no zoneout"):
        ours.save(fastrnn.LSTM(3, 4, zoneout=0.1), tmp_path / "x.onnx")
    with pytest.raises(TypeError, match="model must be an LSTM, GRU, RNN, LanguageModel or Tagger"):
        ours.save(fastrnn.Linear(3, 4), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


# Files that we write, run by others


def runs(path, inputs):
    """The outputs of a file in both runtimes, by name."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


SAVED = [
    fastrnn.LSTM(3, 5, seed=0),
    fastrnn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, bias=False, seed=0),
    fastrnn.LSTM(3, 5, variant="peephole", bidirectional=True, seed=0),
    fastrnn.LSTM(3, 5, variant="coupled", seed=0),
    fastrnn.GRU(3, 5, 3, seed=0),
    fastrnn.GRU(3, 5, variant="reset_before", bidirectional=True, seed=0),
    fastrnn.RNN(3, 5, 2, nonlinearity="relu", seed=0),
    fastrnn.GRU(3, 5, activations=("hard_sigmoid(0.25, 0.4)", "tanh"), seed=0),
]


@pytest.mark.parametrize("layer", SAVED, ids=repr)
def test_saved_layers(layer, tmp_path, rng):
    path = tmp_path / "layer.onnx"
    values = layer.state_dict()
    layer.load_state_dict({k: rng.uniform(-0.5, 0.5, v.shape) for k, v in values.items()})
    ours.save(layer, path)
    onnx.checker.check_model(path)
    for steps, batch in ((1, 1), (6, 4)):
        shape = (batch, steps, 3) if layer.batch_first else (steps, batch, 3)
        x = rng.standard_normal(shape, np.float32)
        lengths = rng.integers(1, steps + 1, batch).astype(np.int32)
        rows = layer.num_layers * layer.directions
        state = [rng.standard_normal((rows, batch, 5), np.float32) for _ in layer.cell.states]
        y, final = layer(x, tuple(state) if len(state) > 1 else state[0], lengths=lengths)
        given = {"x": x, "lengths": lengths, "h_0": state[0]}
        wanted = {"y": y, "h_n": final}
        if len(state) > 1:
            given["c_0"] = state[1]
            wanted["h_n"], wanted["c_n"] = final
        got = runs(path, given)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, atol=2e-5)
    again = ours.load_layers(path)
    assert len(again) == layer.num_layers


def test_saved_layers_in_the_reference_evaluator(tmp_path, rng):
    layer = fastrnn.LSTM(3, 5, 2, seed=0, dtype="float64")
    ours.save(layer, tmp_path / "layer.onnx")
    x = rng.standard_normal((6, 4, 3))
    zero = np.zeros((2, 4, 5))
    given = {"x": x, "lengths": np.full(4, 6, np.int32), "h_0": zero, "c_0": zero}
    got = ReferenceEvaluator(str(tmp_path / "layer.onnx")).run(["y"], given)[0]
    np.testing.assert_allclose(got, layer(x)[0], atol=1e-12)


@pytest.mark.parametrize("embedding_dim", [0, 4])
def test_saved_language_model(embedding_dim, tmp_path, rng):
    vocabulary = Vocabulary.of("abcdefgh" * 20, min_count=1)
    model = LanguageModel(
        vocabulary, embedding_dim=embedding_dim, hidden_size=7, num_layers=2, seed=0
    )
    ours.save(model, tmp_path / "lm.onnx")
    ids = rng.integers(0, len(vocabulary), (5, 3))
    state = [rng.standard_normal((2, 3, 7), np.float32) for _ in range(2)]
    got = runs(tmp_path / "lm.onnx", {"ids": ids, "h_0": state[0], "c_0": state[1]})
    x = (
        np.eye(len(vocabulary), dtype=np.float32)[ids]
        if not embedding_dim
        else model.embedding(ids)
    )
    y, (h, c) = model.recurrent(x, tuple(state))
    np.testing.assert_allclose(got["logits"], model.softmax(y), atol=2e-5)
    np.testing.assert_allclose(got["h_n"], h, atol=2e-5)
    np.testing.assert_allclose(got["c_n"], c, atol=2e-5)


@pytest.mark.parametrize("options", [{"cell": "gru"}, {"tied": True, "embedding_dim": 7}])
def test_saved_language_models_of_other_kinds(options, tmp_path, rng):
    vocabulary = Vocabulary.of("abcdefgh" * 20, min_count=1)
    model = LanguageModel(vocabulary, **{"embedding_dim": 4} | options, hidden_size=7, seed=0)
    ours.save(model, tmp_path / "lm.onnx")
    ids, names = rng.integers(0, len(vocabulary), (5, 3)), model.recurrent.cell.states
    state = {f"{name}_0": rng.standard_normal((1, 3, 7), np.float32) for name in names}
    got = runs(tmp_path / "lm.onnx", {"ids": ids} | state)
    given = tuple(state.values()) if len(state) > 1 else state["h_0"]
    y, _ = model.recurrent(model.embedding(ids), given)
    np.testing.assert_allclose(got["logits"], model.softmax(y), atol=2e-5)


def test_an_adaptive_softmax_has_no_operator(tmp_path):
    vocabulary = Vocabulary.of("abcdefgh" * 20, min_count=1)
    model = LanguageModel(vocabulary, hidden_size=7, cutoffs=[3])
    with pytest.raises(ValueError, match="ONNX has no adaptive softmax"):
        ours.save(model, tmp_path / "lm.onnx")


def test_saved_tagger(tmp_path, rng):
    X, y = [["Take", "aspirin"], ["Rest"]] * 4, [["O", "B-Drug"], ["O"]] * 4
    tagger = Tagger(word_dim=4, hidden_size=6, num_layers=2, epochs=2).fit(X, y)
    ours.save(tagger, tmp_path / "tagger.onnx")
    x = rng.standard_normal((5, 3, tagger.network_.lstm.input_size), np.float32)
    lengths = np.array([5, 2, 3], np.int32)
    got = runs(tmp_path / "tagger.onnx", {"x": x, "lengths": lengths})["scores"]
    wanted = tagger.network_.linear(tagger.network_.lstm(x, lengths=lengths)[0])
    inside = np.arange(5)[:, None] < lengths
    np.testing.assert_allclose(got[inside], wanted[inside], atol=2e-5)
