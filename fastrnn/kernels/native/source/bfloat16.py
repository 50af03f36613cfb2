"""Numbers in bfloat16: a storage type, which is float32 in a register.

A bfloat16 is the upper half of a float32. Rounding is to the nearest, ties to even; numbers too
small to be normal become 0. Two that a product takes at once lie side by side, the first one lower.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastrnn.kernels.native.isa import ISA

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_HIGH = 0xFFFF0000


class _BFloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite does not have."""

    def __str__(self):
        return "bfloat"


_BFloat._create_instance()  # or it is the one instance of HalfType


def bfloats(count: int):
    """The type of a vector of them."""
    return ir.VectorType(_BFloat(), count)


def call(builder, name: str, result, *args):
    """Call the LLVM intrinsic ``name``."""
    fnty = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, f"llvm.{name}"), args)


def each(value, count: int, scalar=_I32):
    """A vector of constants."""
    return ir.Constant(ir.VectorType(scalar, count), [value] * count)


def read(builder, p, scalar, count: int):
    """The vector at p, which need not be aligned."""
    return builder.load(
        builder.bitcast(p, ir.VectorType(scalar, count).as_pointer()), align=scalar.width // 8
    )


def pair(builder, p, count: int):
    """The pair of 16-bit numbers at p, in all lanes."""
    both = builder.load(builder.bitcast(p, _I32.as_pointer()), align=2)
    undef = each(ir.Undefined, count)
    v = builder.insert_element(undef, both, ir.Constant(_I32, 0))
    return builder.shuffle_vector(v, undef, each(0, count))


def _floats(builder, bits):
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), bits.type.count))


def _bits(builder, v):
    return builder.bitcast(v, ir.VectorType(_I32, v.type.count))


def widened(builder, p, count: int):
    """The numbers in bfloat16 at p as a vector of float32."""
    v = builder.zext(read(builder, p, _I16, count), ir.VectorType(_I32, count))
    return _floats(builder, builder.shl(v, each(16, count)))


def halves(builder, bits):
    """The second and the first number of each pair (an int32) as vectors of float32."""
    high = builder.and_(bits, each(_HIGH, bits.type.count))
    low = builder.shl(bits, each(16, bits.type.count))
    return _floats(builder, high), _floats(builder, low)


def rounded(builder, v):
    """A vector of float32 in bfloat16, as int16."""
    count = v.type.count
    if ISA.bf16:
        v = call(builder, f"x86.avx512bf16.cvtneps2bf16.{32 * count}", bfloats(count), v)
        return builder.bitcast(v, ir.VectorType(_I16, count))
    bits = _bits(builder, v)
    top = builder.lshr(bits, each(16, count))
    odd = builder.and_(top, each(1, count))
    nearest = builder.lshr(
        builder.add(builder.add(bits, odd), each(0x7FFF, count)), each(16, count)
    )
    is_nan = builder.fcmp_unordered("uno", v, v)
    nearest = builder.select(is_nan, builder.or_(top, each(0x40, count)), nearest)
    exponent = builder.and_(bits, each(0x7F800000, count))
    is_small = builder.icmp_unsigned("==", exponent, each(0, count))
    nearest = builder.select(is_small, builder.and_(top, each(0x8000, count)), nearest)
    return builder.trunc(nearest, ir.VectorType(_I16, count))


@intrinsic
def store_pairs(typingctx, p, i, low, high):
    """Write two vectors of float32 in bfloat16 at ``p[i]``, a number of each in turn."""

    def codegen(context, builder, sig, args):
        count = sig.args[2].count
        wide = ir.VectorType(_I32, count)
        low, high = (builder.zext(rounded(builder, v), wide) for v in args[2:])
        pairs = builder.or_(low, builder.shl(high, each(16, count)))
        at = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
        builder.store(pairs, at, align=2)
        return context.get_dummy_value()

    return types.void(p, types.int64, low, high), codegen


@intrinsic
def zip_vectors(typingctx, p, i, low, high):
    """The same for numbers that are bfloat16 already."""

    def codegen(context, builder, sig, args):
        count = sig.args[2].count
        low, high = (_bits(builder, v) for v in args[2:])
        high = builder.and_(high, each(_HIGH, count))
        pairs = builder.or_(builder.lshr(low, each(16, count)), high)
        at = builder.bitcast(builder.gep(args[0], [args[1]]), pairs.type.as_pointer())
        builder.store(pairs, at, align=2)
        return context.get_dummy_value()

    return types.void(p, types.int64, low, high), codegen
