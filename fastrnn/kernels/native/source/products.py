"""How a tile multiplies in each format (kernels/native/formats.py): what tile.py emits for a k."""

from llvmlite import ir
from numba import types

from fastrnn.kernels.native.formats import FORMATS, Format

from .bfloat16 import bfloats, call, each, from_int8, halves, read, widened
from .simd import Lanes

_I32 = ir.IntType(32)


class Product:
    """All of one type. Pointers are to a number; a panel has `lanes` numbers for each vector."""

    def __init__(self, form: Format):
        self.step, self.head = form.step, form.head
        self.lanes = Lanes(getattr(types, form.numbers))

    def weights(self, builder, p):
        """The vector at p of a panel."""
        return self.lanes.load(builder, p)

    def activation(self, builder, p):
        """The number at p, in all lanes."""
        return self.lanes.splat(builder, builder.load(p))

    def dot(self, builder, a, b, total):
        """``total + a * b``."""
        return self.lanes.call(builder, "fmuladd", a, b, total)


class WidenedWeights(Product):
    """Weights in bfloat16."""

    def weights(self, builder, p):
        return widened(builder, p, self.lanes.count)


class ScaledWeights(Product):
    """Weights in int8; the scales of the columns are the first rows of a panel."""

    def weights(self, builder, p):
        return from_int8(builder, p, self.lanes.count)


class Pairs(Product):
    """Both in bfloat16, two numbers of k at once."""

    def weights(self, builder, p):
        count = self.lanes.count
        return builder.bitcast(read(builder, p, _I32, count), bfloats(2 * count))

    def activation(self, builder, p):
        count = self.lanes.count
        pair = builder.load(builder.bitcast(p, _I32.as_pointer()), align=2)
        undef = each(ir.Undefined, count)
        v = builder.insert_element(undef, pair, ir.Constant(_I32, 0))
        v = builder.shuffle_vector(v, undef, each(0, count))
        return builder.bitcast(v, bfloats(2 * count))

    def dot(self, builder, a, b, total):
        name = f"x86.avx512bf16.dpbf16ps.{32 * self.lanes.count}"
        return call(builder, name, self.lanes.vector, total, a, b)


class EmulatedPairs(Pairs):
    """The same bits by other instructions, for tests: the second product is added first."""

    def dot(self, builder, a, b, total):
        ints = each(0, self.lanes.count).type
        a, b = (halves(builder, builder.bitcast(v, ints)) for v in (a, b))
        for x, y in zip(a, b, strict=True):
            total = self.lanes.call(builder, "fma", x, y, total)
        return total


_KINDS = {
    "bf16": Pairs,
    "bf16_emulated": EmulatedPairs,
    "bf16_tiles": Product,  # see amx.py
    "bf16_tiles_emulated": Product,
    "bf16_weights": WidenedWeights,
    "int8": ScaledWeights,
}


def product(form: Format) -> Product:
    """How a format multiplies."""
    return _KINDS.get(form.name, Product)(form)


assert set(FORMATS) - set(_KINDS) == {"float32", "float64"}
