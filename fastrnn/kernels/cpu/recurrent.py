"""A recurrent layer on the CPU: what the time loops and the products are put together to.

See kernels/__init__.py for the contract.
"""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from fastrnn.kernels import buffers
from fastrnn.kernels.rows import Rows
from fastrnn.kernels.threads import MOVE, Job, balanced, even, run, spread, worth

from . import dense, gemm, pack
from .barrier import CAN_MEET, Barrier
from .loops import CELLS
from .simd import ISA, width
from .tile import PANEL

# Multiply-adds of a step that a thread should have to do, or meeting costs more than it brings.
LEAST_STEP = 1 << 14


class Weights:
    """The parameters of one layer, packed when first needed and kept until they change.

    Parameters
    ----------
    cell : str
        One of `fastrnn.cells.LAYOUTS`.
    parameters : sequence over the D directions
        Of ``(weight_ih [G H, I], weight_hh [G H, H], bias_ih [G H] or None, bias_hh or None)``.
    """

    def __init__(self, cell: str, parameters):
        self.loops = CELLS[cell]
        self.layout = self.loops.layout
        self.parameters = parameters
        w_ih, w_hh = parameters[0][:2]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.lanes = width(self.dtype)
        self.panel = PANEL * self.lanes
        self.hp = -(-self.units // self.lanes) * self.lanes
        # PyTorch's rows behind the packed columns, and back; in whole panels where it is one gate.
        of = [(self.units, gates, self.dtype) for gates in (self.layout.of_x, self.layout.of_h)]
        self.x_places, self.h_places = (pack.gate_places(*a) for a in of)
        if self.layout.gates == 1:
            self.x_columns = self.h_columns = pack.plain_columns(self.units, self.dtype)
            self.panels = len(self.x_columns) // self.panel
            self.gates_row = self.hp  # numbers of a row of gates, of one direction
            self.runs = self.hp, self.hp  # length and stride of those that belong to a product
        else:
            self.x_columns, self.h_columns = (pack.gate_columns(*a) for a in of)
            self.panels = self.hp // self.lanes
            self.gates_row = self.panels * self.panel
            self.runs = len(self.layout.of_x) * self.lanes, self.panel
        # A row of states is not a multiple of 1 KB, or columns of them share few cache sets.
        self.state_row = self.hp + self.lanes * (self.hp * self.dtype.itemsize % 1024 == 0)
        self.h_at = self.layout.h_first * self.lanes
        self._packed: dict[str, np.ndarray] = {}
        self.scratch: dict[int, list] = {}  # of `step`, by the size of the batch

    def ready(self, *, training: bool, dx: bool) -> None:
        """Pack what is not yet packed, all at once."""
        wanted = {"x": self._forward, "h": self._forward}
        if training:
            wanted["back_h"] = self._backward
        if training and dx:
            wanted["back_x"] = self._backward
        packed, jobs = {}, list[Job]()
        for name, make in wanted.items():
            if name not in self._packed:
                packed[name] = make(name.removeprefix("back_"), jobs)
        if jobs:
            spread(*jobs)
            # Two callers may have packed the same; nothing that one of them has is ever lost.
            self._packed.update(packed)

    def _forward(self, which, jobs) -> np.ndarray:
        columns = self.x_columns if which == "x" else self.h_columns
        depth = self.inputs if which == "x" else self.units
        shape = (self.directions, self.panels, depth, len(columns) // self.panels)
        out = buffers.empty(shape, self.dtype)
        for p, part in zip(self.parameters, out, strict=True):
            jobs.append(dense.pack_forward(p[which == "h"], columns, part))
        return out

    def _backward(self, which, jobs) -> np.ndarray:
        """Of h for each direction, [D, R, ., 4W]; of x one above the other, [R, D ., 4W]."""
        columns = self.x_columns if which == "x" else self.h_columns
        columns = columns[: self.hp] if self.layout.gates == 1 else columns
        depth = self.inputs if which == "x" else self.units
        r, m, d = -(-depth // self.panel), len(columns), self.directions
        if which == "x":
            out = buffers.empty((r, d * m, self.panel), self.dtype)
            parts = [(out, i * m) for i in range(d)]
        else:
            out = buffers.empty((d, r, m, self.panel), self.dtype)
            parts = [(part, 0) for part in out]
        for p, (part, at) in zip(self.parameters, parts, strict=True):
            jobs.append(dense.pack_backward(p[which == "h"], columns, part, at))
        return out

    def __getitem__(self, name: str) -> np.ndarray:
        """What `ready` packed: ``x [D, P, I, .]``, ``h [D, P, H, .]``, ``back_x``, ``back_h``."""
        return self._packed[name]

    @cached_property
    def bias(self) -> np.ndarray:
        """[D, P, 4W], what every row's sums start from."""
        out = np.zeros((self.directions, self.panels, self.panel), self.dtype)
        sides = (self.x_columns, self.x_places, 0), (self.h_columns, self.h_places, self.h_at)
        for part, (_, _, *biases) in zip(out, self.parameters, strict=True):
            if biases[0] is not None:
                for b, (columns, places, at) in zip(biases, sides, strict=True):
                    values = np.zeros(len(columns), self.dtype)
                    values[places] = b
                    values = values.reshape(self.panels, -1)
                    part[:, at : at + values.shape[1]] += values
        return out

    @cached_property
    def for_step(self) -> tuple[np.ndarray, ...]:
        """What `step` reads: the weights of the one direction and the bias."""
        self.ready(training=False, dx=False)
        return self["x"][0], self["h"][0], self.bias.reshape(-1)

    @cached_property
    def table(self) -> np.ndarray:
        """[D, P, I, 4W]: what a one-hot input adds up to, for each of its I values."""
        x = self["x"]
        out = np.repeat(self.bias[:, :, None], self.inputs, axis=2)
        out[..., : x.shape[3]] += x
        return out


@dataclass
class Tape:
    """What `backward` needs of a `forward`; it is used up there."""

    x: np.ndarray
    rows: Rows
    states: list[list[np.ndarray]]  # of each direction: h, and c where the cell has it
    gates: np.ndarray | None


def _slices(rows: Rows, cost: float, directions: int, panels: int):
    """How one direction's work is shared: slices of the batch or, where those would be too low
    for the registers, of the units: ``[(first, last, first_panel, last_panel)], parties``."""
    shares = -(-worth(cost) // directions)
    units = min(max(1, worth(cost) // directions), panels) if CAN_MEET else 1
    step = cost / directions / max(1, len(rows.sizes))
    if units > 1 and rows.batch // shares < ISA.tile_rows and step / units > LEAST_STEP:
        return [(0, rows.batch, a, b) for a, b in even(panels, units)], units
    # More slices than threads where they stay high: a slow thread then does fewer of them.
    pieces = max(1, min(4, rows.batch // (4 * ISA.tile_rows * shares))) if shares > 1 else 1
    if rows.order is None:
        cuts = even(rows.batch, min(rows.batch, shares * pieces) or 1)
    else:
        cuts = balanced(rows.lengths, shares * pieces)
    return [(a, b, 0, panels) for a, b in cuts], 1


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


def _project_and_loop(w: Weights, x, gates, d: int, a: int, b: int, loop) -> None:
    """x @ W_ih.T for the panels [a, b) of one direction and all rows, then its time loop."""
    bias, at = w.bias[d, a:b], d * w.gates_row + a * w.panel
    left = w.gates_row - a * w.panel
    gemm.product(x, 1, w.inputs, 0, w["x"][d, a:b], bias, gates, at, w.panel, left, 0, len(x))
    own = w["x"].shape[3]
    if own < w.panel:  # what starts from the bias alone
        rest = gates[:, at : at + (b - a) * w.panel].reshape(len(x), b - a, w.panel)
        rest[:, :, own:] = bias[:, own:]
    loop()


def forward(weights: Weights, x, rows: Rows, state_0, *, training: bool):
    """All directions of one layer: ``(y [N, D H], states [D, B, H], tape or None)``.

    x is [N, I], or int64 [N] for a one-hot input given by its index.
    """
    w, layout = weights, weights.layout
    d_count, units, batch, dtype = w.directions, w.units, rows.batch, w.dtype
    tokens = x.ndim == 1
    w.ready(training=training, dx=not tokens)
    y = buffers.empty((rows.count, d_count * units), dtype)
    cost = rows.count * d_count * layout.gates * units * (units if tokens else units + w.inputs)
    slices, parties = _slices(rows, cost, d_count, w.panels)
    # With few rows a step's tiles are too low to pay for their weights: take all steps at once.
    whole = parties > 1 or len(slices) == 1
    hoist = whole and not tokens and rows.count > batch and batch < ISA.tile_rows
    save = training or hoist
    gates = buffers.empty((rows.count if save else 0, d_count * w.gates_row), dtype)
    ids = np.empty(0, np.int64)
    x_in, w_x, start, start_row, start_panel = x, w["x"], w.bias, 0, w.panel
    if tokens or hoist:
        x_in, w_x = np.empty((0, 0), dtype), w["x"][:, :, :0]
    if tokens:
        ids, start, start_row, start_panel = x, w.table, w.panel, w.inputs * w.panel
    elif hoist:
        ids, start, start_row = np.arange(rows.count), gates, gates.shape[1]

    state_at = _state_places(rows, training)
    slots = (rows.count if training else 2 * batch) + batch
    barrier = Barrier(d_count)
    states, tasks = [], []
    for d in range(d_count):
        own = [buffers.empty((slots, w.state_row), dtype) for _ in range(layout.states)]
        for state, initial in zip(own, state_0, strict=True):
            _place_initial(state, initial[d], rows, training, d == 1)
        states.append(own)
        c = own[1] if layout.states == 2 else np.empty((0, 0), dtype)
        start_at = d * (w.gates_row if hoist else w.panels * start_panel)
        for first, last, a, b in slices:
            loop = partial(
                w.loops.forward,
                x_in, w_x[d], start.reshape(-1), start_row, start_panel, start_at, ids,
                w["h"][d], own[0], c, y, d * units, gates, d * w.gates_row, training,
                rows.sizes, rows.offsets, state_at, d == 1,
                first, last, a, b, *barrier.place(d), parties,
            )  # fmt: skip
            tasks.append((_project_and_loop, w, x, gates, d, a, b, loop) if hoist else (loop,))
    run(tasks, len(tasks) if parties > 1 else None, barrier.abandon)
    state_n = tuple(
        np.stack([s[k][slots - batch :, :units] for s in states]) for k in range(layout.states)
    )
    return y, state_n, Tape(x, rows, states, gates) if training else None


def step(layers: list[Weights], x, state) -> tuple[np.ndarray, tuple[np.ndarray, ...], bool]:
    """One step through all layers on this thread: ``(y [B, H], state, finite)``."""
    w, batch, count, states = layers[0], len(x), len(layers), len(state)
    out = np.empty((count * states + 1, batch, w.units), w.dtype)
    try:  # not shared: callers on several threads take one each
        own = w.scratch[batch].pop()
    except (KeyError, IndexError):
        if len(w.scratch) > 8:  # batches of ever new sizes
            w.scratch.clear()
        w.scratch.setdefault(batch, [])
        own = np.empty((states, 2 * batch, w.hp), w.dtype), np.array((batch, 0, batch))
    finite = True
    for number, w in enumerate(layers):
        finite &= w.loops.step(x, *w.for_step, state[0], state[-1], number, out, *own)
        x = out[number]
    layers[0].scratch.setdefault(batch, []).append(own)
    return out[-1], tuple([out[s * count : (s + 1) * count] for s in range(states)]), finite


def backward(weights: Weights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `forward`: ``(dx or None, states' [D, B, H], (dW_ih, dW_hh, db_ih, db_hh)
    of each direction)``."""
    w, layout, rows, gates = weights, weights.layout, tape.rows, tape.gates
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    units, batch, dtype, tokens = w.units, rows.batch, w.dtype, tape.x.ndim == 1
    need_dx = need_dx and not tokens
    w.ready(training=True, dx=need_dx)
    cost = rows.count * w.directions * layout.gates * units * units
    slices, parties = _slices(rows, cost, w.directions, w["back_h"].shape[1])
    barrier = Barrier(w.directions)
    tasks, dstates = [], []
    for d in range(w.directions):
        own = [np.zeros((batch, w.hp), dtype) for _ in range(layout.states)]
        for state, final in zip(own, dstate_n, strict=True):
            state[:, :units] = final[d]
        dstates.append(own)
        dc = own[1] if layout.states == 2 else np.empty((0, 0), dtype)
        for first, last, a, b in slices:
            tasks.append((
                w.loops.backward,
                dy, d * units, gates, d * w.gates_row, tape.states[d][-1],
                w["back_h"][d], *w.runs, own[0], dc,
                units, rows.sizes, rows.offsets, d == 1,
                first, last, a, b, *barrier.place(d), parties,
            ))  # fmt: skip
    run(tasks, len(tasks) if parties > 1 else None, barrier.abandon)

    # All weight gradients and dx at once: every thread has a share of each.
    dx, jobs, parts = None, list[Job](), list[tuple]()
    if need_dx:
        dx = buffers.empty((rows.count, w.inputs), dtype)
        blocks = w.directions * w["back_h"].shape[2] // w.runs[0]
        zero = np.zeros((len(w["back_x"]), w.panel), dtype)
        jobs.append(dense.product(gates, (blocks, *w.runs), w["back_x"], zero, dx, w.inputs))
    for d in range(w.directions):
        at, h_prev = d * w.gates_row, tape.states[d][0][: rows.count]
        jobs.append(_gradient(w, "x", d, tape.x, gates, at, parts))
        jobs.append(_gradient(w, "h", d, h_prev, gates, at + w.h_at, parts))
    spread(*jobs)
    if tokens:
        for _, db, packed, _ in parts[::2]:
            db[:] = packed.sum(axis=1)
    dw_db = [(dw, db.reshape(-1)[places]) for dw, db, _, places in parts]
    grads = [(x[0], h[0], x[1], h[1]) for x, h in zip(dw_db[::2], dw_db[1::2], strict=True)]
    dstate_0 = tuple(np.stack([s[k][:, :units] for s in dstates]) for k in range(layout.states))
    return dx, dstate_0, grads


def _gradient(w: Weights, which: str, d: int, a, gates, at: int, parts: list) -> Job:
    """The job that fills a weight's gradient, and its bias's sums, from the rows it met; both
    are added to ``parts``."""
    columns, places = (w.x_columns, w.x_places) if which == "x" else (w.h_columns, w.h_places)
    out = buffers.empty(w.parameters[d][which == "h"].shape, w.dtype)
    packed = buffers.empty(w[which].shape[1:], w.dtype)
    sums = np.zeros(packed.shape[::2], w.dtype)
    parts.append((out, sums, packed, places))
    left = (d + 1) * w.gates_row - at
    if a.ndim == 2:
        return dense.accumulate(a, gates, at, w.panel, left, packed, sums, columns, out)

    def share(first, last):
        packed[first:last] = 0
        gemm.scatter(a, gates, at, w.panel, left, packed, first, last)
        pack.unpack_gradient(packed, columns, out, first * w.inputs, last * w.inputs)

    return Job(share, (), len(packed), (gates.size + out.size) * MOVE)
