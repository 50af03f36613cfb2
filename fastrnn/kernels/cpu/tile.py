"""Register tiles: up to 6 rows x 4 vectors of accumulators that never leave the registers.

A tile computes, for ``rows`` consecutive rows i and the 4 vectors j of a panel,

    z[i, j] = begin(i)[j] + sum over segments, sum over k of  a[i, k] * b[k, j]

and hands each row's four vectors to ``finish``. A segment is the tuple
``(a, a_at, row_stride, k_stride, length, b, b_at)``: pointers, offsets and strides
in elements; ``b`` is a packed panel, 4 vectors for each k. The sum runs over k in
order for each row on its own, so a row's bits do not depend on the tile's rows.
"""

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import ISA, Lanes, lane_count, load, store, store_first, zeros_like

PANEL = 4  # vectors in a panel: the gates of one vector of hidden units

_I64 = ir.IntType(64)


def _int(value):
    return ir.Constant(_I64, value)


def _multiply_add(builder, lanes, rows, acc, segment):
    """Emit the k-loop of one segment and return the new accumulators."""
    a, a_at, row_stride, k_stride, length, b, b_at = segment
    a_rows = [
        builder.gep(a, [builder.add(a_at, builder.mul(_int(i), row_stride))]) for i in range(rows)
    ]
    b = builder.gep(b, [b_at])
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    builder.cbranch(builder.icmp_signed(">", length, _int(0)), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(_I64)
    k.add_incoming(_int(0), before)
    partial = []
    for value in acc:
        phi = builder.phi(lanes.vector)
        phi.add_incoming(value, before)
        partial.append(phi)
    b_k = builder.gep(b, [builder.mul(k, _int(PANEL * lanes.count))])
    b_vectors = [
        lanes.load(builder, builder.gep(b_k, [_int(j * lanes.count)])) for j in range(PANEL)
    ]
    a_k = builder.mul(k, k_stride)
    new = []
    for i in range(rows):
        scalar = lanes.splat(builder, builder.load(builder.gep(a_rows[i], [a_k])))
        for j in range(PANEL):
            z = partial[i * PANEL + j]
            new.append(lanes.call(builder, "fmuladd", scalar, b_vectors[j], z))
    k_next = builder.add(k, _int(1))
    k.add_incoming(k_next, loop)
    for phi, value in zip(partial, new, strict=True):
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, length), loop, after)

    builder.position_at_end(after)
    out = []
    for old, value in zip(acc, new, strict=True):
        phi = builder.phi(lanes.vector)
        phi.add_incoming(old, before)
        phi.add_incoming(value, loop)
        out.append(phi)
    return out


def _tile_of(rows, begin, finish):
    """The intrinsic for a tile of exactly ``rows`` rows."""

    @intrinsic(prefer_literal=False)
    def tile(typingctx, segments, args):
        lanes = Lanes(segments[0][0].dtype)
        four = types.UniTuple(lanes, PANEL)

        def codegen(context, builder, sig, values):
            segs, extra = values
            acc = []
            for i in range(rows):
                start = context.compile_internal(
                    builder, begin, four(types.int64, sig.args[1]), [_int(i), extra]
                )
                acc += cgutils.unpack_tuple(builder, start, PANEL)
            for segment in cgutils.unpack_tuple(builder, segs, len(sig.args[0])):
                acc = _multiply_add(
                    builder, lanes, rows, acc, cgutils.unpack_tuple(builder, segment, 7)
                )
            for i in range(rows):
                z = context.make_tuple(builder, four, acc[i * PANEL : (i + 1) * PANEL])
                context.compile_internal(
                    builder,
                    finish,
                    types.void(types.int64, four, sig.args[1]),
                    [_int(i), z, extra],
                )
            return context.get_dummy_value()

        return types.void(segments, args), codegen

    return tile


@register_jitable
def tile_rows(left):
    """Rows of the next tile when ``left`` remain: as even a split as the registers allow."""
    tiles = (left + ISA.tile_rows - 1) // ISA.tile_rows
    return (left + tiles - 1) // tiles


def tile(begin, finish):
    """A compiled ``run(rows, segments, args)`` for any ``rows`` from 1 to the path's most.

    ``begin(i, args) -> 4 vectors`` and ``finish(i, vectors, args)`` are compiled
    into it; ``args`` is any tuple, passed on to both.
    """
    one, two, three = (_tile_of(n, begin, finish) for n in (1, 2, 3))
    if ISA.tile_rows == 3:

        def run(rows, segments, args):
            if rows == 3:
                three(segments, args)
            elif rows == 2:
                two(segments, args)
            else:
                one(segments, args)
    else:
        four, five, six = (_tile_of(n, begin, finish) for n in (4, 5, 6))

        def run(rows, segments, args):
            if rows == 6:
                six(segments, args)
            elif rows == 5:
                five(segments, args)
            elif rows == 4:
                four(segments, args)
            elif rows == 3:
                three(segments, args)
            elif rows == 2:
                two(segments, args)
            else:
                one(segments, args)

    return numba.njit(run, nogil=True, error_model="numpy")


# What tiles begin and finish with, and how a row's four vectors come and go.


@register_jitable
def load_panel(p, at):
    """The four vectors at ``p[at]``."""
    n = lane_count(p)
    return load(p, at), load(p, at + n), load(p, at + 2 * n), load(p, at + 3 * n)


@register_jitable
def store_panel(p, at, z):
    """Write four vectors at ``p[at]``."""
    n = lane_count(p)
    store(p, at, z[0])
    store(p, at + n, z[1])
    store(p, at + 2 * n, z[2])
    store(p, at + 3 * n, z[3])


def begin_zero(i, args):
    """``args[0]`` is ``(pointer,)``: zeros of that type."""
    zero = zeros_like(args[0][0])
    return zero, zero, zero, zero


def begin_panel(i, args):
    """``args[0]`` is ``(pointer, at)``: the same four vectors for every row."""
    return load_panel(args[0][0], args[0][1])


def finish_row(i, z, args):
    """``args[1]`` is ``(pointer, at, row_stride, columns)``: write that many columns of a row."""
    out, at, row, columns = args[1]
    n = lane_count(out)
    for j in range(PANEL):
        if j * n < columns:
            store_first(out, at + i * row + j * n, z[j], columns - j * n)
