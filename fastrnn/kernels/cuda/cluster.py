"""LSTM time loops on thread-block clusters and tensor cores (compute capability 9.0 and later).

A cluster of blocks owns 8 rows of the batch for the whole sequence, and each of its blocks some
units with their columns of W_hh, in registers and, what does not fit, in shared memory. h (or,
backward, the gradients of the gates) goes from each block to all others of its cluster through
their shared memory, with one barrier of the cluster a step and none of the grid. A warp owns 8
units; its thread (g, q) unit g with rows 2q and 2q + 1, so gates, c and h stay in registers.

Precision is that of the products with W_hh: "bf16" and "tf32" round both sides; "float32" writes
each number as the sum of two bfloat16 and adds three products, which leaves about 2**-16.
"""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import cuda, float32, uint32

from fastrnn.cells import CELLS
from fastrnn.kernels.signature import F1, I1, W1, I, Of, TupleOf

from . import ptx
from .driver import SIMULATED
from .equations import compiled
from .fused import Bias, Columns
from .launch import CLUSTERS, Kernel, inlined, kernel
from .ptx import across, as_bits, as_float, bf16_pair, cluster_rank, cluster_sync, store_remote

# The states h and c.
Pair = Annotated[Any, TupleOf(Of("F", 1), 2)]

CELL = CELLS["lstm"]  # the one cell that has these loops
ROWS = 8  # of a cluster: the width of an mma
REGISTERS = 8 if SIMULATED else 128  # of a thread for weights


class Sequences(NamedTuple):
    """The packed batch."""

    lengths: I1  # [B]
    offsets: I1  # [T + 1]
    batch: I
    reverse: I
    first: I  # the row of the first sequence in the states [D B, H] before and after the loop


class Precision(NamedTuple):
    """How numbers become operands of an mma."""

    pair: int  # numbers in a word
    parts: int  # words that are added up to one
    products: tuple[tuple[int, int], ...]  # which part of the weight by which of the other side
    approximate: bool  # tanh by the instruction for it


PRECISIONS = {
    "float32": Precision(2, 2, ((0, 0), (0, 1), (1, 0)), False),
    "tf32": Precision(1, 1, ((0, 0),), True),
    "bf16": Precision(2, 1, ((0, 0),), True),
}


class Plan(NamedTuple):
    """How a layer is laid out on a cluster."""

    precision: str
    blocks: int  # of a cluster
    block_units: int  # units of a block, a multiple of 16

    @property
    def threads(self) -> int:
        return 4 * self.block_units

    @property
    def units(self) -> int:
        """H rounded up to what the blocks own."""
        return self.blocks * self.block_units

    @property
    def part(self) -> int:
        """Words of one part of a thread's weights: 4 for each of 2 tiles of an mma."""
        return self.units // PRECISIONS[self.precision].pair

    @property
    def words(self) -> int:
        """Words of a thread's weights."""
        return self.part * PRECISIONS[self.precision].parts

    @property
    def in_registers(self) -> int:
        return min(self.words, REGISTERS)

    def row(self, gates: int) -> int:
        """Words of a row of what is exchanged; 4 more, so that 8 rows are in different banks."""
        return gates * self.units // PRECISIONS[self.precision].pair + 4

    def shared(self, gates: int) -> int:
        """Bytes: two buffers of what is exchanged, weights, and what two warps exchange."""
        exchanged = 2 * PRECISIONS[self.precision].parts * ROWS * self.row(gates)
        kept = (self.words - self.in_registers) * self.threads
        return 4 * (exchanged + kept + 2 * self.threads)


@cache
def plan(units: int, precision: str, most_shared: int) -> Plan | None:
    """A cluster for layers of ``units`` units, of up to 8 blocks with 32 units or more and
    ``most_shared`` bytes of shared memory; None if they do not fit."""
    blocks = 1
    while blocks < 8 and units > 32 * blocks:
        blocks *= 2
    layout = Plan(precision, blocks, 16 * -(-units // (16 * blocks)))
    # 256 threads may have 255 registers each.
    return layout if layout.threads <= 256 and layout.shared(4) <= most_shared else None


def fits(layout: Plan, training: bool) -> bool:
    """Whether the device can run such clusters."""
    loops = [(forward, 1), (backward, 4)][: 1 + training]
    return all(
        make(layout).most_clusters(layout.shared(gates), layout.blocks) for make, gates in loops
    )


def _word(precision: str, part: int) -> Callable:
    """``(a, b) -> word``: that part of two numbers, or of ``a`` where a word holds one."""
    if precision == "tf32":
        to_tf32 = ptx.tf32

        def word(a, b):
            return to_tf32(a)

    elif part == 0:

        def word(a, b):
            return bf16_pair(a, b)

    else:

        def word(a, b):
            both = bf16_pair(a, b)
            low = as_float(both << uint32(16))
            high = as_float(both & uint32(0xFFFF0000))
            return bf16_pair(a - low, b - high)

    return inlined(word)


def _product(layout: Plan, gates: int) -> Callable:
    """The mma's of a step: adds to sums [8], four for each of two tiles.

    Called with ``(kept, shared, weights, t, at0, at1, sums)``; ``at0`` and ``at1`` are where the
    other side begins in shared memory for the tiles.
    """
    passes = [_pass(layout, gates, *parts) for parts in PRECISIONS[layout.precision].products]
    if len(passes) == 1:
        return passes[0]
    first, second, third = passes

    def product(kept, shared, weights, t, at0, at1, sums):
        first(kept, shared, weights, t, at0, at1, sums)
        second(kept, shared, weights, t, at0, at1, sums)
        third(kept, shared, weights, t, at0, at1, sums)

    return inlined(product)


def _pass(layout: Plan, gates: int, own_length: int, other: int) -> Callable:
    """One part of the weights by one part of the other side."""
    part, block_units, threads = layout.part, layout.in_registers, layout.threads
    # Of this part: words in registers, then in shared memory.
    first, last = own_length * part, (own_length + 1) * part
    middle = min(max(first, block_units), last)
    beside = other * ROWS * layout.row(gates) - first
    mma = ptx.mma_tf32 if PRECISIONS[layout.precision].pair == 1 else ptx.mma_bf16

    def one_pass(kept, shared, weights, t, at0, at1, sums):
        s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
        s4, s5, s6, s7 = sums[4], sums[5], sums[6], sums[7]
        for o in range(first, middle, 8):
            x0, x1 = shared[at0 + beside + o], shared[at0 + beside + o + 4]
            y0, y1 = shared[at1 + beside + o], shared[at1 + beside + o + 4]
            s0, s1, s2, s3 = mma(
                kept[o], kept[o + 1], kept[o + 2], kept[o + 3], x0, x1, s0, s1, s2, s3
            )
            s4, s5, s6, s7 = mma(
                kept[o + 4], kept[o + 5], kept[o + 6], kept[o + 7], y0, y1, s4, s5, s6, s7
            )
        for o in range(middle, last, 8):
            x0, x1 = shared[at0 + beside + o], shared[at0 + beside + o + 4]
            y0, y1 = shared[at1 + beside + o], shared[at1 + beside + o + 4]
            w = weights + (o - block_units) * threads + t
            s0, s1, s2, s3 = mma(
                shared[w], shared[w + threads], shared[w + 2 * threads], shared[w + 3 * threads],
                x0, x1, s0, s1, s2, s3,
            )  # fmt: skip
            w += 4 * threads
            s4, s5, s6, s7 = mma(
                shared[w], shared[w + threads], shared[w + 2 * threads], shared[w + 3 * threads],
                y0, y1, s4, s5, s6, s7,
            )  # fmt: skip
        sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3
        sums[4], sums[5], sums[6], sums[7] = s4, s5, s6, s7

    return inlined(one_pass)


def _send(layout: Plan, gates: int) -> Callable:
    """Two rows' numbers of a unit, from every thread to every block's shared memory."""
    shape, blocks = PRECISIONS[layout.precision], layout.blocks
    row = layout.row(gates)
    word0, word1 = (_word(layout.precision, part) for part in (0, shape.parts - 1))
    pairs, parts = shape.pair == 2, shape.parts

    def send(shared, at, column, q, g, v0, v1):
        """``at`` is the buffer, ``column`` that of the unit."""
        if not pairs:
            for rank in range(blocks):
                store_remote(shared, at + 2 * q * row + column, rank, word0(v0, v0))
                store_remote(shared, at + (2 * q + 1) * row + column, rank, word0(v1, v1))
            return
        # A word takes two neighbouring units of one row: each lane makes that of one row.
        theirs = as_float(across(as_bits(v0 if g & 1 else v1)))
        low = theirs if g & 1 else v0
        high = v1 if g & 1 else theirs
        to = at + (2 * q + (g & 1)) * row + (column >> 1)
        for rank in range(blocks):
            store_remote(shared, to, rank, word0(low, high))
            if parts == 2:
                store_remote(shared, to + ROWS * row, rank, word1(low, high))

    return inlined(send)


@kernel
def pack(layout: Plan) -> Kernel:
    """Makes of W_hh what `forward` and `backward` read."""
    shape, part, block_units = PRECISIONS[layout.precision], layout.part, layout.block_units
    threads, blocks, words, pair = layout.threads, layout.blocks, layout.words, shape.pair
    word0, word1 = (_word(layout.precision, p) for p in (0, shape.parts - 1))

    def pack(w: F1, units: I, out: W1):
        """w is W_hh [4 H, H], out [2, words, blocks, threads]: for `forward`, then for `backward`;
        a block for each word and rank of the first of these, or of both."""
        t, rank = cuda.threadIdx.x, cuda.blockIdx.x
        backward, at = cuda.blockIdx.y // words, cuda.blockIdx.y % words
        i, which = at % part, at // part
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        chunk, tile, r = i >> 3, (i >> 2) & 1, i & 3
        k = chunk * 8 * pair + pair * (q + 4 * (r >> 1))
        if backward:  # rows are units, a tile sums over one gate
            m = rank * block_units + (warp >> 1) * 16 + g + 8 * (r & 1)
            first, step = ((2 * (warp & 1) + tile) * units + k) * units + m, units
        else:  # rows are two gates of 8 units
            m = rank * block_units + warp * 8 + g
            first, step = ((2 * tile + (r & 1)) * units + m) * units + k, 1
        a, b = float32(0), float32(0)
        if m < units and k < units:
            a = w[first]
        if m < units and k + 1 < units:
            b = w[first + step]
        to = (cuda.blockIdx.y * blocks + rank) * threads + t
        out[to] = word0(a, b) if which == 0 else word1(a, b)

    return Kernel(pack, threads, np.float32)


def _cells(layout: Plan):
    tanh = ptx.tanh_approx if PRECISIONS[layout.precision].approximate else None
    return compiled(CELL, np.dtype("float32"), tanh)


@kernel
def forward(layout: Plan) -> Kernel:
    """The time loop."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    row = layout.row(1)
    buffer = shape.parts * ROWS * row
    pair, parts = shape.pair, shape.parts
    word0, word1 = (_word(layout.precision, p) for p in (0, parts - 1))
    product, send, cell = _product(layout, 1), _send(layout, 1), _cells(layout).forward

    def forward(
        w: W1, bias: Bias, gate_columns: Columns, initial: Pair, states: Pair, final: Pair,
        y_columns: Columns, sequences: Sequences, units: I, training: I,
    ):  # fmt: skip
        """One direction of one layer.

        w as `pack` makes it; gates come in as x @ W_ih.T and leave activated if ``training``. If
        so, the states [N, H] take what each row starts from; final [D B, H] takes what each
        sequence ends with.
        """
        gates, gates_offset, gates_stride = gate_columns
        y, y_offset, y_stride = y_columns
        (h_0, c_0), (h, c), (h_n, c_n) = initial, states, final
        lengths, offsets, batch, reverse, first = sequences
        shared = cuda.shared.array(0, uint32)
        kept = cuda.local.array(in_registers, uint32)
        sums, ahead = cuda.local.array(8, float32), cuda.local.array(8, float32)
        h_now, c_now = cuda.local.array(2, float32), cuda.local.array(2, float32)
        unit_bias = cuda.local.array(4, float32)
        own_length = cuda.local.array(2, np.int64)
        t, rank = cuda.threadIdx.x, cluster_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        b0 = cuda.blockIdx.x // blocks * ROWS
        column = rank * block_units + warp * 8 + g  # my unit
        inside = column < units
        weights = 2 * buffer
        for i in range(in_registers):
            kept[i] = w[(i * blocks + rank) * threads + t]
        for i in range(in_registers, words):
            shared[weights + (i - in_registers) * threads + t] = w[
                (i * blocks + rank) * threads + t
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
        now = steps - 1 if reverse else 0
        for s in range(4):
            at = s * units + column
            unit_bias[s] = bias.ih[at] + bias.hh[at] if inside else float32(0)
        for j in range(2):
            r = b0 + 2 * q + j
            own_length[j] = lengths[r] if r < batch and inside else 0
            h_now[j], c_now[j] = float32(0), float32(0)
            if r < batch and inside:
                h_now[j] = h_0[(first + r) * units + column]
                c_now[j] = c_0[(first + r) * units + column]
            for s in range(4):
                ahead[2 * s + j] = float32(0)
                if 0 <= now < own_length[j]:
                    at = (offsets[now] + r) * gates_stride + gates_offset + s * units + column
                    ahead[2 * s + j] = gates[at] + unit_bias[s]
        cluster_sync()
        for step in range(steps):
            now = steps - 1 - step if reverse else step
            following = now - 1 if reverse else now + 1
            here = offsets[now] + b0 + 2 * q
            for i in range(8):
                sums[i] = ahead[i]
            if step + 1 < steps:  # on the way while this step is computed
                there = offsets[following] + b0 + 2 * q
                for j in range(2):
                    if following < own_length[j]:
                        for s in range(4):
                            at = (there + j) * gates_stride + gates_offset + s * units + column
                            ahead[2 * s + j] = gates[at] + unit_bias[s]
            at = (step & 1) * buffer + g * row + q
            product(kept, shared, weights, t, at, at, sums)
            for j in range(2):
                if now < own_length[j]:
                    (i, f, gg, o), (h_new, c_new) = cell(
                        (sums[j], sums[2 + j], sums[4 + j], sums[6 + j]), (h_now[j], c_now[j]), ()
                    )
                    if training:
                        at = (here + j) * units + column
                        h[at] = h_now[j]
                        c[at] = c_now[j]
                        at = (here + j) * gates_stride + gates_offset + column
                        gates[at] = i
                        gates[at + units] = f
                        gates[at + 2 * units] = gg
                        gates[at + 3 * units] = o
                    h_now[j], c_now[j] = h_new, c_new
                    y[(here + j) * y_stride + y_offset + column] = h_new
            send(shared, (1 - (step & 1)) * buffer, column, q, g, h_now[0], h_now[1])
            cluster_sync()
        for j in range(2):
            r = b0 + 2 * q + j
            if r < batch and inside:
                at = (first + r) * units + column
                h_n[at], c_n[at] = h_now[j], c_now[j]

    return Kernel(forward, threads, np.float32, least=CLUSTERS)


@kernel
def backward(layout: Plan) -> Kernel:
    """The gradient through time of `forward`."""
    blocks, block_units, threads = layout.blocks, layout.block_units, layout.threads
    shape, words, in_registers = PRECISIONS[layout.precision], layout.words, layout.in_registers
    row, gate = layout.row(4), layout.units // shape.pair
    buffer = shape.parts * ROWS * row
    product, send, cell = _product(layout, 4), _send(layout, 4), _cells(layout).backward
    padded = layout.units

    def backward(
        w: W1, gate_columns: Columns, states: Pair, dy_columns: Columns,
        dfinal: Pair, dstates: Pair, sequences: Sequences, units: I,
    ):  # fmt: skip
        """One direction of one layer.

        gates come in activated and leave as gradients; states as `forward` left them; dfinal
        [D B, H] are the gradients of the final states, and dstates become those of the initial
        ones.
        """
        gates, gates_offset, gates_stride = gate_columns
        dy, dy_offset, dy_stride = dy_columns
        c, (dh_n, dc_n), (dh, dc) = states[1], dfinal, dstates
        lengths, offsets, batch, reverse, first = sequences
        shared = cuda.shared.array(0, uint32)
        kept = cuda.local.array(in_registers, uint32)
        sums = cuda.local.array(8, float32)
        dh_now, dc_now = cuda.local.array(2, float32), cuda.local.array(2, float32)
        dz = cuda.local.array(8, float32)
        own_length = cuda.local.array(2, np.int64)
        t, rank = cuda.threadIdx.x, cluster_rank()
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        b0 = cuda.blockIdx.x // blocks * ROWS
        column = rank * block_units + warp * 8 + g  # my unit
        inside = column < units
        second = warp & 1  # of two warps that share 16 units: it has the last two gates
        weights = 2 * buffer
        between = weights + (words - in_registers) * threads
        for i in range(in_registers):
            kept[i] = w[(i * blocks + rank) * threads + t]
        for i in range(in_registers, words):
            shared[weights + (i - in_registers) * threads + t] = w[
                (i * blocks + rank) * threads + t
            ]
        steps = lengths[b0]
        for j in range(2):
            r = b0 + 2 * q + j
            own_length[j] = lengths[r] if r < batch and inside else 0
            dh_now[j], dc_now[j] = float32(0), float32(0)
            if r < batch and inside:
                at = (first + r) * units + column
                dh_now[j], dc_now[j] = dh_n[at], dc_n[at]
        cluster_sync()
        for step in range(steps + 1):  # the last one only brings dh past the first step
            now = step if reverse else steps - 1 - step
            before = now - 1 if reverse else now + 1
            if step > 0:
                for i in range(8):
                    sums[i] = float32(0)
                at = (1 - (step & 1)) * buffer + g * row + q + 2 * second * gate
                product(kept, shared, weights, t, at, at + gate, sums)
                # Each warp has half of the sums of 16 units: it gives away those of 8.
                for j in range(2):
                    v = sums[j] + sums[4 + j] if second else sums[2 + j] + sums[6 + j]
                    shared[between + 2 * t + j] = as_bits(v)
                cuda.syncthreads()
                for j in range(2):
                    v = sums[2 + j] + sums[6 + j] if second else sums[j] + sums[4 + j]
                    if before < own_length[j]:
                        dh_now[j] = v + as_float(shared[between + 2 * (t ^ 32) + j])
            for j in range(2):
                for s in range(4):
                    dz[2 * s + j] = float32(0)
                if step < steps and now < own_length[j]:
                    place = offsets[now] + b0 + 2 * q + j
                    at = place * gates_stride + gates_offset + column
                    d = dh_now[j] + dy[place * dy_stride + dy_offset + column]
                    saved = (
                        gates[at], gates[at + units], gates[at + 2 * units], gates[at + 3 * units]
                    )  # fmt: skip
                    # h is not used by the equations' backward.
                    previous = d, c[place * units + column]
                    (z_i, z_f, z_g, z_o), (_, dc_prev), _ = cell(
                        saved, previous, (), (d, dc_now[j])
                    )
                    dc_now[j] = dc_prev
                    dz[j], dz[2 + j], dz[4 + j], dz[6 + j] = z_i, z_f, z_g, z_o
                    for s in range(4):
                        gates[at + s * units] = dz[2 * s + j]
            if step < steps:
                for s in range(4):
                    to = (step & 1) * buffer
                    send(shared, to, s * padded + column, q, g, dz[2 * s], dz[2 * s + 1])
                cluster_sync()
        for j in range(2):
            r = b0 + 2 * q + j
            if r < batch and inside:
                at = (first + r) * units + column
                dh[at], dc[at] = dh_now[j], dc_now[j]

    return Kernel(backward, threads, np.float32, least=CLUSTERS)
