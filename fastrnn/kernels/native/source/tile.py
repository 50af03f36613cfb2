"""Register tiles: a few rows x 4 vectors of accumulators that never leave the registers.

A tile computes, for ``rows`` consecutive rows i and ``vectors`` vectors j of a panel,

    z[i, j] = init(i)[j] + sum over segments, sum over k of  a[i, k] * b[k, j]

and passes each row's vectors to ``epilogue``. The sum runs over k in order for each row on its own,
so the bits of a row do not depend on the other rows of the tile.

`tile` and `_multiply_add` run when a kernel is compiled and write LLVM instructions, which differ
from format to format as products.py says; the functions after them are part of the kernels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.isa import PANEL

from . import amx
from .compiler import kernel
from .loops import Loop, number
from .products import Product, product
from .simd import lane_count, load, load_first, store, store_first, zeros_like


class Segment(NamedTuple):
    """One product that is added to a tile; offsets and strides are in elements."""

    a: Any  # pointer
    offset: Any  # of the first row of a
    row_stride: Any
    k_stride: Any
    length: Any  # k runs over ``blocks`` runs of ``length`` numbers of a row,
    blocks: Any
    block_stride: Any  # the first numbers of two runs this far apart
    b: Any  # pointer to a packed panel: its head, then some vectors for each k
    b_offset: Any
    b_stride: Any  # from k to k


class Row(NamedTuple):
    """Rows of a matrix that tiles start from or end in."""

    p: Any  # pointer
    offset: Any  # of the tile's first row
    stride: Any
    columns: Any  # how many may be written


def _multiply_add(builder, product: Product, rows, acc, part, segment):
    """Emit the loops of one segment on the vectors ``part`` of each row; new accumulators."""
    a, a_at, row_stride, k_stride, length, blocks, block_stride, b, b_at, b_stride = segment
    per_row, step = len(acc) // rows, number(product.step)
    size = product.lanes.count
    places = [i * per_row + j for i in range(rows) for j in part]
    a_rows = [
        builder.gep(a, [builder.add(a_at, builder.mul(number(i), row_stride))]) for i in range(rows)
    ]
    b_head = builder.gep(b, [b_at])
    b = builder.gep(b_head, [builder.mul(number(product.head), b_stride)])
    steps = length
    if product.step > 1:
        steps = builder.sdiv(builder.add(length, number(product.step - 1)), step)
    block = Loop(builder, blocks, product.start([acc[at] for at in places]), "block")
    a_block = builder.add(builder.mul(block.n, block_stride), number(product.row_head))
    b_block = builder.mul(block.n, length)

    def add(n, sums):
        """The products of one step to the sums."""
        k, new = builder.mul(n, step), []
        b_k = builder.gep(b, [builder.mul(builder.add(b_block, k), b_stride)])
        b_vectors = [
            product.weights(builder, builder.gep(b_k, [number(j * size * product.step)]))
            for j in range(len(part))
        ]
        a_k = builder.add(a_block, builder.mul(k, k_stride))
        for i, row in enumerate(a_rows):
            x = product.activation(builder, builder.gep(row, [a_k]))
            for vector, total in zip(b_vectors, sums[i * len(part) :], strict=False):
                new.append(product.dot(builder, x, vector, total))
        return new

    sums = block.carried
    if product.is_exact and rows <= 2:  # with few sums each would wait for the one before it
        half, two = len(sums), number(2)
        inner = Loop(builder, builder.sdiv(steps, two), [*sums, *product.start(sums)], "k")
        n = builder.mul(inner.n, two)
        even, odd = (
            add(n, inner.carried[:half]),
            add(builder.add(n, number(1)), inner.carried[half:]),
        )
        both = inner.close(even + odd)
        sums = [builder.add(a, b) for a, b in zip(both[:half], both[half:], strict=True)]
        rest = Loop(builder, builder.srem(steps, two), sums, "rest")
        sums = rest.close(add(builder.sub(steps, number(1)), rest.carried))
    else:
        inner = Loop(builder, steps, sums, "k")
        sums = inner.close(add(inner.n, inner.carried))
    sums = block.close(sums)
    out = list(acc)
    for place, (at, total) in enumerate(zip(places, sums, strict=True)):
        i, j = divmod(place, len(part))
        scale = builder.gep(b_head, [number(4 * size * j)])
        out[at] = product.end(builder, acc[at], total, scale, a_rows[i])
    return out


def tile(
    form: Format, init: Callable, epilogue: Callable, parts=None, name: str = "", in_loop=False
):
    """A compiled ``run(rows, vectors, segments, args)``, ``rows`` from 1 to the path's maximum.

    ``init(i, count, args) -> 4 vectors``, of which ``count`` are used, and
    ``epilogue(i, vectors, args)`` are compiled into it; ``args`` is any tuple, passed to both.
    A segment works on all of the 1 to 4 ``vectors``, or, where ``parts`` has a range for each
    segment, on those; ``vectors`` is then the end of the last range. ``name`` tells apart tiles
    that are made of closures. ``in_loop``: ``epilogue(i, j, vector, args)`` is called in a loop
    over all vectors, where a copy of it for each would be too long.
    """
    counts = range(1, PANEL + 1) if parts is None else (max(part.stop for part in parts),)
    multiplication = product(form)

    def emit(context, builder, sig, rows, vectors, segments, args):
        lanes, extra = multiplication.lanes, sig.args[3]
        four, some = types.UniTuple(lanes, PANEL), types.UniTuple(lanes, vectors)

        def start(i):
            of = four(types.int64, types.int64, extra)
            z = context.compile_internal(builder, init, of, [i, number(vectors), args])
            return cgutils.unpack_tuple(builder, z, PANEL)[:vectors]

        def end(i, z):
            """The epilogue of the rows from i on."""
            if in_loop:
                of = types.void(types.int64, types.int64, lanes, extra)
                kept = cgutils.alloca_once(builder, lanes.vector, number(len(z)))
                for n, vector in enumerate(z):
                    builder.store(vector, builder.gep(kept, [number(n)]))
                each = Loop(builder, number(len(z)), [], "vector")
                row = builder.add(i, builder.sdiv(each.n, number(vectors)))
                j = builder.srem(each.n, number(vectors))
                vector = builder.load(builder.gep(kept, [each.n]))
                context.compile_internal(builder, epilogue, of, [row, j, vector, args])
                each.close([])
                return
            of = types.void(types.int64, some, extra)
            for first in range(0, len(z), vectors):
                row = context.make_tuple(builder, some, z[first : first + vectors])
                context.compile_internal(builder, epilogue, of, [i, row, args])
                i = builder.add(i, number(1))

        own = [range(vectors)] * len(segments) if parts is None else parts
        fields = [cgutils.unpack_tuple(builder, s, len(Segment._fields)) for s in segments]
        if form.is_tiled:
            add_products = amx.products(builder, form, rows, fields, own)
            row = Loop(builder, rows, [], "row")
            end(row.n, add_products(row.n, start(row.n)))
            row.close([])
            return
        acc = [z for i in range(rows) for z in start(number(i))]
        for segment, part in zip(fields, own, strict=True):
            acc = _multiply_add(builder, multiplication, rows, acc, part, segment)
        end(number(0), acc)

    @intrinsic(prefer_literal=False)
    def switch(typingctx, rows, vectors, segments, args):
        def codegen(context, builder, sig, values):
            rows, vectors, segs, extra = values
            segments = cgutils.unpack_tuple(builder, segs, len(sig.args[2]))
            # The rows are unrolled, unless they are those of one instruction.
            heights = {0: rows} if form.is_tiled else {r: r for r in range(1, form.tile_rows + 1)}
            key = vectors
            if not form.is_tiled:
                key = builder.add(builder.mul(rows, number(8)), vectors)
            done = builder.append_basic_block("tile.end")
            choice = builder.switch(key, done)
            for r, height in heights.items():
                for v in counts:
                    block = builder.append_basic_block(f"tile.{r}x{v}")
                    choice.add_case(number(8 * r + v), block)
                    builder.position_at_end(block)
                    emit(context, builder, sig, height, v, segments, extra)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, segments, args), codegen

    def run(rows, vectors, segments, args):
        switch(rows, vectors, segments, args)

    # Each needs a name of its own, see `compiler.kernel`.
    run.__qualname__ = f"tile({form.name},{name},{init.__name__},{epilogue.__name__},{parts})"
    return kernel(run)


@register_jitable
def tile_rows(left, most):
    """Rows of the next tile when ``left`` remain: as even a split as the registers allow."""
    tiles = (left + most - 1) // most
    return (left + tiles - 1) // tiles


# What tiles start from and end with, and how a row's four vectors are loaded and stored.


@register_jitable
def load_panel(p, at, count=PANEL):
    """The ``count`` vectors at ``p[at]``, zeros in place of the rest of four."""
    n, zero = lane_count(p), zeros_like(p)
    return (
        load(p, at),
        load(p, at + n) if count > 1 else zero,
        load(p, at + 2 * n) if count > 2 else zero,
        load(p, at + 3 * n) if count > 3 else zero,
    )


@register_jitable
def store_panel(p, at, z):
    """Write the vectors at ``p[at]``."""
    n = lane_count(p)
    for j in range(len(z)):
        store(p, at + j * n, z[j])


@register_jitable
def init_zero(i, count, args):
    """Zeros; ``args[0]`` is a `Row`."""
    zero = zeros_like(args[0].p)
    return zero, zero, zero, zero


@register_jitable
def init_row(i, count, args):
    """The vectors at ``args[0]``, a `Row`."""
    return load_panel(args[0].p, args[0].offset + i * args[0].stride, count)


@register_jitable
def init_columns(i, count, args):
    """The columns that ``args[0]``, a `Row`, has."""
    row = args[0]
    p, at, n, zero = row.p, row.offset + i * row.stride, lane_count(row.p), zeros_like(row.p)
    return (
        load_first(p, at, row.columns),
        load_first(p, at + n, row.columns - n) if count > 1 else zero,
        load_first(p, at + 2 * n, row.columns - 2 * n) if count > 2 else zero,
        load_first(p, at + 3 * n, row.columns - 3 * n) if count > 3 else zero,
    )


def finish_row(i, z, args):
    """Write the columns of ``args[1]``, a `Row`."""
    to = args[1]
    n = lane_count(to.p)
    for j in range(len(z)):
        store_first(to.p, to.offset + i * to.stride + j * n, z[j], to.columns - j * n)
