"""The LSTM's time loops: serial over a slice [first, last) of the batch's rows.

Rows are packed (see rows.py): row ``offsets[t] + r`` is step t of the r-th longest
sequence and ``sizes[t]`` rows are active at step t, so the active rows of a slice are always
its first ones. Layouts are those of pack.py; Hp is H rounded up to whole vectors.

States h and c are [S + B, Hp]. The state that row r of step t starts from is at
``state_at[t] + r``; the state that a sequence ends with goes to ``S + r``.
"""

from fastrnn.cells import lstm

from .compiler import kernel
from .simd import lane_count, load, load_first, pointer, store, store_first
from .tile import (
    PANEL,
    begin_zero,
    finish_row,
    load_panel,
    store_panel,
    tile,
    tile_rows,
)


def _begin_step(i, args):
    start, at, row, ids, has_ids, p = args[0]
    return load_panel(start, at + ids[p + i] * row if has_ids else at)


def _finish_step(i, z, args):
    h, c, unit, hp, here, following, ending, going_on = args[1]
    y, y_at, y_row, left, gates, gates_at, gates_row, save = args[2]
    to = ((following if i < going_on else ending) + i) * hp + unit
    gi, gf, gg, go, c_new, h_new = lstm.forward(
        z[0], z[1], z[2], z[3], load(c, (here + i) * hp + unit)
    )
    store(c, to, c_new)
    store(h, to, h_new)
    store_first(y, y_at + i * y_row, h_new, left)
    if save:
        store_panel(gates, gates_at + i * gates_row, (gi, gf, gg, go))


_step_tile = tile(_begin_step, _finish_step)


@kernel
def lstm_forward(
    x, w_x, start, start_row, start_panel, start_at, ids,
    w_h, h, c, y, y_at, gates, gates_at, save,
    sizes, offsets, state_at, reverse, first, last,
):  # fmt: skip
    """One direction of one layer.

    x [N, I] and w_x [P, I, 4W], or I = 0; every row's sums start from the vectors at
    ``start_at + ids[p] * start_row + q * start_panel`` of ``start`` (no ids: row 0, a bias).
    w_h [P, H, 4W]; y [N, >= y_at + H]; gates [N, >= gates_at + 4 Hp] is written if ``save``.
    """
    x_p, wx_p, start_p, ids_p = pointer(x), pointer(w_x), pointer(start), pointer(ids)
    wh_p, h_p, c_p, y_p, g_p = pointer(w_h), pointer(h), pointer(c), pointer(y), pointer(gates)
    n = lane_count(wh_p)
    panel = PANEL * n
    steps, x_row, y_row, g_row = sizes.shape[0], w_x.shape[1], y.shape[1], gates.shape[1]
    units, hp, has_ids = w_h.shape[1], h.shape[1], ids.shape[0] > 0
    final = state_at[steps]
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        to = t - 1 if reverse else t + 1
        active = min(last, sizes[t])
        lasting = sizes[to] if 0 <= to < steps else 0
        following = state_at[to] if lasting > 0 else final
        for q in range(w_h.shape[0]):
            r = first
            while r < active:
                rows = tile_rows(active - r)
                p, here = offsets[t] + r, state_at[t] + r
                _step_tile(
                    rows,
                    (
                        (x_p, p * x_row, x_row, 1, x_row, wx_p, q * x_row * panel),
                        (h_p, here * hp, hp, 1, units, wh_p, q * units * panel),
                    ),
                    (
                        (start_p, start_at + q * start_panel, start_row, ids_p, has_ids, p),
                        (h_p, c_p, q * n, hp, here, following + r, final + r, lasting - r),
                        (
                            y_p, p * y_row + y_at + q * n, y_row, units - q * n,
                            g_p, p * g_row + gates_at + q * panel, g_row, save,
                        ),
                    ),
                )  # fmt: skip
                r += rows


_dh_tile = tile(begin_zero, finish_row)


@kernel
def lstm_backward(
    dy, dy_at, gates, gates_at, c, w, dh, dc,
    units, sizes, offsets, reverse, first, last,
):  # fmt: skip
    """The gradient through time of `lstm_forward`, one direction of one layer.

    dy [N, >= dy_at + H]; c [>= N, Hp] holds the state that each row started from.
    gates [N, >= gates_at + 4 Hp] come in and leave as the gradients of their
    pre-activations. w [Q, 4 Hp, 4W] is W_hh packed for the product with them.
    dh [B, Q * 4W] and dc [B, Hp] come in as the gradients of the final states and leave as
    those of the initial states; ``reverse`` is the direction of the forward pass.
    """
    dy_p, g_p, c_p, w_p, dh_p, dc_p = (
        pointer(dy), pointer(gates), pointer(c), pointer(w), pointer(dh), pointer(dc)
    )  # fmt: skip
    n = lane_count(w_p)
    panel = PANEL * n
    steps, dy_row, g_row, dh_row = sizes.shape[0], dy.shape[1], gates.shape[1], dh.shape[1]
    hp, depth = c.shape[1], w.shape[1]
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        active = min(last, sizes[t])
        for r in range(first, active):
            p = offsets[t] + r
            dy_r, g_r, c_r = p * dy_row + dy_at, p * g_row + gates_at, p * hp
            for unit in range(0, hp, n):
                i, f, g, o = load_panel(g_p, g_r + unit * PANEL)
                dh_t = load(dh_p, r * dh_row + unit) + load_first(dy_p, dy_r + unit, units - unit)
                dz_i, dz_f, dz_g, dz_o, dc_prev = lstm.backward(
                    i, f, g, o, load(c_p, c_r + unit), dh_t, load(dc_p, r * hp + unit)
                )
                store_panel(g_p, g_r + unit * PANEL, (dz_i, dz_f, dz_g, dz_o))
                store(dc_p, r * hp + unit, dc_prev)
        for q in range(w.shape[0]):
            r = first
            while r < active:
                rows = tile_rows(active - r)
                p = offsets[t] + r
                dz = (g_p, p * g_row + gates_at, g_row, 1, depth, w_p, q * depth * panel)
                _dh_tile(rows, (dz,), ((w_p,), (dh_p, r * dh_row + q * panel, dh_row, panel)))
                r += rows
