"""The LSTM cell with coupled input and forget gate (Greff et al. 2017; ONNX's input_forget).

Gate order i, g, o:

    i = sigmoid(z_i)   f = 1 - i   g = tanh(z_g)   o = sigmoid(z_o)
    c = f * c_prev + i * g
    h = o * tanh(c)
"""

import numpy as np

from . import oracle
from .activations import fma
from .lstm import LSTM
from .spec import Equations, Reference


def equations(gate, candidate, output) -> Equations:
    sigmoid, d_sigmoid = gate
    tanh, d_tanh = candidate
    squash, d_squash = output

    def forward(z, state, p):
        z_i, z_g, z_o = z
        i = sigmoid(z_i)
        g = tanh(z_g)
        o = sigmoid(z_o)
        c = fma(i, g - state[1], state[1])
        return (i, g, o), (o * squash(c), c)

    def backward(saved, state, p, dstate):
        i, g, o = saved
        c_prev = state[1]
        dh, dc = dstate
        squashed = squash(fma(i, g - c_prev, c_prev))
        dc = fma(dh * o, d_squash(squashed), dc)
        dz_i = dc * (g - c_prev) * d_sigmoid(i)
        dz_g = dc * i * d_tanh(g)
        dz_o = dh * squashed * d_sigmoid(o)
        return (dz_i, dz_g, dz_o), (0.0, dc * (1.0 - i)), ()

    return Equations(forward, backward)


def reference(gate, candidate, output) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh), (squash, d_squash) = map(
        oracle.function, (gate, candidate, output)
    )

    def forward(x, state, w):
        h, c = state
        z = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        z_i, z_g, z_o = np.split(z, 3, axis=1)
        i, g, o = sigmoid(z_i), tanh(z_g), sigmoid(z_o)
        c_new = (1 - i) * c + i * g
        return (o * squash(c_new), c_new), (i, g, o, c_new)

    def backward(x, state, w, cache, dstate):
        h_prev, c_prev = state
        i, g, o, c = cache
        dh, dc = dstate
        dc = dc + d_squash(squash(c), dh * o)
        dz_i = d_sigmoid(i, dc * (g - c_prev))
        dz_g = d_tanh(g, dc * i)
        dz_o = d_sigmoid(o, dh * squash(c))
        dz = np.concatenate([dz_i, dz_g, dz_o], axis=1)
        db = dz.sum(axis=0)
        dw = {"weight_ih": dz.T @ x, "weight_hh": dz.T @ h_prev, "bias_ih": db, "bias_hh": db}
        return dz @ w["weight_ih"], (dz @ w["weight_hh"], dc * (1 - i)), dw

    return Reference(forward, backward)


GATES = ("i", "g", "o")
LSTM_COUPLED = LSTM._replace(
    name="lstm_coupled",
    gates=GATES,
    accumulators=3,
    input_gates=GATES,
    recurrent_gates=GATES,
    equations=equations,
    reference=reference,
    initial_biases=(("i", -1.0),),  # the forget gate begins as that of the LSTM
)
