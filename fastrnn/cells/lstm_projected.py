"""The LSTM cell with a recurrent projection (Sak et al. 2014), as ``torch.nn.LSTM(proj_size=P)``.

Gate order i, f, g, o; h has P numbers, c has H:

    i = sigmoid(z_i)   f = sigmoid(z_f)   g = tanh(z_g)   o = sigmoid(z_o)
    c = f * c_prev + i * g
    h = W_hr (o * tanh(c))
"""

import numpy as np

from . import oracle
from .lstm import LSTM, equations
from .spec import Parameter, Program, Reference


def program(gate, candidate, output) -> Program:
    lstm_forward, lstm_backward = equations(gate, candidate, output)

    def cell(a_i, a_f, a_g, a_o, p_i, p_f, p_g, p_o, c_prev):
        z = a_i + p_i, a_f + p_f, a_g + p_g, a_o + p_o
        saved, new = lstm_forward(z, (c_prev, c_prev), ())
        return saved[0], saved[1], saved[2], saved[3], new[0], new[1]

    def cell_back(i, f, g, o, c_prev, dm, dc):
        dz, dprevious, _ = lstm_backward((i, f, g, o), (c_prev, c_prev), (), (dm, dc))
        return dz[0], dz[1], dz[2], dz[3], dprevious[1]

    def add(a, b):
        return (a + b,)

    def prepare(ops, x, w):
        bias = None
        if "bias_ih" in w:
            (bias,) = ops.elementwise(add, 1, w["bias_ih"], w["bias_hh"])
            bias = bias.reshape(-1)
        return ops.project(x, bias), None

    def unprepare(ops, da, w, saved):
        return da, {"bias_ih": da, "bias_hh": da}

    def forward(ops, a, state, w):
        h, c = state
        p = ops.product("weight_hh", h)
        gates = [(x, k) for x in (a, p) for k in range(4)]
        i, f, g, o, m, c_new = ops.elementwise(cell, 6, *gates, c)
        sources = {"weight_hh": h, "weight_hr": m}
        return [ops.product("weight_hr", m), c_new], (i, f, g, o), sources

    def backward(ops, state, w, saved, dstate):
        dh, dc = dstate
        dm = ops.product_backward("weight_hr", dh)
        *dz, dc_prev = ops.elementwise(cell_back, 5, *saved, state[1], dm, dc)
        da = ops.join(dz)
        dh_prev = ops.product_backward("weight_hh", da)
        return da, [dh_prev, dc_prev], {"weight_hh": da, "weight_hr": dh}, {}

    return Program(prepare, unprepare, forward, backward)


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
        return ((o * squash(c_new)) @ w["weight_hr"].T, c_new), (i, f, g, o, c_new)

    def backward(x, state, w, cache, dstate):
        h_prev, c_prev = state
        i, f, g, o, c = cache
        dh, dc = dstate
        dm = dh @ w["weight_hr"]
        dc = dc + d_squash(squash(c), dm * o)
        dz_i = d_sigmoid(i, dc * g)
        dz_f = d_sigmoid(f, dc * c_prev)
        dz_g = d_tanh(g, dc * i)
        dz_o = d_sigmoid(o, dm * squash(c))
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        db = dz.sum(axis=0)
        dw = {
            "weight_ih": dz.T @ x,
            "weight_hh": dz.T @ h_prev,
            "bias_ih": db,
            "bias_hh": db,
            "weight_hr": dh.T @ (o * squash(c)),
        }
        return dz @ w["weight_ih"], (dz @ w["weight_hh"], dc * f), dw

    return Reference(forward, backward)


LSTM_PROJECTED = LSTM._replace(
    name="lstm_projected",
    program=program,
    reference=reference,
    parameters=(Parameter("weight_hr", ("P", "H"), "glorot"),),
)
