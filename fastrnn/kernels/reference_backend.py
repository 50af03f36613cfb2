"""The reference as a backend: packed rows to padded arrays and back, nothing else."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from . import reference
from .host import (  # noqa: F401
    concatenate,
    embedding_backward,
    embedding_forward,
    empty,
    scale,
    to_device,
    to_host,
    values,
)
from .reference_crf import crf_gradient, crf_viterbi  # noqa: F401
from .rows import Rows

_CELLS: dict[str, tuple[Callable, Callable]] = {
    "lstm": (reference.lstm_forward, reference.lstm_backward),
    "gru": (reference.gru_forward, reference.gru_backward),
    "rnn_tanh": (reference.rnn_forward, reference.rnn_backward),
    "rnn_relu": (partial(reference.rnn_forward, relu=True), reference.rnn_backward),
}


class RecurrentWeights(NamedTuple):
    cell: str
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


def _stack(states) -> tuple[np.ndarray, ...]:
    """Each direction's states to one array of all directions for each state."""
    return tuple(np.stack(parts) for parts in zip(*states, strict=True))


def recurrent_forward(weights, x, rows, state_0, *, training):
    rows = _by_rank(rows)
    tokens = x.ndim == 1
    if tokens:
        x = np.eye(weights.parameters[0][0].shape[1], dtype=state_0[0].dtype)[x]
    padded = rows.unpack(x)
    ys, states, caches = [], [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights.parameters):
        zero = np.zeros(len(w_ih), x.dtype)
        b_ih, b_hh = (zero, zero) if b_ih is None else (b_ih, b_hh)
        y, state_n, cache = _CELLS[weights.cell][0](
            padded, rows.lengths, w_ih, w_hh, b_ih, b_hh, [s[d] for s in state_0], reverse=d == 1
        )
        ys.append(rows.pack(y))
        states.append(state_n)
        caches.append(cache)
    tape = Tape(padded, tokens, rows, caches) if training else None
    return np.concatenate(ys, axis=1), _stack(states), tape


def recurrent_backward(weights, tape, dy, dstate_n, *, need_dx=True):
    parts = np.split(tape.rows.unpack(dy), len(weights.parameters), axis=2)
    out = [
        _CELLS[weights.cell][1](tape.x, cache, w_ih, w_hh, part, [s[d] for s in dstate_n])
        for d, ((w_ih, w_hh, _, _), cache, part) in enumerate(
            zip(weights.parameters, tape.caches, parts, strict=True)
        )
    ]
    dx = None if tape.tokens else tape.rows.pack(sum(o[0] for o in out))
    return dx, _stack(o[1] for o in out), [o[2:] for o in out]


def recurrent_step(layers, x, state):
    rows, states = Rows(1, len(x)), []
    finite = all(np.isfinite(v).all() for v in (x, *state))
    for number, weights in enumerate(layers):
        own = tuple(s[number : number + 1] for s in state)
        x, after, _ = recurrent_forward(weights, x, rows, own, training=False)
        states.append([s[0] for s in after])
    return x, _stack(states), finite


def linear_forward(weights, x):
    y = x @ weights.weight.T
    return y if weights.bias is None else y + weights.bias


def linear_backward(weights, x, dy, *, need_dx=True):
    return (dy @ weights.weight if need_dx else None), dy.T @ x, dy.sum(axis=0)


def dropout(x, p, key):
    z = np.arange(x.size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    x *= np.where(z >= np.uint64(p * 2**53), x.dtype.type(1 / (1 - p)), 0).reshape(x.shape)
