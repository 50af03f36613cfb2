"""The time loops of cells whose equations are elementwise: the whole step of a tile in registers.

A kernel is serial over a slice of the batch and of the units (`Work`). Rows are packed (see
fastrnn/packed.py), so the active rows of a slice [first, last) are always its first ones. Layouts
are those of layouts.py; Hp is H rounded up to whole vectors.

States are [S + B, >= Hp] each. Row r of step t starts from row ``state_offsets[t] + r``; the state
that a sequence ends with goes to row ``S + r``, where S is the last of the state offsets. The h
that is multiplied lies in the same rows of an array of its own, which is the first state itself in
formats that round nothing.

A cell with several accumulators has a panel per vector of units, one vector per accumulator; a cell
with one has a panel per four vectors of units.
"""

from functools import cache
from typing import Annotated, Any, NamedTuple

from numba.extending import register_jitable

from fastrnn.cells import Cell
from fastrnn.cells.activations import BOUNDED, fma
from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.isa import PANEL
from fastrnn.kernels.native.records import (
    PROJECTED,
    TABLE,
    Geometry,
    Gradient,
    Init,
    Masks,
    Output,
    Projection,
    Recurrence,
    RecurrentPanels,
    UnitGradient,
    Work,
)
from fastrnn.kernels.signature import F2, Of, TupleOf
from fastrnn.kernels.unrolled import statements, tuple_function, with_first

from .barrier import barrier_wait
from .compiler import kernel
from .equations import compiled
from .int8 import quantise_row
from .simd import (
    first_lanes,
    lane_count,
    line,
    load,
    load_each,
    load_first,
    pointer,
    pointers,
    prefetch,
    rows_loader,
    store,
    store_each,
    store_first,
)
from .tile import (
    Row,
    Segment,
    finish_row,
    init_row,
    load_panel,
    store_panel,
    tile,
    tile_rows,
)

# What a tile's prologue and epilogue are given, inside the kernels.


class _Start(NamedTuple):
    values: Any
    offset: Any
    stride: Any  # from row to row of the tile, or of the table
    is_table: Any
    ids: Any
    row: Any  # in the packed batch, of the tile's first row


class _States(NamedTuple):
    each: Any  # pointers
    unit: Any
    stride: Any
    here: Any  # rows in the states: what a row starts from
    following: Any  # what its next step starts from
    final: Any  # what its sequence ends with
    lasting: Any  # how many of the tile's rows have a next step
    h: Any  # what the next step multiplies, if not the first state itself
    h_stride: Any


class _Results(NamedTuple):
    y: Any
    y_offset: Any
    y_stride: Any
    remaining: Any  # units
    gates: Any
    gates_offset: Any
    gates_stride: Any
    save: Any


class _Units(NamedTuple):
    parameters: Any  # [P, Hp]
    stride: Any  # Hp


class _Kept(NamedTuple):
    keep: Any
    keep_offset: Any
    keep_stride: Any
    recurrent: Any
    recurrent_offset: Any


def _init(i, count, args):
    start, out = args[0], args[2]
    if out.save:  # these lines are far away, and the products take long enough to fetch them
        for j in range(0, count * lane_count(out.gates), line(out.gates)):
            prefetch(out.gates, out.gates_offset + i * out.gates_stride + j)
    row = start.ids[start.row + i] if start.is_table else i
    return load_panel(start.values, start.offset + row * start.stride, count)


# Only what is used is passed to a tile: each number costs a store and a load.


def _with_masks(start, state, results, units, masks):
    return start, state, results, units, masks


def _without_masks(start, state, results, units, masks):
    return start, state, results, units


# Zoneout (Krueger et al. 2016) blends each state, ``previous + keep * (new - previous)``.


def _blend(count: int):
    element = "fma(keep[{k}], new[{k}] - previous[{k}], previous[{k}])"
    return tuple_function("new, previous, keep", element, count, fma=fma)


def _kept(count: int):
    """The gradient of the new state."""
    return tuple_function("d, keep", "d[{k}] * keep[{k}]", count)


def _past(count: int):
    """The gradient of the previous state that bypasses the cell."""
    return tuple_function("d, keep", "d[{k}] * (1.0 - keep[{k}])", count)


def _sum(count: int):
    return tuple_function("a, b", "a[{k}] + b[{k}]", count)


def _epilogue(form: Format, cell: Cell, regularised: bool):
    """The equations of a row of a tile, from its accumulators to its states and output."""
    rounds, bounded = form.rounds, _is_bounded(cell)
    states = len(cell.states)
    step, load_units = compiled(cell).forward, rows_loader(len(cell.unit_inputs))
    load_keep, blend = rows_loader(states), register_jitable(_blend(states))

    @register_jitable
    def finish(i, j, z, args):
        s, out, u = args[1], args[2], args[3]
        n = lane_count(out.y)
        to = s.following if i < s.lasting else s.final
        unit = s.unit + j * n
        previous = load_each(s.each, (s.here + i) * s.stride + unit)
        saved, new = step(z, previous, load_units(u.parameters, unit, u.stride))
        if regularised:
            m = args[4]
            keep = load_keep(m.keep, m.keep_offset + i * m.keep_stride + unit, u.stride)
            new = blend(new, previous, keep)
        at = (to + i) * s.stride + unit
        store_each(s.each, at, new)
        h = new[0]
        if regularised and i < s.lasting:
            m = args[4]
            h = h * load(m.recurrent, m.recurrent_offset + i * u.stride + unit)
            store(s.each[0], at, h)
        if rounds:
            valid = h if bounded else first_lanes(h, out.remaining - j * n)
            store(s.h, (to + i) * s.h_stride + unit, valid)
        y_at = out.y_offset + i * out.y_stride + j * n
        store_first(out.y, y_at, new[0], out.remaining - j * n)
        if out.save:
            store_panel(out.gates, out.gates_offset + i * out.gates_stride + j * n, saved)

    def of_row(i, z, args):
        finish(i, 0, z, args)

    def of_vector(i, j, z, args):
        finish(i, j, (z,), args)

    return of_vector if cell.accumulators == 1 else of_row


def _is_bounded(cell: Cell) -> bool:
    """Beyond the last unit the equations run on zeros. Functions without bounds may let that grow
    to infinity, and infinity times a weight of 0 is not 0."""
    return all(name.partition("(")[0] in BOUNDED for name in cell.activations)


def _name(kind: str, form: Format, cell: Cell, regularised: bool) -> str:
    return f"{kind}({form.name},{cell.key},{regularised})"


@cache
def forward(form: Format, cell: Cell, regularised: bool):
    """The time loop of a cell, with zoneout and recurrent dropout if ``regularised``."""
    count, accumulators, single = len(cell.states), cell.accumulators, cell.accumulators == 1
    name = _name("forward", form, cell, regularised)
    parts = None
    if not single:
        parts = (range(len(cell.input_gates)), range(cell.first_recurrent, accumulators))
    tile_args = register_jitable(_with_masks if regularised else _without_masks)
    epilogue = _epilogue(form, cell, regularised)
    step_tile = tile(form, _init, epilogue, parts, name=name, in_loop=single)
    most, quantises = form.tile_rows, form.quantises
    panel_units = PANEL if single else 1  # vectors of units in a panel
    panel_vectors = PANEL if single else accumulators

    def run(
        geometry: Geometry, projection: Projection, init: Init, recurrence: Recurrence, unit: F2,
        states: Annotated[Any, TupleOf(Of("F", 2), count)],
        masks: Masks, output: Output, work: Work,
    ):  # fmt: skip
        """One direction of one layer.

        unit [P, Hp], per-unit parameters; states a tuple of arrays, which come in with the initial
        states in place and leave with all others.
        """
        x_p, wx_p, start_p = pointer(projection.x), pointer(projection.panels), pointer(init.values)
        ids_p, states_p = pointer(init.ids), pointers(states)
        h_p, wh_p = pointer(recurrence.h), pointer(recurrence.panels)
        y_p, g_p, unit_p = pointer(output.y), pointer(output.gates), pointer(unit)
        keep_p, recurrent_p = pointer(masks.keep), pointer(masks.recurrent)
        batch_sizes, offsets, state_offsets, reverse = geometry
        n, units, depth = lane_count(y_p), output.units, projection.depth
        steps, x_stride, hp = batch_sizes.shape[0], projection.x.shape[1], unit.shape[1]
        y_stride, g_stride, s_stride = output.y.shape[1], output.gates.shape[1], states[0].shape[1]
        h_stride = recurrence.h.shape[1]
        x_panel, h_panel = projection.panels.shape[2], recurrence.panels.shape[2]
        x_size = projection.panels.shape[1] * x_panel
        h_size = recurrence.panels.shape[1] * h_panel
        final = state_offsets[steps]
        for step in range(steps):
            t = steps - 1 - step if reverse else step
            to = t - 1 if reverse else t + 1
            active = min(work.last, batch_sizes[t])
            lasting = batch_sizes[to] if 0 <= to < steps else 0
            following = state_offsets[to] if lasting > 0 else final
            h_first = work.own if quantises else state_offsets[t]
            if quantises:
                for r in range(work.first, active):
                    at = (state_offsets[t] + r) * s_stride
                    quantise_row(states_p[0], at, units, h_p, (h_first + r) * h_stride, h_stride)
            for q in range(work.first_panel, work.last_panel):
                u = q * panel_units * n
                vectors = panel_vectors
                if single:
                    vectors = min(PANEL, (units - u + n - 1) // n)
                r = work.first
                while r < active:
                    rows = tile_rows(active - r, most)
                    p, here = offsets[t] + r, state_offsets[t] + r
                    of_x = Segment(
                        x_p, p * x_stride, x_stride, 1, depth, 1, 0, wx_p, q * x_size, x_panel
                    )
                    of_h = Segment(
                        h_p, (h_first + r) * h_stride, h_stride, 1, units, 1, 0,
                        wh_p, q * h_size, h_panel,
                    )  # fmt: skip
                    gates_at = p * g_stride + output.gates_offset + q * panel_vectors * n
                    start_at = init.offset + q * init.panel_stride
                    if init.kind == PROJECTED:
                        start_at += p * init.stride
                    start = _Start(start_p, start_at, init.stride, init.kind == TABLE, ids_p, p)
                    state = _States(
                        states_p, u, s_stride, here, following + r, final + r, lasting - r,
                        h_p, h_stride,
                    )  # fmt: skip
                    y_at = p * y_stride + output.y_offset + u
                    results = _Results(
                        y_p, y_at, y_stride, units - u, g_p, gates_at, g_stride, output.save
                    )
                    mask = _Kept(
                        keep_p, p * masks.keep_stride, masks.keep_stride, recurrent_p, r * hp
                    )
                    args = tile_args(start, state, results, _Units(unit_p, hp), mask)
                    step_tile(rows, vectors, (of_x, of_h), args)
                    r += rows
            barrier_wait(work.barrier, work.barrier_slot, work.parties, step + 1)

    return kernel(run, name)


@cache
def backward(form: Format, cell: Cell, regularised: bool):
    """The loop of its gradient."""
    count, accumulators = len(cell.states), cell.accumulators
    first_recurrent, unit_parameters = cell.first_recurrent, len(cell.unit_parameters)
    dh_tile, most = tile(form, init_row, finish_row), form.tile_rows
    step_back, load_units = compiled(cell).backward, rows_loader(len(cell.unit_inputs))
    load_keep, load_saved = rows_loader(count), _saved_loader(accumulators)
    kept, past, add_each, replace_first = (
        register_jitable(make(count)) for make in (_kept, _past, _sum, with_first)
    )
    bounded = _is_bounded(cell)
    store_valid = register_jitable(
        statements(
            "p, at, v, n",
            "store(p, at + {k} * lane_count(p), first_lanes(v[{k}], n))",
            accumulators,
            store=store,
            lane_count=lane_count,
            first_lanes=first_lanes,
        )
    )

    def run(
        geometry: Geometry, gradient: Gradient, gates: Output,
        states: Annotated[Any, TupleOf(Of("F", 2), count)],
        w: RecurrentPanels, unit: F2, dunit: UnitGradient, masks: Masks,
        dstates: Annotated[Any, TupleOf(Of("F", 2), count)],
        work: Work,
    ):  # fmt: skip
        """The gradient through time of `forward`, one direction of one layer.

        gates is an `Output` (y is not used): they come in as saved, and the gradients of the
        accumulators go to the same columns of dz. states are those that each row started from.
        dstates [B, Hp] each come in as the gradients of the final states and leave as those of the
        states that the first steps started from. ``reverse`` is the direction of the forward pass.
        Panels of ``work`` are those of w, 4 W units each.
        """
        dy_p, g_p, w_p = pointer(gradient.dy), pointer(gates.gates), pointer(w.panels)
        dz_p, dz_stride = pointer(gradient.dz), gradient.dz.shape[1]
        states_p, d_p, unit_p = pointers(states), pointers(dstates), pointer(unit)
        dunit_p, keep_p, recurrent_p = (
            pointer(dunit.values), pointer(masks.keep), pointer(masks.recurrent)
        )  # fmt: skip
        batch_sizes, offsets, _, reverse = geometry
        n = lane_count(g_p)
        panel = PANEL * n
        steps, dy_stride, g_stride = (
            batch_sizes.shape[0],
            gradient.dy.shape[1],
            gates.gates.shape[1],
        )
        hp, depth, s_stride = dstates[0].shape[1], w.panels.shape[1], states[0].shape[1]
        first_unit, last_unit = work.first_panel * panel, min(hp, work.last_panel * panel)
        for step in range(steps):
            t = step if reverse else steps - 1 - step
            later = t - 1 if reverse else t + 1
            active = min(work.last, batch_sizes[t])
            lasting = batch_sizes[later] if 0 <= later < steps else 0
            for r in range(work.first, active):
                p = offsets[t] + r
                dy_r, g_r = p * dy_stride + gradient.offset, p * g_stride + gates.gates_offset
                dz_r = p * dz_stride + gates.gates_offset
                for u in range(first_unit, last_unit, n):
                    d = load_each(d_p, r * hp + u)
                    dh = d[0]
                    if regularised and r < lasting:
                        # The next step started from the masked h.
                        dh = dh * load(recurrent_p, r * hp + u)
                    d = replace_first(dh + load_first(dy_p, dy_r + u, gradient.units - u), d)
                    g_at = g_r + u * accumulators
                    p_at = p * s_stride + u
                    previous = load_each(states_p, p_at)
                    parameters = load_units(unit_p, u, hp)
                    saved = load_saved(g_p, g_at)
                    if regularised:
                        keep = load_keep(keep_p, p * masks.keep_stride + u, hp)
                        of_row, dprevious, dparameters = step_back(
                            saved, previous, parameters, kept(d, keep)
                        )
                        store_each(d_p, r * hp + u, add_each(past(d, keep), dprevious))
                    else:
                        of_row, dprevious, dparameters = step_back(saved, previous, parameters, d)
                        store_each(d_p, r * hp + u, dprevious)
                    if bounded:
                        store_panel(dz_p, dz_r + u * accumulators, of_row)
                    else:
                        store_valid(dz_p, dz_r + u * accumulators, of_row, gradient.units - u)
                    if unit_parameters > 0:
                        at = p * dunit.values.shape[1] + dunit.offset + u
                        for k in range(unit_parameters):
                            store(dunit_p, at + k * hp, dparameters[k])
            barrier_wait(work.barrier, work.barrier_slot, work.parties, step + 1)
            for q in range(work.first_panel, work.last_panel):
                remaining = min(panel, hp - q * panel)
                r = work.first
                while r < active:
                    rows = tile_rows(active - r, most)
                    p = offsets[t] + r
                    at = p * dz_stride + gates.gates_offset + first_recurrent * n
                    of_dz = Segment(
                        dz_p, at, dz_stride, 1,
                        w.block, depth // w.block, w.block_stride, w_p, q * depth * panel, panel,
                    )  # fmt: skip
                    to = Row(d_p[0], r * hp + q * panel, hp, remaining)
                    dh_tile(rows, remaining // n, (of_dz,), (to, to))
                    r += rows

    return kernel(run, _name("backward", form, cell, regularised))


def _saved_loader(count: int):
    """What ``forward`` saved for a vector of units: that many vectors side by side."""
    load_vectors = rows_loader(count)

    @register_jitable
    def load_saved(p, at):
        return load_vectors(p, at, lane_count(p))

    return load_saved
