"""The LSTM cell with cell clipping (Sak et al. 2014): c stays in ``[-cell_clip, cell_clip]``.

    i = sigmoid(z_i)   f = sigmoid(z_f)   g = tanh(z_g)   o = sigmoid(z_o)
    c = clip(f * c_prev + i * g)
    h = o * tanh(c)

The gradient of what was clipped is 0.
"""

import numpy as np

from . import oracle
from .activations import clamp, fma, where_positive
from .lstm import LSTM
from .spec import Equations, Reference


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
        c = clamp(fma(f, state[1], i * g), p[0])
        return (i, f, g, o), (o * squash(c), c)

    def backward(saved, state, p, dstate):
        i, f, g, o = saved
        c_prev, limit = state[1], p[0]
        dh, dc = dstate
        raw = fma(f, c_prev, i * g)
        squashed = squash(clamp(raw, limit))
        dc = fma(dh * o, d_squash(squashed), dc)
        dc = where_positive(limit * limit - raw * raw, dc)
        dz_i = dc * g * d_sigmoid(i)
        dz_f = dc * c_prev * d_sigmoid(f)
        dz_g = dc * i * d_tanh(g)
        dz_o = dh * squashed * d_sigmoid(o)
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
        raw = f * c + i * g
        c_new = np.clip(raw, -w["cell_clip"], w["cell_clip"])
        return (o * squash(c_new), c_new), (i, f, g, o, raw, c_new)

    def backward(x, state, w, cache, dstate):
        h_prev, c_prev = state
        i, f, g, o, raw, c = cache
        dh, dc = dstate
        dc = np.where(np.abs(raw) < w["cell_clip"], dc + d_squash(squash(c), dh * o), 0)
        dz_i = d_sigmoid(i, dc * g)
        dz_f = d_sigmoid(f, dc * c_prev)
        dz_g = d_tanh(g, dc * i)
        dz_o = d_sigmoid(o, dh * squash(c))
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        db = dz.sum(axis=0)
        dw = {"weight_ih": dz.T @ x, "weight_hh": dz.T @ h_prev, "bias_ih": db, "bias_hh": db}
        return dz @ w["weight_ih"], (dz @ w["weight_hh"], dc * f), dw

    return Reference(forward, backward)


LSTM_CLIPPED = LSTM._replace(
    name="lstm_clipped",
    equations=equations,
    reference=reference,
    unit_constants=("cell_clip",),
)
