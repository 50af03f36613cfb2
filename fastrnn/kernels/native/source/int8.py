"""Products in integers: weights in int8, activations in int16, sums in int32, which are exact.

A row of activations starts with its scale, a float32 in the place of two numbers: the largest one
of the row divided by the largest integer with which no sum can overflow.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from fastrnn.kernels.native.formats import ROW_HEAD
from fastrnn.kernels.native.isa import ISA, X86

from .bfloat16 import call, each
from .simd import as_floats, lane_count, load_first, zeros_like

LARGEST = 127  # of the int8 that are used
_I8, _I16, _I32 = (ir.IntType(bits) for bits in (8, 16, 32))


def dot(builder, a, b, total):
    """``total + a * b`` for vectors of pairs of int16, each pair as an int32."""
    count = total.type.count
    if "avx512vnni" in ISA.features:
        return call(builder, f"x86.avx512.vpdpwssd.{32 * count}", total.type, total, a, b)
    if X86:
        name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[count]
        pairs = ir.VectorType(_I16, 2 * count)
        a, b = (builder.bitcast(v, pairs) for v in (a, b))
        return builder.add(total, call(builder, f"x86.{name}", total.type, a, b))
    half = each(16, count)
    for low in True, False:
        x, y = (builder.shl(v, half) if low else v for v in (a, b))
        x, y = (builder.ashr(v, half) for v in (x, y))
        total = builder.add(total, builder.mul(x, y))
    return total


def _nearest(builder, v, scalar):
    """A vector of float32 as integers of the type ``scalar``."""
    count = v.type.count
    whole = call(builder, f"rint.v{count}f32", v.type, v)
    bits = builder.fptosi(whole, ir.VectorType(_I32, count))
    return builder.trunc(bits, ir.VectorType(scalar, count))


@intrinsic
def _store_int16(typingctx, p, i, v):
    """Write a vector of float32, rounded, at ``p[i]``."""

    def codegen(context, builder, sig, args):
        out = _nearest(builder, args[2], _I16)
        at = builder.bitcast(builder.gep(args[0], [args[1]]), out.type.as_pointer())
        builder.store(out, at, align=2)
        return context.get_dummy_value()

    return types.void(p, types.int64, v), codegen


@intrinsic
def store_pairs_int8(typingctx, p, i, low, high):
    """Write two vectors of float32 in int8 at ``p[i]``, a number of each in turn."""

    def codegen(context, builder, sig, args):
        wide = ir.VectorType(_I16, sig.args[2].count)
        low, high = (builder.zext(_nearest(builder, v, _I8), wide) for v in args[2:])
        pairs = builder.or_(low, builder.shl(high, each(8, wide.count, _I16)))
        at = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
        builder.store(pairs, at, align=1)
        return context.get_dummy_value()

    return types.void(p, types.int64, low, high), codegen


@intrinsic
def largest_of(typingctx, a, b):
    """The larger one of each lane of a and of the absolute value of b; NaN is the largest."""

    def codegen(context, builder, sig, args):
        # Floats of one sign are in the order of their bits.
        ints = ir.VectorType(_I32, a.count)
        x, y = (builder.bitcast(v, ints) for v in args)
        y = builder.and_(y, each(0x7FFFFFFF, a.count))
        larger = builder.select(builder.icmp_signed("<", x, y), y, x)
        return builder.bitcast(larger, a.vector)

    return a(a, b), codegen


@intrinsic
def _largest_lane(typingctx, v):
    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.VectorType(_I32, v.count))
        largest = call(builder, f"vector.reduce.smax.v{v.count}i32", _I32, bits)
        return builder.bitcast(largest, v.element)

    return v.dtype(v), codegen


@intrinsic
def inverse_or_zero(typingctx, v):
    """``1 / v``, or 0 where v is 0."""

    def codegen(context, builder, sig, args):
        one, zero = (ir.Constant(v.vector, [x] * v.count) for x in (1.0, 0.0))
        is_zero = builder.fcmp_ordered("==", args[0], zero)
        return builder.select(is_zero, zero, builder.fdiv(one, args[0]))

    return v(v), codegen


@register_jitable
def largest_integer(depth):
    """With which a sum of ``depth`` products stays below 2**31."""
    return min(32767, ((1 << 31) - 1) // (LARGEST * max(1, depth)))


@register_jitable
def quantise_row(a_p, at, count, out_p, to, size):
    """``count`` numbers at ``a_p[at]`` as integers: a row of ``size`` numbers at ``out_p[to]``."""
    n, largest = lane_count(a_p), zeros_like(a_p)
    for k in range(0, count, n):
        largest = largest_of(largest, load_first(a_p, at + k, count - k))
    most, limit = _largest_lane(largest), largest_integer(count + count % 2)
    scale, inverse = a_p[at] * 0, a_p[at] * 0
    if not most < 1e-30:  # the inverse of less might be infinite
        scale, inverse = most / limit, limit / most
    as_floats(out_p)[to // 2] = scale
    for k in range(0, size - ROW_HEAD - n + 1, n):
        v = load_first(a_p, at + k, count - k) if k < count else zeros_like(a_p)
        _store_int16(out_p, to + ROW_HEAD + k, v * inverse)
