"""The GRU cell as Cho et al. (2014) wrote it: the reset gate before the product.

Keras's ``reset_after=False``, ONNX's ``linear_before_reset=0``; gate order r, z, n:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z likewise
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
    h = (1 - z) * n + z * h_prev
"""

import numpy as np

from . import oracle
from .activations import fma
from .gru import GRU
from .spec import Program, Reference

RESET_UPDATE, CANDIDATE = "weight_hh:0:2", "weight_hh:2:3"


def program(gate, candidate) -> Program:
    sigmoid, d_sigmoid = gate
    tanh, d_tanh = candidate

    def gates(a_r, a_z, p_r, p_z, h):
        r = sigmoid(a_r + p_r)
        return r, sigmoid(a_z + p_z), r * h

    def output(a_n, p_n, z, h):
        n = tanh(a_n + p_n)
        return n, fma(z, h - n, n)

    def output_back(z, n, h, dh):
        return dh * (1.0 - z) * d_tanh(n), dh * (h - n) * d_sigmoid(z), dh * z

    def gates_back(ds, r, h, dh):
        return ds * h * d_sigmoid(r), fma(ds, r, dh)

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
        (h,) = state
        p = ops.product(RESET_UPDATE, h)
        r, z, s = ops.elementwise(gates, 3, (a, 0), (a, 1), (p, 0), (p, 1), h)
        q = ops.product(CANDIDATE, s)
        n, h_new = ops.elementwise(output, 2, (a, 2), q, z, h)
        return [h_new], (r, z, n), {RESET_UPDATE: h, CANDIDATE: s}

    def backward(ops, state, w, saved, dstate):
        (h,), (dh,), (r, z, n) = state, dstate, saved
        dn, dz, past = ops.elementwise(output_back, 3, z, n, h, dh)
        ds = ops.product_backward(CANDIDATE, dn)
        dr, past = ops.elementwise(gates_back, 2, ds, r, h, past)
        drz = ops.join([dr, dz])
        (dprevious,) = ops.elementwise(add, 1, ops.product_backward(RESET_UPDATE, drz), past)
        return ops.join([dr, dz, dn]), [dprevious], {RESET_UPDATE: drz, CANDIDATE: dn}, {}

    return Program(prepare, unprepare, forward, backward)


def reference(gate, candidate) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh) = map(oracle.function, (gate, candidate))

    def forward(x, state, w):
        (h,) = state
        w_r, w_z, w_n = np.split(w["weight_hh"], 3)
        b_r, b_z, b_n = np.split(w["bias_hh"], 3)
        x_r, x_z, x_n = np.split(x @ w["weight_ih"].T + w["bias_ih"], 3, axis=1)
        r, z = sigmoid(x_r + h @ w_r.T + b_r), sigmoid(x_z + h @ w_z.T + b_z)
        n = tanh(x_n + (r * h) @ w_n.T + b_n)
        return ((1 - z) * n + z * h,), (r, z, n)

    def backward(x, state, w, cache, dstate):
        (h,), (dh,) = state, dstate
        r, z, n = cache
        w_r, w_z, w_n = np.split(w["weight_hh"], 3)
        dn = d_tanh(n, dh * (1 - z))
        dz = d_sigmoid(z, dh * (h - n))
        ds = dn @ w_n
        dr = d_sigmoid(r, ds * h)
        all_gates = np.concatenate([dr, dz, dn], axis=1)
        db = all_gates.sum(axis=0)
        dw = {
            "weight_ih": all_gates.T @ x,
            "weight_hh": np.concatenate([dr.T @ h, dz.T @ h, dn.T @ (r * h)]),
            "bias_ih": db,
            "bias_hh": db,
        }
        dprevious = dh * z + ds * r + dr @ w_r + dz @ w_z
        return all_gates @ w["weight_ih"], (dprevious,), dw

    return Reference(forward, backward)


GRU_RESET_BEFORE = GRU._replace(name="gru_reset_before", program=program, reference=reference)
