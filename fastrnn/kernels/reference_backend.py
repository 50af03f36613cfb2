"""The reference as a backend: packed rows to padded arrays and back, nothing else."""

from typing import NamedTuple

import numpy as np

from . import reference
from .rows import Rows


class LSTMWeights(NamedTuple):
    parameters: list


class LinearWeights(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray | None


class Tape(NamedTuple):
    x: np.ndarray
    tokens: bool
    rows: Rows
    caches: list


def _by_rank(rows: Rows) -> Rows:
    """The same batch with its sequences in the order of the rows."""
    return Rows(rows.steps, rows.batch, rows.lengths)


def lstm_forward(weights, x, rows, h_0, c_0, *, training):
    rows = _by_rank(rows)
    tokens = x.ndim == 1
    if tokens:
        x = np.eye(weights.parameters[0][0].shape[1], dtype=h_0.dtype)[x]
    padded = rows.unpack(x)
    results, caches = [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights.parameters):
        zero = np.zeros(len(w_ih), x.dtype)
        b_ih, b_hh = (zero, zero) if b_ih is None else (b_ih, b_hh)
        y, h_n, c_n, cache = reference.lstm_forward(
            padded, rows.lengths, w_ih, w_hh, b_ih, b_hh, h_0[d], c_0[d], reverse=d == 1
        )
        results.append((rows.pack(y), h_n, c_n))
        caches.append(cache)
    ys, h_n, c_n = zip(*results, strict=True)
    tape = Tape(padded, tokens, rows, caches) if training else None
    return np.concatenate(ys, axis=1), np.stack(h_n), np.stack(c_n), tape


def lstm_backward(weights, tape, dy, dh_n, dc_n, *, need_dx=True):
    parts = np.split(tape.rows.unpack(dy), len(weights.parameters), axis=2)
    out = [
        reference.lstm_backward(tape.x, cache, w_ih, w_hh, part, dh_n[d], dc_n[d])
        for d, ((w_ih, w_hh, _, _), cache, part) in enumerate(
            zip(weights.parameters, tape.caches, parts, strict=True)
        )
    ]
    dx = None if tape.tokens else tape.rows.pack(sum(o[0] for o in out))
    return dx, np.stack([o[1] for o in out]), np.stack([o[2] for o in out]), [o[3:] for o in out]


def linear_forward(weights, x):
    y = x @ weights.weight.T
    return y if weights.bias is None else y + weights.bias


def linear_backward(weights, x, dy, *, need_dx=True):
    return (dy @ weights.weight if need_dx else None), dy.T @ x, dy.sum(axis=0)
