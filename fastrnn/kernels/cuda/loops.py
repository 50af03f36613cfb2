"""The time loops on a GPU: one launch for a whole sequence, right at every shape.

Each block owns some units with all their gates, keeps their columns of W_hh in shared memory for
the whole sequence where they fit, and takes the rows tile by tile. All blocks of the grid wait
for each other once a step. Rows, places and the order of steps are those of kernels/rows.py;
gates are ``[N, D slots H]`` in the order of `fastrnn.cells.Layout`.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from fastrnn.cells import LAYOUTS, Layout, gru, lstm, rnn

from .launch import Kernel, inlined, scalar
from .memory import SIMULATED

# Rows of a tile, a thread's share of them, and how deep a tile is read at once.
ROWS, SHARE, DEPTH = (4, 2, 3) if SIMULATED else (32, 2, 32)
SHARED = 300 if SIMULATED else 48 << 10  # bytes that a block may have


class Loop(NamedTuple):
    """A time loop made for blocks that own ``units`` units each, whose weights they may keep."""

    kernel: Kernel
    units: int
    kept: bool
    shared: int  # bytes


def _equations(name: str, dtype) -> tuple[Callable, Callable]:
    """A cell's two functions with the same arguments for every cell."""
    zero = np.dtype(dtype).type(0)
    if name == "lstm":
        ahead, back = scalar(lstm.forward, dtype), scalar(lstm.backward, dtype)

        def forward(z0, z1, z2, z3, h, c):
            i, f, g, o, c_new, h_new = ahead(z0, z1, z2, z3, c)
            return i, f, g, o, h_new, c_new

        def backward(i, f, g, o, c, dh, dc):
            dz_i, dz_f, dz_g, dz_o, dc_prev = back(i, f, g, o, c, dh, dc)
            return dz_i, dz_f, dz_g, dz_o, dc_prev, zero

    elif name == "gru":
        ahead, back = scalar(gru.forward, dtype), scalar(gru.backward, dtype)

        def forward(z0, z1, z2, z3, h, c):
            n, r, u, h_new = ahead(z0, z1, z2, z3, h)
            return n, r, u, z3, h_new, c

        def backward(n, r, u, h_n, h, dh, dc):
            dx_n, dz_r, dz_u, dh_n, past = back(n, r, u, h_n, h, dh)
            return dx_n, dz_r, dz_u, dh_n, dc, past

    else:
        functions = {
            "rnn_tanh": (rnn.tanh_forward, rnn.tanh_backward),
            "rnn_relu": (rnn.relu_forward, rnn.relu_backward),
        }[name]
        ahead, back = (scalar(f, dtype) for f in functions)

        def forward(z0, z1, z2, z3, h, c):
            h_new = ahead(z0)
            return h_new, z1, z2, z3, h_new, c

        def backward(h_new, z1, z2, z3, h, dh, dc):
            return back(h_new, dh), z1, z2, z3, dc, zero

    return inlined(forward), inlined(backward)


@cache
def _multiply(dtype, columns: int):
    """``sums[i, j] += sum over k < count of tile[row i, k] * weights[k, j]`` in shared memory."""
    share = SHARE

    def multiply(shared, tile, tile_row, weights, weights_row, count, sums):
        for k in range(count):
            for i in range(share):
                x = shared[tile + i * tile_row + k]
                for j in range(columns):
                    sums[i, j] += x * shared[weights + k * weights_row + j]

    return inlined(multiply)


def _geometry(inner: int, columns: int, units: int, dtype, keep: bool) -> tuple[int, bool, int]:
    """``(units of a block, whether all of their weights are kept, shared bytes)`` where a unit
    has ``columns`` columns of ``inner`` weights."""
    size, tile = np.dtype(dtype).itemsize, ROWS * (DEPTH + 1)

    def needed(own, deep):
        return (own * columns * deep + tile) * size

    keep = keep and needed(1, inner) <= SHARED
    own, deep = 1, inner if keep else DEPTH
    while 2 * own <= min(units, 16) and needed(2 * own, deep) <= SHARED:
        own *= 2
    return own, keep, needed(own, deep)


def forward_loop(name: str, units: int, dtype, keep: bool = True) -> Loop:
    """The loop for layers of ``units`` units, which keeps weights for a whole sequence if they
    fit; blocks that do so own no other units."""
    own, keep, shared = _geometry(units, len(LAYOUTS[name].of_h), units, dtype, keep)
    return Loop(_forward(name, dtype, own, keep), own, keep, shared)


def backward_loop(name: str, units: int, dtype, keep: bool = True) -> Loop:
    """The same for the gradient through time."""
    own, keep, shared = _geometry(units * len(LAYOUTS[name].of_h), 1, units, dtype, keep)
    return Loop(_backward(name, dtype, own, keep), own, keep, shared)


@cache
def _forward(name: str, dtype, own: int, kept: bool) -> Kernel:
    layout: Layout = LAYOUTS[name]
    slots, of_x, of_h, h_first = layout.slots, len(layout.of_x), len(layout.of_h), layout.h_first
    has_c = layout.states == 2
    number = np.dtype(dtype).type
    height, share, depth, columns = ROWS, SHARE, DEPTH, own * of_h
    tile_row, threads = depth + 1, own * (ROWS // SHARE)
    tile_size = height * tile_row
    finish, multiply = _equations(name, dtype)[0], _multiply(dtype, of_h)

    def forward(
        w, bias, gates, gates_row, gates_at, h, c, y, y_row, y_at,
        sizes, offsets, steps, units, reverse, save,
    ):  # fmt: skip
        """One direction of one layer.

        w is W_hh [G H, H]; bias [slots H]; gates [N, gates_row] come in as x @ W_ih.T in their
        first slots and leave activated if ``save``; h and c [N + B, H] hold what each row starts
        from and what each sequence ends with, c is h where the cell has none; y [N, y_row].
        """
        shared = cuda.shared.array(0, dtype)
        t = cuda.threadIdx.x
        unit, row = t % own, t // own * share
        sums = cuda.local.array((share, of_h), dtype)
        z = cuda.local.array(4, dtype)
        grid = cuda.cg.this_grid()
        final = offsets[steps]
        if kept:
            for q in range(t, units * columns, threads):
                k, j = q % units, q // units
                u = cuda.blockIdx.x * own + j // of_h
                v = number(0)
                if u < units:
                    v = w[(j % of_h * units + u) * units + k]
                shared[tile_size + k * columns + j] = v
        for step in range(steps):
            now = steps - 1 - step if reverse else step
            following = now - 1 if reverse else now + 1
            active, here = sizes[now], offsets[now]
            lasting, after = 0, final
            if 0 <= following < steps:
                lasting, after = sizes[following], offsets[following]
            for u0 in range(cuda.blockIdx.x * own, units, cuda.gridDim.x * own):
                for r0 in range(cuda.blockIdx.y * height, active, cuda.gridDim.y * height):
                    for i in range(share):
                        for j in range(of_h):
                            sums[i, j] = number(0)
                    for k0 in range(0, units, depth):
                        count = min(depth, units - k0)
                        cuda.syncthreads()
                        for q in range(t, height * depth, threads):
                            r, k = q // depth, q % depth
                            v = number(0)
                            if r0 + r < active and k < count:
                                v = h[(here + r0 + r) * units + k0 + k]
                            shared[r * tile_row + k] = v
                        if not kept:
                            for q in range(t, depth * columns, threads):
                                k, j = q % depth, q // depth
                                u = u0 + j // of_h
                                v = number(0)
                                if u < units and k < count:
                                    v = w[(j % of_h * units + u) * units + k0 + k]
                                shared[tile_size + k * columns + j] = v
                        cuda.syncthreads()
                        at = tile_size + unit * of_h + (k0 * columns if kept else 0)
                        multiply(shared, row * tile_row, tile_row, at, columns, count, sums)
                    u = u0 + unit
                    for i in range(share):
                        r = r0 + row + i
                        if r < active and u < units:
                            for s in range(4):
                                z[s] = number(0)
                            for s in range(slots):
                                z[s] = bias[s * units + u]
                                if s < of_x:
                                    z[s] += gates[(here + r) * gates_row + gates_at + s * units + u]
                                if s >= h_first:
                                    z[s] += sums[i, s - h_first]
                            at = (here + r) * units + u
                            c_prev = c[at] if has_c else number(0)
                            g0, g1, g2, g3, h_new, c_new = finish(
                                z[0], z[1], z[2], z[3], h[at], c_prev
                            )
                            to = ((after if r < lasting else final) + r) * units + u
                            h[to] = h_new
                            y[(here + r) * y_row + y_at + u] = h_new
                            if has_c:
                                c[to] = c_new
                            if save:
                                z[0], z[1], z[2], z[3] = g0, g1, g2, g3
                                for s in range(slots):
                                    gates[(here + r) * gates_row + gates_at + s * units + u] = z[s]
            grid.sync()

    return Kernel(forward, threads, True)


@cache
def _backward(name: str, dtype, own: int, kept: bool) -> Kernel:
    layout: Layout = LAYOUTS[name]
    slots, of_h, h_first = layout.slots, len(layout.of_h), layout.h_first
    has_c = layout.states == 2
    number = np.dtype(dtype).type
    height, share, depth = ROWS, SHARE, DEPTH
    tile_row, threads = depth + 1, own * (ROWS // SHARE)
    tile_size = height * tile_row
    step_back, multiply = _equations(name, dtype)[1], _multiply(dtype, 1)

    def backward(
        w, gates, gates_row, gates_at, state, dy, dy_row, dy_at, dh, dc,
        sizes, offsets, steps, units, reverse,
    ):  # fmt: skip
        """The gradient through time of ``forward``, one direction.

        gates come in activated and leave as the gradients of what was activated; state [N + B, H]
        is c, or h where the cell has none; dh and dc [B, H] (dc is dh where the cell has no c)
        come in as the gradients of the final states and leave as those of the initial ones.
        """
        shared = cuda.shared.array(0, dtype)
        t = cuda.threadIdx.x
        inner = of_h * units
        unit, row = t % own, t // own * share
        sums = cuda.local.array((share, 1), dtype)
        g = cuda.local.array(4, dtype)
        grid = cuda.cg.this_grid()
        if kept:
            for q in range(t, inner * own, threads):
                u = cuda.blockIdx.x * own + q % own
                v = number(0)
                if u < units:
                    v = w[q // own * units + u]
                shared[tile_size + q] = v
        for step in range(steps + 1):  # the last one only brings dh past the first step
            now = step if reverse else steps - 1 - step
            before = now - 1 if reverse else now + 1
            active, here, had, there = 0, 0, 0, 0
            if step < steps:
                active, here = sizes[now], offsets[now]
            if step > 0:
                had, there = sizes[before], offsets[before]
            for u0 in range(cuda.blockIdx.x * own, units, cuda.gridDim.x * own):
                most = max(active, had)
                for r0 in range(cuda.blockIdx.y * height, most, cuda.gridDim.y * height):
                    for i in range(share):
                        sums[i, 0] = number(0)
                    for k0 in range(0, inner if r0 < had else 0, depth):
                        count = min(depth, inner - k0)
                        cuda.syncthreads()
                        for q in range(t, height * depth, threads):
                            r, k = q // depth, q % depth
                            v = number(0)
                            if r0 + r < had and k < count:
                                at = (there + r0 + r) * gates_row + gates_at + h_first * units
                                v = gates[at + k0 + k]
                            shared[r * tile_row + k] = v
                        if not kept:
                            for q in range(t, depth * own, threads):
                                u, k = u0 + q % own, q // own
                                v = number(0)
                                if u < units and k < count:
                                    v = w[(k0 + k) * units + u]
                                shared[tile_size + q] = v
                        cuda.syncthreads()
                        at = tile_size + unit + (k0 * own if kept else 0)
                        multiply(shared, row * tile_row, tile_row, at, own, count, sums)
                    u = u0 + unit
                    for i in range(share):
                        r = r0 + row + i
                        if r < most and u < units:
                            d = dh[r * units + u] + sums[i, 0]
                            if r < active:
                                for s in range(4):
                                    g[s] = number(0)
                                for s in range(slots):
                                    g[s] = gates[(here + r) * gates_row + gates_at + s * units + u]
                                d += dy[(here + r) * dy_row + dy_at + u]
                                d_c = dc[r * units + u] if has_c else number(0)
                                g[0], g[1], g[2], g[3], d_c, d = step_back(
                                    g[0], g[1], g[2], g[3], state[(here + r) * units + u], d, d_c
                                )
                                if has_c:
                                    dc[r * units + u] = d_c
                                for s in range(slots):
                                    gates[(here + r) * gates_row + gates_at + s * units + u] = g[s]
                            dh[r * units + u] = d
            if step < steps:
                grid.sync()

    return Kernel(backward, threads, True)
