"""Register tiles: up to 6 rows x 4 vectors of accumulators that never leave the registers.

A tile computes, for ``rows`` consecutive rows i and ``vectors`` vectors j of a panel,

    z[i, j] = begin(i)[j] + sum over segments, sum over k of  a[i, k] * b[k, j]

and hands each row's vectors to ``finish``. A segment is the tuple
``(a, a_at, row_stride, k_stride, length, blocks, block_stride, b, b_at, b_stride)``: pointers,
offsets and strides in elements. k runs over ``blocks`` runs of ``length`` numbers of a; ``b``
is a packed panel, some vectors for each k, ``b_stride`` apart. The sum runs over k in order
for each row on its own, so a row's bits do not depend on the tile's rows.
"""

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import ISA, Lanes, lane_count, load, store, store_first, zeros_like

PANEL = 4  # vectors in a panel: the gates of one vector of hidden units

_I64 = ir.IntType(64)
_SEGMENT = 10


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


def _multiply_add(builder, lanes, rows, acc, part, segment):
    """Emit the loops of one segment on the vectors ``part`` of each row; new accumulators."""
    a, a_at, row_stride, k_stride, length, blocks, block_stride, b, b_at, b_stride = segment
    per_row = len(acc) // rows
    a_rows = [
        builder.gep(a, [builder.add(a_at, builder.mul(_int(i), row_stride))]) for i in range(rows)
    ]
    b = builder.gep(b, [b_at])
    block = _Loop(builder, blocks, acc, "block")
    a_block = builder.mul(block.n, block_stride)
    b_block = builder.mul(block.n, length)
    inner = _Loop(builder, length, block.carried, "k")
    b_k = builder.gep(b, [builder.mul(builder.add(b_block, inner.n), b_stride)])
    b_vectors = [
        lanes.load(builder, builder.gep(b_k, [_int(j * lanes.count)])) for j in range(len(part))
    ]
    a_k = builder.add(a_block, builder.mul(inner.n, k_stride))
    new = list(inner.carried)
    for i in range(rows):
        scalar = lanes.splat(builder, builder.load(builder.gep(a_rows[i], [a_k])))
        for vector, j in zip(b_vectors, part, strict=True):
            at = i * per_row + j
            new[at] = lanes.call(builder, "fmuladd", scalar, vector, new[at])
    return block.close(inner.close(new))


def tile(begin, finish, parts=None):
    """A compiled ``run(rows, vectors, segments, args)``, ``rows`` from 1 to the path's most.

    ``begin(i, count, args) -> 4 vectors``, of which ``count`` are looked at, and
    ``finish(i, vectors, args)`` are compiled into it; ``args`` is any tuple, passed on to both.
    A segment works on all of the 1 to 4 ``vectors``, or, where ``parts`` has a range for each
    segment, on those; ``vectors`` is 4 then.
    """

    def emit(context, builder, sig, rows, vectors, segments, args):
        lanes = Lanes(sig.args[2][0][0].dtype)
        four, some = types.UniTuple(lanes, PANEL), types.UniTuple(lanes, vectors)
        extra = sig.args[3]
        acc = []
        for i in range(rows):
            start = context.compile_internal(
                builder,
                begin,
                four(types.int64, types.int64, extra),
                [_int(i), _int(vectors), args],
            )
            acc += cgutils.unpack_tuple(builder, start, PANEL)[:vectors]
        for number, segment in enumerate(segments):
            part = range(vectors) if parts is None else parts[number]
            acc = _multiply_add(
                builder, lanes, rows, acc, part, cgutils.unpack_tuple(builder, segment, _SEGMENT)
            )
        for i in range(rows):
            z = context.make_tuple(builder, some, acc[i * vectors : (i + 1) * vectors])
            context.compile_internal(
                builder, finish, types.void(types.int64, some, extra), [_int(i), z, args]
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
                for v in range(1, PANEL + 1) if parts is None else (PANEL,):
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
    run.__qualname__ = f"tile({begin.__name__},{finish.__name__},{parts})"
    return numba.njit(run, nogil=True, error_model="numpy")


@register_jitable
def tile_rows(left):
    """Rows of the next tile when ``left`` remain: as even a split as the registers allow."""
    tiles = (left + ISA.tile_rows - 1) // ISA.tile_rows
    return (left + tiles - 1) // tiles


# What tiles begin and finish with, and how a row's four vectors come and go.


@register_jitable
def load_panel(p, at, count=PANEL):
    """The ``count`` vectors at ``p[at]``, zeros for what is missing of four."""
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


def begin_zero(i, count, args):
    """``args[0]`` is ``(pointer,)``: zeros of that type."""
    zero = zeros_like(args[0][0])
    return zero, zero, zero, zero


def begin_panel(i, count, args):
    """``args[0]`` is ``(pointer, at)``: the same vectors for every row."""
    return load_panel(args[0][0], args[0][1], count)


def begin_row(i, count, args):
    """``args[0]`` is ``(pointer, at, row_stride)``: what stands there."""
    return load_panel(args[0][0], args[0][1] + i * args[0][2], count)


def finish_row(i, z, args):
    """``args[1]`` is ``(pointer, at, row_stride, columns)``: write that many columns of a row."""
    out, at, row, columns = args[1]
    n = lane_count(out)
    for j in range(len(z)):
        store_first(out, at + i * row + j * n, z[j], columns - j * n)
