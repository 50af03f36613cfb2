"""ONNX Runtime: a second witness for cells and activations that PyTorch does not have."""

import numpy as np
import pytest

from fastrnn.layers import GRU, LSTM, RNN
from helpers import check_close

pytestmark = pytest.mark.slow
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTHS = np.array([4, 6, 1, 6, 3])


def by_onnx(layer, operator, order, x, **attributes):
    """``(y, states)`` of a bidirectional layer; ``order`` are its gates in ONNX's order."""
    h, gates = layer.hidden_size, len(layer.cell.gates)
    p = layer.state_dict()

    def stacked(name, blocks=order):
        parts = [p[f"{name}_l0{suffix}"] for suffix in ("", "_reverse")]
        return np.stack([
            np.concatenate([part[k * h : (k + 1) * h] for k in blocks]) for part in parts
        ])  # fmt: skip

    weights = {
        "W": stacked("weight_ih"), "R": stacked("weight_hh"),
        "B": np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1),
    }  # fmt: skip
    inputs = ["X", "W", "R", "B", "lengths"]
    if layer.variant == "peephole":
        names = ("weight_ci", "weight_co", "weight_cf")
        weights["P"] = np.concatenate([stacked(n, [0]) for n in names], axis=1)
        inputs += ["", "", "P"]
    if layer.variant == "coupled":  # ONNX has rows for the forget gate that it does not use
        for name, value in weights.items():
            i, o, g = np.split(value, 2 * gates if name == "B" else gates, axis=1)[:gates]
            parts = [i, o, np.zeros_like(i), g]
            if name == "B":
                i2, o2, g2 = np.split(value, 2 * gates, axis=1)[gates:]
                parts += [i2, o2, np.zeros_like(i2), g2]
            weights[name] = np.concatenate(parts, axis=1)
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(layer.cell.states)]
    node = onnx.helper.make_node(
        operator, inputs, outputs, direction="bidirectional", hidden_size=h, **attributes
    )
    kinds = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [node], "cell",
        [
            onnx.helper.make_tensor_value_info("X", kinds.FLOAT, x.shape),
            onnx.helper.make_tensor_value_info("lengths", kinds.INT32, LENGTHS.shape),
        ],
        [onnx.helper.make_tensor_value_info(name, kinds.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {"X": x.astype(np.float32), "lengths": LENGTHS.astype(np.int32)}
    y, *states = session.run(None, feed)
    return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1), states


@pytest.mark.parametrize(
    ("make", "options", "operator", "order", "attributes"),
    [
        (LSTM, {"variant": "peephole"}, "LSTM", (0, 3, 1, 2), {}),
        (LSTM, {"variant": "coupled"}, "LSTM", (0, 2, 1), {"input_forget": 1}),
        (GRU, {"variant": "reset_before"}, "GRU", (1, 0, 2), {"linear_before_reset": 0}),
        (
            LSTM, {"activations": ("hard_sigmoid", "tanh", "softsign")}, "LSTM", (0, 3, 1, 2),
            {"activations": ["HardSigmoid", "Tanh", "Softsign"] * 2},
        ),
        (
            GRU, {"activations": ("sigmoid", "leaky_relu(0.2)")}, "GRU", (1, 0, 2),
            {
                "linear_before_reset": 1, "activations": ["Sigmoid", "LeakyRelu"] * 2,
                "activation_alpha": [0.2] * 2,
            },
        ),
        (RNN, {"activations": ("elu(0.5)",)}, "RNN", (0,),
         {"activations": ["Elu"] * 2, "activation_alpha": [0.5] * 2}),
        (RNN, {"activations": ("scaled_tanh(1.5, 0.5)",)}, "RNN", (0,),
         {
             "activations": ["ScaledTanh"] * 2, "activation_alpha": [1.5] * 2,
             "activation_beta": [0.5] * 2,
         }),
        (RNN, {"activations": ("softplus",)}, "RNN", (0,), {"activations": ["Softplus"] * 2}),
        (RNN, {"activations": ("thresholded_relu(0.1)",)}, "RNN", (0,),
         {"activations": ["ThresholdedRelu"] * 2, "activation_alpha": [0.1] * 2}),
        (RNN, {"activations": ("affine(0.5, 0.1)",)}, "RNN", (0,),
         {
             "activations": ["Affine"] * 2, "activation_alpha": [0.5] * 2,
             "activation_beta": [0.1] * 2,
         }),
    ],
)  # fmt: skip
def test_agrees_with_onnxruntime(rng, make, options, operator, order, attributes):
    layer = make(5, 7, bidirectional=True, seed=0, **options)
    values = layer.state_dict()
    layer.load_state_dict({k: 0.4 * rng.standard_normal(v.shape) for k, v in values.items()})
    x = rng.standard_normal((6, len(LENGTHS), 5))
    y, state = layer(x, lengths=LENGTHS)
    wanted, states = by_onnx(layer, operator, order, x, **attributes)
    check_close(y, wanted, "float32", "y", least=1.0)
    for got, theirs in zip(state if isinstance(state, tuple) else (state,), states, strict=True):
        check_close(got, theirs, "float32", "state", least=1.0)
