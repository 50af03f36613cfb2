"""A recurrent layer on the GPU: projection, time loops, and the products of the gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastrnn.cells import LAYOUTS
from fastrnn.kernels import is_on_device
from fastrnn.kernels.precision import get_cuda_precision
from fastrnn.kernels.rows import Rows

from . import cluster, gemm, moves
from .gemm import Matrix
from .launch import has_clusters, most_shared
from .loops import ROWS, Loop, backward_loop, forward_loop
from .memory import empty, to_device, to_host

# Which time loop: "grid", "cluster", or None for clusters where the device has them and the layer
# fits.
loop: str | None = None


class Weights:
    """The parameters of one layer on the device, copied there when first needed."""

    def __init__(self, cell: str, parameters):
        self.cell, self.layout, self.parameters = cell, LAYOUTS[cell], parameters
        w_ih, w_hh = parameters[0][:2]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.own_gates = self.layout.slots * self.units  # of one direction
        self.gates_row = self.directions * self.own_gates
        self._packed: dict[tuple, Any] = {}

    @cached_property
    def on_device(self) -> list[tuple[Any, Any, Any]]:
        """``(W_ih, W_hh, bias [slots H])`` of each direction."""
        out = []
        for w_ih, w_hh, b_ih, b_hh in self.parameters:
            bias = moves.zeros(self.own_gates, self.dtype)
            if b_ih is not None:
                b_ih, b_hh = to_device(b_ih), to_device(b_hh)
                for slot, gate, count in self.runs():
                    count *= self.units
                    moves.move(b_ih, gate * self.units, bias, slot * self.units, count)
                at = self.layout.h_first * self.units
                moves.move(b_hh, 0, bias, at, b_hh.size, add=True)
            out.append((to_device(w_ih), to_device(w_hh), bias))
        return out

    def plan(self) -> cluster.Plan | None:
        """How the time loop is laid out on clusters, None for the loop over the grid."""
        if self.cell != "lstm" or self.dtype != np.float32 or loop == "grid":
            return None
        if loop is None and not has_clusters():
            return None
        return cluster.plan(self.units, get_cuda_precision(), most_shared())

    def packed(self, made: cluster.Plan, d: int, *, backward: bool):
        """W_hh of one direction as a cluster reads it."""
        key = made, d, backward
        if key not in self._packed:
            out = empty((made.words, made.blocks, made.threads), np.uint32)
            grid = made.blocks, made.words
            cluster.pack(made, backward)(grid, self.on_device[d][1], self.units, out)
            self._packed[key] = out
        return self._packed[key]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Gates of W_ih that lie side by side as slots too: first slot, first gate, how many."""
        of_x, start = self.layout.of_x, 0
        for slot in range(1, len(of_x) + 1):
            if slot == len(of_x) or of_x[slot] != of_x[slot - 1] + 1:
                yield start, of_x[start], slot - start
                start = slot


@dataclass
class Tape:
    """What `backward` needs of a `forward`; it is used up there."""

    x: Any
    rows: Rows
    places: tuple[Any, Any, Any]  # sizes, offsets and lengths of the rows
    states: list[list[Any]]  # of each direction: h, and c where the cell has it
    gates: Any
    made: cluster.Plan | None


def _over_grid(make: Callable[..., Loop], w: Weights, batch: int, *args) -> None:
    """Run a time loop on as many blocks as can wait for each other, and as there is work for."""
    for keep in (True, False):
        made = make(w.cell, w.units, w.dtype, keep)
        tiles, most = -(-w.units // made.units), made.kernel.most_blocks(*args, shared=made.shared)
        if tiles <= most or not made.kept:
            break
    across = min(tiles, most)
    down = max(1, min(-(-batch // ROWS), most // across))
    made.kernel((across, down), *args, shared=made.shared)


def _like(x, *arrays) -> tuple:
    """Arrays where x is: back on the host if it came from there."""
    return arrays if is_on_device(x) else tuple(map(to_host, arrays))


def forward(weights: Weights, x, rows: Rows, state_0, *, training: bool):
    """All directions of one layer, see kernels/__init__.py."""
    w, batch, steps, made = weights, rows.batch, len(rows.sizes), weights.plan()
    tokens, layout = x.ndim == 1, w.layout
    x_in, x = x, to_device(x)
    places = to_device(rows.sizes), to_device(rows.offsets), to_device(rows.lengths)
    sizes, offsets, lengths = places
    y_row = w.directions * w.units
    y = empty((rows.count, y_row), w.dtype)
    gates = empty((rows.count, w.gates_row), w.dtype)
    initial = [to_device(s) for s in state_0]
    states = []
    for d, (w_ih, w_hh, bias) in enumerate(w.on_device):
        for slot, gate, count in w.runs():
            part = Matrix(w_ih, gate * w.units * w.inputs, w.inputs)
            to = Matrix(gates, d * w.own_gates + slot * w.units, w.gates_row)
            columns = count * w.units
            if tokens:
                gemm.pick(part, x, to, columns)
            else:
                sizes_of_product = rows.count, w.inputs, columns
                gemm.product(Matrix(x, 0, w.inputs), part.transposed, to, sizes_of_product)
        own = [empty((rows.count + batch, w.units), w.dtype) for _ in range(layout.states)]
        states.append(own)
        at, reverse = d * w.own_gates, d == 1
        if made:
            cluster.forward(made)(
                (-(-batch // cluster.ROWS), 1),
                w.packed(made, d, backward=False), bias, gates, w.gates_row, at,
                *initial, d * batch, *own, y, y_row, d * w.units,
                lengths, offsets, batch, rows.count, w.units, reverse, training,
                shared=made.shared(1), cluster=made.blocks,
            )  # fmt: skip
            continue
        for state, first in zip(own, initial, strict=True):
            moves.place(first[d], state, lengths, offsets, steps, reverse)
        _over_grid(
            forward_loop, w, batch,
            w_hh, bias, gates, w.gates_row, at, own[0], own[-1], y, y_row, d * w.units,
            sizes, offsets, steps, w.units, reverse, training,
        )  # fmt: skip
    state_n = []
    for k in range(layout.states):
        final = empty((w.directions, batch, w.units), w.dtype)
        for d, own in enumerate(states):
            size = batch * w.units
            moves.move(own[k], rows.count * w.units, final, d * size, size)
        state_n.append(final)
    y, *state_n = _like(x_in, y, *state_n)
    tape = Tape(x, rows, places, states, gates, made) if training else None
    return y, tuple(state_n), tape


def step(layers: list[Weights], x, state):
    """One step through all layers, see kernels/__init__.py."""
    rows, after = Rows(1, len(x)), []
    for number, weights in enumerate(layers):
        own = tuple(s[number : number + 1] for s in state)
        x, state_n, _ = forward(weights, x, rows, own, training=False)
        after.append(state_n)
    out = tuple(moves.concatenate(parts) for parts in zip(*after, strict=True))
    return x, out, is_on_device(x) or all(np.isfinite(v).all() for v in (x, *out))


def backward(weights: Weights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `forward`, see kernels/__init__.py."""
    w, rows, gates, layout, made = weights, tape.rows, tape.gates, weights.layout, tape.made
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    steps, tokens, count, batch = len(rows.sizes), tape.x.ndim == 1, rows.count, rows.batch
    sizes, offsets, lengths = tape.places
    dy_in, dy, dy_row = dy, to_device(dy), w.directions * w.units
    dx = None if tokens or not need_dx else empty((count, w.inputs), w.dtype)
    ids = to_host(tape.x) if tokens else np.empty(0, np.int64)
    grads, dstate = [], [moves.copied(s) for s in dstate_n]
    for d, (w_ih, w_hh, _) in enumerate(w.on_device):
        own = [s[d] for s in dstate]
        at, reverse, state = d * w.own_gates, d == 1, tape.states[d][-1]
        if made:
            cluster.backward(made)(
                (-(-batch // cluster.ROWS), 1),
                w.packed(made, d, backward=True), gates, w.gates_row, at,
                state, dy, dy_row, d * w.units, *own, 0,
                lengths, offsets, batch, w.units, reverse,
                shared=made.shared(4), cluster=made.blocks,
            )  # fmt: skip
        else:
            _over_grid(
                backward_loop, w, batch,
                w_hh, gates, w.gates_row, at, state, dy, dy_row, d * w.units, own[0], own[-1],
                sizes, offsets, steps, w.units, reverse,
            )  # fmt: skip
        size = layout.gates * w.units, w.inputs
        dw_ih = moves.zeros(size, w.dtype) if tokens else empty(size, w.dtype)
        dw_hh = empty((layout.gates * w.units, w.units), w.dtype)
        for slot, gate, many in w.runs():
            dz = Matrix(gates, at + slot * w.units, w.gates_row)
            place, columns = gate * w.units * w.inputs, many * w.units
            to = Matrix(dw_ih, place, w.inputs)
            if tokens:
                gemm.sum_groups(dz, ids, Matrix(dw_ih, place, 1, w.inputs), columns)
                continue
            x = Matrix(tape.x, 0, w.inputs)
            gemm.product(dz.transposed, x, to, (columns, count, w.inputs))
            if dx is not None:
                part, out = Matrix(w_ih, place, w.inputs), Matrix(dx, 0, w.inputs)
                gemm.product(dz, part, out, (count, columns, w.inputs), add=bool(d or slot))
        dz = Matrix(gates, at + layout.h_first * w.units, w.gates_row)
        h_prev = Matrix(tape.states[d][0], 0, w.units)
        of_h = len(layout.of_h) * w.units
        gemm.product(dz.transposed, h_prev, Matrix(dw_hh, 0, w.units), (of_h, count, w.units))
        sums = gemm.sum_rows(Matrix(gates, at, w.gates_row), count, w.own_gates)
        grads.append(_like(dy_in, dw_ih, dw_hh, *_biases(w, sums)))
    if dx is not None:
        (dx,) = _like(dy_in, dx)
    return dx, _like(dy_in, *dstate), grads


def _biases(w: Weights, sums) -> tuple[Any, Any]:
    """Gradients of b_ih and b_hh, out of the sums of all slots."""
    db_ih = empty(w.layout.gates * w.units, w.dtype)
    for slot, gate, count in w.runs():
        moves.move(sums, slot * w.units, db_ih, gate * w.units, count * w.units)
    return db_ih, sums[w.layout.h_first * w.units :]
