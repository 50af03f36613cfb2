"""The time loops of every cell: serial over a slice of the batch, and of the units.

Rows are packed (see rows.py): row ``offsets[t] + r`` is step t of the r-th longest
sequence and ``sizes[t]`` rows are active at step t, so the active rows of a slice
[first, last) are always its first ones. Layouts are those of pack.py; Hp is H rounded up to
whole vectors.

States are [S + B, >= Hp]. The state that row r of step t starts from is at ``state_at[t] + r``;
the state that a sequence ends with goes to ``S + r``.

Where a slice would be too low for the registers, ``parties`` threads take all rows and some
panels of the units each, and meet once a step (`meet`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastrnn.cells import LAYOUTS, Layout, gru, lstm, rnn

from .barrier import meet
from .compiler import kernel
from .simd import (
    lane_count,
    line,
    load,
    load_first,
    pointer,
    prefetch,
    store,
    store_first,
    zeros_like,
)
from .tile import (
    PANEL,
    begin_row,
    finish_row,
    load_panel,
    store_panel,
    tile,
    tile_rows,
)


class Loops(NamedTuple):
    """The compiled time loops of a cell and its single step.

    A vector of a panel is a slot of the cell's layout for a vector of units; in a cell with one
    slot a panel is four vectors of units instead.
    """

    layout: Layout
    forward: Callable
    backward: Callable
    step: Callable


def _begin_step(i, count, args):
    start, at, row, ids, has_ids, p = args[0]
    gates, gates_at, gates_row, save = args[2][4:]
    if save:  # these lines are far away, and the products take long enough to fetch them
        for j in range(0, count * lane_count(gates), line(gates)):
            prefetch(gates, gates_at + i * gates_row + j)
    return load_panel(start, at + ids[p + i] * row if has_ids else at, count)


@register_jitable
def _put_h(i, j, h_new, args):
    """Vector j of the new h of row i, to the state and to the output."""
    h, _, unit, row, _, following, ending, going_on = args[1]
    y, y_at, y_row, left = args[2][:4]
    unit += j * lane_count(h)
    to = ((following if i < going_on else ending) + i) * row
    store(h, to + unit, h_new)
    store_first(y, y_at + i * y_row + j * lane_count(h), h_new, left - j * lane_count(h))


@register_jitable
def _put_gates(i, gates, args):
    p, at, row, save = args[2][4:]
    if save:
        store_panel(p, at + i * row, gates)


def _lstm_finish(i, z, args):
    _, c, unit, row, here, following, ending, going_on = args[1]
    gi, gf, gg, go, c_new, h_new = lstm.forward(
        z[0], z[1], z[2], z[3], load(c, (here + i) * row + unit)
    )
    store(c, ((following if i < going_on else ending) + i) * row + unit, c_new)
    _put_h(i, 0, h_new, args)
    _put_gates(i, (gi, gf, gg, go), args)


def _gru_finish(i, z, args):
    h, _, unit, row, here = args[1][:5]
    n, r, u, h_new = gru.forward(z[0], z[1], z[2], z[3], load(h, (here + i) * row + unit))
    _put_h(i, 0, h_new, args)
    _put_gates(i, (n, r, u, z[3]), args)


@register_jitable
def _put_only_gate(i, j, h_new, args):
    p, at, row, save = args[2][4:]
    _put_h(i, j, h_new, args)
    if save:
        store(p, at + i * row + j * lane_count(p), h_new)


def _tanh_finish(i, z, args):
    for j in range(len(z)):
        _put_only_gate(i, j, rnn.tanh_forward(z[j]), args)


def _relu_finish(i, z, args):
    for j in range(len(z)):
        _put_only_gate(i, j, rnn.relu_forward(z[j]), args)


# The gradient of one vector of units. Gates at ``g[at]`` become the gradients of their
# pre-activations; what is returned reaches the h before past the product with W_hh.


def _lstm_step_back(g, at, state, state_at, dc, dc_at, dh):
    i, f, gg, o = load_panel(g, at)
    dz_i, dz_f, dz_g, dz_o, dc_prev = lstm.backward(
        i, f, gg, o, load(state, state_at), dh, load(dc, dc_at)
    )
    store_panel(g, at, (dz_i, dz_f, dz_g, dz_o))
    store(dc, dc_at, dc_prev)
    return zeros_like(g)


def _gru_step_back(g, at, state, state_at, dc, dc_at, dh):
    n, r, u, h_n = load_panel(g, at)
    dx_n, dz_r, dz_u, dh_n, dh_prev = gru.backward(n, r, u, h_n, load(state, state_at), dh)
    store_panel(g, at, (dx_n, dz_r, dz_u, dh_n))
    return dh_prev


def _tanh_step_back(g, at, state, state_at, dc, dc_at, dh):
    store(g, at, rnn.tanh_backward(load(g, at), dh))
    return zeros_like(g)


def _relu_step_back(g, at, state, state_at, dc, dc_at, dh):
    store(g, at, rnn.relu_backward(load(g, at), dh))
    return zeros_like(g)


_dh_tile = tile(begin_row, finish_row)


def _loops(name, finish, step_back) -> Loops:
    """Compile what a cell needs."""
    layout = LAYOUTS[name]
    states, h_first, one_gate = layout.states, layout.h_first, layout.slots == 1
    parts = None if one_gate else (range(len(layout.of_x)), range(h_first, PANEL))
    step_tile = tile(_begin_step, finish, parts)
    step_back = register_jitable(step_back)
    unit_vectors = PANEL if one_gate else 1  # vectors of units in a panel
    gate_vectors = 1 if one_gate else PANEL  # vectors of gates of a vector of units

    def forward(
        x, w_x, start, start_row, start_panel, start_at, ids,
        w_h, h, c, y, y_at, gates, gates_at, save,
        sizes, offsets, state_at, reverse,
        first, last, first_panel, last_panel, barrier, at_barrier, parties,
    ):  # fmt: skip
        """One direction of one layer.

        x [N, I] and w_x [P, I, .], or I = 0; every row's sums start from the vectors at
        ``start_at + ids[p] * start_row + q * start_panel`` of ``start`` (no ids: row 0, a
        bias). w_h [P, H, .]; y [N, >= y_at + H]; gates [N, >= gates_at + their own] is written
        if ``save``; c is empty where the cell has none.
        """
        x_p, wx_p, start_p, ids_p = pointer(x), pointer(w_x), pointer(start), pointer(ids)
        wh_p, h_p, c_p, y_p, g_p = pointer(w_h), pointer(h), pointer(c), pointer(y), pointer(gates)
        n = lane_count(wh_p)
        steps, x_row, y_row, g_row = sizes.shape[0], w_x.shape[1], y.shape[1], gates.shape[1]
        units, state_row, has_ids = w_h.shape[1], h.shape[1], ids.shape[0] > 0
        x_panel, h_panel = w_x.shape[2], w_h.shape[2]
        final = state_at[steps]
        for step in range(steps):
            t = steps - 1 - step if reverse else step
            to = t - 1 if reverse else t + 1
            active = min(last, sizes[t])
            lasting = sizes[to] if 0 <= to < steps else 0
            after = state_at[to] if lasting > 0 else final
            for q in range(first_panel, last_panel):
                unit = q * unit_vectors * n
                vectors = min(PANEL, (units - unit + n - 1) // n) if one_gate else PANEL
                r = first
                while r < active:
                    rows = tile_rows(active - r)
                    p, here = offsets[t] + r, state_at[t] + r
                    step_tile(
                        rows,
                        vectors,
                        (
                            (
                                x_p, p * x_row, x_row, 1, x_row, 1, 0,
                                wx_p, q * x_row * x_panel, x_panel,
                            ),
                            (
                                h_p, here * state_row, state_row, 1, units, 1, 0,
                                wh_p, q * units * h_panel, h_panel,
                            ),
                        ),
                        (
                            (start_p, start_at + q * start_panel, start_row, ids_p, has_ids, p),
                            (h_p, c_p, unit, state_row, here, after + r, final + r, lasting - r),
                            (
                                y_p, p * y_row + y_at + unit, y_row, units - unit,
                                g_p, p * g_row + gates_at + q * PANEL * n, g_row, save,
                            ),
                        ),
                    )  # fmt: skip
                    r += rows
            meet(barrier, at_barrier, parties, step + 1)

    def backward(
        dy, dy_at, gates, gates_at, state, w, block, block_stride, dh, dc,
        units, sizes, offsets, reverse,
        first, last, first_panel, last_panel, barrier, at_barrier, parties,
    ):  # fmt: skip
        """The gradient through time of ``forward``, one direction of one layer.

        dy [N, >= dy_at + H]; ``state`` [>= N, >= Hp] is what each row started from, c if the cell
        has it and else h. gates come in and leave as the gradients of their pre-activations.
        w [Q, K, 4W] is W_hh packed for the product with those of them that belong to h: runs of
        ``block``, ``block_stride`` apart. dh [B, Hp] and dc [B, Hp] (or empty) come in as the
        gradients of the final states and leave as those of the initial states; ``reverse`` is
        the direction of the forward pass. Panels are those of w, 4W units each.
        """
        dy_p, g_p, s_p, w_p, dh_p, dc_p = (
            pointer(dy), pointer(gates), pointer(state), pointer(w), pointer(dh), pointer(dc)
        )  # fmt: skip
        n = lane_count(w_p)
        panel = PANEL * n
        steps, dy_row, g_row = sizes.shape[0], dy.shape[1], gates.shape[1]
        hp, depth, state_row = dh.shape[1], w.shape[1], state.shape[1]
        first_unit, last_unit = first_panel * panel, min(hp, last_panel * panel)
        for step in range(steps):
            t = step if reverse else steps - 1 - step
            active = min(last, sizes[t])
            for r in range(first, active):
                p = offsets[t] + r
                dy_r, g_r = p * dy_row + dy_at, p * g_row + gates_at
                for unit in range(first_unit, last_unit, n):
                    dh_t = load(dh_p, r * hp + unit) + load_first(dy_p, dy_r + unit, units - unit)
                    past = step_back(
                        g_p,
                        g_r + unit * gate_vectors,
                        s_p,
                        p * state_row + unit,
                        dc_p,
                        r * hp + unit,
                        dh_t,
                    )
                    store(dh_p, r * hp + unit, past)
            meet(barrier, at_barrier, parties, step + 1)
            for q in range(first_panel, last_panel):
                left = min(panel, hp - q * panel)
                r = first
                while r < active:
                    rows = tile_rows(active - r)
                    p = offsets[t] + r
                    dz = (
                        g_p, p * g_row + gates_at + h_first * n, g_row, 1,
                        block, depth // block, block_stride, w_p, q * depth * panel, panel,
                    )  # fmt: skip
                    at = r * hp + q * panel
                    _dh_tile(rows, left // n, (dz,), ((dh_p, at, hp), (dh_p, at, hp, left)))
                    r += rows

    forward = kernel(forward, f"{name}_forward")

    def step(x, w_x, w_h, bias, h, c, layer, out, scratch, where):
        """One step of one layer for a stream, False if a number that came in is not finite.

        x [B, I]; h and c [L, B, H] before the step, c is h where the cell has none; out
        [L S + 1, B, H] takes the S states of all layers after it, and y; scratch [S, 2B, >= Hp];
        ``where`` is ``[B, 0, B]``.
        """
        batch, units = out.shape[1:]
        finite = True
        for r in range(batch):
            for k in range(x.shape[1]):
                finite &= np.isfinite(x[r, k])
            for s in range(states):
                before = c if s == 1 else h
                for k in range(units):
                    v = before[layer, r, k]
                    finite &= np.isfinite(v)
                    scratch[s, r, k] = v
                for k in range(units, scratch.shape[2]):
                    scratch[s, r, k] = 0
        y, ids, panel = out[-1], where[:0], PANEL * lane_count(pointer(w_h))
        # Not literals, for which Numba would compile ``forward`` anew.
        zero, one, no = np.int64(0), np.int64(1), batch < 0
        forward(
            x, w_x, bias, zero, panel, zero, ids, w_h, scratch[0], scratch[-1], y, zero, y, zero,
            no, where[:1], where[1:], where[1:], no,
            zero, batch, zero, w_h.shape[0], where, zero, one,
        )  # fmt: skip
        for s in range(states):
            for r in range(batch):
                for k in range(units):
                    out[s * h.shape[0] + layer, r, k] = scratch[s, batch + r, k]
        return finite

    return Loops(
        layout, forward, kernel(backward, f"{name}_backward"), kernel(step, f"{name}_step")
    )


CELLS = {
    "lstm": _loops("lstm", _lstm_finish, _lstm_step_back),
    "gru": _loops("gru", _gru_finish, _gru_step_back),
    "rnn_tanh": _loops("rnn_tanh", _tanh_finish, _tanh_step_back),
    "rnn_relu": _loops("rnn_relu", _relu_finish, _relu_step_back),
}
