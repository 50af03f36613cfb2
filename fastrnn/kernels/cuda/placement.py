"""How a layer lies on the blocks that share a tile of the batch: who owns which weights, and the
products of a step on tensor cores. What the blocks send each other is in exchange.py, the time
loops are in tensor.py.

Precision is that of the products with W_hh: "bf16" and "tf32" round both sides; "float32" writes
each number as the sum of two bfloat16 and adds three products, which leaves about 2**-16.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda, float32, uint32

from fastrnn.kernels.signature import F1, W1, I
from fastrnn.kernels.unrolled import from_source

from . import ptx
from .driver import SMALL
from .launch import Kernel, inlined, kernel
from .ptx import as_float, bf16_pair

ROWS = 8  # of a tile of the batch: the width of an mma
REGISTERS = 8 if SMALL else 128  # of a thread for weights
CHAINS = 4  # sums of a tile, where registers allow it


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
    """How a layer is laid out on blocks.

    A warp has 32 rows of W_hh, in two tiles of an mma: four accumulators of 8 units, or the one of
    32 units."""

    precision: str
    blocks: int  # that share a tile of the batch
    block_units: int  # units of a block, a multiple of 16, or of 32 with one accumulator
    slots: int  # of a unit among the rows: 4 or 1
    is_cluster: bool  # else the blocks exchange through global memory

    @property
    def own(self) -> int:
        """Units of a thread."""
        return 4 // self.slots

    @property
    def threads(self) -> int:
        return self.slots * self.block_units

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
        """Of these, how many are in registers: as many as leave room, without a spill, for what a
        thread knows of its four units, or for addresses where other words are in shared memory."""
        if self.slots == 1:
            return min(self.words, 13 * REGISTERS // 16)
        less = 1 if self.is_cluster else 2
        return self.words if self.words <= REGISTERS else REGISTERS - less * REGISTERS // 16

    def row(self, gates: int) -> int:
        """Words of a row of what is exchanged; 4 more, so that 8 rows are in different banks."""
        return gates * self.units // PRECISIONS[self.precision].pair + 4

    # Where things are in a block's shared memory, in words: what is exchanged, weights, what two
    # warps exchange, and two barriers of two words each.

    def buffer(self, gates: int) -> int:
        """Words of a buffer for what is exchanged; a cluster has two."""
        return PRECISIONS[self.precision].parts * ROWS * self.row(gates)

    def weights(self, gates: int) -> int:
        return (1 + self.is_cluster) * self.buffer(gates)

    def between(self, gates: int) -> int:
        return self.weights(gates) + (self.words - self.in_registers) * self.threads

    def barriers(self, gates: int) -> int:
        return self.between(gates) + 2 * self.threads

    def shared(self, gates: int) -> int:
        """Bytes of all that."""
        return 4 * (self.barriers(gates) + 4)

    def sent(self, gates: int) -> int:
        """Bytes that come to each block in a step."""
        shape = PRECISIONS[self.precision]
        return 4 * shape.parts * ROWS * gates * self.units // shape.pair


@cache
def plan(
    units: int, precision: str, slots: int, gates: int, most_shared: int, *, is_cluster: bool
) -> Plan | None:
    """Blocks for layers of ``units`` units that send up to ``gates`` numbers of each in a step,
    with ``most_shared`` bytes of shared memory; None if they do not fit.

    Clusters have up to 16 blocks, of which more than 8 are only made if they must. Other blocks
    have up to 128 threads, one warp for each tensor core, which leaves most to other tiles of the
    batch.
    """
    least = 64 // slots  # units of the smallest block: two warps
    if is_cluster:
        counts = [n for n in (1, 2, 4, 8) if units <= 2 * least * n][:1] or [8]
        layouts = [_layout(units, precision, slots, n, True) for n in (*counts, 16)]
    else:
        layouts = [
            _layout(units, precision, slots, -(-units // size), False)
            for size in (2 * least, least)
        ]
    for layout in layouts:
        # 256 threads may have 255 registers each.
        if layout.threads <= 256 and layout.shared(gates) <= most_shared:
            return layout
    return None


def _layout(units: int, precision: str, slots: int, blocks: int, is_cluster: bool) -> Plan:
    """The smallest layout on so many blocks."""
    step = 32 if slots == 1 else 16
    return Plan(precision, blocks, step * -(-units // (step * blocks)), slots, is_cluster)


def word_of(precision: str, part: int) -> Callable:
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


def product_of(layout: Plan, gates: int) -> Callable:
    """The mma's of a step: ``sums [8]``, four for each of two tiles.

    Called with ``(kept, shared, weights, t, at0, at1, sums)``; ``at0`` and ``at1`` are where the
    other side begins in shared memory for the tiles. An mma has to wait for the one whose sums it
    continues, so there are `CHAINS` sums of each tile, which are added up at the end.
    """
    shape, part, row = PRECISIONS[layout.precision], layout.part, layout.row(gates)
    chunks = [
        (own * part + o, other * ROWS * row + o)
        for own, other in shape.products
        for o in range(0, part, 8)
    ]
    chains = min(CHAINS if len(shape.products) == 1 else 2, len(chunks))
    lines = ["def function(kept, shared, weights, t, at0, at1, sums):"]
    for i, (word, at) in enumerate(chunks):
        for tile in range(2):
            w = ", ".join(_weight(layout, word + 4 * tile + k) for k in range(4))
            sums = _names(tile, i % chains)
            before = sums if i >= chains else ", ".join(["zero"] * 4)
            x = f"shared[at{tile} + {at}], shared[at{tile} + {at + 4}]"
            lines.append(f"{sums} = mma({w}, {x}, {before})")
    for tile in range(2):
        for k in range(4):
            each = " + ".join(_names(tile, c).split(", ")[k] for c in range(chains))
            lines.append(f"sums[{4 * tile + k}] = {each}")
    mma = ptx.mma_tf32 if shape.pair == 1 else ptx.mma_bf16
    return inlined(from_source("\n    ".join(lines), {"mma": mma, "zero": np.float32(0)}))


def _names(tile: int, chain: int) -> str:
    return ", ".join(f"s{tile}{chain}{k}" for k in range(4))


def _weight(layout: Plan, word: int) -> str:
    """Where a thread's weight is: in registers or in shared memory."""
    if word < layout.in_registers:
        return f"kept[{word}]"
    return f"shared[weights + {(word - layout.in_registers) * layout.threads} + t]"


@kernel
def pack(layout: Plan, first_recurrent: int) -> Kernel:
    """Makes of W_hh what `forward` and `backward` read: zeros for the accumulators before the first
    recurrent one."""
    shape, part, block_units = PRECISIONS[layout.precision], layout.part, layout.block_units
    threads, blocks, words, pair = layout.threads, layout.blocks, layout.words, shape.pair
    one = layout.slots == 1
    word0, word1 = (word_of(layout.precision, p) for p in (0, shape.parts - 1))

    def pack(w: F1, units: I, out: W1):
        """w is W_hh [G H, H], out [2, words, blocks, threads]: for `forward`, then for `backward`;
        a block for each word and rank of the first of these, or of both."""
        t, rank = cuda.threadIdx.x, cuda.blockIdx.x
        backward, at = cuda.blockIdx.y // words, cuda.blockIdx.y % words
        i, which = at % part, at // part
        warp, g, q = t >> 5, (t & 31) >> 2, t & 3
        chunk, tile, r = i >> 3, (i >> 2) & 1, i & 3
        k = chunk * 8 * pair + pair * (q + 4 * (r >> 1))
        if one:  # rows are units
            m, gate = rank * block_units + warp * 32 + 16 * tile + 8 * (r & 1) + g, 0
            first, step = (k * units + m, units) if backward else (m * units + k, 1)
        elif backward:  # rows are units, a tile sums over one gate
            m = rank * block_units + (warp >> 1) * 16 + g + 8 * (r & 1)
            gate = 2 * (warp & 1) + tile - first_recurrent
            first, step = (gate * units + k) * units + m, units
        else:  # rows are two gates of 8 units
            m = rank * block_units + warp * 8 + g
            gate = 2 * tile + (r & 1) - first_recurrent
            first, step = (gate * units + m) * units + k, 1
        a, b = float32(0), float32(0)
        if gate >= 0 and m < units and k < units:
            a = w[first]
        if gate >= 0 and m < units and k + 1 < units:
            b = w[first + step]
        to = (cuda.blockIdx.y * blocks + rank) * threads + t
        out[to] = word0(a, b) if which == 0 else word1(a, b)

    return Kernel(pack, threads, np.float32)
