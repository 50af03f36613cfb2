"""Register tiles: a few rows x 4 vectors of accumulators that never leave the registers.

A tile computes, for ``rows`` consecutive rows i and ``vectors`` vectors j of a panel,

    z[i, j] = init(i)[j] + sum over segments, sum over k of  a[i, k] * b[k, j]

and passes each row's vectors to ``epilogue``. The sum runs over k in order for each row on its own,
so the bits of a row do not depend on the other rows of the tile.

`tile` and `_multiply_add` run when a kernel is compiled and write LLVM instructions, which differ from
format to format as products.py says; the functions after them are part of the kernels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastrnn.kernels.native.formats import Format
from fastrnn.kernels.native.isa import ISA, PANEL

from .compiler import kernel
from .products import Product, product
from .simd import lane_count, load, store, store_first, zeros_like

_I64 = ir.IntType(64)


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


def _int(value):
    return ir.Constant(_I64, value)


class _Loop:
    """``for n in range(count)`` around what is emitted in between, carrying ``values``."""

    def __init__(self, builder, count, values, name):
        self.builder, self.count = builder, count
        self.before, self.values = builder.block, values
        self.body = builder.append_basic_block(name)
        self.after = builder.append_basic_block(name + ".end")
        builder.cbranch(builder.icmp_signed(">", count, _int(0)), self.body, self.after)
        builder.position_at_end(self.body)
        self.n = builder.phi(_I64)
        self.carried = [builder.phi(v.type) for v in values]

    def close(self, new):
        """End the body; what the values are after the loop."""
        builder, last = self.builder, self.builder.block
        following = builder.add(self.n, _int(1))
        self.n.add_incoming(_int(0), self.before)
        self.n.add_incoming(following, last)
        for phi, old, value in zip(self.carried, self.values, new, strict=True):
            phi.add_incoming(old, self.before)
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", following, self.count), self.body, self.after)
        builder.position_at_end(self.after)
        out = []
        for old, value in zip(self.values, new, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(old, self.before)
            phi.add_incoming(value, last)
            out.append(phi)
        return out


def _multiply_add(builder, product: Product, rows, acc, part, segment):
    """Emit the loops of one segment on the vectors ``part`` of each row; new accumulators."""
    a, a_at, row_stride, k_stride, length, blocks, block_stride, b, b_at, b_stride = segment
    per_row, lanes, step = len(acc) // rows, product.lanes, _int(product.step)
    a_rows = [
        builder.gep(a, [builder.add(a_at, builder.mul(_int(i), row_stride))]) for i in range(rows)
    ]
    head = b = builder.gep(b, [b_at])
    start = acc
    if product.head:
        start = [ir.Constant(lanes.vector, [0.0] * lanes.count)] * len(acc)
        b = builder.gep(head, [builder.mul(_int(product.head), b_stride)])
    steps = length
    if product.step > 1:
        steps = builder.sdiv(builder.add(length, _int(product.step - 1)), step)
    block = _Loop(builder, blocks, start, "block")
    a_block = builder.mul(block.n, block_stride)
    b_block = builder.mul(block.n, length)
    inner = _Loop(builder, steps, block.carried, "k")
    k = builder.mul(inner.n, step)
    b_k = builder.gep(b, [builder.mul(builder.add(b_block, k), b_stride)])
    b_vectors = [
        product.weights(builder, builder.gep(b_k, [_int(j * lanes.count * product.step)]))
        for j in range(len(part))
    ]
    a_k = builder.add(a_block, builder.mul(k, k_stride))
    new = list(inner.carried)
    for i in range(rows):
        x = product.activation(builder, builder.gep(a_rows[i], [a_k]))
        for vector, j in zip(b_vectors, part, strict=True):
            at = i * per_row + j
            new[at] = product.dot(builder, x, vector, new[at])
    out = block.close(inner.close(new))
    if product.head:
        scales = builder.bitcast(head, lanes.element.as_pointer())
        for number, j in enumerate(part):
            scale = lanes.load(builder, builder.gep(scales, [_int(number * lanes.count)]))
            for at in range(j, len(acc), per_row):
                out[at] = lanes.call(builder, "fmuladd", out[at], scale, acc[at])
        untouched = set(range(per_row)) - set(part)
        for at in (i * per_row + j for i in range(rows) for j in untouched):
            out[at] = acc[at]
    return out


def tile(form: Format, init: Callable, epilogue: Callable, parts=None, name: str = ""):
    """A compiled ``run(rows, vectors, segments, args)``, ``rows`` from 1 to the path's maximum.

    ``init(i, count, args) -> 4 vectors``, of which ``count`` are used, and
    ``epilogue(i, vectors, args)`` are compiled into it; ``args`` is any tuple, passed to both.
    A segment works on all of the 1 to 4 ``vectors``, or, where ``parts`` has a range for each
    segment, on those; ``vectors`` is then the end of the last range. ``name`` tells apart tiles
    that are made of closures.
    """
    counts = range(1, PANEL + 1) if parts is None else (max(part.stop for part in parts),)
    multiplication = product(form)

    def emit(context, builder, sig, rows, vectors, segments, args):
        lanes = multiplication.lanes
        four, some = types.UniTuple(lanes, PANEL), types.UniTuple(lanes, vectors)
        extra = sig.args[3]
        acc = []
        for i in range(rows):
            start = context.compile_internal(
                builder,
                init,
                four(types.int64, types.int64, extra),
                [_int(i), _int(vectors), args],
            )
            acc += cgutils.unpack_tuple(builder, start, PANEL)[:vectors]
        for number, segment in enumerate(segments):
            part = range(vectors) if parts is None else parts[number]
            fields = cgutils.unpack_tuple(builder, segment, len(Segment._fields))
            acc = _multiply_add(builder, multiplication, rows, acc, part, fields)
        for i in range(rows):
            z = context.make_tuple(builder, some, acc[i * vectors : (i + 1) * vectors])
            context.compile_internal(
                builder, epilogue, types.void(types.int64, some, extra), [_int(i), z, args]
            )

    @intrinsic(prefer_literal=False)
    def switch(typingctx, rows, vectors, segments, args):
        def codegen(context, builder, sig, values):
            rows, vectors, segs, extra = values
            segments = cgutils.unpack_tuple(builder, segs, len(sig.args[2]))
            key = builder.add(builder.mul(rows, _int(8)), vectors)
            done = builder.append_basic_block("tile.end")
            choice = builder.switch(key, done)
            for r in range(1, ISA.tile_rows + 1):
                for v in counts:
                    block = builder.append_basic_block(f"tile.{r}x{v}")
                    choice.add_case(_int(8 * r + v), block)
                    builder.position_at_end(block)
                    emit(context, builder, sig, r, v, segments, extra)
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
def tile_rows(left):
    """Rows of the next tile when ``left`` remain: as even a split as the registers allow."""
    tiles = (left + ISA.tile_rows - 1) // ISA.tile_rows
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


def init_zero(i, count, args):
    """Zeros; ``args[0]`` is a `Row`."""
    zero = zeros_like(args[0].p)
    return zero, zero, zero, zero


def init_panel(i, count, args):
    """The same vectors for every row; ``args[0]`` is a `Row`."""
    return load_panel(args[0].p, args[0].offset, count)


def init_row(i, count, args):
    """The vectors at ``args[0]``, a `Row`."""
    return load_panel(args[0].p, args[0].offset + i * args[0].stride, count)


def finish_row(i, z, args):
    """Write the columns of ``args[1]``, a `Row`."""
    to = args[1]
    n = lane_count(to.p)
    for j in range(len(z)):
        store_first(to.p, to.offset + i * to.stride + j * n, z[j], to.columns - j * n)
