"""A recurrent layer on the GPU: projection, time loops, and the products of the gradients.

The contract is in kernels/backend.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell
from fastrnn.kernels import unfused
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch

from . import gemm, moves, placement, tensor
from .driver import stream_of
from .exchange import APART, Groups
from .fused import ROWS, Columns, Geometry, Loop, Masks, Units, backward_loop, forward_loop
from .matrix import Matrix, Sizes
from .memory import (
    DeviceArray,
    barriers,
    clear,
    device_view,
    empties,
    empty,
    here,
    to_caller,
    to_device,
    to_host,
    zero_state,
)
from .unfused import Ops
from .weights import FusedWeights


class Indices(NamedTuple):
    """A batch's geometry on the device, int64."""

    batch_sizes: Any  # [T]
    offsets: Any  # [T + 1]
    lengths: Any  # [B]

    @classmethod
    def of(cls, packed: PackedBatch) -> "Indices":
        """Those of a batch: copied once, and kept with it or, if dense, for all of its shape."""
        if packed.sorted_indices is None:
            return _dense_indices(len(packed.batch_sizes), packed.batch, here())
        if here() not in packed.there:
            packed.there[here()] = cls._copied(packed)
        return packed.there[here()]

    @classmethod
    def _copied(cls, packed: PackedBatch) -> "Indices":
        parts = packed.batch_sizes, packed.offsets, packed.lengths
        there, steps = to_device(np.concatenate(parts)), len(packed.batch_sizes)
        return cls(there[:steps], there[steps : 2 * steps + 1], there[2 * steps + 1 :])


@lru_cache(16)
def _dense_indices(steps: int, batch: int, device) -> Indices:
    return Indices._copied(PackedBatch(steps, batch))


@dataclass
class Tape:
    """What `recurrent_backward` needs of `recurrent_forward`; it is used up there."""

    x: Any
    packed: PackedBatch
    states: tuple[Any, ...]  # [D, N, H] each
    gates: Any
    plan: placement.Plan | None
    packed_weights: Any  # as loops on tensor cores read them, None for others
    masks: StepMasks | None


def RecurrentWeights(
    cell: Cell, parameters, precision: str = "float32"
) -> FusedWeights | unfused.UnfusedWeights:
    """The parameters of one layer, see kernels/backend.py.

    The precision is that of products over whole sequences, and of those with ``weight_hh`` in loops
    on tensor cores."""
    if cell.program:
        return unfused.UnfusedWeights(cell, parameters, lambda cell, p, _: Ops(cell, p, precision))
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


def _on_tensor_cores(
    kernel, w: FusedWeights, plan: placement.Plan, gates: int, batch: int, words, *args
) -> None:
    """Run a time loop on a cluster, or a group of blocks, for each tile of the batch and direction:
    groups in several launches if not all can be resident. ``words`` are the packed weights."""
    if not batch:
        return
    tiles, directions, shared = -(-batch // placement.ROWS), w.directions, plan.shared(gates)
    rows, columns = tiles, directions  # of a launch's grid
    groups = Groups(words, words, 0, 0)  # clusters read neither
    if not plan.is_cluster:
        most = kernel.most_together(shared, plan.blocks)
        columns = min(directions, most)
        rows = min(tiles, most // columns)
        values = empty(rows * columns * 2 * plan.buffer(gates), np.uint32)
        groups = groups._replace(values=values, barriers=barriers(most * APART))
    for direction in range(0, directions, columns):
        for first in range(0, tiles, rows):
            grid = min(rows, tiles - first), columns
            groups = groups._replace(first=first, direction=direction)
            kernel(grid, words, *args, groups, shared=shared, cluster=plan.blocks)


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
    w, batch = weights, packed.batch
    final = tuple(empties(w.dtype, *[(w.directions, batch, w.units)] * len(w.cell.states)))
    y, tape = _forward(w, x, packed, tuple(state_0), final, training, masks)
    return y, final, tape


def _forward(
    w: FusedWeights, x, packed: PackedBatch, initial: tuple, final: tuple, training: bool, masks
) -> tuple[Any, Tape | None]:
    """``(y, tape or None)``; writes the final states."""
    batch, count, kinds = packed.batch, packed.size, len(final)
    plan = None if masks else w.plan(training)
    indices, y_stride = Indices.of(packed), w.directions * w.units
    y = empty((count, y_stride), w.dtype)
    # Tensor cores' loops keep the states of the steps in registers, but for a gradient.
    kept = [] if plan and not training else [(w.directions, count, w.units)] * kinds
    gates, *rows = empties(w.dtype, (count, w.gates_stride), *kept)
    states = tuple(rows) or final
    by_direction = w.by_direction
    for d, (w_ih, w_hh, bias, unit) in enumerate(by_direction):
        _project(w, d, w_ih, x, gates)
        if plan:
            continue
        per_unit = Units(unit, Columns(unit, 0, 0))  # no gradient here
        own = initial, tuple(s[d] for s in states), final
        _over_grid(
            forward_loop, w, batch, masks,
            _geometry(indices, packed, d), w_hh, bias, per_unit,
            Columns(gates, d * w.gates_size, w.gates_stride), own, _masks(w, masks, d, unit),
            Columns(y, d * w.units, y_stride), w.units, training,
        )  # fmt: skip
    words = w.packed(plan, training=training) if plan else None
    if plan:
        _on_tensor_cores(
            tensor.forward(w.cell, plan), w, plan, 1, batch, words,
            (by_direction[0].bias, by_direction[-1].bias), gates, (initial, states, final), y,
            _sequences(w, indices, packed), w.units, training,
        )  # fmt: skip
    return y, Tape(x, packed, states, gates, plan, words, masks) if training else None


def _sequences(w: FusedWeights, indices: Indices, packed: PackedBatch) -> tensor.Sequences:
    return tensor.Sequences(
        indices.lengths, indices.offsets, packed.batch, packed.size, w.directions
    )  # fmt: skip


def _geometry(indices: Indices, packed: PackedBatch, d: int) -> Geometry:
    steps, batch = len(packed.batch_sizes), packed.batch
    return Geometry(*indices, steps, batch, d == 1, d * batch, barriers())


def _project(w: FusedWeights, d: int, w_ih, x, gates) -> None:
    """``x @ W_ih.T`` of one direction, into the first accumulators."""
    for run in w.runs:
        part = Matrix(w_ih, run.gate * w.units * w.inputs, w.inputs)
        offset = d * w.gates_size + run.accumulator * w.units
        to, columns = Matrix(gates, offset, w.gates_stride), run.size * w.units
        if x.ndim == 1:
            gemm.pick(part, x, to, columns)
        else:
            sizes, rows = Sizes(len(x), w.inputs, columns), Matrix(x, 0, w.inputs)
            gemm.product(rows, part.transposed, to, sizes, precision=w.precision)


def recurrent_plan(layers: Sequence[FusedWeights], steps: int, batch: int) -> Callable | None:
    """Inference on arrays of the device, see kernels/backend.py."""
    if any(isinstance(w, unfused.UnfusedWeights) for w in layers):
        return None
    first, packed = layers[0], PackedBatch(steps, batch)
    dtype, units, d, kinds = first.dtype, first.units, first.directions, len(first.cell.states)
    shape = len(layers) * d, batch, units

    def plan(x, state, unbatched: bool) -> tuple | None:
        with stream_of(x):
            try:
                rows = device_view(x)
                given = _states(state, (shape[0], units) if unbatched else shape, dtype, kinds)
            except ValueError:
                return None  # the ordinary way says what is wrong
            if given is None or rows.dtype != dtype:
                return None
            final = empties(dtype, *[shape] * kinds)
            y = rows.reshape(packed.size, first.inputs)
            for i, w in enumerate(layers):
                own = slice(i * d, (i + 1) * d)
                before, after = (tuple(s[own] for s in of) for of in (given, final))
                y, _ = _forward(w, y, packed, before, after, False, None)
            out = [s.reshape(shape[0], units) if unbatched else s for s in final]
            state = tuple(to_caller(x, s) for s in out)
            y = to_caller(x, y.reshape(*x.shape[:-1], d * units))
            return y, state if kinds > 1 else state[0]

    return plan


def _states(state, shape: tuple[int, ...], dtype, count: int) -> list | None:
    """Initial states on the device; None if they do not fit."""
    if state is None:
        return [zero_state(shape, dtype)] * count
    given = state if count > 1 else (state,)
    if not isinstance(given, (tuple, list)) or len(given) != count:
        return None
    if not all(_is_there(s) and tuple(s.shape) == shape for s in given):
        return None
    out = [device_view(s) for s in given]
    return out if all(s.dtype == dtype for s in out) else None


def _is_there(s) -> bool:
    if isinstance(s, DeviceArray) or getattr(s, "is_cuda", False):
        return True
    return hasattr(s, "__cuda_array_interface__") and hasattr(s, "shape")


def recurrent_backward(weights: FusedWeights, tape: Tape, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `recurrent_forward`, see kernels/backend.py."""
    if isinstance(weights, unfused.UnfusedWeights):
        return unfused.recurrent_backward(weights, tape, dy, dstate_n, need_dx=need_dx)
    w, cell, packed, gates, plan = weights, weights.cell, tape.packed, tape.gates, tape.plan
    if gates is None:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.gates = None
    is_index, count, batch = tape.x.ndim == 1, packed.size, packed.batch
    indices, dfinal = Indices.of(packed), tuple(dstate_n)
    dy_stride, unit_size = w.directions * w.units, len(cell.unit_parameters) * w.units
    dx = None if is_index or not need_dx else empty((count, w.inputs), w.dtype)
    ids = to_host(tape.x) if is_index else None
    dunit = empty((count, w.directions * unit_size), w.dtype) if unit_size else dy
    dstate = tuple(empties(w.dtype, *[(w.directions, batch, w.units)] * len(cell.states)))
    grads = []
    if plan:
        _on_tensor_cores(
            tensor.backward(w.cell, plan), w, plan, plan.slots, batch, tape.packed_weights, gates,
            tape.states, dy, dfinal, dstate, _sequences(w, indices, packed), w.units,
        )  # fmt: skip
    for d, (w_ih, w_hh, _, unit) in enumerate(w.by_direction):
        if not plan:
            per_unit = Units(unit, Columns(dunit, d * unit_size, w.directions * unit_size))
            _over_grid(
                backward_loop, w, batch, tape.masks,
                _geometry(indices, packed, d), w_hh, per_unit,
                Columns(gates, d * w.gates_size, w.gates_stride),
                tuple(s[d] for s in tape.states), _masks(w, tape.masks, d, unit),
                Columns(dy, d * w.units, dy_stride), dfinal, dstate, w.units,
            )  # fmt: skip
            if tape.masks:
                moves.mask(dstate[0][d], tape.masks.recurrent[d], indices.lengths)
        named = _weight_gradients(w, tape, d, gates, ids)
        if dx is not None:
            _add_dx(w, d, gates, w_ih, dx)
        if unit_size:
            part = Matrix(dunit, d * unit_size, w.directions * unit_size)
            sums = gemm.sum_rows(part, count, unit_size).reshape(-1, w.units)
            named |= {name: sums[i] for i, name in enumerate(cell.unit_parameters)}
        grads.append(named)
    tape.states = ()  # their memory is that of the gates
    return dx, dstate, grads


def _add_dx(w: FusedWeights, d: int, gates, w_ih, dx) -> None:
    """Add a direction's part of the gradient of x; the first one starts it."""
    for run in w.runs:
        offset, columns = d * w.gates_size + run.accumulator * w.units, run.size * w.units
        dz = Matrix(gates, offset, w.gates_stride)
        part = Matrix(w_ih, run.gate * w.units * w.inputs, w.inputs)
        sizes, add = Sizes(dx.shape[0], columns, w.inputs), bool(d or run.accumulator)
        to = Matrix(dx, 0, w.inputs)
        gemm.product(dz, part, to, sizes, add=add, precision=w.precision)


def _weight_gradients(w: FusedWeights, tape: Tape, d: int, gates, ids) -> dict[str, Any]:
    """The gradients of the weights and biases of a direction; ``ids`` is a one-hot input."""
    cell, count, size = w.cell, tape.packed.size, len(w.cell.gates) * w.units
    first = d * w.gates_size
    is_index = ids is not None
    dw_ih, dw_hh = empties(w.dtype, (size, w.inputs), (size, w.units))
    if is_index:
        clear(dw_ih)
    for run in w.runs:
        dz = Matrix(gates, first + run.accumulator * w.units, w.gates_stride)
        offset, columns = run.gate * w.units * w.inputs, run.size * w.units
        if is_index:
            gemm.segment_sum(dz, ids, Matrix(dw_ih, offset, 1, w.inputs), columns)
            continue
        x, to = Matrix(tape.x, 0, w.inputs), Matrix(dw_ih, offset, w.inputs)
        sizes = Sizes(columns, count, w.inputs)
        gemm.product(dz.transposed, x, to, sizes, precision=w.precision)
    dz = Matrix(gates, first + cell.first_recurrent * w.units, w.gates_stride)
    h_prev = Matrix(tape.states[0], d * count * w.units, w.units)
    rows = len(cell.recurrent_gates) * w.units
    to = Matrix(dw_hh, 0, w.units)
    gemm.product(
        dz.transposed, h_prev, to, Sizes(rows, count, w.units), precision=w.precision
    )  # fmt: skip
    named = {"weight_ih": dw_ih, "weight_hh": dw_hh}
    if "bias_ih" in w.parameters[d]:
        # Both biases may have the same gradient, but each has memory of its own: callers may
        # change one in place.
        dz, n = Matrix(gates, first, w.gates_stride), w.gates_size
        sums = gemm.sum_rows(dz, count, n, copies=2)
        db_ih = sums[:size] if len(w.runs) == 1 else empty(size, w.dtype)
        for run in w.runs if len(w.runs) > 1 else ():
            first, last = run.accumulator * w.units, (run.accumulator + run.size) * w.units
            to = run.gate * w.units
            db_ih[to : to + last - first] = sums[first:last]
        named |= {"bias_ih": db_ih, "bias_hh": sums[n + cell.first_recurrent * w.units :]}
    return named
