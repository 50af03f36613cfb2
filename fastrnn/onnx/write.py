"""To ONNX: layers and models as files that any ONNX runtime can run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastrnn.cells.activations import ACTIVATIONS, parse
from fastrnn.checkpoint import write_bytes
from fastrnn.layers import Linear
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.softmax import Softmax
from fastrnn.models import LanguageModel, Tagger
from fastrnn.models.bilstm import BiLSTMTagger

from .operators import NAMES, OPERATORS, OPSET

_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
_SUPPORTED = {  # cells that are an operator of ONNX, with its attributes
    "lstm": {}, "lstm_peephole": {}, "lstm_coupled": {"input_forget": 1},
    "gru": {"linear_before_reset": 1}, "gru_reset_before": {"linear_before_reset": 0},
    "rnn": {},
}  # fmt: skip


def save(model, path) -> None:
    """Write a layer or a model as an ONNX file, with batch and length left open.

    Parameters
    ----------
    model : LSTM, GRU, RNN, LanguageModel or Tagger
        Inputs and outputs, T steps, B sequences:

        - a layer: ``x [T, B, I]`` ([B, T, I] if ``batch_first``), ``lengths [B]`` (int32) and the
          initial states ``h_0`` and ``c_0``, to ``y``, ``h_n`` and ``c_n``;
        - a language model: ``ids [T, B]`` (int64), ``h_0`` and ``c_0``, to ``logits [T, B, V]``,
          ``h_n`` and ``c_n``;
        - a tagger's network: the features ``x [T, B, F]`` of its tokens and ``lengths [B]`` to
          ``scores [T, B, K]``, without the transitions of a CRF.
    path : path

    Notes
    -----
    Float64 is valid in ONNX, but onnxruntime has no LSTM for it.

    Raises
    ------
    ValueError
        ONNX has no operator for the cell or the softmax, or the layer uses zoneout; the message
        names it.
    TypeError
        ``model`` is none of these.
    """
    graph = _Graph()
    if isinstance(model, Recurrent):
        _write_layer(graph, model)
    elif isinstance(model, LanguageModel):
        _write_language_model(graph, model)
    elif isinstance(model, Tagger | BiLSTMTagger):
        network = model.network_ if isinstance(model, Tagger) else model
        _write_tagger(graph, network)
    else:
        raise TypeError(
            f"model must be an LSTM, GRU, RNN, LanguageModel or Tagger, got {type(model).__name__}"
        )
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "fastrnn", graph.inputs, graph.outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fastrnn", ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(proto, full_check=True)
    write_bytes(Path(path), proto.SerializeToString())


class _Graph:
    """What a model is made of, so far."""

    def __init__(self):
        self.nodes, self.inputs, self.outputs, self.constants = [], [], [], []

    def input(self, name: str, kind, shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind, shape) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, name: str, value) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs, outputs, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, outputs, outputs[0], **attributes))
        return outputs[0]


def _states(graph: _Graph, layer: Recurrent) -> tuple[list[str], list[str]]:
    """The inputs and the outputs for the states."""
    kind, rows = _TYPES[layer.dtype.name], layer.num_layers * layer.directions
    shape = [rows, "B", layer.hidden_size]
    return (
        [graph.input(f"{s}_0", kind, shape) for s in layer.cell.states],
        [graph.output(f"{s}_n", kind, shape) for s in layer.cell.states],
    )


def _write_layer(graph: _Graph, layer: Recurrent) -> None:
    kind, width = _TYPES[layer.dtype.name], layer.directions * layer.hidden_size
    axes = ["B", "T"] if layer.batch_first else ["T", "B"]
    x = graph.input("x", kind, [*axes, layer.input_size])
    lengths = graph.input("lengths", TensorProto.INT32, ["B"])
    initial, final = _states(graph, layer)
    if layer.batch_first:
        x = graph.node("Transpose", [x], ["x_by_step"], perm=[1, 0, 2])
    y = _recurrent(graph, layer, x, lengths, initial, final)
    if layer.batch_first:
        graph.node("Transpose", [y], ["y"], perm=[1, 0, 2])
    else:
        graph.node("Identity", [y], ["y"])
    graph.output("y", kind, [*axes, width])


def _write_language_model(graph: _Graph, model: LanguageModel) -> None:
    kind, size = _TYPES[model.parameters.dtype.name], len(model.vocabulary)
    ids = graph.input("ids", TensorProto.INT64, ["T", "B"])
    if not isinstance(model.softmax, Softmax):
        raise ValueError("ONNX has no adaptive softmax")
    initial, final = _states(graph, model.recurrent)
    if model.embedding is not None:
        table = model.parameters["embedding.weight"]
    else:  # a one-hot input is a row of the identity
        table = np.eye(size, dtype=model.parameters.dtype)
    x = graph.node("Gather", [graph.constant("embedding.weight", table), ids], ["x"])
    h = _recurrent(graph, model.recurrent, x, "", initial, final)
    _linear(graph, model.softmax, h, "logits")
    graph.output("logits", kind, ["T", "B", size])


def _write_tagger(graph: _Graph, network: BiLSTMTagger) -> None:
    kind, lstm = _TYPES[network.parameters.dtype.name], network.lstm
    x = graph.input("x", kind, ["T", "B", lstm.input_size])
    lengths = graph.input("lengths", TensorProto.INT32, ["B"])
    h = _recurrent(graph, lstm, x, lengths, [], [])
    _linear(graph, network.linear, h, "scores")
    graph.output("scores", kind, ["T", "B", network.linear.out_features])


def _linear(graph: _Graph, layer: Linear, x: str, out: str) -> None:
    weight = graph.constant("linear.weight", layer.parameters["weight"].T)
    product = graph.node("MatMul", [x, weight], ["product"])
    graph.node("Add", [product, graph.constant("linear.bias", layer.parameters["bias"])], [out])


def _recurrent(graph: _Graph, layer: Recurrent, x: str, lengths: str, initial, final) -> str:
    """The nodes of all layers on x [T, B, I]; the name of y [T, B, D H]."""
    if layer.cell.name not in _SUPPORTED:
        raise ValueError(f"ONNX has no operator for the cell {layer.cell.name}")
    if any(layer.zoneout):
        raise ValueError(f"ONNX has no zoneout, got {layer.zoneout}")
    kind = layer._family.upper()
    parts = {s: _split(graph, s, layer) for s in initial}
    ends: list[list[str]] = [[] for _ in final]
    shape = graph.constant("by_direction", np.array([0, 0, -1]))
    for number in range(layer.num_layers):
        own = [parts[s][number] for s in initial] or [""] * len(layer.cell.states)
        inputs = [x, *_weights(graph, layer, kind, number), lengths, *own]
        peepholes = _peepholes(graph, layer, kind, number)
        outputs = [f"y_l{number}", *(f"{s}_n_l{number}" for s in layer.cell.states)]
        graph.node(
            kind, inputs + peepholes, outputs if final else outputs[:1],
            hidden_size=layer.hidden_size,
            direction="bidirectional" if layer.bidirectional else "forward",
            **_SUPPORTED[layer.cell.name], **_activations(layer, kind),
        )  # fmt: skip
        for end, name in zip(ends, outputs[1:], strict=False):
            end.append(name)
        side = graph.node("Transpose", outputs[:1], [f"side_l{number}"], perm=[0, 2, 1, 3])
        x = graph.node("Reshape", [side, shape], [f"x_l{number + 1}"])
    for names, name in zip(ends, final, strict=True):
        graph.node("Concat", names, [name], axis=0)
    return x


def _split(graph: _Graph, state: str, layer: Recurrent) -> list[str]:
    """The part of an initial state for each layer."""
    if layer.num_layers == 1:
        return [state]
    names = [f"{state}_l{k}" for k in range(layer.num_layers)]
    sizes = graph.constant(f"{state}_sizes", np.full(layer.num_layers, layer.directions))
    graph.node("Split", [state, sizes], names, axis=0)
    return names


def _weights(graph: _Graph, layer: Recurrent, kind: str, number: int) -> list[str]:
    """The inputs W, R and B."""
    suffixes, gates = layer._suffixes(number), OPERATORS[kind].gates
    own = layer.cell.gates

    def ordered(name: str):
        parts = []
        for suffix in suffixes:
            value = layer.parameters[name + suffix]
            blocks = value.reshape(len(own), -1, *value.shape[1:])
            # With a coupled forget gate ONNX still has a place for its weights, which it ignores.
            zero = np.zeros_like(blocks[0])
            of = [blocks[own.index(g)] if g in own else zero for g in gates]
            parts.append(np.concatenate(of))
        return np.stack(parts)

    names = [
        graph.constant(f"{what}_l{number}", ordered(name))
        for what, name in (("W", "weight_ih"), ("R", "weight_hh"))
    ]
    if not layer.bias:
        return [*names, ""]
    both = np.concatenate([ordered("bias_ih"), ordered("bias_hh")], axis=1)
    return [*names, graph.constant(f"B_l{number}", both)]


def _peepholes(graph: _Graph, layer: Recurrent, kind: str, number: int) -> list[str]:
    if layer.cell.name != "lstm_peephole":
        return []
    rows = [
        np.concatenate([layer.parameters[name + suffix] for name in OPERATORS[kind].peepholes])
        for suffix in layer._suffixes(number)
    ]
    return [graph.constant(f"P_l{number}", np.stack(rows))]


def _activations(layer: Recurrent, kind: str) -> dict[str, Any]:
    """The attributes, none for ONNX's defaults."""
    parsed = [parse(name) for name in layer.cell.activations] * layer.directions
    names = [NAMES[name] for name, _ in parsed]
    if names == list(OPERATORS[kind].activations) * layer.directions:
        return {}
    alphas, betas = [], []
    for name, values in parsed:
        numbers, family = list(values), ACTIVATIONS[name]
        alphas += [numbers.pop(0)] if family.alpha is not None else []
        betas += [numbers.pop(0)] if family.beta is not None else []
    attributes: dict[str, Any] = {"activations": names}
    attributes |= {"activation_alpha": alphas} if alphas else {}
    return attributes | ({"activation_beta": betas} if betas else {})
