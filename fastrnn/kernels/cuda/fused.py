"""The time loops of cells whose equations are elementwise: one launch for a whole sequence.

Each block owns some units with all their gates, keeps their columns of W_hh in shared memory for
the whole sequence if they fit, and takes the rows tile by tile. All blocks of the grid synchronise
once a step. Rows, states and the order of steps are those of fastrnn/packed.py; gates are
``[N, D A H]``, accumulator after accumulator (A of them).
"""

from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import cuda

from fastrnn.cells import Cell
from fastrnn.kernels.signature import F1, I1, W1, I, Of, TupleOf
from fastrnn.kernels.unrolled import statements, tuple_function, with_first

from .driver import SMALL
from .equations import compiled
from .launch import Kernel, index, inlined, kernel
from .ptx import grid_sync

# Rows of a tile, a thread's share of them, the depth of what is read at once, and how much of it is
# unrolled.
ROWS, SHARE, DEPTH, FEW = (4, 2, 6, 3) if SMALL else (32, 2, 32, 8)
SHARED = 300 if SMALL else 48 << 10  # bytes that a block may have


class Geometry(NamedTuple):
    """The packed batch."""

    batch_sizes: I1  # [T]
    offsets: I1  # [T + 1]
    lengths: I1  # [B]
    steps: I  # T
    batch: I  # B
    reverse: I
    first: I  # the row of the first sequence in the states [D B, H] before and after the loop
    barrier: W1


class Bias(NamedTuple):
    """``bias_ih`` and ``bias_hh``, [G H] each."""

    ih: F1
    hh: F1


class Columns(NamedTuple):
    """Some columns of a matrix: row p begins at ``offset + p * stride``."""

    values: F1
    offset: I
    stride: I


class Units(NamedTuple):
    """Per-unit parameters, and where each row's gradient of them goes."""

    parameters: F1  # [P, H]
    gradient: Columns  # [N, D P H]; not used forward


class Masks(NamedTuple):
    """Zoneout and recurrent dropout; not read in loops without."""

    keep: F1  # [N or 1, S, H]
    keep_stride: I  # from row to row; 0 where one row serves all
    recurrent: F1  # [B, H]


class Loop(NamedTuple):
    """A time loop made for blocks that own ``units`` units each, whose weights they may keep."""

    kernel: Kernel
    units: int
    kept: bool
    shared: int  # bytes


@cache
def _multiply(columns: int):
    """``sums[i, j] += sum over k < count of tile[row i, k] * weights[k, j]`` in shared memory."""
    share, depth, few = SHARE, DEPTH, FEW

    def add(shared, tile, tile_stride, weights, sums):
        for i in range(share):
            x = shared[tile + i * tile_stride]
            for j in range(columns):
                sums[i, j] += x * shared[weights + j]

    add = inlined(add)

    def multiply(shared, tile, tile_stride, weights, weights_stride, count, sums):
        if count == depth:  # almost always
            for k in range(0, depth, few):
                first, second = index(tile + k), index(weights + k * weights_stride)
                for i in range(few):
                    add(shared, first + i, tile_stride, second + i * weights_stride, sums)
        else:
            for k in range(count):
                first, second = index(tile + k), index(weights + k * weights_stride)
                add(shared, first, tile_stride, second, sums)

    return inlined(multiply)


def _geometry(inner: int, columns: int, units: int, dtype, keep: bool) -> tuple[int, bool, int]:
    """``(units of a block, whether all of their weights are kept, shared bytes)`` where a unit
    has ``columns`` columns of ``inner`` weights."""
    size, tile = np.dtype(dtype).itemsize, ROWS * (DEPTH + 1)

    def needed(block_units, deep):
        return (block_units * columns * deep + tile) * size

    keep = keep and needed(1, inner) <= SHARED
    block_units, deep = 1, inner if keep else DEPTH
    while 2 * block_units <= min(units, 16) and needed(2 * block_units, deep) <= SHARED:
        block_units *= 2
    return block_units, keep, needed(block_units, deep)


def forward_loop(
    cell: Cell, units: int, dtype, keep: bool = True, regularised: bool = False
) -> Loop:
    """The loop for layers of ``units`` units, which keeps weights for a whole sequence if they
    fit; blocks that do so own no other units."""
    block_units, keep, shared = _geometry(units, len(cell.recurrent_gates), units, dtype, keep)
    return Loop(_forward(cell, dtype, block_units, keep, regularised), block_units, keep, shared)


def backward_loop(
    cell: Cell, units: int, dtype, keep: bool = True, regularised: bool = False
) -> Loop:
    """The same for the gradient through time."""
    block_units, keep, shared = _geometry(units * len(cell.recurrent_gates), 1, units, dtype, keep)
    return Loop(_backward(cell, dtype, block_units, keep, regularised), block_units, keep, shared)


class _Tuples(NamedTuple):
    """Tuples of numbers from and to memory, of the lengths that a cell has."""

    of_states: Any  # (pointers, at)
    of_accumulators: Any  # (values)
    of_gates: Any  # (values, at, stride)
    of_units: Any  # (values, at, stride)
    of_keep: Any  # (values, at, stride)
    store_states: Any  # (pointers, at, values)
    store_gates: Any  # (to, at, stride, values)
    store_units: Any  # (to, at, stride, values)
    blend: Any  # (new, previous, keep)
    kept: Any  # (d, keep)
    past: Any  # (d, keep, dprevious)


@cache
def tuples_of(cell: Cell, dtype) -> _Tuples:
    states, accumulators = len(cell.states), cell.accumulators
    element, store = "x[at + {k} * stride]", "x[at + {k} * stride] = values[{k}]"
    tuples = _Tuples(
        of_states=tuple_function("each, at", "each[{k}][at]", states),
        of_accumulators=tuple_function("z", "z[{k}]", accumulators),
        of_gates=tuple_function("x, at, stride", element, accumulators),
        of_units=tuple_function("x, at, stride", element, len(cell.unit_inputs)),
        of_keep=tuple_function("x, at, stride", element, states),
        store_states=statements("each, at, values", "each[{k}][at] = values[{k}]", states),
        store_gates=statements("x, at, stride, values", store, accumulators),
        store_units=statements("x, at, stride, values", store, len(cell.unit_parameters)),
        blend=tuple_function(
            "new, previous, keep", "previous[{k}] + keep[{k}] * (new[{k}] - previous[{k}])", states
        ),
        kept=tuple_function("d, keep", "d[{k}] * keep[{k}]", states),
        past=tuple_function(
            "d, keep, before", "d[{k}] * (one - keep[{k}]) + before[{k}]", states,
            one=np.dtype(dtype).type(1),
        ),
    )  # fmt: skip
    return _Tuples(*map(inlined, tuples))


@kernel
def _forward(cell: Cell, dtype, block_units: int, kept: bool, regularised: bool) -> Kernel:
    slots, of_x, of_h = cell.accumulators, len(cell.input_gates), len(cell.recurrent_gates)
    first_recurrent, count_states = cell.first_recurrent, len(cell.states)
    real = np.dtype(dtype).type
    order = sum(gate << 4 * s for s, gate in enumerate(cell.input_order))  # 4 bits each
    height, share, depth, columns = ROWS, SHARE, DEPTH, block_units * of_h
    tile_stride, threads = depth + 1, block_units * (ROWS // SHARE)
    tile_size = height * tile_stride
    step_cell, multiply = compiled(cell, dtype).forward, _multiply(of_h)
    (
        load_states, accumulators, _, load_units, load_keep, store_states, store_gates, _, blend,
        _, _,
    ) = tuples_of(cell, dtype)  # fmt: skip

    def forward(
        geometry: Geometry, w: F1, bias: Bias, units_in: Units, gates: Columns,
        each: Annotated[Any, TupleOf(TupleOf(Of("F", 1), count_states), 3)], masks: Masks,
        y: Columns, units: I, save: I,
    ):  # fmt: skip
        """One direction of one layer.

        w is W_hh [G H, H]; gates come in as x @ W_ih.T in their first accumulators and leave as
        saved by the cell if ``save``. ``each`` are the initial states [D B, H], those that each
        row starts from [N, H], and the final ones [D B, H].
        """
        initial, states, final = each
        batch_sizes, offsets, lengths, steps, batch, reverse, first, barrier = geometry
        h = states[0]
        shared = cuda.shared.array(0, dtype)
        t = index(cuda.threadIdx.x)
        unit, row = t % block_units, t // block_units * share
        sums = cuda.local.array((share, of_h), dtype)
        z = cuda.local.array(slots, dtype)
        if kept:
            for q in range(t, units * columns, threads):
                k, j = q % units, q // units
                u = cuda.blockIdx.x * block_units + j // of_h
                v = real(0)
                if u < units:
                    v = w[(j % of_h * units + u) * units + k]
                shared[index(tile_size + k * columns + j)] = v
        for u0 in range(cuda.blockIdx.x * block_units, units, cuda.gridDim.x * block_units):
            for r0 in range(cuda.blockIdx.y * height, batch, cuda.gridDim.y * height):
                u = u0 + unit
                for i in range(share):
                    r = r0 + row + i
                    if r < batch and u < units:
                        new = load_states(initial, (first + r) * units + u)
                        if lengths[r] == 0:
                            store_states(final, (first + r) * units + u, new)
                        else:
                            at = ((offsets[lengths[r] - 1] if reverse else 0) + r) * units + u
                            store_states(states, at, new)
                            if regularised:
                                h[at] = new[0] * masks.recurrent[r * units + u]
        grid_sync(barrier)
        for step in range(steps):
            now = steps - 1 - step if reverse else step
            following = now - 1 if reverse else now + 1
            active, here = batch_sizes[now], offsets[now]
            lasting, after = 0, 0
            if 0 <= following < steps:
                lasting, after = batch_sizes[following], offsets[following]
            for u0 in range(cuda.blockIdx.x * block_units, units, cuda.gridDim.x * block_units):
                for r0 in range(cuda.blockIdx.y * height, active, cuda.gridDim.y * height):
                    for i in range(share):
                        for j in range(of_h):
                            sums[i, j] = real(0)
                    for k0 in range(0, units, depth):
                        count = min(depth, units - k0)
                        cuda.syncthreads()
                        for q in range(t, height * depth, threads):
                            r, k = q // depth, q % depth
                            v = real(0)
                            if r0 + r < active and k < count:
                                v = h[(here + r0 + r) * units + k0 + k]
                            shared[index(r * tile_stride + k)] = v
                        if not kept:
                            for q in range(t, depth * columns, threads):
                                k, j = q % depth, q // depth
                                u = u0 + j // of_h
                                v = real(0)
                                if u < units and k < count:
                                    v = w[(j % of_h * units + u) * units + k0 + k]
                                shared[index(tile_size + k * columns + j)] = v
                        cuda.syncthreads()
                        at = tile_size + unit * of_h + (k0 * columns if kept else 0)
                        multiply(shared, row * tile_stride, tile_stride, at, columns, count, sums)
                    u = u0 + unit
                    for i in range(share):
                        r = r0 + row + i
                        if r < active and u < units:
                            gates_offset = gates.offset + (here + r) * gates.stride + u
                            for s in range(slots):
                                z[s] = real(0)
                                if s < of_x:
                                    gate = (order >> 4 * s) & 15
                                    z[s] += gates.values[gates_offset + s * units]
                                    z[s] += bias.ih[gate * units + u]
                                if s >= first_recurrent:
                                    gate = s - first_recurrent
                                    z[s] += sums[i, gate] + bias.hh[gate * units + u]
                            previous = load_states(states, (here + r) * units + u)
                            p = load_units(units_in.parameters, u, units)
                            saved, new = step_cell(accumulators(z), previous, p)
                            if regularised:
                                at = (here + r) * masks.keep_stride + u
                                new = blend(new, previous, load_keep(masks.keep, at, units))
                            if r < lasting:
                                to = (after + r) * units + u
                                store_states(states, to, new)
                                if regularised:
                                    h[to] = new[0] * masks.recurrent[r * units + u]
                            else:
                                store_states(final, (first + r) * units + u, new)
                            y.values[y.offset + (here + r) * y.stride + u] = new[0]
                            if save:
                                store_gates(gates.values, gates_offset, units, saved)
            grid_sync(barrier)

    return Kernel(forward, threads, dtype, waits=True)


@kernel
def _backward(cell: Cell, dtype, block_units: int, kept: bool, regularised: bool) -> Kernel:
    of_h, first_recurrent = len(cell.recurrent_gates), cell.first_recurrent
    count_states, has_units = len(cell.states), len(cell.unit_parameters) > 0
    real = np.dtype(dtype).type
    height, share, depth = ROWS, SHARE, DEPTH
    tile_stride, threads = depth + 1, block_units * (ROWS // SHARE)
    tile_size = height * tile_stride
    step_back, multiply = compiled(cell, dtype).backward, _multiply(1)
    (
        load_states, _, load_gates, load_units, load_keep, store_states, store_gates, store_units,
        _, keep_new, past,
    ) = tuples_of(cell, dtype)  # fmt: skip
    replace_first = inlined(with_first(count_states))

    def backward(
        geometry: Geometry, w: F1, units_in: Units, gates: Columns,
        states: Annotated[Any, TupleOf(Of("F", 1), count_states)], masks: Masks, dy: Columns,
        dfinal: Annotated[Any, TupleOf(Of("F", 1), count_states)],
        dstates: Annotated[Any, TupleOf(Of("F", 1), count_states)], units: I,
    ):  # fmt: skip
        """The gradient through time of ``forward``, one direction of one layer.

        gates come in as saved and leave as the gradients of the accumulators; states as `forward`
        left them; dfinal [D B, H] are the gradients of the final states, and dstates become those
        of the states that the first steps started from.
        """
        batch_sizes, offsets, _, steps, batch, reverse, first, barrier = geometry
        dh = dstates[0]
        shared = cuda.shared.array(0, dtype)
        t = index(cuda.threadIdx.x)
        inner = of_h * units
        unit, row = t % block_units, t // block_units * share
        sums = cuda.local.array((share, 1), dtype)
        if kept:
            for q in range(t, inner * block_units, threads):
                u = cuda.blockIdx.x * block_units + q % block_units
                v = real(0)
                if u < units:
                    v = w[q // block_units * units + u]
                shared[index(tile_size + q)] = v
        for u0 in range(cuda.blockIdx.x * block_units, units, cuda.gridDim.x * block_units):
            for r0 in range(cuda.blockIdx.y * height, batch, cuda.gridDim.y * height):
                for i in range(share):
                    r = r0 + row + i
                    if r < batch and u0 + unit < units:
                        at = (first + r) * units + u0 + unit
                        store_states(dstates, at, load_states(dfinal, at))
        for step in range(steps + 1):  # the last one only brings dh past the first step
            now = step if reverse else steps - 1 - step
            before = now - 1 if reverse else now + 1
            active, here, had, later = 0, 0, 0, 0
            if step < steps:
                active, here = batch_sizes[now], offsets[now]
            if step > 0:
                had, later = batch_sizes[before], offsets[before]
            for u0 in range(cuda.blockIdx.x * block_units, units, cuda.gridDim.x * block_units):
                most = max(active, had)
                for r0 in range(cuda.blockIdx.y * height, most, cuda.gridDim.y * height):
                    for i in range(share):
                        sums[i, 0] = real(0)
                    for k0 in range(0, inner if r0 < had else 0, depth):
                        count = min(depth, inner - k0)
                        cuda.syncthreads()
                        for q in range(t, height * depth, threads):
                            r, k = q // depth, q % depth
                            v = real(0)
                            if r0 + r < had and k < count:
                                at = gates.offset + (later + r0 + r) * gates.stride
                                v = gates.values[at + first_recurrent * units + k0 + k]
                            shared[index(r * tile_stride + k)] = v
                        if not kept:
                            for q in range(t, depth * block_units, threads):
                                u, k = u0 + q % block_units, q // block_units
                                v = real(0)
                                if u < units and k < count:
                                    v = w[(k0 + k) * units + u]
                                shared[index(tile_size + q)] = v
                        cuda.syncthreads()
                        at = tile_size + unit + (k0 * block_units if kept else 0)
                        multiply(
                            shared, row * tile_stride, tile_stride, at, block_units, count, sums
                        )
                    u = u0 + unit
                    for i in range(share):
                        r = r0 + row + i
                        if r < most and u < units:
                            of_row = (first + r) * units + u
                            d = dh[of_row] + sums[i, 0]
                            if r >= active:
                                dh[of_row] = d
                            else:
                                if regularised and r < had:
                                    # The later step started from the masked h.
                                    d *= masks.recurrent[r * units + u]
                                d += dy.values[dy.offset + (here + r) * dy.stride + u]
                                every = replace_first(d, load_states(dstates, of_row))
                                gates_offset = gates.offset + (here + r) * gates.stride + u
                                saved = load_gates(gates.values, gates_offset, units)
                                previous = load_states(states, (here + r) * units + u)
                                p = load_units(units_in.parameters, u, units)
                                if regularised:
                                    at = (here + r) * masks.keep_stride + u
                                    keep = load_keep(masks.keep, at, units)
                                    dz, dprevious, dp = step_back(
                                        saved, previous, p, keep_new(every, keep)
                                    )
                                    dprevious = past(every, keep, dprevious)
                                else:
                                    dz, dprevious, dp = step_back(saved, previous, p, every)
                                store_states(dstates, of_row, dprevious)
                                store_gates(gates.values, gates_offset, units, dz)
                                if has_units:
                                    to = units_in.gradient
                                    at = to.offset + (here + r) * to.stride + u
                                    store_units(to.values, at, units, dp)
            if step < steps:
                grid_sync(barrier)

    return Kernel(backward, threads, dtype, waits=True)
