"""From ONNX: the LSTM, GRU and RNN nodes of a model as layers, and their outputs."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from fastrnn import checks
from fastrnn.cells.activations import ACTIVATIONS

from .operators import FUNCTIONS, OPERATORS, Operator

_DIRECTIONS = ("forward", "reverse", "bidirectional")
_IGNORED = {"hidden_size"}  # taken from the weights


class _Read(NamedTuple):
    """A node's layer, and how the node orders its sequences and axes."""

    layer: Any
    operator: Operator
    reverse: bool
    batch_first: bool


def load_layers(model, names: Sequence[str] | None = None, *, backend: str = "cpu") -> dict:
    """The LSTM, GRU and RNN nodes of a model as layers.

    Parameters
    ----------
    model : path or onnx.ModelProto
    names : sequence of str, optional
        Only these nodes. A node without a name is called by its first output.
    backend : {"cpu", "cuda", "reference"}

    Returns
    -------
    layers : dict of str to `LSTM`, `GRU` or `RNN`
        Initial states and lengths are arguments of a layer, not part of it.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, there is no such node, a weight is not a constant, or a node has what
        a layer cannot have; the message names the node and the attribute.
    TypeError
        An argument or a weight is of a wrong type.
    """
    model = _model(model)
    constants = _constants(model)
    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
            name = _name(node)
            found[next(filter(None, node.output)) if name in found else name] = node
    if not found:
        raise ValueError(f"model has no node of {', '.join(OPERATORS)} (subgraphs are not read)")
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of str, got {names!r}")
    unknown = sorted(set(names or ()) - found.keys())
    if unknown:
        raise ValueError(f"names must be of {sorted(found)}, got {unknown}")
    layers = {}
    for name in found if names is None else names:
        read = _layer(found[name], constants, backend)
        read.layer.batch_first = read.batch_first
        if read.reverse:
            raise ValueError(
                f"node {name}: direction 'reverse' is not one of a layer; turn x around, or use "
                f"run_node"
            )
        layers[name] = read.layer
    return layers


def run_node(model, inputs: Mapping[str, Any], *, backend: str = "cpu") -> list[np.ndarray]:
    """The outputs of a model of one LSTM, GRU or RNN node, in the node's order.

    Parameters
    ----------
    model : path or onnx.ModelProto
    inputs : mapping of str to array
        The model's inputs by name; weights may be inputs or constants.
    backend : {"cpu", "cuda", "reference"}

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        As for `load_layers`, or an input is missing or does not fit.
    """
    model = _model(model)
    nodes = [n for n in model.graph.node if n.op_type != "Constant"]
    if len(nodes) != 1 or nodes[0].op_type not in OPERATORS:
        raise ValueError(f"model must have one node of {', '.join(OPERATORS)}, got {len(nodes)}")
    (node,) = nodes
    values = _constants(model) | {k: checks.as_array(k, v) for k, v in inputs.items()}
    read = _layer(node, values, backend)
    x = _value(node, values, 0, "X", required=True)
    if x.ndim != 3:
        raise ValueError(f"node {_name(node)}: X must have 3 axes, got shape {x.shape}")
    x = x.swapaxes(0, 1) if read.batch_first else x  # [T, B, I]
    lengths = _value(node, values, 4, "sequence_lens")
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else lengths
    checks.lengths_array("sequence_lens", lengths, batch, steps)
    layer = read.layer
    if read.reverse:
        x = _reversed(x, lengths)
    y, state = layer(x, _initial(node, values, read, batch), lengths=lengths)
    y = _reversed(y, lengths) if read.reverse else y
    y = y.reshape(steps, batch, layer.directions, layer.hidden_size)
    outputs = [y.transpose(1, 0, 2, 3) if read.batch_first else y.transpose(0, 2, 1, 3)]
    for part in state if isinstance(state, tuple) else (state,):
        outputs.append(part.swapaxes(0, 1) if read.batch_first else part)
    return [out for name, out in zip(node.output, outputs, strict=False) if name]


def _initial(node: NodeProto, values: Mapping, read: _Read, batch: int):
    """The initial state of a layer, or None."""
    shape = (read.layer.directions, batch, read.layer.hidden_size)
    states = []
    for k, name in enumerate(("initial_h", "initial_c")[: read.operator.states]):
        value = _value(node, values, 5 + k, name)
        if value is not None:
            if value.ndim != 3:
                raise ValueError(f"node {_name(node)}: {name} must have 3 axes, got {value.shape}")
            value = value.swapaxes(0, 1) if read.batch_first else value
        states.append(value)
    if all(s is None for s in states):
        return None
    states = [np.zeros(shape) if s is None else s for s in states]
    return tuple(states) if len(states) > 1 else states[0]


def _reversed(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each sequence of x [T, B, .] from its own end to its start."""
    t = np.arange(len(x))[:, None]
    turned = np.where(t < lengths, lengths - 1 - t, t)
    return np.take_along_axis(x, turned[..., None], axis=0)


def _model(model) -> ModelProto:
    if isinstance(model, ModelProto):
        return model
    if not isinstance(model, str | PathLike):
        raise TypeError(f"model must be a path or an onnx.ModelProto, got {type(model).__name__}")
    try:
        return onnx.load(fspath(model))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {model}") from None
    except Exception as error:  # of protobuf, which has several
        raise ValueError(f"{model} is damaged or not an ONNX file: {error}") from error


def _constants(model: ModelProto) -> dict[str, np.ndarray]:
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    values[node.output[0]] = numpy_helper.to_array(attribute.t)
    return values


def _name(node: NodeProto) -> str:
    return node.name or next(name for name in node.output if name)


def _value(node: NodeProto, values: Mapping, index: int, what: str, *, required: bool = False):
    """An input of a node, None if it is left out."""
    name = node.input[index] if index < len(node.input) else ""
    if not name:
        if required:
            raise ValueError(f"node {_name(node)}: {what} is missing")
        return None
    if name not in values:
        raise ValueError(
            f"node {_name(node)}: {what} ({name}) must be given or a constant; if it is computed "
            f"from constants, export the model with constant folding"
        )
    return values[name]


def _layer(node: NodeProto, values: Mapping, backend: str) -> _Read:
    """The layer of a node, or ValueError for an attribute that none has."""
    operator, where = OPERATORS[node.op_type], f"node {_name(node)}"
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    direction = given.pop("direction", b"forward").decode().lower()
    batch_first = bool(given.pop("layout", 0))
    if direction not in _DIRECTIONS:
        raise ValueError(f"{where}: direction must be one of {', '.join(_DIRECTIONS)}")
    coupled, after = given.pop("input_forget", 0), given.pop("linear_before_reset", 0)
    lists = [given.pop(k, []) for k in ("activations", "activation_alpha", "activation_beta")]
    for name in given.keys() - _IGNORED:
        raise ValueError(f"{where}: the attribute {name} is not supported, got {given[name]!r}")
    w, r = (_value(node, values, k, what, required=True) for k, what in ((1, "W"), (2, "R")))
    b, p = _value(node, values, 3, "B"), _value(node, values, 7, "P")
    for what, value in (("W", w), ("R", r), ("B", b), ("P", p)):
        if value is not None and value.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{where}: {what} must be of floating-point numbers, got {value.dtype}")
    for what, value in (("W", w), ("R", r)):
        if value.ndim != 3:
            raise ValueError(f"{where}: {what} must have 3 axes, got shape {value.shape}")
    directions = 2 if direction == "bidirectional" else 1
    units, gates = r.shape[-1], len(operator.gates)
    for what, value, shape in (
        ("W", w, (directions, gates * units, w.shape[-1])),
        ("R", r, (directions, gates * units, units)),
        ("B", b, (directions, 2 * gates * units)),
        ("P", p, (directions, len(operator.peepholes) * units)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"{where}: {what} must have shape {shape}, got {value.shape}")
    if coupled and p is not None:
        raise ValueError(f"{where}: input_forget together with peepholes (P) is not supported")
    options: dict[str, Any] = {}
    if operator.layer.__name__ == "GRU" and not after:
        options["variant"] = "reset_before"
    elif coupled or p is not None:
        options["variant"] = "coupled" if coupled else "peephole"
    activations = _activations(where, operator, directions, *lists)
    if activations is not None:
        options["activations"] = activations
    layer = operator.layer(
        w.shape[-1], units, bias=b is not None, bidirectional=directions == 2,
        dtype="float64" if w.dtype == np.float64 else "float32", backend=backend, **options,
    )  # fmt: skip
    state = {}
    for d, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        order = [operator.gates.index(gate) for gate in layer.cell.gates]
        parts = {"weight_ih": w[d], "weight_hh": r[d]}
        if b is not None:
            parts["bias_ih"], parts["bias_hh"] = np.split(b[d], 2)
        for name, value in parts.items():
            blocks = value.reshape(gates, units, *value.shape[1:])
            state[name + suffix] = blocks[order].reshape(-1, *value.shape[1:])
        if p is not None:
            for name, value in zip(operator.peepholes, np.split(p[d], 3), strict=True):
                state[name + suffix] = value
    layer.load_state_dict(state)
    return _Read(layer, operator, direction == "reverse", batch_first)


def _activations(where: str, operator: Operator, directions: int, names, alphas, betas):
    """The activation functions as a layer names them, or None for the defaults."""
    if not names:
        return None
    count = len(operator.activations)
    if len(names) != count * directions:
        raise ValueError(
            f"{where}: activations must have {count * directions} names, got {len(names)}"
        )
    alphas, betas, found = list(alphas), list(betas), []
    for name in names:
        key = FUNCTIONS.get(name.decode().lower())
        if key is None:
            raise ValueError(f"{where}: activations has {name.decode()}, which is not supported")
        family, numbers = ACTIVATIONS[key], []
        for default, values in ((family.alpha, alphas), (family.beta, betas)):
            if default is not None:  # values are consumed by the functions that take them
                numbers.append(float(values.pop(0)) if values else default)
        found.append(f"{key}({', '.join(map(repr, numbers))})" if numbers else key)
    if found[:count] * directions != found:
        raise ValueError(f"{where}: activations must be the same in both directions, got {found}")
    defaults = [FUNCTIONS[name.lower()] for name in operator.activations]
    return None if found[:count] == defaults else tuple(found[:count])
