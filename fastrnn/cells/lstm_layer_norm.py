"""The LSTM cell with layer normalisation (Ba, Kiros & Hinton 2016, equations 20 to 22).

Gate order i, f, g, o; norm(v) = (v - mean) / sqrt(variance + 1e-5) over all of a vector:

    z = gain_ih * norm(W_ih x) + b_ih + gain_hh * norm(W_hh h) + b_hh
    i = sigmoid(z_i)   f = sigmoid(z_f)   g = tanh(z_g)   o = sigmoid(z_o)
    c = f * c_prev + i * g
    h = o * tanh(gain_c * norm(c) + b_c)
"""

import numpy as np

from . import oracle
from .activations import fma
from .lstm import LSTM
from .spec import Parameter, Program, Reference


def program(gate, candidate, output) -> Program:
    sigmoid, d_sigmoid = gate
    tanh, d_tanh = candidate
    squash, d_squash = output

    def affine(x, gain):
        return (x * gain,)

    def shifted(x, gain, b_ih, b_hh):
        return (fma(x, gain, b_ih + b_hh),)

    def gates(a_i, a_f, a_g, a_o, p_i, p_f, p_g, p_o, w_i, w_f, w_g, w_o, c_prev):
        i = sigmoid(fma(p_i, w_i, a_i))
        f = sigmoid(fma(p_f, w_f, a_f))
        g = tanh(fma(p_g, w_g, a_g))
        o = sigmoid(fma(p_o, w_o, a_o))
        return i, f, g, o, fma(f, c_prev, i * g)

    def out(o, c_norm, gain, bias):
        s = squash(fma(c_norm, gain, bias))
        return s, o * s

    def out_back(o, s, gain, c_norm, dh):
        d = dh * o * d_squash(s)
        return dh * s * d_sigmoid(o), d, d * gain, d * c_norm

    def gates_back(i, f, g, c_prev, dc_out, dc_norm):
        dc = dc_out + dc_norm
        dz_i = dc * g * d_sigmoid(i)
        dz_f = dc * c_prev * d_sigmoid(f)
        return dz_i, dz_f, dc * i * d_tanh(g), dc * f

    def product(a, b):
        return (a * b,)

    def prepare(ops, x, w):
        x_norm, factor = ops.normalise(ops.project(x, None))
        if "bias_ih" in w:
            vectors = w["gain_ih"], w["bias_ih"], w["bias_hh"]
            (a,) = ops.elementwise(shifted, 1, x_norm, *vectors)
        else:
            (a,) = ops.elementwise(affine, 1, x_norm, w["gain_ih"])
        return a, (x_norm, factor)

    def unprepare(ops, da, w, saved):
        x_norm, factor = saved
        (dnorm,) = ops.elementwise(affine, 1, da, w["gain_ih"])
        (dgain,) = ops.elementwise(product, 1, da, x_norm)
        dproduct = ops.normalise_backward(dnorm, x_norm, factor)
        return dproduct, {"gain_ih": dgain, "bias_ih": da, "bias_hh": da}

    def forward(ops, a, state, w):
        h, c = state
        p, h_factor = ops.normalise(ops.product("weight_hh", h))
        size = c.shape[1]
        gains = [w["gain_hh"][k * size : (k + 1) * size] for k in range(4)]
        blocks = [(x, k) for x in (a, p) for k in range(4)]
        i, f, g, o, c_new = ops.elementwise(gates, 5, *blocks, *gains, c)
        c_norm, c_factor = ops.normalise(c_new)
        s, h_new = ops.elementwise(out, 2, o, c_norm, w["gain_c"], w["bias_c"])
        saved = i, f, g, o, s, p, h_factor, c_norm, c_factor
        return [h_new, c_new], saved, {"weight_hh": h}

    def backward(ops, state, w, saved, dstate):
        i, f, g, o, s, p, h_factor, c_norm, c_factor = saved
        dh, dc = dstate
        dz_o, db_c, dnorm, dgain_c = ops.elementwise(out_back, 4, o, s, w["gain_c"], c_norm, dh)
        dc_norm = ops.normalise_backward(dnorm, c_norm, c_factor)
        dz_i, dz_f, dz_g, dc_prev = ops.elementwise(gates_back, 4, i, f, g, state[1], dc, dc_norm)
        dz = ops.join([dz_i, dz_f, dz_g, dz_o])
        (dp,) = ops.elementwise(affine, 1, dz, w["gain_hh"])
        (dgain_hh,) = ops.elementwise(product, 1, dz, p)
        dproduct = ops.normalise_backward(dp, p, h_factor)
        dh_prev = ops.product_backward("weight_hh", dproduct)
        vectors = {"gain_hh": dgain_hh, "gain_c": dgain_c, "bias_c": db_c}
        return dz, [dh_prev, dc_prev], {"weight_hh": dproduct}, vectors

    return Program(prepare, unprepare, forward, backward)


def reference(gate, candidate, output) -> Reference:
    (sigmoid, d_sigmoid), (tanh, d_tanh), (squash, d_squash) = map(
        oracle.function, (gate, candidate, output)
    )

    def norm(v):
        centred = v - v.mean(axis=1, keepdims=True)
        factor = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
        return centred * factor, factor

    def d_norm(dy, y, factor):
        mean = dy.mean(axis=1, keepdims=True)
        return factor * (dy - mean - y * (dy * y).mean(axis=1, keepdims=True))

    def forward(x, state, w):
        h, c = state
        x_norm, h_norm = norm(x @ w["weight_ih"].T), norm(h @ w["weight_hh"].T)
        z = w["gain_ih"] * x_norm[0] + w["bias_ih"] + w["gain_hh"] * h_norm[0] + w["bias_hh"]
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
        c_new = f * c + i * g
        c_norm = norm(c_new)
        s = squash(w["gain_c"] * c_norm[0] + w["bias_c"])
        return (o * s, c_new), (x_norm, h_norm, i, f, g, o, c_norm, s)

    def backward(x, state, w, cache, dstate):
        (h_prev, c_prev), (dh, dc) = state, dstate
        x_norm, h_norm, i, f, g, o, c_norm, s = cache
        ds = d_squash(s, dh * o)
        dc = dc + d_norm(ds * w["gain_c"], *c_norm)
        dz_i = d_sigmoid(i, dc * g)
        dz_f = d_sigmoid(f, dc * c_prev)
        dz_g = d_tanh(g, dc * i)
        dz_o = d_sigmoid(o, dh * s)
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        dx_product = d_norm(dz * w["gain_ih"], *x_norm)
        dh_product = d_norm(dz * w["gain_hh"], *h_norm)
        db = dz.sum(axis=0)
        dw = {
            "weight_ih": dx_product.T @ x,
            "weight_hh": dh_product.T @ h_prev,
            "bias_ih": db,
            "bias_hh": db,
            "gain_ih": (dz * x_norm[0]).sum(axis=0),
            "gain_hh": (dz * h_norm[0]).sum(axis=0),
            "gain_c": (ds * c_norm[0]).sum(axis=0),
            "bias_c": ds.sum(axis=0),
        }
        return dx_product @ w["weight_ih"], (dh_product @ w["weight_hh"], dc * f), dw

    return Reference(forward, backward)


LSTM_LAYER_NORM = LSTM._replace(
    name="lstm_layer_norm",
    program=program,
    reference=reference,
    parameters=(
        Parameter("gain_ih", ("GH",), "ones"),
        Parameter("gain_hh", ("GH",), "ones"),
        Parameter("gain_c", ("H",), "ones"),
        Parameter("bias_c", ("H",), "zeros"),
    ),
)
