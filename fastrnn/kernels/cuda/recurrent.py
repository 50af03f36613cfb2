"""A recurrent layer on the GPU: projection, time loops, and the products of the gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numba import cuda

from fastrnn.cells import LAYOUTS
from fastrnn.kernels.rows import Rows

from . import gemm
from .device import empty, is_on_device, kernel, to_device, to_host
from .gemm import Matrix
from .loops import ROWS, Loop, backward_loop, forward_loop

_PLACE = 128  # threads that place a number each


class Weights:
    """The parameters of one layer on the device, copied there when first needed."""

    def __init__(self, cell: str, parameters):
        self.cell, self.layout, self.parameters = cell, LAYOUTS[cell], parameters
        w_ih, w_hh = parameters[0][:2]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.gates_row = self.layout.slots * self.units  # of one direction

    @cached_property
    def on_device(self) -> list[tuple[Any, Any, Any]]:
        """``(W_ih flat, W_hh flat, bias [slots H])`` of each direction."""
        out = []
        for w_ih, w_hh, *biases in self.parameters:
            bias = np.zeros((self.layout.slots, self.units), self.dtype)
            sides = (self.layout.of_x, 0), (self.layout.of_h, self.layout.h_first)
            for b, (gates, first) in zip(biases, sides, strict=True):
                if b is not None:
                    parts = to_host(b).reshape(-1, self.units)[list(gates)]
                    bias[first : first + len(gates)] += parts
            out.append(tuple(to_device(v).reshape(-1) for v in (w_ih, w_hh, bias)))
        return out

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
    places: tuple[Any, Any]
    states: list[list[Any]]  # of each direction: h, and c where the cell has it
    gates: Any


@cache
def _place(dtype):
    threads = _PLACE

    def place(initial, first, state, lengths, offsets, steps, reverse):
        """Write initial states [B, H] where each sequence's first step looks for them."""
        at = cuda.blockIdx.x * threads + cuda.threadIdx.x
        units = state.shape[1]
        if at < lengths.size * units:
            b, u = at // units, at % units
            row = offsets[steps] + b  # stays there where the length is 0
            if lengths[b] > 0:
                row = (offsets[lengths[b] - 1] if reverse else 0) + b
            state[row, u] = initial[first + b, u]

    return kernel(place, threads)


def _launch(make: Callable[..., Loop], w: Weights, batch: int, *args) -> None:
    """Run a time loop on as many blocks as can wait for each other, and as there is work for."""
    for keep in (True, False):
        loop = make(w.cell, w.units, w.dtype, keep)
        tiles, most = -(-w.units // loop.units), loop.kernel.most_blocks(*args, shared=loop.shared)
        if tiles <= most or not loop.kept:
            break
    across = min(tiles, most)
    down = max(1, min(-(-batch // ROWS), most // across))
    loop.kernel((across, down), *args, shared=loop.shared)


def _host_like(x, *arrays) -> tuple:
    """Arrays where x is: back on the host if it came from there."""
    return arrays if is_on_device(x) else tuple(map(to_host, arrays))


def forward(weights: Weights, x, rows: Rows, state_0, *, training: bool):
    """All directions of one layer, see kernels/__init__.py."""
    w, batch, steps = weights, rows.batch, len(rows.sizes)
    tokens, layout = x.ndim == 1, w.layout
    x_in, x = x, to_device(x)
    places = to_device(rows.sizes), to_device(rows.offsets)
    lengths = to_device(rows.lengths)
    y = empty((rows.count, w.directions * w.units), w.dtype)
    gates = empty((rows.count, w.directions * w.gates_row), w.dtype)
    flat, gates_row = gates.reshape(-1), w.directions * w.gates_row
    initial = [to_device(s).reshape(-1, w.units) for s in state_0]
    states = []
    for d, (w_ih, w_hh, bias) in enumerate(w.on_device):
        for slot, gate, count in w.runs():
            part = Matrix(w_ih, gate * w.units * w.inputs, w.inputs)
            to = Matrix(flat, d * w.gates_row + slot * w.units, gates_row)
            columns = count * w.units
            if tokens:
                gemm.pick(part, x, to, columns)
            else:
                source = Matrix(x.reshape(-1), 0, w.inputs)
                gemm.product(source, part.transposed, to, (rows.count, w.inputs, columns))
        own = [empty((rows.count + batch, w.units), w.dtype) for _ in range(layout.states)]
        for state, first in zip(own, initial, strict=True):
            args = first, d * batch, state, lengths, places[1], steps, d == 1
            _place(w.dtype)((-(-batch * w.units // _PLACE), 1), *args)
        states.append(own)
        c = own[1] if layout.states == 2 else empty((0, 0), w.dtype)
        _launch(
            forward_loop, w, batch,
            w_hh, bias, gates, d * w.gates_row, own[0], c, y, d * w.units, *places, steps, d == 1,
            training,
        )  # fmt: skip
    final = slice(rows.count, rows.count + batch)
    state_n = [np.stack([to_host(s[k][final]) for s in states]) for k in range(layout.states)]
    (y,) = _host_like(x_in, y)
    tape = Tape(x, rows, places, states, gates) if training else None
    return y, tuple(state_n), tape


def step(layers: list[Weights], x, state):
    """One step through all layers, see kernels/__init__.py."""
    rows, after = Rows(1, len(x)), []
    for number, weights in enumerate(layers):
        own = tuple(s[number : number + 1] for s in state)
        x, state_n, _ = forward(weights, x, rows, own, training=False)
        after.append(state_n)
    out = tuple(np.concatenate(parts) for parts in zip(*after, strict=True))
    return x, out, all(np.isfinite(v).all() for v in (x, *out))


def backward(weights: Weights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `forward`, see kernels/__init__.py."""
    w, rows, gates, layout = weights, tape.rows, tape.gates, weights.layout
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    steps, tokens, count = len(rows.sizes), tape.x.ndim == 1, rows.count
    flat, gates_row, states_row = gates.reshape(-1), w.directions * w.gates_row, w.units
    dy_in, dy = dy, to_device(dy)
    dx = None if tokens or not need_dx else empty((count, w.inputs), w.dtype)
    grads, dstates = [], []
    for d, (w_ih, w_hh, _) in enumerate(w.on_device):
        own = [to_device(s[d]) for s in dstate_n]
        dstates.append(own)
        dc = own[1] if layout.states == 2 else empty((0, 0), w.dtype)
        _launch(
            backward_loop, w, rows.batch,
            w_hh, gates, d * w.gates_row, tape.states[d][-1], dy, d * w.units, own[0], dc,
            *tape.places, steps, d == 1,
        )  # fmt: skip
        dw_ih = empty((layout.gates * w.units, w.inputs), w.dtype)
        dw_hh = empty((layout.gates * w.units, w.units), w.dtype)
        for slot, gate, many in w.runs():
            dz = Matrix(flat, d * w.gates_row + slot * w.units, gates_row)
            at, columns = gate * w.units * w.inputs, many * w.units
            to = Matrix(dw_ih.reshape(-1), at, w.inputs)
            if tokens:
                gemm.put_back(dz, tape.x, to, columns)
                continue
            source = Matrix(tape.x.reshape(-1), 0, w.inputs)
            gemm.product(dz.transposed, source, to, (columns, count, w.inputs))
            if dx is not None:
                part, out = Matrix(w_ih, at, w.inputs), Matrix(dx.reshape(-1), 0, w.inputs)
                gemm.product(dz, part, out, (count, columns, w.inputs), add=bool(d or slot))
        of_h = len(layout.of_h) * w.units
        dz = Matrix(flat, d * w.gates_row + layout.h_first * w.units, gates_row)
        h_prev = Matrix(tape.states[d][0].reshape(-1), 0, states_row)
        to = Matrix(dw_hh.reshape(-1), 0, w.units)
        gemm.product(dz.transposed, h_prev, to, (of_h, count, w.units))
        sums = gemm.sum_rows(Matrix(flat, d * w.gates_row, gates_row), count, w.gates_row)
        grads.append((*_host_like(dy_in, dw_ih, dw_hh), *_biases(w, to_host(sums))))
    dstate_0 = tuple(np.stack([to_host(s[k]) for s in dstates]) for k in range(layout.states))
    if dx is not None:
        (dx,) = _host_like(dy_in, dx)
    return dx, dstate_0, grads


def _biases(w: Weights, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of b_ih and b_hh, out of the sums of all slots."""
    slots = sums.reshape(-1, w.units)
    out = []
    for gates, first in ((w.layout.of_x, 0), (w.layout.of_h, w.layout.h_first)):
        part = np.empty((w.layout.gates, w.units), sums.dtype)
        part[list(gates)] = slots[first : first + len(gates)]
        out.append(part.reshape(-1))
    return out[0], out[1]
