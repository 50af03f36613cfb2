"""The LSTM cell with peepholes (Gers & Schmidhuber 2000; ONNX's input P): gates also see c.

i = sigmoid(z_i + w_ci * c_prev)   f = sigmoid(z_f + w_cf * c_prev)   g = tanh(z_g)
c = f * c_prev + i * g
o = sigmoid(z_o + w_co * c)
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
        z_i, z_f, z_g, z_o = z
        w_ci, w_cf, w_co = p
        c_prev = state[1]
        i = sigmoid(fma(w_ci, c_prev, z_i))
        f = sigmoid(fma(w_cf, c_prev, z_f))
        g = tanh(z_g)
        c = fma(f, c_prev, i * g)
        o = sigmoid(fma(w_co, c, z_o))
        return (i, f, g, o), (o * squash(c), c)

    def backward(saved, state, p, dstate):
        i, f, g, o = saved
        w_ci, w_cf, w_co = p
        c_prev = state[1]
        dh, dc = dstate
        c = fma(f, c_prev, i * g)
        squashed = squash(c)
        dz_o = dh * squashed * d_sigmoid(o)
        dc = fma(w_co, dz_o, fma(dh * o, d_squash(squashed), dc))
        dz_i = dc * g * d_sigmoid(i)
        dz_f = dc * c_prev * d_sigmoid(f)
        dz_g = dc * i * d_tanh(g)
        dc_prev = fma(w_ci, dz_i, fma(w_cf, dz_f, dc * f))
        dp = dz_i * c_prev, dz_f * c_prev, dz_o * c
        return (dz_i, dz_f, dz_g, dz_o), (0.0, dc_prev), dp

    return Equations(forward, backward)


def reference(gate, candidate, output) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh), (squash, d_squash) = map(
        oracle.function, (gate, candidate, output)
    )

    def forward(x, state, w):
        h, c = state
        z = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        i, f = sigmoid(z_i + w["weight_ci"] * c), sigmoid(z_f + w["weight_cf"] * c)
        g = tanh(z_g)
        c_new = f * c + i * g
        o = sigmoid(z_o + w["weight_co"] * c_new)
        return (o * squash(c_new), c_new), (i, f, g, o, c_new)

    def backward(x, state, w, cache, dstate):
        h_prev, c_prev = state
        i, f, g, o, c = cache
        dh, dc = dstate
        dz_o = d_sigmoid(o, dh * squash(c))
        dc = dc + d_squash(squash(c), dh * o) + dz_o * w["weight_co"]
        dz_i = d_sigmoid(i, dc * g)
        dz_f = d_sigmoid(f, dc * c_prev)
        dz_g = d_tanh(g, dc * i)
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        db = dz.sum(axis=0)
        dw = {
            "weight_ih": dz.T @ x,
            "weight_hh": dz.T @ h_prev,
            "bias_ih": db,
            "bias_hh": db,
            "weight_ci": (dz_i * c_prev).sum(axis=0),
            "weight_cf": (dz_f * c_prev).sum(axis=0),
            "weight_co": (dz_o * c).sum(axis=0),
        }
        dc_prev = dc * f + dz_i * w["weight_ci"] + dz_f * w["weight_cf"]
        return dz @ w["weight_ih"], (dz @ w["weight_hh"], dc_prev), dw

    return Reference(forward, backward)


LSTM_PEEPHOLE = LSTM._replace(
    name="lstm_peephole",
    equations=equations,
    reference=reference,
    unit_parameters=("weight_ci", "weight_cf", "weight_co"),
)
