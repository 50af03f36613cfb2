"""Time loops of the LSTM and the GRU on thread-block clusters and tensor cores (compute capability
9.0 and later); how a layer lies on a cluster is in placement.py.

A cluster of blocks owns 8 rows of the batch for the whole sequence, and each of its blocks some
units with their columns of W_hh, in registers and, what does not fit, in shared memory. A warp owns
8 units; its thread (g, q) unit g with rows 2q and 2q + 1, so gates, c and h stay in registers.

h (or, backward, the gradients of the gates) goes from each block to all blocks of its cluster, into
one of two buffers in their shared memory, and a step begins when all bytes have come. No other
barrier is needed: a buffer is written again only by threads that have what all others sent after
they had read it. Both directions of a layer run at the same time, on clusters of their own.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import cuda, float32, uint32

from fastrnn.cells import CELLS, Cell
from fastrnn.kernels.signature import F1, I1, W1, I, Of, TupleOf
from fastrnn.kernels.unrolled import statements, tuple_function, with_first

from . import ptx
from .equations import compiled
from .fused import Bias, tuples_of
from .launch import CLUSTERS, Kernel, inlined, kernel
from .placement import PRECISIONS, ROWS, Plan, product_of, send_of, word_of
from .ptx import (
    as_bits,
    as_float,
    cluster_rank,
    cluster_sync,
    expect,
    initialise,
    load_if,
    wait_for,
)  # fmt: skip

ON_CLUSTERS = CELLS["lstm"], CELLS["gru"]  # both have four accumulators
# Of both directions, or twice the one.
Biases = Annotated[Any, TupleOf(Bias, 2)]


class Sequences(NamedTuple):
    """The packed batch."""

    lengths: I1  # [B]
    offsets: I1  # [T + 1]
    batch: I
    count: I  # N


def fits(cell: Cell, layout: Plan, training: bool) -> bool:
    """Whether the device can run such clusters."""
    loops = [(forward, 1), (backward, 4)][: 1 + training]
    return all(
        make(cell, layout).most_clusters(layout.shared(gates), layout.blocks)
        for make, gates in loops
    )


@inlined
def load(r, wanted, units, arrays, strides, first, to, j):
    """What the gradient of a row needs: four gates, dy, and the last state before the step. Rows of
    the arrays are ``strides`` apart, and my number in a row without any before it is ``first``."""
    gates, dy, last = arrays
    at = r * strides[0] + first[0]
    for s in range(4):
        to[6 * j + s] = load_if(gates, at + s * units, wanted)
    to[6 * j + 4] = load_if(dy, r * strides[1] + first[1], wanted)
    to[6 * j + 5] = load_if(last, r * strides[2] + first[2], wanted)


def _equations(cell: Cell, layout: Plan):
    tanh = ptx.tanh_approx if PRECISIONS[layout.precision].approximate else None
    return compiled(cell, np.dtype("float32"), tanh)


def _held(cell: Cell) -> tuple[Callable, Callable, Callable]:
    """``(load, store, state)``: a row's states from and to what a thread holds of its two rows, and
    its states as the equations' backward takes them, of which it reads the last one."""
    count = len(cell.states)
    load = tuple_function("held, j", "held[2 * {k} + j]", count)
    store = statements("held, j, values", "held[2 * {k} + j] = values[{k}]", count)
    state = tuple_function("v", "v", count)
    return inlined(load), inlined(store), inlined(state)


@kernel
def forward(cell: Cell, layout: Plan) -> Kernel:
    """The time loop."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    row = layout.row(1)
    buffer = shape.parts * ROWS * row
    pair, parts = shape.pair, shape.parts
    word0, word1 = (word_of(layout.precision, p) for p in (0, parts - 1))
    product, send, equations = product_of(layout, 1), send_of(layout, 1), _equations(cell, layout)
    step_cell, sent, count_states = equations.forward, layout.sent(1), len(cell.states)
    both = 2 * count_states  # numbers of two rows
    of_x, first_recurrent = len(cell.input_gates), cell.first_recurrent
    order = sum(gate << 4 * s for s, gate in enumerate(cell.input_order))  # 4 bits each
    load_held, store_held, _ = _held(cell)
    tuples = tuples_of(cell, np.dtype("float32"))
    load_states, store_states, store_gates = (
        tuples.of_states, tuples.store_states, tuples.store_gates,
    )  # fmt: skip

    def forward(
        w: W1, biases: Biases, gates: F1,
        each: Annotated[Any, TupleOf(TupleOf(Of("F", 1), count_states), 3)], y: F1,
        sequences: Sequences, units: I, training: I,
    ):  # fmt: skip
        """All directions of one layer, each on a row of the grid.

        w [D, 2, words, blocks, threads] as `pack` makes it; gates [N, D, 4, H] come in as
        x @ W_ih.T and leave as saved by the cell if ``training``. ``each`` are the initial states
        [D, B, H], those that each row starts from [D, N, H], which are only written if
        ``training``, and the final ones [D, B, H]; y is [N, D, H].
        """
        initial, states, final = each
        h_0 = initial[0]
        lengths, offsets, batch, count = sequences
        d, directions = cuda.blockIdx.y, cuda.gridDim.y
        bias_ih = biases[1].ih if d else biases[0].ih
        bias_hh = biases[1].hh if d else biases[0].hh
        first, y_stride, gates_stride = d * batch, directions * units, 4 * directions * units
        shared = cuda.shared.array(0, uint32)
        kept = cuda.local.array(in_registers, uint32)
        sums = cuda.local.array(8, float32)
        ahead, coming = cuda.local.array(8, float32), cuda.local.array(8, float32)
        held = cuda.local.array(both, float32)
        unit_bias = cuda.local.array(4, float32)
        own_length = cuda.local.array(2, np.int64)
        t, rank = cuda.threadIdx.x, cluster_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        b0 = cuda.blockIdx.x // blocks * ROWS
        column = rank * block_units + warp * 8 + g  # my unit
        inside = column < units
        of_gates, of_y, of_states = (4 * d * units, d * units, d * count * units)
        of_gates, of_y, of_states = of_gates + column, of_y + column, of_states + column
        weights, first_word = 2 * buffer, 2 * d * words
        barriers = weights + (words - in_registers + 2) * threads
        if t == 0:
            for i in range(2):
                initialise(shared, barriers + 2 * i)
                expect(shared, barriers + 2 * i, sent)
        for i in range(in_registers):
            kept[i] = w[((first_word + i) * blocks + rank) * threads + t]
        for i in range(in_registers, words):
            shared[weights + (i - in_registers) * threads + t] = w[
                ((first_word + i) * blocks + rank) * threads + t
            ]
        for i in range(t, ROWS * (row - 4), threads):
            n, k = i // (row - 4), i % (row - 4) * pair
            v0, v1 = float32(0), float32(0)
            if b0 + n < batch and k < units:
                v0 = h_0[(first + b0 + n) * units + k]
            if b0 + n < batch and k + 1 < units:
                v1 = h_0[(first + b0 + n) * units + k + 1]
            shared[n * row + k // pair] = word0(v0, v1)
            if parts == 2:
                shared[(ROWS + n) * row + k // pair] = word1(v0, v1)
        steps = lengths[b0]  # of the longest of my rows
        for s in range(4):
            unit_bias[s] = float32(0)
            if s < of_x:
                gate = (order >> 4 * s) & 15
                unit_bias[s] += load_if(bias_ih, gate * units + column, inside)
            if s >= first_recurrent:
                gate = s - first_recurrent
                unit_bias[s] += load_if(bias_hh, gate * units + column, inside)
        now = steps - 1 if d else 0
        direction = -1 if d else 1
        here = offsets[now] if steps else 0
        there = offsets[min(max(now + direction, 0), steps)]
        for j in range(2):
            r = b0 + 2 * q + j
            own_length[j] = lengths[r] if r < batch and inside else 0
            for k in range(count_states):
                held[2 * k + j] = float32(0)
            if r < batch and inside:
                store_held(held, j, load_states(initial, (first + r) * units + column))
            for s in range(4):
                ahead[2 * s + j], coming[2 * s + j] = float32(0), float32(0)
            for s in range(of_x):
                at = (here + r) * gates_stride + of_gates + s * units
                ahead[2 * s + j] = load_if(gates, at, (now >= 0) & (now < own_length[j]))
        cluster_sync()
        for step in range(steps):
            # The next step's gates are on their way while this one is computed, and the offset of
            # the step after that: no product waits for a load that has only begun.
            following = now + direction
            for j in range(2):
                at = (there + b0 + 2 * q + j) * gates_stride + of_gates
                wanted = (following >= 0) & (following < own_length[j])
                for s in range(of_x):
                    coming[2 * s + j] = load_if(gates, at + s * units, wanted)
            if step > 0:
                at = barriers + 2 * (step & 1)
                wait_for(shared, at, (step - 1) >> 1)
                if t == 0:
                    expect(shared, at, sent)  # in two steps
            at = (step & 1) * buffer + g * row + q
            product(kept, shared, weights, t, at, at, sums)
            beyond = offsets[min(max(following + direction, 0), steps)]
            for i in range(8):
                sums[i] += ahead[i] + unit_bias[i >> 1]
            saved_0, new_0 = step_cell(
                (sums[0], sums[2], sums[4], sums[6]), load_held(held, 0), ()
            )  # fmt: skip
            saved_1, new_1 = step_cell(
                (sums[1], sums[3], sums[5], sums[7]), load_held(held, 1), ()
            )  # fmt: skip
            for j in range(2):
                if now < own_length[j]:
                    r = here + b0 + 2 * q + j
                    if training:
                        store_states(states, r * units + of_states, load_held(held, j))
                        at = r * gates_stride + of_gates
                        store_gates(gates, at, units, saved_1 if j else saved_0)
                    store_held(held, j, new_1 if j else new_0)
                    y[r * y_stride + of_y] = held[j]
            if step + 1 < steps:
                to = 1 - (step & 1)
                send(shared, to * buffer, column, q, g, held[0], held[1], barriers + 2 * to)
            for i in range(8):
                ahead[i] = coming[i]
            now, here, there = following, there, beyond
        for j in range(2):
            r = b0 + 2 * q + j
            if r < batch and inside:
                store_states(final, (first + r) * units + column, load_held(held, j))

    return Kernel(forward, threads, np.float32, least=CLUSTERS)


@kernel
def backward(cell: Cell, layout: Plan) -> Kernel:
    """The gradient through time of `forward`."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    row, gate = layout.row(4), layout.units // shape.pair
    buffer = shape.parts * ROWS * row
    product, send, equations = product_of(layout, 4), send_of(layout, 4), _equations(cell, layout)
    step_back, padded, sent, count_states = (
        equations.backward, layout.units, layout.sent(4), len(cell.states),
    )  # fmt: skip
    both = 2 * count_states  # numbers of two rows
    load_held, store_held, state_of = _held(cell)
    tuples = tuples_of(cell, np.dtype("float32"))
    load_states, store_states = tuples.of_states, tuples.store_states
    replace_first = inlined(with_first(count_states))
    keep_or_clear = inlined(statements(
        "dz, j, z, active", "dz[2 * {k} + j] = z[{k}] if active else zero", 4, zero=np.float32(0)
    ))  # fmt: skip

    def backward(
        w: W1, gates: F1, states: Annotated[Any, TupleOf(Of("F", 1), count_states)], dy: F1,
        dfinal: Annotated[Any, TupleOf(Of("F", 1), count_states)],
        dstates: Annotated[Any, TupleOf(Of("F", 1), count_states)], sequences: Sequences, units: I,
    ):  # fmt: skip
        """All directions of one layer, each on a row of the grid.

        gates come in as saved and leave as gradients; states as `forward` left them; dfinal
        [D, B, H] are the gradients of the final states, and dstates become those of the initial
        ones.
        """
        lengths, offsets, batch, count = sequences
        d, directions = cuda.blockIdx.y, cuda.gridDim.y
        first, arrays = d * batch, (gates, dy, states[count_states - 1])
        strides = 4 * directions * units, directions * units, units
        shared = cuda.shared.array(0, uint32)
        kept = cuda.local.array(in_registers, uint32)
        sums = cuda.local.array(8, float32)
        ahead, coming = cuda.local.array(12, float32), cuda.local.array(12, float32)
        held = cuda.local.array(both, float32)
        dz = cuda.local.array(8, float32)
        own_length = cuda.local.array(2, np.int64)
        t, rank = cuda.threadIdx.x, cluster_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        b0 = cuda.blockIdx.x // blocks * ROWS
        column = rank * block_units + warp * 8 + g  # my unit
        inside = column < units
        mine = 4 * d * units + column, d * units + column, d * count * units + column
        second = warp & 1  # of two warps that share 16 units: it has the last two gates
        weights, first_word = 2 * buffer, (2 * d + 1) * words
        between = weights + (words - in_registers) * threads
        barriers = between + 2 * threads
        if t == 0:
            for i in range(2):
                initialise(shared, barriers + 2 * i)
                expect(shared, barriers + 2 * i, sent)
        for i in range(in_registers):
            kept[i] = w[((first_word + i) * blocks + rank) * threads + t]
        for i in range(in_registers, words):
            shared[weights + (i - in_registers) * threads + t] = w[
                ((first_word + i) * blocks + rank) * threads + t
            ]
        steps = lengths[b0]
        for j in range(2):
            r = b0 + 2 * q + j
            own_length[j] = lengths[r] if r < batch and inside else 0
            for k in range(count_states):
                held[2 * k + j] = float32(0)
            if r < batch and inside:
                store_held(held, j, load_states(dfinal, (first + r) * units + column))
        now = 0 if d else steps - 1
        direction = 1 if d else -1
        here = offsets[max(now, 0)]
        there = offsets[min(max(now + direction, 0), steps)]
        for j in range(2):
            wanted = (now >= 0) & (now < own_length[j])
            load(here + b0 + 2 * q + j, wanted, units, arrays, strides, mine, ahead, j)
        cluster_sync()
        for step in range(steps + 1):  # the last one only brings dh past the first step
            following = now + direction
            for j in range(2):  # the next step's, on their way while this one is computed
                wanted = (following >= 0) & (following < own_length[j])
                load(there + b0 + 2 * q + j, wanted, units, arrays, strides, mine, coming, j)
            if step > 0:
                at = barriers + 2 * (1 - (step & 1))
                wait_for(shared, at, (step - 1) >> 1)
                if t == 0:
                    expect(shared, at, sent)  # in two steps
                at = (1 - (step & 1)) * buffer + g * row + q + 2 * second * gate
                product(kept, shared, weights, t, at, at + gate, sums)
                # Each warp has half of the sums of 16 units: it gives away those of 8.
                for j in range(2):
                    v = sums[j] + sums[4 + j] if second else sums[2 + j] + sums[6 + j]
                    shared[between + 2 * t + j] = as_bits(v)
                cuda.syncthreads()
                for j in range(2):
                    v = sums[2 + j] + sums[6 + j] if second else sums[j] + sums[4 + j]
                    held[j] += v + as_float(shared[between + 2 * (t ^ 32) + j])
            beyond = offsets[min(max(following + direction, 0), steps)]
            for j in range(2):
                i = 6 * j
                z, dprevious, _ = step_back(
                    (ahead[i], ahead[i + 1], ahead[i + 2], ahead[i + 3]), state_of(ahead[i + 5]),
                    (), replace_first(held[j] + ahead[i + 4], load_held(held, j)),
                )  # fmt: skip
                active = step < steps and now < own_length[j]
                store_held(held, j, dprevious if active else load_held(held, j))
                keep_or_clear(dz, j, z, active)
                if active:
                    at = (here + b0 + 2 * q + j) * strides[0] + mine[0]
                    for s in range(4):
                        gates[at + s * units] = dz[2 * s + j]
            for i in range(12):
                ahead[i] = coming[i]
            now, here, there = following, there, beyond
            if step < steps:
                to = step & 1
                for s in range(4):
                    send(
                        shared, to * buffer, s * padded + column, q, g, dz[2 * s], dz[2 * s + 1],
                        barriers + 2 * to,
                    )  # fmt: skip
        for j in range(2):
            r = b0 + 2 * q + j
            if r < batch and inside:
                store_states(dstates, (first + r) * units + column, load_held(held, j))

    return Kernel(backward, threads, np.float32, least=CLUSTERS)
