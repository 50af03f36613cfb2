"""The GRU cell (Cho et al. 2014), with the reset gate after the product (as in cuDNN).

The equations of ``torch.nn.GRU``, gate order r, z, n. The update gate z is called u here, as z is
the sum of both products; x_n and h_n, the two products of the candidate, stay apart:

    r = sigmoid(z_r)   u = sigmoid(z_u)   n = tanh(x_n + r * h_n)
    h = (1 - u) * n + u * h_prev
"""

import numpy as np

from . import oracle
from .activations import fma
from .spec import Cell, Equations, Reference


def equations(gate, candidate) -> Equations:
    sigmoid, d_sigmoid = gate
    tanh, d_tanh = candidate

    def forward(z, state, p):
        x_n, z_r, z_u, h_n = z
        h_prev = state[0]
        r = sigmoid(z_r)
        u = sigmoid(z_u)
        n = tanh(fma(r, h_n, x_n))
        return (n, r, u, h_n), (fma(u, h_prev - n, n),)

    def backward(saved, state, p, dstate):
        n, r, u, h_n = saved
        h_prev, dh = state[0], dstate[0]
        dx_n = dh * (1.0 - u) * d_tanh(n)
        dz_r = dx_n * h_n * d_sigmoid(r)
        dz_u = dh * (h_prev - n) * d_sigmoid(u)
        return (dx_n, dz_r, dz_u, dx_n * r), (dh * u,), ()

    return Equations(forward, backward)


def reference(gate, candidate) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh) = map(oracle.function, (gate, candidate))

    def forward(x, state, w):
        (h,) = state
        x_r, x_z, x_n = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
        h_r, h_z, h_n = np.split(h @ w["weight_hh"].T + w["bias_hh"], 3, axis=1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h,), (r, z, n, h_n)

    def backward(x, state, w, cache, dstate):
        (h_prev,), (dh,) = state, dstate
        r, z, n, h_n = cache
        da = d_tanh(n, dh * (1 - z))
        dz_r = d_sigmoid(r, da * h_n)
        dz_z = d_sigmoid(z, dh * (h_prev - n))
        dz_x = np.concatenate([dz_r, dz_z, da], axis=1)
        dz_h = np.concatenate([dz_r, dz_z, da * r], axis=1)
        dw = {
            "weight_ih": dz_x.T @ x,
            "weight_hh": dz_h.T @ h_prev,
            "bias_ih": dz_x.sum(axis=0),
            "bias_hh": dz_h.sum(axis=0),
        }
        return dz_x @ w["weight_ih"], (dz_h @ w["weight_hh"] + dh * z,), dw

    return Reference(forward, backward)


# The accumulators are x_n, z_r, z_u, h_n: what belongs to x and to h is three neighbours each.
GRU = Cell(
    name="gru",
    gates=("r", "z", "n"),
    states=("h",),
    accumulators=4,
    input_gates=("n", "r", "z"),
    recurrent_gates=("r", "z", "n"),
    equations=equations,
    activations=("sigmoid", "tanh"),
    reference=reference,
)
