"""The recurrent cells in plain NumPy, one line per equation: what kernels are checked against.

Written to be read next to the equations, in the precision of its inputs (use float64),
on padded arrays. It imports nothing of this package, so it shares no mistake with it.

T steps, B sequences, I inputs, H hidden units. Every ``*_forward`` takes x [T, B, I], lengths
[B], w_ih [G H, I], w_hh [G H, H], b_ih and b_hh [G H] and a tuple of states [B, H] (h, and c
for the LSTM) and returns ``(y [T, B, H], states, cache)``; with ``reverse`` each sequence runs
from its own end to its start. Every ``*_backward`` takes ``(x, cache, w_ih, w_hh, dy, dstates)``
and returns ``(dx, dstates of the start, dw_ih, dw_hh, db_ih, db_hh)``.
"""

import numpy as np


def sigmoid(z):
    return 0.5 * np.tanh(0.5 * z) + 0.5


def _steps(x, lengths, reverse):
    """The steps in the order they are taken, with the rows that are active, as a column."""
    steps = range(len(x))
    for t in reversed(steps) if reverse else steps:
        yield t, (t < lengths)[:, None]


def lstm_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, states, *, reverse=False):
    """Gates i, f, g, o.

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      f, o likewise
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c = f * c_prev + i * g
    h = o * tanh(c)
    """
    h, c = states
    y, cache = np.zeros((*x.shape[:2], h.shape[1]), x.dtype), []
    for t, active in _steps(x, lengths, reverse):
        z_i, z_f, z_g, z_o = np.split(x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh, 4, axis=1)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
        c_new = f * c + i * g
        h_new = o * np.tanh(c_new)
        cache.append((t, active, h, c, i, f, g, o, c_new))
        y[t] = np.where(active, h_new, 0)
        h, c = np.where(active, h_new, h), np.where(active, c_new, c)
    return y, (h, c), cache


def lstm_backward(x, cache, w_ih, w_hh, dy, dstates):
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh)
    db = np.zeros(len(w_ih), x.dtype)
    dh, dc = dstates
    for t, active, h_prev, c_prev, i, f, g, o, c in reversed(cache):
        dh_t = np.where(active, dh + dy[t], 0)
        dc_t = np.where(active, dc, 0) + dh_t * o * (1 - np.tanh(c) ** 2)
        dz_i = dc_t * g * i * (1 - i)
        dz_f = dc_t * c_prev * f * (1 - f)
        dz_g = dc_t * i * (1 - g**2)
        dz_o = dh_t * np.tanh(c) * o * (1 - o)
        dz = np.concatenate([dz_i, dz_f, dz_g, dz_o], axis=1)
        dx[t] = dz @ w_ih
        dw_ih += dz.T @ x[t]
        dw_hh += dz.T @ h_prev
        db += dz.sum(axis=0)
        dh = np.where(active, dz @ w_hh, dh)
        dc = np.where(active, dc_t * f, dc)
    return dx, (dh, dc), dw_ih, dw_hh, db, db.copy()


def gru_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, states, *, reverse=False):
    """Gates r, z, n.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z likewise
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h = (1 - z) * n + z * h_prev
    """
    (h,) = states
    y, cache = np.zeros((*x.shape[:2], h.shape[1]), x.dtype), []
    for t, active in _steps(x, lengths, reverse):
        x_r, x_z, x_n = np.split(x[t] @ w_ih.T + b_ih, 3, axis=1)
        h_r, h_z, h_n = np.split(h @ w_hh.T + b_hh, 3, axis=1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        n = np.tanh(x_n + r * h_n)
        h_new = (1 - z) * n + z * h
        cache.append((t, active, h, r, z, n, h_n))
        y[t] = np.where(active, h_new, 0)
        h = np.where(active, h_new, h)
    return y, (h,), cache


def gru_backward(x, cache, w_ih, w_hh, dy, dstates):
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh)
    db_ih, db_hh = np.zeros((2, len(w_ih)), x.dtype)
    (dh,) = dstates
    for t, active, h_prev, r, z, n, h_n in reversed(cache):
        dh_t = np.where(active, dh + dy[t], 0)
        da = dh_t * (1 - z) * (1 - n**2)
        dz_r = da * h_n * r * (1 - r)
        dz_z = dh_t * (h_prev - n) * z * (1 - z)
        dz_x = np.concatenate([dz_r, dz_z, da], axis=1)
        dz_h = np.concatenate([dz_r, dz_z, da * r], axis=1)
        dx[t] = dz_x @ w_ih
        dw_ih += dz_x.T @ x[t]
        dw_hh += dz_h.T @ h_prev
        db_ih += dz_x.sum(axis=0)
        db_hh += dz_h.sum(axis=0)
        dh = np.where(active, dz_h @ w_hh + dh_t * z, dh)
    return dx, (dh,), dw_ih, dw_hh, db_ih, db_hh


def rnn_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, states, *, reverse=False, relu=False):
    """``h = tanh(W_ih x + b_ih + W_hh h_prev + b_hh)``, or ``max(., 0)``."""
    (h,) = states
    y, cache = np.zeros((*x.shape[:2], h.shape[1]), x.dtype), []
    for t, active in _steps(x, lengths, reverse):
        z = x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh
        h_new = np.maximum(z, 0) if relu else np.tanh(z)
        slope = (z > 0) * 1.0 if relu else 1 - h_new**2
        cache.append((t, active, h, slope))
        y[t] = np.where(active, h_new, 0)
        h = np.where(active, h_new, h)
    return y, (h,), cache


def rnn_backward(x, cache, w_ih, w_hh, dy, dstates):
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh)
    db = np.zeros(len(w_ih), x.dtype)
    (dh,) = dstates
    for t, active, h_prev, slope in reversed(cache):
        dz = np.where(active, dh + dy[t], 0) * slope
        dx[t] = dz @ w_ih
        dw_ih += dz.T @ x[t]
        dw_hh += dz.T @ h_prev
        db += dz.sum(axis=0)
        dh = np.where(active, dz @ w_hh, dh)
    return dx, (dh,), dw_ih, dw_hh, db, db.copy()
