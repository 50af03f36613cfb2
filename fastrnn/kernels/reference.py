"""The LSTM in plain NumPy, one line per equation: what every kernel is checked against.

Written to be read next to the equations, in the precision of its inputs (use float64),
on padded arrays. It imports nothing of this package, so it shares no mistake with it.

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      f, o likewise
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    c = f * c_prev + i * g
    h = o * tanh(c)

T steps, B sequences, I inputs, H hidden units; gate order i, f, g, o.
"""

import numpy as np


def sigmoid(z):
    return 0.5 * np.tanh(0.5 * z) + 0.5


def lstm_forward(x, lengths, w_ih, w_hh, b_ih, b_hh, h_0, c_0, *, reverse=False):
    """One direction of one layer: ``(y [T, B, H], h_n [B, H], c_n [B, H], cache)``.

    x [T, B, I], lengths [B], w_ih [4H, I], w_hh [4H, H], b_ih and b_hh [4H], h_0 and
    c_0 [B, H]. With ``reverse`` each sequence runs from its own end to its start.
    """
    steps, batch, _ = x.shape
    y = np.zeros((steps, batch, h_0.shape[1]), x.dtype)
    h, c = h_0, c_0
    cache = []
    for t in reversed(range(steps)) if reverse else range(steps):
        active = (t < lengths)[:, None]
        z_i, z_f, z_g, z_o = np.split(x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh, 4, axis=1)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), np.tanh(z_g), sigmoid(z_o)
        c_new = f * c + i * g
        h_new = o * np.tanh(c_new)
        cache.append((t, active, h, c, i, f, g, o, c_new))
        y[t] = np.where(active, h_new, 0)
        h, c = np.where(active, h_new, h), np.where(active, c_new, c)
    return y, h, c, cache


def lstm_backward(x, cache, w_ih, w_hh, dy, dh_n, dc_n):
    """Gradients of `lstm_forward`: ``(dx, dh_0, dc_0, dw_ih, dw_hh, db)``.

    dy [T, B, H], dh_n and dc_n [B, H]; ``db`` is the gradient of either bias.
    """
    dx, dw_ih, dw_hh = np.zeros_like(x), np.zeros_like(w_ih), np.zeros_like(w_hh)
    db = np.zeros(len(w_ih), x.dtype)
    dh, dc = dh_n, dc_n
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
    return dx, dh, dc, dw_ih, dw_hh, db
