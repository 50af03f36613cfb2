"""Time loops of the plain cells on tensor cores. How a layer lies on blocks is in placement.py, and
what the blocks send each other in exchange.py.

Some blocks, a cluster or a group, own 8 rows of the batch for a whole sequence, and each of them
some units with their columns of W_hh, in registers and, what does not fit, in shared memory. A warp
owns 8 units, or four times 8 of a cell with one accumulator; its thread (g, q) owns unit g of each
8, with rows 2q and 2q + 1, so gates and states stay in registers. Both directions of a layer run at
the same time.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import cuda, float32, int32, uint32

from fastrnn.cells import CELLS, Cell
from fastrnn.kernels.signature import F1, I1, W1, I, Of, TupleOf
from fastrnn.kernels.unrolled import statements, tuple_function, with_first

from . import ptx
from .equations import compiled
from .exchange import Groups, exchange_of
from .fused import Bias, tuples_of
from .launch import CLUSTERS, OLDEST, Kernel, index, inlined, kernel
from .placement import PRECISIONS, ROWS, Plan, product_of, word_of
from .ptx import as_bits, as_float, load_if

ON_TENSOR_CORES = tuple(CELLS[name] for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
# Of both directions, or twice the one.
Biases = Annotated[Any, TupleOf(Bias, 2)]


class Sequences(NamedTuple):
    """The packed batch."""

    lengths: I1  # [B]
    offsets: I1  # [T + 1]
    batch: I
    count: I  # N
    directions: I


def most_groups(cell: Cell, layout: Plan, training: bool) -> int:
    """How many clusters or groups of blocks can be resident at once."""
    loops = [(forward, 1), (backward, layout.slots)][: 1 + training]
    return min(
        make(cell, layout).most_together(layout.shared(gates), layout.blocks)
        for make, gates in loops
    )


def _load_of(slots: int) -> Callable:
    """A function that loads what the gradient of a unit in a row needs: its gates, dy, and the last
    state before the step. Rows of the arrays are ``strides`` apart, and the unit's number in a row
    without any before it is ``first``."""
    count = slots + 2

    def load(r, wanted, units, arrays, strides, first, to, i):
        gates, dy, last = arrays
        at = r * strides[0] + first[0]
        for s in range(slots):
            to[count * i + s] = load_if(gates, at + s * units, wanted)
        to[count * i + slots] = load_if(dy, r * strides[1] + first[1], wanted)
        to[count * i + slots + 1] = load_if(last, r * strides[2] + first[2], wanted)

    return inlined(load)


def _load_weights_of(layout: Plan) -> Callable:
    """A function that loads a thread's weights, of which the first is ``w[at]``."""
    words, in_registers, threads = layout.words, layout.in_registers, layout.threads
    stride = layout.blocks * threads

    def load_weights(w, at, kept, shared, to):
        for i in range(in_registers):
            kept[i] = w[at + i * stride]
        for i in range(in_registers, words):
            shared[to + (i - in_registers) * threads] = w[at + i * stride]

    return inlined(load_weights)


def _equations(cell: Cell, layout: Plan):
    tanh = ptx.tanh_approx if PRECISIONS[layout.precision].approximate else None
    return compiled(cell, np.dtype("float32"), tanh)


def _held(cell: Cell, layout: Plan) -> tuple[Callable, Callable, Callable]:
    """``(load, store, state)``: the states of one of a thread's units in a row from and to what the
    thread holds, and its states as the equations' backward takes them, of which it reads the last
    one."""
    count, stride = len(cell.states), 2 * layout.own
    load = tuple_function("held, i", f"held[{stride} * {{k}} + i]", count)
    store = statements("held, i, values", f"held[{stride} * {{k}} + i] = values[{{k}}]", count)
    state = tuple_function("v", "v", count)
    return inlined(load), inlined(store), inlined(state)


def _sums(layout: Plan) -> tuple[Callable, Callable]:
    """``(load, store)``: the accumulators of unit m in row j among the sums of the products."""
    slots = layout.slots
    at = f"sums[2 * ({slots} * m + {{k}}) + j]"
    load = tuple_function("sums, m, j", at, slots)
    store = statements("sums, m, j, values", f"{at} = values[{{k}}]", slots)
    return inlined(load), inlined(store)


@kernel
def forward(cell: Cell, layout: Plan) -> Kernel:
    """The time loop."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    row, own, slots, weights = layout.row(1), layout.own, layout.slots, layout.weights(1)
    pair, parts, both = shape.pair, shape.parts, 2 * own
    word0, word1 = (word_of(layout.precision, p) for p in (0, parts - 1))
    product, equations = product_of(layout, 1), _equations(cell, layout)
    load_weights = _load_weights_of(layout)
    my_rank, begin, synchronise, place, send, sent, receive = exchange_of(layout, 1)
    step_cell, count_states = equations.forward, len(cell.states)
    held_size = both * count_states
    of_x, first_recurrent = len(cell.input_gates), cell.first_recurrent
    order = sum(gate << 4 * s for s, gate in enumerate(cell.input_order))  # 4 bits each
    (load_held, store_held, _), (load_sums, store_sums) = _held(cell, layout), _sums(layout)
    tuples = tuples_of(cell, np.dtype("float32"))
    load_states, store_states, store_gates = (
        tuples.of_states, tuples.store_states, tuples.store_gates,
    )  # fmt: skip

    def forward(
        w: W1, biases: Biases, gates: F1,
        each: Annotated[Any, TupleOf(TupleOf(Of("F", 1), count_states), 3)], y: F1,
        sequences: Sequences, units: I, training: I, groups: Groups,
    ):  # fmt: skip
        """All directions of one layer.

        w [D, 2, words, blocks, threads] as `pack` makes it; gates [N, D, A, H] come in as
        x @ W_ih.T and leave as saved by the cell if ``training``. ``each`` are the initial states
        [D, B, H], those that each row starts from [D, N, H], which are only written if
        ``training``, and the final ones [D, B, H]; y is [N, D, H].
        """
        initial, states, final = each
        h_0 = initial[0]
        lengths, offsets, batch, count, directions = sequences
        y_stride, gates_stride = directions * units, slots * directions * units
        shared = cuda.shared.array(0, uint32, 16)  # bytes of alignment
        kept = cuda.local.array(in_registers, uint32)
        sums = cuda.local.array(8, float32)
        ahead, coming = cuda.local.array(8, float32), cuda.local.array(8, float32)
        held, new = cuda.local.array(held_size, float32), cuda.local.array(held_size, float32)
        unit_bias = cuda.local.array(4, float32)
        own_length = cuda.local.array(both, int32)
        t, rank = index(cuda.threadIdx.x), my_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        column = rank * block_units + warp * 8 * own + g  # my first unit
        d = groups.direction + cuda.blockIdx.y
        b0 = (groups.first + cuda.blockIdx.x // blocks) * ROWS
        bias_ih = biases[1].ih if d else biases[0].ih
        bias_hh = biases[1].hh if d else biases[0].hh
        first, first_word = d * batch, 2 * d * words
        of_gates, of_y = slots * d * units + column, d * units + column
        of_states = d * count * units + column
        begin(shared)
        load_weights(w, (first_word * blocks + rank) * threads + t, kept, shared, weights + t)
        for i in range(t, ROWS * (row - 4), threads):
            n, k = i // (row - 4), i % (row - 4) * pair
            v0, v1 = float32(0), float32(0)
            if b0 + n < batch and k < units:
                v0 = h_0[(first + b0 + n) * units + k]
            if b0 + n < batch and k + 1 < units:
                v1 = h_0[(first + b0 + n) * units + k + 1]
            shared[place(0) + n * row + k // pair] = word0(v0, v1)
            if parts == 2:
                shared[place(0) + (ROWS + n) * row + k // pair] = word1(v0, v1)
        steps = int32(lengths[b0])  # of the longest of my rows
        for m in range(own):
            u = column + 8 * m
            for s in range(slots):
                bias = float32(0)
                if s < of_x:
                    gate = (order >> 4 * s) & 15
                    bias += load_if(bias_ih, gate * units + u, u < units)
                if s >= first_recurrent:
                    gate = s - first_recurrent
                    bias += load_if(bias_hh, gate * units + u, u < units)
                unit_bias[slots * m + s] = bias
        now, direction = int32(steps - 1 if d else 0), int32(-1 if d else 1)
        here = offsets[now] if steps else 0
        there = offsets[min(max(now + direction, 0), steps)]
        for m in range(own):
            for j in range(2):
                r, i = b0 + 2 * q + j, 2 * m + j
                inside = column + 8 * m < units
                own_length[i] = lengths[r] if r < batch and inside else 0
                for k in range(count_states):
                    held[both * k + i] = float32(0)
                if r < batch and inside:
                    at = (first + r) * units + column + 8 * m
                    store_held(held, i, load_states(initial, at))
                for s in range(slots):
                    to = 2 * (slots * m + s) + j
                    ahead[to], coming[to] = float32(0), float32(0)
                for s in range(of_x):
                    at = (here + r) * gates_stride + of_gates + 8 * m + s * units
                    wanted = (now >= 0) & (now < own_length[i])
                    ahead[2 * (slots * m + s) + j] = load_if(gates, at, wanted)
        synchronise()
        token = uint32(0)
        for step in range(steps):
            # The next step's gates are on their way while this one is computed, and the offset
            # of the step after that: no product waits for a load that has only begun.
            following = int32(now + direction)
            for m in range(own):
                for j in range(2):
                    at = (there + b0 + 2 * q + j) * gates_stride + of_gates + 8 * m
                    wanted = (following >= 0) & (following < own_length[2 * m + j])
                    for s in range(of_x):
                        coming[2 * (slots * m + s) + j] = load_if(gates, at + s * units, wanted)
            if step > 0:
                receive(shared, groups, step, token)
            at = place(step) + g * row + q
            product(kept, shared, weights, t, at, at, sums)
            beyond = offsets[min(max(following + direction, 0), steps)]
            for i in range(8):
                sums[i] += ahead[i] + unit_bias[i >> 1]
            for m in range(own):
                for j in range(2):
                    saved, state = step_cell(
                        load_sums(sums, m, j), load_held(held, 2 * m + j), ()
                    )  # fmt: skip
                    store_sums(sums, m, j, saved)
                    store_held(new, 2 * m + j, state)
            for m in range(own):
                for j in range(2):
                    i = 2 * m + j
                    if now < own_length[i]:
                        r = here + b0 + 2 * q + j
                        if training:
                            at = r * units + of_states + 8 * m
                            store_states(states, at, load_held(held, i))
                            at = r * gates_stride + of_gates + 8 * m
                            store_gates(gates, at, units, load_sums(sums, m, j))
                        store_held(held, i, load_held(new, i))
                        y[r * y_stride + of_y + 8 * m] = held[i]
            if step + 1 < steps:
                for m in range(own):
                    u, i = column + 8 * m, 2 * m
                    send(shared, groups, step + 1, u, q, g, held[i], held[i + 1])
                token = sent(groups)
            for i in range(8):
                ahead[i] = coming[i]
            now, here, there = following, there, beyond
        for m in range(own):
            for j in range(2):
                r, u = b0 + 2 * q + j, column + 8 * m
                if r < batch and u < units:
                    to = (first + r) * units + u
                    store_states(final, to, load_held(held, 2 * m + j))

    return _kernel(forward, layout)


@kernel
def backward(cell: Cell, layout: Plan) -> Kernel:
    """The gradient through time of `forward`."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    own, slots, padded = layout.own, layout.slots, layout.units
    row, gate, weights = layout.row(slots), padded // shape.pair, layout.weights(slots)
    product, equations = product_of(layout, slots), _equations(cell, layout)
    load_weights = _load_weights_of(layout)
    my_rank, begin, synchronise, place, send, sent, receive = exchange_of(layout, slots)
    step_back, count_states, load = equations.backward, len(cell.states), _load_of(slots)
    # Two warps share 16 units: each sums over two of the four gates.
    shares, exchanged = slots == 4, layout.between(slots)
    both, loaded = 2 * own, slots + 2
    held_size, ahead_size = both * count_states, both * loaded
    load_held, store_held, state_of = _held(cell, layout)
    load_saved = inlined(tuple_function("x, at", "x[at + {k}]", slots))
    tuples = tuples_of(cell, np.dtype("float32"))
    load_states, store_states = tuples.of_states, tuples.store_states
    replace_first = inlined(with_first(count_states))
    keep_or_clear = inlined(statements(
        "dz, first, z, active", "dz[first + 2 * {k}] = z[{k}] if active else zero", slots,
        zero=np.float32(0),
    ))  # fmt: skip

    def backward(
        w: W1, gates: F1, states: Annotated[Any, TupleOf(Of("F", 1), count_states)], dy: F1,
        dfinal: Annotated[Any, TupleOf(Of("F", 1), count_states)],
        dstates: Annotated[Any, TupleOf(Of("F", 1), count_states)], sequences: Sequences, units: I,
        groups: Groups,
    ):  # fmt: skip
        """All directions of one layer.

        gates come in as saved and leave as gradients; states as `forward` left them; dfinal
        [D, B, H] are the gradients of the final states, and dstates become those of the initial
        ones.
        """
        lengths, offsets, batch, count, directions = sequences
        arrays = gates, dy, states[count_states - 1]
        strides = slots * directions * units, directions * units, units
        shared = cuda.shared.array(0, uint32, 16)  # bytes of alignment
        kept = cuda.local.array(in_registers, uint32)
        sums = cuda.local.array(8, float32)
        ahead = cuda.local.array(ahead_size, float32)
        coming = cuda.local.array(ahead_size, float32)
        held = cuda.local.array(held_size, float32)
        dz = cuda.local.array(8, float32)
        own_length = cuda.local.array(both, int32)
        t, rank = index(cuda.threadIdx.x), my_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        column = rank * block_units + warp * 8 * own + g  # my first unit
        second = warp & 1  # of two warps that share 16 units: it has the last two gates
        d = groups.direction + cuda.blockIdx.y
        b0 = (groups.first + cuda.blockIdx.x // blocks) * ROWS
        first, first_word = d * batch, (2 * d + 1) * words
        mine = slots * d * units + column, d * units + column, d * count * units + column
        begin(shared)
        load_weights(w, (first_word * blocks + rank) * threads + t, kept, shared, weights + t)
        steps = int32(lengths[b0])
        now, direction = int32(0 if d else steps - 1), int32(1 if d else -1)
        here = offsets[max(now, 0)]
        there = offsets[min(max(now + direction, 0), steps)]
        for m in range(own):
            for j in range(2):
                r, i = b0 + 2 * q + j, 2 * m + j
                inside = column + 8 * m < units
                own_length[i] = lengths[r] if r < batch and inside else 0
                for k in range(count_states):
                    held[both * k + i] = float32(0)
                if r < batch and inside:
                    at = (first + r) * units + column + 8 * m
                    store_held(held, i, load_states(dfinal, at))
                wanted = (now >= 0) & (now < own_length[i])
                load(
                    here + r, wanted, units, arrays, strides,
                    (mine[0] + 8 * m, mine[1] + 8 * m, mine[2] + 8 * m), ahead, i,
                )  # fmt: skip
        synchronise()
        token = uint32(0)
        for step in range(steps + 1):  # the last one only brings dh past the first step
            following = int32(now + direction)
            for m in range(own):  # the next step's, on their way while this one is computed
                for j in range(2):
                    wanted = (following >= 0) & (following < own_length[2 * m + j])
                    load(
                        there + b0 + 2 * q + j, wanted, units, arrays, strides,
                        (mine[0] + 8 * m, mine[1] + 8 * m, mine[2] + 8 * m), coming, 2 * m + j,
                    )  # fmt: skip
            if step > 0:
                receive(shared, groups, step, token)
                at = place(step) + g * row + q
                if shares:
                    at += 2 * second * gate
                    product(kept, shared, weights, t, at, at + gate, sums)
                    # Each warp has half of the sums of 16 units: it gives away those of 8.
                    for j in range(2):
                        v = sums[j] + sums[4 + j] if second else sums[2 + j] + sums[6 + j]
                        shared[exchanged + 2 * t + j] = as_bits(v)
                    cuda.syncthreads()
                    for j in range(2):
                        v = sums[2 + j] + sums[6 + j] if second else sums[j] + sums[4 + j]
                        held[j] += v + as_float(shared[exchanged + 2 * (t ^ 32) + j])
                else:
                    product(kept, shared, weights, t, at, at, sums)
                    for i in range(both):
                        held[i] += sums[i]
            beyond = offsets[min(max(following + direction, 0), steps)]
            for m in range(own):
                for j in range(2):
                    i = 2 * m + j
                    dy_at = loaded * i + slots
                    z, dprevious, _ = step_back(
                        load_saved(ahead, loaded * i), state_of(ahead[dy_at + 1]), (),
                        replace_first(held[i] + ahead[dy_at], load_held(held, i)),
                    )  # fmt: skip
                    active = step < steps and now < own_length[i]
                    store_held(held, i, dprevious if active else load_held(held, i))
                    keep_or_clear(dz, 2 * slots * m + j, z, active)
                    if active:
                        at = (here + b0 + 2 * q + j) * strides[0] + mine[0] + 8 * m
                        for s in range(slots):
                            gates[at + s * units] = dz[2 * (slots * m + s) + j]
            for i in range(ahead_size):
                ahead[i] = coming[i]
            now, here, there = following, there, beyond
            if step < steps:
                for m in range(own):
                    for s in range(slots):
                        i, u = 2 * (slots * m + s), s * padded + column + 8 * m
                        send(shared, groups, step + 1, u, q, g, dz[i], dz[i + 1])
                token = sent(groups)
        for m in range(own):
            for j in range(2):
                r, u = b0 + 2 * q + j, column + 8 * m
                if r < batch and u < units:
                    to = (first + r) * units + u
                    store_states(dstates, to, load_held(held, 2 * m + j))

    return _kernel(backward, layout)


def _kernel(function: Callable, layout: Plan) -> Kernel:
    least = CLUSTERS if layout.is_cluster else OLDEST
    return Kernel(function, layout.threads, np.float32, waits=not layout.is_cluster, least=least)
