"""`Lanes`: a Numba type that is one machine vector, and what kernels do with vectors."""

import operator
from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    overload,
    register_jitable,
    register_model,
)

from fastrnn.cells import activations
from fastrnn.kernels.native.isa import ISA

from .bfloat16 import rounded, widened


class Lanes(types.Type):
    """One machine vector of ``dtype`` (float32 or float64)."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.count = ISA.vector_bytes * 8 // dtype.bitwidth
        self.element = ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.count)
        self.tag = f"v{self.count}f{dtype.bitwidth}"
        super().__init__(f"Lanes({dtype} x {self.count})")

    def splat(self, builder, x):
        undef = ir.Constant(self.vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)
        v = builder.insert_element(undef, x, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(v, undef, zeros)

    def call(self, builder, name, *args):
        """Call the LLVM intrinsic ``name`` of this vector type."""
        fnty = ir.FunctionType(self.vector, [self.vector] * len(args))
        fn = cgutils.get_or_insert_function(builder.module, fnty, f"llvm.{name}.{self.tag}")
        return builder.call(fn, args)

    def load(self, builder, p):
        return builder.load(
            builder.bitcast(p, self.vector.as_pointer()), align=self.dtype.bitwidth // 8
        )

    def store(self, builder, v, p):
        builder.store(
            v, builder.bitcast(p, self.vector.as_pointer()), align=self.dtype.bitwidth // 8
        )


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.vector)


def _lanes_of(args):
    found = [a for a in args if isinstance(a, Lanes)]
    return found[0] if found else None


def _widen(builder, ty, arg_types, args):
    return [
        a if isinstance(t, Lanes) else ty.splat(builder, a)
        for t, a in zip(arg_types, args, strict=True)
    ]


def _binary(op, emit):
    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            ty = _lanes_of(args)
            if ty is None or len(args) != 2:
                return None
            return signature(ty, *(a if isinstance(a, Lanes) else ty.dtype for a in args))

    def lower(context, builder, sig, args):
        return getattr(builder, emit)(*_widen(builder, sig.return_type, sig.args, args))

    for pair in ((Lanes, Lanes), (types.Float, Lanes), (Lanes, types.Float)):
        lower_builtin(op, *pair)(lower)


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")
_binary(operator.truediv, "fdiv")


@intrinsic
def _fma(typingctx, a, b, c):
    ty = _lanes_of((a, b, c))

    def codegen(context, builder, sig, args):
        return ty.call(builder, "fmuladd", *_widen(builder, ty, sig.args, args))

    return ty(*(t if isinstance(t, Lanes) else ty.dtype for t in (a, b, c))), codegen


@overload(activations.fma)
def _overload_fma(a, b, c):
    if _lanes_of((a, b, c)):
        return lambda a, b, c: _fma(a, b, c)
    return lambda a, b, c: a * b + c


@intrinsic
def larger(typingctx, a, b):
    """The larger number of each lane, that of b where one of them is NaN."""
    if not isinstance(a, Lanes) or a != b:
        return None

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), codegen


@intrinsic
def _clamp(typingctx, x, limit):
    def codegen(context, builder, sig, args):
        (high,) = _widen(builder, x, sig.args[1:], args[1:])
        low = builder.fneg(high)
        v = builder.select(builder.fcmp_ordered("<", high, args[0]), high, args[0])
        return builder.select(builder.fcmp_ordered("<", v, low), low, v)

    return x(x, limit if isinstance(limit, Lanes) else x.dtype), codegen


@overload(activations.clamp)
def _overload_clamp(x, limit):
    if isinstance(x, Lanes):
        return lambda x, limit: _clamp(x, limit)
    return None


@intrinsic
def _pow2(typingctx, n):
    # Adding this leaves the integer in the lowest bits of the fraction.
    shift, bias, fraction = (activations._ROUND, 1023, 52)
    if n.dtype.bitwidth == 32:
        shift, bias, fraction = (activations._ROUND32, 127, 23)

    def codegen(context, builder, sig, args):
        ints = ir.VectorType(ir.IntType(n.dtype.bitwidth), n.count)

        def each(value):
            return ir.Constant(ints, [value] * n.count)

        shifter = n.splat(builder, ir.Constant(n.element, shift))
        bits = builder.bitcast(builder.fadd(args[0], shifter), ints)
        return builder.bitcast(
            builder.add(builder.shl(bits, each(fraction)), each(bias << fraction)),
            sig.return_type.vector,
        )

    return n(n), codegen


@overload(activations.pow2)
def _overload_pow2(n):
    if isinstance(n, Lanes):
        return lambda n: _pow2(n)
    return None


@intrinsic
def _where_positive(typingctx, x, y):
    def codegen(context, builder, sig, args):
        zeros = ir.Constant(x.vector, [0.0] * x.count)
        (wide,) = _widen(builder, x, sig.args[1:], args[1:])
        return builder.select(builder.fcmp_ordered("<=", args[0], zeros), zeros, wide)

    return x(x, y if isinstance(y, Lanes) else x.dtype), codegen


@overload(activations.where_positive)
def _overload_where_positive(x, y):
    if isinstance(x, Lanes):
        return lambda x, y: _where_positive(x, y)
    return None


def _is_single(x) -> bool:
    return (x.dtype if isinstance(x, Lanes) else x) == types.float32


@overload(activations.tanh)
def _overload_tanh(x):
    return activations.tanh32 if _is_single(x) else activations.tanh64


@overload(activations.expm1)
def _overload_expm1(x):
    return activations.expm1_32 if _is_single(x) else activations.expm1_64


@overload(activations.exp)
def _overload_exp(x):
    return activations.exp32 if _is_single(x) else activations.exp64


# Functions of `activations` that are compiled as something other than their own source.
OVERLOADED = (
    activations.fma, activations.clamp, activations.pow2, activations.where_positive,
    activations.tanh, activations.expm1, activations.exp,
)  # fmt: skip
for _function in (
    activations.tanh32, activations.tanh64, activations._exp_parts32, activations._exp_parts64,
    activations.expm1_32, activations.expm1_64, activations.exp32, activations.exp64,
    activations.sigmoid,
):  # fmt: skip
    register_jitable(_function)


# Memory. Kernels see their arrays as bare pointers: nothing to count references of. What is at a
# pointer to uint16 is in bfloat16, and to int16 in float16: it is widened when it is loaded and
# rounded when it is stored.


def _lanes_at(p) -> Lanes:
    """What the vectors at a pointer are in a register."""
    return Lanes(types.float32 if p.dtype in (types.uint16, types.int16) else p.dtype)


_LARGEST_HALF = 65504.0


def _load(builder, ty, p_type, p):
    if p_type.dtype == types.uint16:
        return widened(builder, p, ty.count)
    if p_type.dtype == types.int16:
        halves = ir.VectorType(ir.HalfType(), ty.count)
        v = builder.load(builder.bitcast(p, halves.as_pointer()), align=2)
        return builder.fpext(v, ty.vector)
    return ty.load(builder, p)


def _store(builder, ty, v, p_type, p):
    if p_type.dtype == types.uint16:
        v = rounded(builder, v)
    elif p_type.dtype == types.int16:
        for sign, symbol in ((1, ">"), (-1, "<")):
            limit = ir.Constant(ty.vector, [sign * _LARGEST_HALF] * ty.count)
            v = builder.select(builder.fcmp_ordered(symbol, v, limit), limit, v)
        v = builder.fptrunc(v, ir.VectorType(ir.HalfType(), ty.count))
    else:
        return ty.store(builder, v, p)
    return builder.store(v, builder.bitcast(p, v.type.as_pointer()), align=2)


@intrinsic
def pointer(typingctx, array):
    """The address of the first element of a C-contiguous array."""

    def codegen(context, builder, sig, args):
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def at_address(typingctx, address, like):
    """The memory at an address, as a pointer of the type of ``like``."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], args[1].type)

    return like(types.int64, like), codegen


@intrinsic
def as_floats(typingctx, p):
    """The memory at p, as a pointer to float32."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(p), codegen


@intrinsic
def load(typingctx, p, i):
    """The vector at ``p[i]``."""
    ty = _lanes_at(p)

    def codegen(context, builder, sig, args):
        return _load(builder, ty, p, builder.gep(args[0], [args[1]]))

    return ty(p, types.int64), codegen


@intrinsic
def store(typingctx, p, i, v):
    """Write the vector ``v`` at ``p[i]``."""

    def codegen(context, builder, sig, args):
        _store(builder, sig.args[2], args[2], p, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, v), codegen


@intrinsic
def pointers(typingctx, arrays):
    """The addresses of the first elements of a tuple of C-contiguous arrays."""
    each = [types.CPointer(a.dtype) for a in arrays]

    def codegen(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[0], len(each))
        out = [
            context.make_array(a)(context, builder, v).data
            for a, v in zip(sig.args[0], values, strict=True)
        ]
        return context.make_tuple(builder, sig.return_type, out)

    return types.Tuple(each)(arrays), codegen


@intrinsic
def load_each(typingctx, ps, i):
    """The vector at ``p[i]`` for each of a tuple of pointers."""
    lanes = [Lanes(p.dtype) for p in ps]

    def codegen(context, builder, sig, args):
        values = cgutils.unpack_tuple(builder, args[0], len(lanes))
        out = [
            ty.load(builder, builder.gep(p, [args[1]])) for ty, p in zip(lanes, values, strict=True)
        ]
        return context.make_tuple(builder, sig.return_type, out)

    return types.Tuple(lanes)(ps, types.int64), codegen


@intrinsic
def store_each(typingctx, ps, i, vs):
    """Write each of a tuple of vectors (or numbers, for all lanes) at ``p[i]`` of its pointer."""
    wanted = types.Tuple(
        [v if isinstance(v, Lanes) else p.dtype for p, v in zip(ps, vs, strict=True)]
    )

    def codegen(context, builder, sig, args):
        pairs = zip(
            cgutils.unpack_tuple(builder, args[0], len(ps)),
            cgutils.unpack_tuple(builder, args[2], len(ps)),
            sig.args[2],
            strict=True,
        )
        ty = Lanes(ps[0].dtype)
        for p, value, v_type in pairs:
            (wide,) = _widen(builder, ty, [v_type], [value])
            ty.store(builder, wide, builder.gep(p, [args[1]]))
        return context.get_dummy_value()

    return types.void(ps, types.int64, wanted), codegen


@cache
def rows_loader(count: int):
    """A function ``load_rows(p, i, stride)``: the vectors at ``p[i + k * stride]``, k < count."""

    @intrinsic
    def load_rows(typingctx, p, i, stride):
        ty = _lanes_at(p)
        returned = types.Tuple([ty] * count)

        def codegen(context, builder, sig, args):
            p, i, stride = args
            out = []
            for k in range(count):
                at = builder.add(i, builder.mul(ir.Constant(ir.IntType(64), k), stride))
                out.append(_load(builder, ty, sig.args[0], builder.gep(p, [at])))
            return context.make_tuple(builder, sig.return_type, out)

        return returned(p, types.int64, types.int64), codegen

    return load_rows


@intrinsic
def prefetch(typingctx, p, i):
    """Ask for the line at ``p[i]``, which will be written."""

    def codegen(context, builder, sig, args):
        at = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        numbers = [ir.Constant(ir.IntType(32), n) for n in (1, 3, 1)]  # write, keep, data
        fnty = ir.FunctionType(ir.VoidType(), [at.type, *(n.type for n in numbers)])
        fn = cgutils.get_or_insert_function(builder.module, fnty, "llvm.prefetch.p0")
        builder.call(fn, [at, *numbers])
        return context.get_dummy_value()

    return types.void(p, types.int64), codegen


@intrinsic
def line(typingctx, p):
    """How many numbers that ``p`` points to a cache line of 64 bytes holds (a constant)."""
    count = 64 * 8 // p.dtype.bitwidth

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(p), codegen


def _first(builder, ty, n):
    """A mask of the first ``n`` lanes."""
    iota = ir.Constant(ir.VectorType(ir.IntType(64), ty.count), list(range(ty.count)))
    undef = ir.Constant(iota.type, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), ty.count), [0] * ty.count)
    v = builder.insert_element(undef, n, ir.Constant(ir.IntType(32), 0))
    return builder.icmp_signed("<", iota, builder.shuffle_vector(v, undef, zeros))


@intrinsic
def first_lanes(typingctx, v, n):
    """The first ``n`` lanes of ``v``, zeros after them."""

    def codegen(context, builder, sig, args):
        zeros = ir.Constant(v.vector, [0.0] * v.count)
        return builder.select(_first(builder, v, args[1]), args[0], zeros)

    return v(v, types.int64), codegen


def _masked(builder, ty, name, returns, operands):
    fnty = ir.FunctionType(returns, [o.type for o in operands])
    fn = cgutils.get_or_insert_function(builder.module, fnty, f"llvm.masked.{name}.{ty.tag}.p0")
    return builder.call(fn, operands)


@intrinsic
def load_first(typingctx, p, i, n):
    """The first ``n`` lanes at ``p[i]``, zeros after them; ``n`` may exceed the width."""
    ty = Lanes(p.dtype)

    def codegen(context, builder, sig, args):
        p = builder.gep(args[0], [args[1]])
        full = builder.icmp_signed(">=", args[2], ir.Constant(ir.IntType(64), ty.count))
        with builder.if_else(full, likely=True) as (whole, part):
            with whole:
                all_of_it, from_whole = ty.load(builder, p), builder.block
            with part:
                at = builder.bitcast(p, ty.vector.as_pointer())
                align = ir.Constant(ir.IntType(32), ty.dtype.bitwidth // 8)
                zeros = ir.Constant(ty.vector, [0.0] * ty.count)
                mask = _first(builder, ty, args[2])
                some = _masked(builder, ty, "load", ty.vector, [at, align, mask, zeros])
                from_part = builder.block
        out = builder.phi(ty.vector)
        out.add_incoming(all_of_it, from_whole)
        out.add_incoming(some, from_part)
        return out

    return ty(p, types.int64, types.int64), codegen


@intrinsic
def store_first(typingctx, p, i, v, n):
    """Write the first ``n`` lanes of ``v`` at ``p[i]``; ``n`` may be 0 or exceed the width."""

    def codegen(context, builder, sig, args):
        ty = sig.args[2]
        full = builder.icmp_signed(">=", args[3], ir.Constant(ir.IntType(64), ty.count))
        at = builder.gep(args[0], [args[1]])
        with builder.if_else(full, likely=True) as (whole, part):
            with whole:
                ty.store(builder, args[2], at)
            with part:
                align = ir.Constant(ir.IntType(32), ty.dtype.bitwidth // 8)
                p_vector = builder.bitcast(at, ty.vector.as_pointer())
                mask = _first(builder, ty, args[3])
                _masked(builder, ty, "store", ir.VoidType(), [args[2], p_vector, align, mask])
        return context.get_dummy_value()

    return types.void(p, types.int64, v, types.int64), codegen


def _shuffle(builder, a, b, picks):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), picks)
    return builder.shuffle_vector(a, b, mask)


@intrinsic
def transpose(typingctx, a, a_at, a_stride, b, b_at, b_stride):
    """``b[b_at + j b_stride + i] = a[a_at + i a_stride + j]``, a square of a vector's width."""
    ty = Lanes(a.dtype)

    def codegen(context, builder, sig, args):
        a, a_at, a_stride, b, b_at, b_stride = args
        n = ty.count

        def row(p, at, stride, i):
            number = ir.Constant(ir.IntType(64), i)
            return builder.gep(p, [builder.add(at, builder.mul(number, stride))])

        v = [ty.load(builder, row(a, a_at, a_stride, i)) for i in range(n)]
        # Swap the off-diagonal halves of pairs of rows, of squares of half the size each time.
        half = n // 2
        while half:
            keep = [j if not j & half else n + j - half for j in range(n)]
            other = [j + half if not j & half else n + j for j in range(n)]
            for i in range(n):
                if not i & half:
                    low, high = v[i], v[i + half]
                    v[i] = _shuffle(builder, low, high, keep)
                    v[i + half] = _shuffle(builder, low, high, other)
            half //= 2
        for j in range(n):
            ty.store(builder, v[j], row(b, b_at, b_stride, j))
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, b, types.int64, types.int64), codegen


@intrinsic
def zeros_like(typingctx, p):
    """A vector of zeros of the type that ``p`` points to."""
    ty = _lanes_at(p)

    def codegen(context, builder, sig, args):
        return ir.Constant(ty.vector, [0.0] * ty.count)

    return ty(p), codegen


@intrinsic
def lane_count(typingctx, p):
    """How many numbers a vector of the type that ``p`` points to holds (a constant)."""
    count = _lanes_at(p).count

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(p), codegen
