"""The recurrent layers on the CPU: a pass of a layer is one program of kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastrnn._native import Plan
from fastrnn.cells import Cell
from fastrnn.kernels import unfused
from fastrnn.kernels.native.formats import Format, plain
from fastrnn.kernels.native.isa import CAN_YIELD, PANEL
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import (
    BIAS,
    PROJECTED,
    TABLE,
    Geometry,
    Gradient,
    Init,
    Lengths,
    Masks,
    Output,
    Panels,
    Products,
    Projection,
    Recurrence,
    RecurrentPanels,
    Runs,
    UnitGradient,
    Work,
)
from fastrnn.kernels.options import Embedded, StepMasks
from fastrnn.packed import PackedBatch
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import (
    MIN_WORK,
    MOVE_COST,
    Job,
    Task,
    run,
    split,
    split_by_weight,
    threads_for,
)

from . import linear
from .unfused import Ops
from .weights import FusedWeights, Side

# The least work per step that is worth a thread, in multiply-adds; below it the barrier costs more.
MIN_STEP_WORK = 1 << 14
# The most bytes of weights for which the forward pass divides the rows: of more, each thread reads
# only its part at every step, for all rows.
MOST_CACHED = 3 << 19
# Up to this many multiply-adds a call has a plan: beyond, building a program costs next to nothing.
MOST_PLANNED_WORK = 1 << 23
MOST_PLANNED_VALUES = 1 << 16  # of the input or output that a plan keeps


@dataclass
class Tape:
    """What `recurrent_backward` needs of `recurrent_forward`; it is used up there."""

    form: Format
    x: np.ndarray | Embedded  # as it was multiplied
    packed: PackedBatch
    states: list[tuple[np.ndarray, ...]]  # of each direction
    hs: list[np.ndarray]  # of each direction: h as it was multiplied
    gates: np.ndarray | None
    masks: list[Masks]  # of each direction
    regularised: bool


def RecurrentWeights(
    cell: Cell, parameters, precision: str = "float32"
) -> FusedWeights | unfused.UnfusedWeights:
    """The parameters of one layer, see kernels/backend.py."""
    if cell.program:
        return unfused.UnfusedWeights(cell, parameters, partial(Ops, precision=precision))
    return FusedWeights(cell, parameters, precision)


def _slices(
    packed: PackedBatch, height: int, cost: float, directions: int, panels: int, size: int = 0
):
    """How the work of one direction is divided, by slices of the batch or, where those would be
    lower than a tile (``height`` rows) or the weights have more bytes (``size``) than a core's
    cache, of the units: ``[(first, last, first_panel, last_panel)], parties``.
    """
    shares = -(-threads_for(cost) // directions)
    units = min(max(1, threads_for(cost) // directions), panels) if CAN_YIELD else 1
    step = cost / directions / max(1, len(packed.batch_sizes))
    shared = packed.batch // shares < height or size > MOST_CACHED
    if units > 1 and shared and step / units > MIN_STEP_WORK:
        return [(0, packed.batch, a, b) for a, b in split(panels, units)], units
    # More slices than threads if they stay high enough: a slow thread then does fewer of them.
    pieces = max(1, min(4, packed.batch // (4 * height * shares))) if shares > 1 else 1
    parts = shares * pieces
    cuts = packed.cuts.get(parts)
    if cuts is None:
        if packed.sorted_indices is None:
            cuts = split(packed.batch, min(packed.batch, parts) or 1)
        else:
            cuts = split_by_weight(packed.lengths, parts)
        packed.cuts[parts] = cuts
    return [(a, b, 0, panels) for a, b in cuts], 1


def _state_offsets(packed: PackedBatch, save: bool) -> np.ndarray:
    """The row of the states that each step starts from: all are kept, or two take turns."""
    if save:
        return packed.offsets
    steps = len(packed.batch_sizes)
    offsets = np.arange(steps + 1) % 2 * packed.batch
    offsets[steps] = 2 * packed.batch
    return offsets


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


def _threads(cost: float, parties: int) -> int:
    """Of a program whose loops are shared by ``parties`` threads."""
    return max(threads_for(cost), parties)


def _copy(a, offset: int, out) -> Task:
    """``out[:] = a[offset:]``, cut or filled with zeros to the columns of ``out``."""
    return Task(find("rows.copy", out.dtype), (a, offset, out), 0, len(out))


class _Pass(NamedTuple):
    """A forward pass that is ready to run."""

    phases: list
    threads: int
    together: bool
    form: Format
    x: np.ndarray | Embedded  # as it is multiplied
    y: np.ndarray
    states: list  # of each direction
    hs: list
    gates: np.ndarray
    masks: list[Masks]
    packed: dict[tuple[str, str], np.ndarray]  # weights, packed when it has run


def _barrier(w: FusedWeights) -> tuple[np.ndarray, Task]:
    """The counters of the directions, a cache line for each, and what sets them to 0."""
    counts = np.empty(8 * w.directions, np.int64)
    return counts, Task(find("rows.zero", w.dtype), (counts,), 0, len(counts))


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
    state_n = _new_states(weights, weights.directions, packed.batch)
    p = _forward(weights, x, packed, state_0, state_n, training, masks)
    run(p.phases, p.threads, together=p.together)
    weights.keep(p.packed)
    if not training:
        return p.y, state_n, None
    regularised = masks is not None
    tape = Tape(p.form, p.x, packed, p.states, p.hs, p.gates, p.masks, regularised)
    return p.y, state_n, tape


def _new_states(w: FusedWeights, rows: int, batch: int) -> tuple[np.ndarray, ...]:
    return tuple([np.empty((rows, batch, w.units), w.dtype) for _ in w.cell.states])


def recurrent_plan(layers: Sequence[Any], steps: int, batch: int) -> Plan | None:
    """See kernels/backend.py."""
    w = layers[0]
    if isinstance(w, unfused.UnfusedWeights) or not steps or not batch:
        return None
    depth = sum(layer.inputs + layer.units for layer in layers)
    cost = steps * batch * w.directions * len(w.cell.gates) * w.units * depth
    widest = max(w.inputs, w.directions * w.units)
    if cost > MOST_PLANNED_WORK or steps * batch * widest > MOST_PLANNED_VALUES:
        return None
    packed = PackedBatch(steps, batch)
    first = y = np.empty((packed.size, w.inputs), w.dtype)
    rows = len(layers) * w.directions
    initial, final = _new_states(w, rows, batch), _new_states(w, rows, batch)
    phases, threads, together = [], 1, False
    for number, layer in enumerate(layers):
        layer.now("x", "h")
        part = slice(number * w.directions, (number + 1) * w.directions)
        before, after = (tuple(s[part] for s in states) for states in (initial, final))
        p = _forward(layer, y, packed, before, after, False, None)
        phases += p.phases
        threads, together, y = max(threads, p.threads), together or p.together, p.y
    is_long = cost > MIN_WORK
    return Plan(phases, threads, MIN_WORK, together, is_long, first, y, initial, final)


def _forward(
    w: FusedWeights, x, packed: PackedBatch, state_0, state_n, training: bool, masks
) -> _Pass:
    """The program of a forward pass, which writes the final states to ``state_n``."""
    cell, form = w.cell, w.gradients if training else w.inference
    units, batch, dtype = w.units, packed.batch, w.dtype
    embedded = isinstance(x, Embedded)
    is_index = not embedded and x.ndim == 1
    in_loop = not (embedded or is_index)  # the product with x
    table = w.table.reshape(-1) if is_index else None
    names = ["x", "h"]
    if training:
        names += ["back_h", "back_x"] if in_loop else ["back_h"]
    panels, pack_jobs = w.packed(names, form)
    panels_x, panels_h = (panels[which, form.name] for which in ("x", "h"))
    depth = units + w.inputs if in_loop else units
    cost = packed.size * w.directions * len(cell.gates) * units * depth
    size = depth * len(cell.gates) * units * np.dtype(form.weights).itemsize
    slices, parties = _slices(packed, form.tile_rows, cost, w.directions, w.panels, size)
    # With few rows a step's tiles do not pay for reading their weights, less so from beyond the
    # core's cache: project all steps at once.
    few = form.tile_rows * (4 if size > MOST_CACHED else 1)
    whole = parties > 1 or len(slices) == 1
    hoist = whole and in_loop and packed.size > batch and batch < few
    y = buffers.empty((packed.size, w.directions * units), dtype)
    gates = _gates(w, form, packed.size if training else 0)
    time_loop = w.loop("forward", form, masks is not None)
    none, ids = np.empty((0, 0), dtype), np.empty(0, np.int64)
    a, convert, projected = x, list[Job](), none
    if not is_index:
        a, ids = x if embedded else (x, ids)
        a, convert = linear.activations(form, a)
    if hoist or embedded:
        projected = gates
        if embedded or not training or form.saved != form.numbers:
            projected = buffers.empty((len(a), w.directions * w.gates_size), dtype)
    begin = find("rows.begin_state", dtype)
    state_offsets = _state_offsets(packed, training)
    final = packed.size if training else 2 * batch  # row of the final states
    lengths = Lengths(packed.lengths, packed.offsets)
    barrier, no_round = _barrier(w)
    # No rows, but memory: the scale of a row is read even if it has no numbers.
    none_a = np.zeros(4, np.dtype(form.activations))[:0].reshape(0, 0)
    before, projections, loops, after = list[Task](), list[Any](), list[Task](), list[Task]()
    states, hs, all_masks = [], [], []
    for d in range(w.directions):
        mask = _masks(w, masks, d)
        all_masks.append(mask)
        own_states = tuple(
            [buffers.empty((final + batch, w.state_size), dtype) for _ in cell.states]
        )
        states.append(own_states)
        for i, (state, initial) in enumerate(zip(own_states, state_0, strict=True)):
            factors = masks.recurrent[d] if masks and i == 0 else none
            args = (state, initial[d], lengths, training, d == 1, factors)
            before.append(Task(begin, args, 0, batch))
            after.append(_copy(state, final, state_n[i][d]))
        h = own_states[0]  # what a step multiplies
        if form.rounds:
            h = linear.empty_activations(form, len(h), units)
            of_h = (own_states[0], h, batch, lengths, training, d == 1)
            projections.append(Task(find("rows.begin_h", form), of_h, 0, batch))
        elif form.quantises:
            h = linear.empty_activations(form, parties * batch, units)
        hs.append(h)
        recurrence = Recurrence(h, panels_h[d])
        projection = Projection(none_a, 0, panels_x[d, :, :0])
        offset = d * w.panels * w.panel
        if is_index:
            init = Init(TABLE, table, x, offset * w.inputs, w.panel, w.inputs * w.panel)
        elif hoist or embedded:
            projections += _hoisted(w, form, a, panels_x[d], projected, d)
            kind, flat = TABLE if embedded else PROJECTED, projected.reshape(-1)
            init = Init(kind, flat, ids, d * w.gates_size, projected.shape[1], w.panel)
        else:
            projection = Projection(a, w.inputs, panels_x[d])
            init = Init(BIAS, w.bias.reshape(-1), ids, offset, 0, w.panel)
        geometry = Geometry(packed.batch_sizes, packed.offsets, state_offsets, d == 1)
        output = Output(y, d * units, units, gates, d * w.gates_size, training)
        for party, (first, last, p, q) in enumerate(slices):
            own = party * batch if parties > 1 else 0
            work = Work(first, last, p, q, barrier, 8 * d, parties, own)
            loops.append(Task(time_loop, (
                geometry, projection, init, recurrence, w.unit[d], own_states, mask, output, work,
            )))  # fmt: skip
    phases = [[*pack_jobs, *convert, no_round, *before], projections, loops, after]
    return _Pass(
        phases, _threads(cost, parties), parties > 1, form, x if embedded else a, y, states, hs,
        gates, all_masks, panels,
    )  # fmt: skip


def _gates(w: FusedWeights, form: Format, rows: int) -> np.ndarray:
    """Uninitialised, for the gates and then, in the same memory, their gradients."""
    if form.saved == form.numbers:
        return buffers.empty((rows, w.directions * w.gates_size), w.dtype)
    return linear.empty_activations(form, rows, w.directions * w.gates_size).view(form.saved)


def _hoisted(w: FusedWeights, form: Format, x, panels, gates, d: int) -> list[Job]:
    """``x @ W_ih.T + bias`` for all rows of one direction, into an array like the gates."""
    out = Panels(gates, d * w.gates_size, w.panel, w.gates_size)
    jobs = [linear.product(form, x, Runs(1, w.inputs, 0), panels, w.bias[d], out)]
    width = panels.shape[2]
    if width < w.panel:  # accumulators without a product start from the bias alone
        cost = len(x) * w.panels * (w.panel - width) * MOVE_COST
        jobs.append(Job(find("gemm.fill", w.dtype), (w.bias[d], width, out), len(x), cost))
    return jobs


def recurrent_backward(weights: FusedWeights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `recurrent_forward`, see kernels/backend.py."""
    if isinstance(weights, unfused.UnfusedWeights):
        return unfused.recurrent_backward(weights, tape, dy, dstate_n, need_dx=need_dx)
    w, cell, packed, gates = weights, weights.cell, tape.packed, tape.gates
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    units, batch, dtype, form = w.units, packed.batch, w.dtype, tape.form
    x, ids = tape.x, None
    if isinstance(x, Embedded):
        x, ids = x  # its gradients are those of V rows
    of_x = form if ids is None else plain(dtype)  # of the products with x
    need_dx = need_dx and x.ndim == 2
    panels, pack_jobs = w.packed(["back_h"], form)
    if need_dx:
        of_back_x, jobs = w.packed(["back_x"], of_x)
        panels, pack_jobs = panels | of_back_x, pack_jobs + jobs
    back_h = panels["back_h", form.name]
    dz = gates.view(form.activations)
    cost = packed.size * w.directions * len(cell.gates) * units * units
    slices, parties = _slices(packed, form.tile_rows, cost, w.directions, back_h.shape[1])
    time_loop = w.loop("backward", form, tape.regularised)
    barrier, no_round = _barrier(w)
    unit_size = len(cell.unit_parameters) * w.hp
    dunit = buffers.empty((packed.size if unit_size else 0, w.directions * unit_size), dtype)
    unit_sums = np.empty(dunit.shape[1], dtype)
    dstate_0 = _new_states(w, w.directions, batch)
    before, loops, after = list[Task](), list[Task](), list[Task]()
    zips, token_sums, sums = list[Job](), list[Job](), list[Job]()
    dx, grads, dz_x = None, list[dict[str, Any]](), dz
    if ids is not None:
        dz_x = buffers.empty((len(x), w.directions * w.gates_size), dtype)
    elif x.ndim == 2:
        x, zips = linear.zipped(form, x, w.inputs, packed.size)
    if need_dx:
        back_x = panels["back_x", of_x.name]
        dx = buffers.empty((len(dz_x), w.inputs), dtype)
        runs = Runs(back_x.shape[1] // w.x_runs[0], *w.x_runs)
        zero = np.zeros((len(back_x), PANEL * w.lanes), dtype)
        to = Panels(dx, 0, PANEL * w.lanes, w.inputs)
        sums.append(linear.product(of_x, dz_x, runs, back_x, zero, to))
    for d in range(w.directions):
        own_states = tuple([np.empty((batch, w.hp), dtype) for _ in cell.states])
        for k, state in enumerate(own_states):
            before.append(_copy(dstate_n[k][d], 0, state))
            after.append(_copy(state, 0, dstate_0[k][d]))
        geometry = Geometry(packed.batch_sizes, packed.offsets, packed.offsets, d == 1)
        output = Output(dy, d * units, units, gates, d * w.gates_size, True)
        recurrent = RecurrentPanels(back_h[d], *w.h_runs)
        for first, last, a, b in slices:
            work = Work(first, last, a, b, barrier, 8 * d, parties, 0)
            loops.append(Task(time_loop, (
                geometry, Gradient(dy, d * units, units, dz), output, tape.states[d], recurrent,
                w.unit[d], UnitGradient(dunit, d * unit_size), tape.masks[d], own_states, work,
            )))  # fmt: skip
        named = dict[str, Any]()
        h, more = linear.zipped(form, tape.hs[d][: packed.size], units, packed.size)
        zips += more
        if ids is not None:
            of_ids = (ids, _columns(w, w.x, d, dz), dz_x)
            moves = len(ids) * w.gates_size * MOVE_COST // 4
            token_sums.append(Job(find("gemm.token_sums", form), of_ids, w.panels, moves))
        named |= _parameter_gradients(w, of_x, "x", d, x, dz_x, sums, after)
        named |= _parameter_gradients(w, form, "h", d, h, dz, sums, after)
        for i, name in enumerate(cell.unit_parameters):
            first = d * unit_size + i * w.hp
            named[name] = unit_sums[first : first + units]
        grads.append(named)
    if unit_size:
        kernel, items = find("gemm.sum_columns", dtype), dunit.shape[1] // w.lanes
        sums.append(Job(kernel, (dunit, unit_sums), items, dunit.size * MOVE_COST))
    # All weight gradients and dx in one phase, so that every thread has a share of each.
    run(
        [[*pack_jobs, *zips, no_round, *before], loops, token_sums, sums, after],
        _threads(3 * cost, parties),
        together=parties > 1,
    )
    w.keep(panels)
    if tape.regularised:
        started = (packed.lengths > 0)[:, None]
        for d, part in enumerate(dstate_0[0]):
            part *= np.where(started, tape.masks[d].recurrent[:, :units], 1)
    return dx, dstate_0, grads


def _columns(w: FusedWeights, side: Side, d: int, dz) -> Products:
    """The gradients of a direction's accumulators that belong to the product with a weight."""
    offset = d * w.gates_size + side.offset
    return Products(dz, offset, w.panel, (d + 1) * w.gates_size - offset)


def _parameter_gradients(
    w: FusedWeights, form: Format, which: str, d: int, a, dz, jobs, after
) -> dict[str, Any]:
    """The gradients of a weight and its bias from those of the accumulators, by name.

    ``a`` is the input of the product (`linear.zipped`), or indices [N]. What computes them is added
    to ``jobs`` and, to be run later, ``after``.
    """
    side, name = w.side(which)
    weight = buffers.empty(w.parameters[d][name].shape, w.dtype)
    columns, panel = side.columns, len(side.columns) // w.panels
    sums = linear.new_sums(w.panels, weight.shape[1], panel, w.dtype)
    b = _columns(w, side, d, dz)
    if a.ndim == 2:
        jobs.append(linear.weight_gradient(form, a, b, sums, columns, weight))
    else:
        cost = (dz.size + weight.size) * MOVE_COST
        args = (a, b, sums, columns, weight)
        jobs.append(Job(find("gemm.table_gradient", form), args, w.panels, cost))
    named = {name: weight}
    bias_name = name.replace("weight", "bias")
    if bias_name in w.parameters[d]:
        named[bias_name] = np.empty(len(side.positions), w.dtype)
        to_bias = (sums.totals, side.positions, named[bias_name])
        after.append(Task(find("rows.unpack_sums", w.dtype), to_bias, 0, len(side.positions)))
    return named
