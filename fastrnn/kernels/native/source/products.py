"""How a tile multiplies in each format (kernels/native/formats.py): what tile.py emits for a k."""

from llvmlite import ir
from numba import types

from fastrnn.kernels.native.formats import FORMATS, Format

from . import int8
from .bfloat16 import bfloats, call, each, halves, pair, read, widened
from .simd import Lanes

_I16, _I32 = ir.IntType(16), ir.IntType(32)


class Product:
    """All of one type. Pointers are to a number; a panel has `lanes` numbers for each vector."""

    is_exact = False  # sums, so that they may be in any order

    def __init__(self, form: Format):
        self.step, self.head, self.row_head = form.step, form.head, form.row_head
        self.lanes = Lanes(getattr(types, form.numbers))

    def start(self, acc):
        """What the sums of a segment start from, for the vectors before it."""
        return acc

    def end(self, builder, acc, sums, scale, row):
        """The vector after a segment; ``scale`` points to the column's, ``row`` to the
        activations."""
        return sums

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


class Pairs(Product):
    """Both in bfloat16, two numbers of k at once."""

    def weights(self, builder, p):
        count = self.lanes.count
        return builder.bitcast(read(builder, p, _I32, count), bfloats(2 * count))

    def activation(self, builder, p):
        return builder.bitcast(pair(builder, p, self.lanes.count), bfloats(2 * self.lanes.count))

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


class Integers(Product):
    """Weights in int8, the scales of their columns before them; activations in int16."""

    is_exact = True

    def start(self, acc):
        return [each(0, self.lanes.count)] * len(acc)

    def end(self, builder, acc, sums, scale, row):
        of_row = self.lanes.splat(builder, self._scale(builder, row, builder.load))
        of_column = self._scale(builder, scale, lambda p: self.lanes.load(builder, p))
        factor = builder.fmul(of_row, of_column)
        floats = builder.sitofp(sums, self.lanes.vector)
        return self.lanes.call(builder, "fmuladd", floats, factor, acc)

    def _scale(self, builder, p, load):
        return load(builder.bitcast(p, self.lanes.element.as_pointer()))

    def weights(self, builder, p):
        count = 2 * self.lanes.count
        v = builder.sext(read(builder, p, ir.IntType(8), count), ir.VectorType(_I16, count))
        return builder.bitcast(v, each(0, self.lanes.count).type)

    def activation(self, builder, p):
        return pair(builder, p, self.lanes.count)

    def dot(self, builder, a, b, total):
        return int8.dot(builder, a, b, total)


_KINDS = {
    "bf16": Pairs,
    "bf16_emulated": EmulatedPairs,
    "bf16_tiles": Product,  # see amx.py
    "bf16_tiles_emulated": Product,
    "bf16_weights": WidenedWeights,
    "int8": Integers,
}


def product(form: Format) -> Product:
    """How a format multiplies."""
    return _KINDS.get(form.name, Product)(form)


assert set(FORMATS) - set(_KINDS) == {"float32", "float64"}
