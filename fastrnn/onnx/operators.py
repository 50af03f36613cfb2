"""How the operators LSTM, GRU and RNN of ONNX name and order what cells have."""

from typing import Any, NamedTuple

from fastrnn.cells.activations import ACTIVATIONS
from fastrnn.layers import GRU, LSTM, RNN

OPSET = 17


class Operator(NamedTuple):
    """An operator of ONNX."""

    layer: Any
    gates: tuple[str, ...]  # of `Cell.gates`, in the order of its weights
    peepholes: tuple[str, ...]  # parameters, in the order of its input P
    activations: tuple[str, ...]  # defaults
    states: int


OPERATORS = {
    "LSTM": Operator(
        LSTM, ("i", "o", "f", "g"), ("weight_ci", "weight_co", "weight_cf"),
        ("Sigmoid", "Tanh", "Tanh"), 2,
    ),
    "GRU": Operator(GRU, ("z", "r", "n"), (), ("Sigmoid", "Tanh"), 1),
    "RNN": Operator(RNN, ("h",), (), ("Tanh",), 1),
}  # fmt: skip

# "HardSigmoid" is our "hard_sigmoid"; ONNX compares without case.
FUNCTIONS = {name.replace("_", ""): name for name in ACTIVATIONS}
NAMES = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "affine": "Affine",
    "leaky_relu": "LeakyRelu", "thresholded_relu": "ThresholdedRelu", "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid", "elu": "Elu", "softsign": "Softsign", "softplus": "Softplus",
}  # fmt: skip
