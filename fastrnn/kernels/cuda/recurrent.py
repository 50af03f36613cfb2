"""A recurrent layer on the GPU: projection, time loops, and the products of the gradients.

The contract is in kernels/backend.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastrnn.cells import Cell
from fastrnn.kernels import unfused
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch

from . import cluster, gemm, moves
from .fused import ROWS, Columns, Geometry, Loop, Masks, Units, backward_loop, forward_loop
from .gemm import Matrix, Sizes
from .memory import copy, empty, to_device, to_host
from .unfused import Ops
from .weights import FusedWeights


@dataclass
class Tape:
    """What `recurrent_backward` needs of `recurrent_forward`; it is used up there."""

    x: Any
    packed: PackedBatch
    indices: tuple[Any, ...]  # batch_sizes, offsets and lengths on the device
    states: list[tuple[Any, ...]]  # of each direction
    gates: Any
    plan: cluster.Plan | None
    masks: StepMasks | None


def RecurrentWeights(
    cell: Cell, parameters, precision: str = "float32"
) -> FusedWeights | unfused.UnfusedWeights:
    """The parameters of one layer, see kernels/backend.py.

    Only products with ``weight_hh`` of LSTMs, on GPUs with thread-block clusters, are in another
    precision than float32."""
    if cell.program:
        return unfused.UnfusedWeights(cell, parameters, lambda cell, p, _: Ops(cell, p))
    return FusedWeights(cell, parameters, precision)


def _over_grid(make: Callable[..., Loop], w: FusedWeights, batch: int, masks, *args) -> None:
    """Run a time loop on as many blocks as can be resident, and as there is work for."""
    for keep in (True, False):
        loop = make(w.cell, w.units, w.dtype, keep, masks is not None)
        tiles, most = -(-w.units // loop.units), loop.kernel.most_blocks(loop.shared)
        if tiles <= most or not loop.kept:
            break
    across = min(tiles, most)
    down = max(1, min(-(-batch // ROWS), most // across))
    loop.kernel((across, down), *args, shared=loop.shared)


def _masks(w: FusedWeights, masks: StepMasks | None, d: int, none) -> Masks:
    """The masks of a direction; ``none`` is any array, which is not read."""
    if masks is None:
        return Masks(none, 0, none)
    keep = masks.keep[d]
    return Masks(keep, keep.shape[1] if len(keep) > 1 else 0, masks.recurrent[d])


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
    w, cell, batch, steps = weights, weights.cell, packed.batch, len(packed.batch_sizes)
    plan = None if masks else w.plan()
    is_index = x.ndim == 1
    indices = tuple(map(to_device, (packed.batch_sizes, packed.offsets, packed.lengths)))
    batch_sizes, offsets, lengths = indices
    y_stride = w.directions * w.units
    y = empty((packed.size, y_stride), w.dtype)
    gates = empty((packed.size, w.gates_stride), w.dtype)
    states = []
    for d, (w_ih, w_hh, bias, unit) in enumerate(w.by_direction):
        for run in w.runs():
            part = Matrix(w_ih, run.gate * w.units * w.inputs, w.inputs)
            offset = d * w.gates_size + run.accumulator * w.units
            to, columns = Matrix(gates, offset, w.gates_stride), run.size * w.units
            if is_index:
                gemm.pick(part, x, to, columns)
            else:
                sizes = Sizes(packed.size, w.inputs, columns)
                gemm.product(Matrix(x, 0, w.inputs), part.transposed, to, sizes)
        own_states = tuple(empty((packed.size + batch, w.units), w.dtype) for _ in cell.states)
        states.append(own_states)
        of_gates = Columns(gates, d * w.gates_size, w.gates_stride)
        of_y, reverse = Columns(y, d * w.units, y_stride), d == 1
        if plan:
            sequences = cluster.Sequences(lengths, offsets, batch, reverse)
            cluster.forward(plan)(
                (-(-batch // cluster.ROWS), 1),
                w.packed(plan, d, backward=False), bias, of_gates, tuple(state_0), d * batch,
                own_states, of_y, sequences, w.units, training,
                shared=plan.shared(1), cluster=plan.blocks,
            )  # fmt: skip
            continue
        for i, (state, first) in enumerate(zip(own_states, state_0, strict=True)):
            mask = masks.recurrent[d] if masks and i == 0 else None
            moves.place(first[d], mask, state, lengths, offsets, steps, reverse)
        geometry = Geometry(batch_sizes, offsets, steps, reverse)
        per_unit = Units(unit, Columns(unit, 0, 0))  # no gradient here
        _over_grid(
            forward_loop, w, batch, masks,
            geometry, w_hh, bias, per_unit, of_gates, own_states, _masks(w, masks, d, unit), of_y,
            w.units, training,
        )  # fmt: skip
    state_n = []
    for k in range(len(cell.states)):
        final = empty((w.directions, batch, w.units), w.dtype)
        for d, own_states in enumerate(states):
            size = batch * w.units
            moves.move(own_states[k], packed.size * w.units, final, d * size, size)
        state_n.append(final)
    tape = Tape(x, packed, indices, states, gates, plan, masks) if training else None
    return y, tuple(state_n), tape


def recurrent_plan(layers: Sequence[FusedWeights], steps: int, batch: int) -> None:
    """None: this backend has no plans, see kernels/backend.py."""
    return None


def recurrent_backward(weights: FusedWeights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `recurrent_forward`, see kernels/backend.py."""
    if isinstance(weights, unfused.UnfusedWeights):
        return unfused.recurrent_backward(weights, tape, dy, dstate_n, need_dx=need_dx)
    w, cell, packed, gates, plan = weights, weights.cell, tape.packed, tape.gates, tape.plan
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    steps, is_index, count = len(packed.batch_sizes), tape.x.ndim == 1, packed.size
    batch_sizes, offsets, lengths = tape.indices
    dy_stride, unit_size = w.directions * w.units, len(cell.unit_parameters) * w.units
    dx = None if is_index or not need_dx else empty((count, w.inputs), w.dtype)
    ids = to_host(tape.x) if is_index else None
    dunit = empty((count, max(1, w.directions * unit_size)), w.dtype)
    grads, dstate = [], [copy(s) for s in dstate_n]
    for d, (w_ih, w_hh, _, unit) in enumerate(w.by_direction):
        own_states = tuple(s[d] for s in dstate)
        reverse, states = d == 1, tape.states[d]
        of_gates = Columns(gates, d * w.gates_size, w.gates_stride)
        of_dy = Columns(dy, d * w.units, dy_stride)
        if plan:
            sequences = cluster.Sequences(lengths, offsets, packed.batch, reverse)
            cluster.backward(plan)(
                (-(-packed.batch // cluster.ROWS), 1),
                w.packed(plan, d, backward=True), of_gates, states, of_dy, own_states, 0, sequences,
                w.units,
                shared=plan.shared(4), cluster=plan.blocks,
            )  # fmt: skip
        else:
            geometry = Geometry(batch_sizes, offsets, steps, reverse)
            per_unit = Units(unit, Columns(dunit, d * unit_size, w.directions * unit_size))
            _over_grid(
                backward_loop, w, packed.batch, tape.masks,
                geometry, w_hh, per_unit, of_gates, states, _masks(w, tape.masks, d, unit), of_dy,
                own_states, w.units,
            )  # fmt: skip
            if tape.masks:
                moves.mask(own_states[0], tape.masks.recurrent[d], lengths)
        named = _weight_gradients(w, tape, d, gates, ids)
        if dx is not None:
            _add_dx(w, d, gates, w_ih, dx)
        if unit_size:
            part = Matrix(dunit, d * unit_size, w.directions * unit_size)
            sums = gemm.sum_rows(part, count, unit_size).reshape(-1, w.units)
            named |= {name: sums[i] for i, name in enumerate(cell.unit_parameters)}
        grads.append(named)
    return dx, tuple(dstate), grads


def _add_dx(w: FusedWeights, d: int, gates, w_ih, dx) -> None:
    """Add a direction's part of the gradient of x; the first one starts it."""
    for run in w.runs():
        offset, columns = d * w.gates_size + run.accumulator * w.units, run.size * w.units
        dz = Matrix(gates, offset, w.gates_stride)
        part = Matrix(w_ih, run.gate * w.units * w.inputs, w.inputs)
        sizes, add = Sizes(dx.shape[0], columns, w.inputs), bool(d or run.accumulator)
        gemm.product(dz, part, Matrix(dx, 0, w.inputs), sizes, add=add)


def _weight_gradients(w: FusedWeights, tape: Tape, d: int, gates, ids) -> dict[str, Any]:
    """The gradients of the weights and biases of a direction; ``ids`` is a one-hot input."""
    cell, count, size = w.cell, tape.packed.size, len(w.cell.gates) * w.units
    first = d * w.gates_size
    is_index = ids is not None
    dw_ih = (moves.zeros if is_index else empty)((size, w.inputs), w.dtype)
    for run in w.runs():
        dz = Matrix(gates, first + run.accumulator * w.units, w.gates_stride)
        offset, columns = run.gate * w.units * w.inputs, run.size * w.units
        if is_index:
            gemm.segment_sum(dz, ids, Matrix(dw_ih, offset, 1, w.inputs), columns)
            continue
        x, to = Matrix(tape.x, 0, w.inputs), Matrix(dw_ih, offset, w.inputs)
        gemm.product(dz.transposed, x, to, Sizes(columns, count, w.inputs))
    dw_hh = empty((size, w.units), w.dtype)
    dz = Matrix(gates, first + cell.first_recurrent * w.units, w.gates_stride)
    h_prev = Matrix(tape.states[d][0], 0, w.units)
    rows = len(cell.recurrent_gates) * w.units
    to = Matrix(dw_hh, 0, w.units)
    gemm.product(dz.transposed, h_prev, to, Sizes(rows, count, w.units))
    named = {"weight_ih": dw_ih, "weight_hh": dw_hh}
    if "bias_ih" in w.parameters[d]:
        sums = gemm.sum_rows(Matrix(gates, first, w.gates_stride), count, w.gates_size)
        db_ih = empty(size, w.dtype)
        for run in w.runs():
            source, columns = run.accumulator * w.units, run.size * w.units
            moves.move(sums, source, db_ih, run.gate * w.units, columns)
        named |= {"bias_ih": db_ih, "bias_hh": sums[cell.first_recurrent * w.units :]}
    return named
