"""The LSTM cell (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

The equations of ``torch.nn.LSTM``, gate order i, f, g, o:

    i = sigmoid(z_i)   f = sigmoid(z_f)   g = tanh(z_g)   o = sigmoid(z_o)
    c = f * c_prev + i * g
    h = o * tanh(c)
"""

import numpy as np

from . import oracle
from .activations import fma
from .spec import Cell, Equations, Reference


def equations(gate, candidate, output) -> Equations:
    sigmoid, d_sigmoid = gate
    tanh, d_tanh = candidate
    squash, d_squash = output

    def forward(z, state, p):
        z_i, z_f, z_g, z_o = z
        i = sigmoid(z_i)
        f = sigmoid(z_f)
        g = tanh(z_g)
        o = sigmoid(z_o)
        c = fma(f, state[1], i * g)
        return (i, f, g, o), (o * squash(c), c)

    def backward(saved, state, p, dstate):
        i, f, g, o = saved
        c_prev = state[1]
        dh, dc = dstate
        # c is computed again rather than kept.
        squashed = squash(fma(f, c_prev, i * g))
        do = dh * squashed
        dc = fma(dh * o, d_squash(squashed), dc)
        dz_i = dc * g * d_sigmoid(i)
        dz_f = dc * c_prev * d_sigmoid(f)
        dz_g = dc * i * d_tanh(g)
        dz_o = do * d_sigmoid(o)
        return (dz_i, dz_f, dz_g, dz_o), (0.0, dc * f), ()

    return Equations(forward, backward)


def reference(gate, candidate, output) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh), (squash, d_squash) = map(
        oracle.function, (gate, candidate, output)
    )

    def forward(x, state, w):
        h, c = state
        z = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
        c_new = f * c + i * g
        return (o * squash(c_new), c_new), (i, f, g, o, c_new)

    def backward(x, state, w, cache, dstate):
        h_prev, c_prev = state
        i, f, g, o, c = cache
        dh, dc = dstate
        dc = dc + d_squash(squash(c), dh * o)
        dz_i = d_sigmoid(i, dc * g)
        dz_f = d_sigmoid(f, dc * c_prev)
        dz_g = d_tanh(g, dc * i)
        dz_o = d_sigmoid(o, dh * squash(c))
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        db = dz.sum(axis=0)
        dw = {"weight_ih": dz.T @ x, "weight_hh": dz.T @ h_prev, "bias_ih": db, "bias_hh": db}
        return dz @ w["weight_ih"], (dz @ w["weight_hh"], dc * f), dw

    return Reference(forward, backward)


GATES = ("i", "f", "g", "o")
LSTM = Cell(
    name="lstm",
    gates=GATES,
    states=("h", "c"),
    accumulators=4,
    input_gates=GATES,
    recurrent_gates=GATES,
    equations=equations,
    activations=("sigmoid", "tanh", "tanh"),
    reference=reference,
    initial_biases=(("f", 1.0),),
)
