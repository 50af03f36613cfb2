"""A recurrent layer on the CPU: time loops, and the products before and after them.

The contract is in kernels/backend.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.kernels import unfused
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import (
    MOVE_COST,
    Job,
    parallel_for,
    run,
    split,
    split_by_weight,
    threads_for,
)

from . import fused, gemm, linear, panels
from .barrier import CAN_SHARE_UNITS, Barrier
from .fused import (
    BIAS,
    PROJECTED,
    TABLE,
    Geometry,
    Gradient,
    Init,
    Masks,
    Output,
    Projection,
    RecurrentPanels,
    UnitGradient,
    Work,
)
from .gemm import Panels, Runs
from .simd import ISA
from .tile import PANEL
from .unfused import Ops
from .weights import FusedWeights

# The least work per step that is worth a thread, in multiply-adds; below it the barrier costs more.
MIN_STEP_WORK = 1 << 14


@dataclass
class Tape:
    """What `recurrent_backward` needs of `recurrent_forward`; it is used up there."""

    x: np.ndarray
    packed: PackedBatch
    states: list[tuple[np.ndarray, ...]]  # of each direction
    gates: np.ndarray | None
    masks: list[Masks]  # of each direction
    regularised: bool


def RecurrentWeights(cell: Cell, parameters) -> FusedWeights | unfused.UnfusedWeights:
    """The parameters of one layer, see kernels/backend.py."""
    if cell.program:
        return unfused.UnfusedWeights(cell, parameters, Ops)
    return FusedWeights(cell, parameters)


def _slices(packed: PackedBatch, cost: float, directions: int, panels: int):
    """How the work of one direction is divided, by slices of the batch or, where those would be too
    low for the registers, of the units: ``[(first, last, first_panel, last_panel)], parties``.
    """
    shares = -(-threads_for(cost) // directions)
    units = min(max(1, threads_for(cost) // directions), panels) if CAN_SHARE_UNITS else 1
    step = cost / directions / max(1, len(packed.batch_sizes))
    if units > 1 and packed.batch // shares < ISA.tile_rows and step / units > MIN_STEP_WORK:
        return [(0, packed.batch, a, b) for a, b in split(panels, units)], units
    # More slices than threads if they stay high enough: a slow thread then does fewer of them.
    pieces = max(1, min(4, packed.batch // (4 * ISA.tile_rows * shares))) if shares > 1 else 1
    if packed.sorted_indices is None:
        cuts = split(packed.batch, min(packed.batch, shares * pieces) or 1)
    else:
        cuts = split_by_weight(packed.lengths, shares * pieces)
    return [(a, b, 0, panels) for a, b in cuts], 1


def _state_offsets(packed: PackedBatch, save: bool) -> np.ndarray:
    """The row of the states that each step starts from: all are kept, or two take turns."""
    if save:
        return packed.offsets
    steps = len(packed.batch_sizes)
    offsets = np.arange(steps + 1) % 2 * packed.batch
    offsets[steps] = 2 * packed.batch
    return offsets


def _place_initial(state, initial, packed: PackedBatch, save: bool, reverse: bool, mask) -> None:
    """Write initial states [B, H] where the first step of each sequence will read them.

    ``mask`` [B, H] or None multiplies them there, but not where a length is 0.
    """
    batch, units = initial.shape
    final = len(state) - batch
    state[:, units:] = 0
    state[final:, :units] = initial  # stays there if the length is 0
    if mask is not None:
        initial = initial * mask
    if not save:
        state[:batch, :units] = state[batch:final, :units] = initial
    elif not reverse:
        n = int(packed.batch_sizes[0]) if len(packed.batch_sizes) else 0
        state[:n, :units] = initial[:n]
    else:
        started = packed.lengths > 0
        last = packed.lengths[started] - 1
        rows = packed.offsets[last] + np.flatnonzero(started)
        state[rows, :units] = initial[started]


def _masks(w: FusedWeights, given: StepMasks | None, d: int) -> Masks:
    """The masks of a direction in the layout of the kernels."""
    if given is None:
        return w.no_masks
    states = len(w.cell.states)
    keep = np.ones((given.keep.shape[1], states, w.hp), w.dtype)
    keep[..., : w.units] = given.keep[d].reshape(-1, states, w.units)
    recurrent = np.ones((given.recurrent.shape[1], w.hp), w.dtype)
    recurrent[:, : w.units] = given.recurrent[d]
    rows = keep.reshape(len(keep), states * w.hp)
    return Masks(rows, rows.shape[1] if len(rows) > 1 else 0, recurrent)


def _project_and_loop(w: FusedWeights, x, gates, d: int, a: int, b: int, loop) -> None:
    """x @ W_ih.T for the panels [a, b) of one direction and all rows, then its time loop."""
    bias, offset = w.bias[d, a:b], d * w.gates_size + a * w.panel
    out = Panels(gates, offset, w.panel, w.gates_size - a * w.panel)
    gemm.product.of(w.dtype)(x, Runs(1, w.inputs, 0), w["x"][d, a:b], bias, out, 0, len(x))
    width = w["x"].shape[3]
    if width < w.panel:  # accumulators without a product start from the bias alone
        rest = gates[:, offset : offset + (b - a) * w.panel].reshape(len(x), b - a, w.panel)
        rest[:, :, width:] = bias[:, width:]
    loop()


def recurrent_forward(
    weights: FusedWeights,
    x,
    packed: PackedBatch,
    state_0,
    *,
    training: bool,
    masks: StepMasks | None = None,
):
    """All directions of one layer, see kernels/backend.py."""
    if isinstance(weights, unfused.UnfusedWeights):
        return unfused.recurrent_forward(
            weights, x, packed, state_0, training=training, masks=masks
        )
    w, cell = weights, weights.cell
    units, batch, dtype = w.units, packed.batch, w.dtype
    is_index = x.ndim == 1
    w.prepare(training=training, dx=not is_index)
    y = buffers.empty((packed.size, w.directions * units), dtype)
    depth = units if is_index else units + w.inputs
    cost = packed.size * w.directions * len(cell.gates) * units * depth
    slices, parties = _slices(packed, cost, w.directions, w.panels)
    # With few rows a step's tiles are too low to pay for reading their weights: project all steps
    # at once.
    whole = parties > 1 or len(slices) == 1
    hoist = whole and not is_index and packed.size > batch and batch < ISA.tile_rows
    save = training or hoist
    gates = buffers.empty((packed.size if save else 0, w.directions * w.gates_size), dtype)
    time_loop = fused.loops(cell, masks is not None).forward.of(dtype)
    state_offsets = _state_offsets(packed, training)
    state_rows = (packed.size if training else 2 * batch) + batch
    barrier = Barrier(w.directions)
    none, no_ids = np.empty((0, 0), dtype), np.empty(0, np.int64)
    states, tasks, all_masks = [], [], []
    for d in range(w.directions):
        all_masks.append(_masks(w, masks, d))
        own_states = tuple([buffers.empty((state_rows, w.state_size), dtype) for _ in cell.states])
        for i, (state, initial) in enumerate(zip(own_states, state_0, strict=True)):
            mask = masks.recurrent[d] if masks and i == 0 else None
            _place_initial(state, initial[d], packed, training, d == 1, mask)
        states.append(own_states)
        projection = Projection(none, w["x"][d, :, :0])
        offset = d * w.panels * w.panel
        if is_index:
            table = w.table.reshape(-1)
            init = Init(TABLE, table, x, offset * w.inputs, w.panel, w.inputs * w.panel)
        elif hoist:
            flat, stride = gates.reshape(-1), gates.shape[1]
            init = Init(PROJECTED, flat, no_ids, d * w.gates_size, stride, w.panel)
        else:
            projection = Projection(x, w["x"][d])
            init = Init(BIAS, w.bias.reshape(-1), no_ids, offset, 0, w.panel)
        geometry = Geometry(packed.batch_sizes, packed.offsets, state_offsets, d == 1)
        output = Output(y, d * units, gates, d * w.gates_size, training)
        for first, last, a, b in slices:
            work = Work(first, last, a, b, *barrier.counter(d), parties)
            loop = partial(
                time_loop, geometry, projection, init, w["h"][d], w.unit[d], own_states,
                all_masks[d], output, work,
            )  # fmt: skip
            tasks.append((_project_and_loop, w, x, gates, d, a, b, loop) if hoist else (loop,))
    run(tasks, len(tasks) if parties > 1 else None, barrier.abandon)
    state_n = tuple(
        np.stack([own_states[k][state_rows - batch :, :units] for own_states in states])
        for k in range(len(cell.states))
    )
    tape = Tape(x, packed, states, gates, all_masks, masks is not None) if training else None
    return y, state_n, tape


def recurrent_step(layers: Sequence[FusedWeights], x, state):
    """One step through all layers on this thread, see kernels/backend.py."""
    w, batch, count, states = layers[0], len(x), len(layers), len(state)
    out = np.empty((count * states + 1, batch, w.units), w.dtype)
    try:  # not shared: concurrent callers take one each
        scratch = w.scratch[batch].pop()
    except (KeyError, IndexError):
        if len(w.scratch) > 8:  # many different batch sizes
            w.scratch.clear()
        w.scratch.setdefault(batch, [])
        both = tuple([np.empty((2 * batch, w.hp), w.dtype) for _ in state])
        scratch = both, np.array((batch, 0, batch))
    finite = True
    for number, w in enumerate(layers):
        finite &= w.step(x, *w.for_step, state, number, out, *scratch)
        x = out[number]
    layers[0].scratch.setdefault(batch, []).append(scratch)
    return out[-1], tuple([out[s * count : (s + 1) * count] for s in range(states)]), finite


def recurrent_backward(weights: FusedWeights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `recurrent_forward`, see kernels/backend.py."""
    if isinstance(weights, unfused.UnfusedWeights):
        return unfused.recurrent_backward(weights, tape, dy, dstate_n, need_dx=need_dx)
    w, cell, packed, gates = weights, weights.cell, tape.packed, tape.gates
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    units, batch, dtype, is_index = w.units, packed.batch, w.dtype, tape.x.ndim == 1
    need_dx = need_dx and not is_index
    w.prepare(training=True, dx=need_dx)
    cost = packed.size * w.directions * len(cell.gates) * units * units
    slices, parties = _slices(packed, cost, w.directions, w["back_h"].shape[1])
    time_loop = fused.loops(cell, tape.regularised).backward.of(dtype)
    barrier = Barrier(w.directions)
    unit_size = len(cell.unit_parameters) * w.hp
    dunit = buffers.empty((packed.size if unit_size else 0, w.directions * unit_size), dtype)
    tasks, dstates = [], []
    for d in range(w.directions):
        own_states = tuple([np.zeros((batch, w.hp), dtype) for _ in cell.states])
        for state, final in zip(own_states, dstate_n, strict=True):
            state[:, :units] = final[d]
        dstates.append(own_states)
        geometry = Geometry(packed.batch_sizes, packed.offsets, packed.offsets, d == 1)
        output = Output(dy, d * units, gates, d * w.gates_size, True)
        recurrent = RecurrentPanels(w["back_h"][d], *w.h_runs)
        for first, last, a, b in slices:
            work = Work(first, last, a, b, *barrier.counter(d), parties)
            tasks.append((
                time_loop, geometry, Gradient(dy, d * units, units), output, tape.states[d],
                recurrent, w.unit[d], UnitGradient(dunit, d * unit_size), tape.masks[d],
                own_states, work,
            ))  # fmt: skip
    run(tasks, len(tasks) if parties > 1 else None, barrier.abandon)

    # All weight gradients and dx at once, so that every thread has a share of each.
    dx, jobs, gradients = None, list[Job](), list[_WeightGradient]()
    if need_dx:
        dx = buffers.empty((packed.size, w.inputs), dtype)
        runs = Runs(w["back_x"].shape[1] // w.x_runs[0], *w.x_runs)
        zero = np.zeros((len(w["back_x"]), PANEL * w.lanes), dtype)
        jobs.append(linear.product(gates, runs, w["back_x"], zero, dx, w.inputs))
    for d in range(w.directions):
        h_prev = tape.states[d][0][: packed.size]
        gradients += (_WeightGradient(w, "x", d), _WeightGradient(w, "h", d))
        jobs += (gradients[-2].job(tape.x, gates), gradients[-1].job(h_prev, gates))
    unit_sums = np.zeros(dunit.shape[1], dtype)
    if unit_size:
        sum_columns, items = gemm.sum_columns.of(dtype), dunit.shape[1] // w.lanes
        jobs.append(Job(sum_columns, (dunit, unit_sums), items, dunit.size * MOVE_COST))
    parallel_for(*jobs)
    grads = []
    for d, (of_x, of_h) in enumerate(zip(gradients[::2], gradients[1::2], strict=True)):
        named: dict[str, Any] = {"weight_ih": of_x.weight, "weight_hh": of_h.weight}
        if "bias_ih" in w.parameters[d]:
            named |= {"bias_ih": of_x.bias(is_index), "bias_hh": of_h.bias(False)}
        for i, name in enumerate(cell.unit_parameters):
            first = d * unit_size + i * w.hp
            named[name] = unit_sums[first : first + units].copy()
        grads.append(named)
    dstate_0 = []
    for k in range(len(cell.states)):
        stacked = np.stack([own_states[k][:, :units] for own_states in dstates])
        if tape.regularised and k == 0:
            started = (packed.lengths > 0)[:, None]
            for d, part in enumerate(stacked):
                part *= np.where(started, tape.masks[d].recurrent[:, :units], 1)
        dstate_0.append(stacked)
    return dx, tuple(dstate_0), grads


class _WeightGradient:
    """The gradient of a weight and of its bias, from the gradients of the accumulators."""

    def __init__(self, w: FusedWeights, which: str, d: int):
        self.side, name = (w.x, "weight_ih") if which == "x" else (w.h, "weight_hh")
        self.weight = buffers.empty(w.parameters[d][name].shape, w.dtype)
        self.packed = buffers.empty(w[which].shape[1:], w.dtype)
        self.sums = np.zeros(self.packed.shape[::2], w.dtype)
        self.offset = d * w.gates_size + self.side.offset
        self.panel, self.remaining = w.panel, (d + 1) * w.gates_size - self.offset

    def job(self, a, gates) -> Job:
        """The job that computes it, for the input ``a`` of the product: [N, .] or indices [N]."""
        b = Panels(gates, self.offset, self.panel, self.remaining)
        columns, depth, dtype = self.side.columns, self.packed.shape[1], self.packed.dtype
        if a.ndim == 2:
            return linear.accumulate(a, b, self.packed, self.sums, columns, self.weight)

        def share(first, last):
            self.packed[first:last] = 0
            gemm.segment_sum.of(dtype)(a, b, self.packed, first, last)
            panels.unpack_gradient.of(dtype)(
                self.packed, columns, self.weight, first * depth, last * depth
            )

        return Job(share, (), len(self.packed), (gates.size + self.weight.size) * MOVE_COST)

    def bias(self, is_index: bool) -> np.ndarray:
        """The gradient of the bias; for indices from that of the weight, as one of them is on."""
        sums = self.packed.sum(axis=1) if is_index else self.sums
        return sums.reshape(-1)[self.side.positions]
