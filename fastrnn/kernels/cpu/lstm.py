"""The LSTM layer on the CPU: what the time loops and the products are put together to.

See kernels/__init__.py for the contract.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastrnn.kernels import buffers
from fastrnn.kernels.rows import Rows

from . import dense, gemm, pack, recurrent
from .simd import ISA, width
from .threads import MOVE, Job, balanced, run, spread, worth
from .tile import PANEL

GATES = 4


class Weights:
    """The parameters of one layer, packed when first needed and kept until they change.

    Parameters
    ----------
    parameters : sequence over the D directions
        Of ``(weight_ih [4H, I], weight_hh [4H, H], bias_ih [4H] or None, bias_hh or None)``.
    """

    def __init__(self, parameters):
        self.parameters = parameters
        w_ih, w_hh = parameters[0][:2]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.lanes = width(self.dtype)
        self.panel = PANEL * self.lanes
        self.panels = -(-self.units // self.lanes)  # of one direction
        self.columns = pack.gate_columns(self.units, GATES, self.dtype)

    @cached_property
    def _forward(self) -> tuple[np.ndarray, np.ndarray]:
        q, jobs, packed = self.panels, [], []
        for which, depth in enumerate((self.inputs, self.units)):
            out = buffers.empty((self.directions * q, depth, self.panel), self.dtype)
            for d, p in enumerate(self.parameters):
                part = out[d * q : (d + 1) * q]
                jobs.append(dense.pack_forward(p[which], self.columns, part))
            packed.append(out)
        spread(*jobs)
        return packed[0], packed[1]

    def _backward(self, sources) -> np.ndarray:
        """Weights [4H, K] of one or both directions one above the other, for dz @ w."""
        size = len(self.columns)
        r = -(-sources[0].shape[1] // self.panel)
        out = buffers.empty((r, len(sources) * size, self.panel), self.dtype)
        spread(
            *(dense.pack_backward(w, self.columns, out, d * size) for d, w in enumerate(sources))
        )
        return out

    @property
    def w_x(self) -> np.ndarray:
        """[D P, I, 4W], for x @ W_ih.T in all directions at once."""
        return self._forward[0]

    @property
    def w_h(self) -> np.ndarray:
        """[D P, H, 4W]."""
        return self._forward[1]

    @cached_property
    def bias(self) -> np.ndarray:
        """[D P, 4W], both biases in one."""
        out = np.zeros((self.directions, len(self.columns)), self.dtype)
        for d, (_, _, b_ih, b_hh) in enumerate(self.parameters):
            if b_ih is not None:
                out[d] = np.where(self.columns >= 0, (b_ih + b_hh)[self.columns], 0)
        return out.reshape(-1, self.panel)

    @cached_property
    def table(self) -> np.ndarray:
        """[D P, I, 4W]: what a one-hot input adds up to, for each of its I values."""
        return self.w_x + self.bias[:, None]

    @cached_property
    def back_x(self) -> np.ndarray:
        """[R, D 4Hp, 4W], for dz @ W_ih summed over the directions."""
        return self._backward([p[0] for p in self.parameters])

    @cached_property
    def back_h(self) -> list[np.ndarray]:
        """One [R, 4Hp, 4W] a direction, for dz @ W_hh."""
        return [self._backward([p[1]]) for p in self.parameters]


@dataclass
class Tape:
    """What `backward` needs of a `forward`; it is used up there."""

    x: np.ndarray
    rows: Rows
    h: list[np.ndarray]
    c: list[np.ndarray]
    gates: np.ndarray | None


def _slices(rows: Rows, cost: float, directions: int) -> list[tuple[int, int]]:
    """Slices of the batch, one a thread and direction where the work is worth it."""
    return balanced(rows.lengths, -(-worth(cost) // directions))


def _state_places(rows: Rows, save: bool) -> np.ndarray:
    """Where the state that each step starts from lies: kept, or two that take turns."""
    if save:
        return rows.offsets
    steps = len(rows.sizes)
    places = np.arange(steps + 1) % 2 * rows.batch
    places[steps] = 2 * rows.batch
    return places


def _place_initial(state, initial, rows: Rows, save: bool, reverse: bool) -> None:
    """Write the initial states where each sequence's first step will look for them."""
    batch, units = initial.shape
    final = len(state) - batch
    state[:, units:] = 0
    state[final:, :units] = initial  # stays there where the length is 0
    if not save:
        state[:batch, :units] = state[batch:final, :units] = initial
    elif not reverse:
        n = int(rows.sizes[0]) if len(rows.sizes) else 0
        state[:n, :units] = initial[:n]
    else:
        begun = rows.lengths > 0
        last = rows.lengths[begun] - 1
        state[rows.offsets[last] + np.flatnonzero(begun), :units] = initial[begun]


def forward(weights: Weights, x, rows: Rows, h_0, c_0, *, training: bool):
    """All directions of one layer: ``(y [N, D H], h_n [D, B, H], c_n, tape or None)``.

    x is [N, I], or int64 [N] for a one-hot input given by its index.
    """
    w = weights
    d_count, units, batch, dtype = w.directions, w.units, rows.batch, w.dtype
    hp, gates_row = w.panels * w.lanes, w.panels * w.panel
    y = buffers.empty((rows.count, d_count * units), dtype)
    tokens = x.ndim == 1
    depth = units if tokens else units + w.inputs
    slices = _slices(rows, rows.count * d_count * GATES * units * depth, d_count)
    # With few rows a step's tiles are too low to pay for their weights: take all steps at once.
    hoist = not tokens and rows.count > batch and batch // len(slices or [0]) < ISA.tile_rows
    save = training or hoist
    gates = buffers.empty((rows.count if save else 0, d_count * gates_row), dtype)
    ids = np.empty(0, np.int64)
    no_x, no_w = np.empty((0, 0), dtype), np.empty((d_count * w.panels, 0, w.panel), dtype)
    if tokens:
        ids, x_in, w_x = x, no_x, no_w
        start, start_row, start_panel = w.table, w.panel, w.inputs * w.panel
    elif hoist:
        spread(dense.product(x, w.inputs, w.w_x, w.bias, gates, gates.shape[1]))
        ids, x_in, w_x = np.arange(rows.count), no_x, no_w
        start, start_row, start_panel = gates, gates.shape[1], w.panel
    else:
        x_in, w_x, start, start_row, start_panel = x, w.w_x, w.bias, 0, w.panel

    state_at = _state_places(rows, training)
    slots = (rows.count if training else 2 * batch) + batch
    states, tasks = [], []
    for d in range(d_count):
        h, c = (buffers.empty((slots, hp), dtype) for _ in range(2))
        _place_initial(h, h_0[d], rows, training, d == 1)
        _place_initial(c, c_0[d], rows, training, d == 1)
        states.append((h, c))
        part = slice(d * w.panels, (d + 1) * w.panels)
        for first, last in slices:
            tasks.append((
                recurrent.lstm_forward,
                x_in, w_x[part], start.reshape(-1), start_row, start_panel,
                d * w.panels * start_panel, ids,
                w.w_h[part], h, c, y, d * units, gates, d * gates_row, training,
                rows.sizes, rows.offsets, state_at, d == 1, first, last,
            ))  # fmt: skip
    run(tasks)
    h_n, c_n = (np.stack([s[k][slots - batch :, :units] for s in states]) for k in range(2))
    tape = None
    if training:
        tape = Tape(x, rows, [s[0] for s in states], [s[1] for s in states], gates)
    return y, h_n, c_n, tape


def backward(weights: Weights, tape: Tape, dy, dh_n, dc_n, *, need_dx: bool = True):
    """Gradients of `forward`: ``(dx or None, dh_0, dc_0, one (dW_ih, dW_hh, db) a direction)``."""
    w, rows, gates = weights, tape.rows, tape.gates
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    units, batch, dtype = w.units, rows.batch, w.dtype
    hp, gates_row = w.panels * w.lanes, w.panels * w.panel
    cost = rows.count * w.directions * GATES * units * units
    slices = _slices(rows, cost, w.directions)
    tasks, d_states = [], []
    for d in range(w.directions):
        back = w.back_h[d]
        dh = np.zeros((batch, len(back) * w.panel), dtype)
        dc = np.zeros((batch, hp), dtype)
        dh[:, :units], dc[:, :units] = dh_n[d], dc_n[d]
        d_states.append((dh, dc))
        for first, last in slices:
            tasks.append((
                recurrent.lstm_backward,
                dy, d * units, gates, d * gates_row, tape.c[d], back, dh, dc,
                units, rows.sizes, rows.offsets, d == 1, first, last,
            ))  # fmt: skip
    run(tasks)

    # All weight gradients and dx at once: every thread has a share of each.
    q = w.directions * w.panels
    dw_x = buffers.empty((q, w.inputs, w.panel), dtype)
    db = np.zeros((q, w.panel), dtype)
    dw_h = [buffers.empty((w.panels, units, w.panel), dtype) for _ in range(w.directions)]
    dx, jobs = None, []
    if tape.x.ndim == 1:
        dw_x.fill(0)
        jobs.append(Job(gemm.scatter, (tape.x, gates, 0, dw_x), q, gates.size * MOVE))
    else:
        jobs.append(dense.accumulate(tape.x, gates, 0, dw_x, db))
        if need_dx:
            dx = buffers.empty((rows.count, w.inputs), dtype)
            zero = np.zeros((len(w.back_x), w.panel), dtype)
            jobs.append(dense.product(gates, gates.shape[1], w.back_x, zero, dx, w.inputs))
    for d in range(w.directions):
        h_prev = tape.h[d][: rows.count]
        jobs.append(dense.accumulate(h_prev, gates, d * gates_row, dw_h[d]))
    spread(*jobs)
    if tape.x.ndim == 1:
        db = dw_x.sum(axis=1)

    grads, jobs = [], []
    for d in range(w.directions):
        part = slice(d * w.panels, (d + 1) * w.panels)
        dw_ih, job_ih = dense.unpack(w.columns, dw_x[part])
        dw_hh, job_hh = dense.unpack(w.columns, dw_h[d])
        jobs += [job_ih, job_hh]
        db_d = np.empty(GATES * units, dtype)
        db_d[w.columns[w.columns >= 0]] = db[part].reshape(-1)[w.columns >= 0]
        grads.append((dw_ih, dw_hh, db_d))
    spread(*jobs)
    dh_0, dc_0 = (np.stack([s[k][:, :units] for s in d_states]) for k in range(2))
    return dx, dh_0, dc_0, grads
