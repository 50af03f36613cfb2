"""Tiles of the AMX instructions: 16 rows of activations by 4 vectors of weights, in bfloat16.

The packed layouts are those of the format bf16, with k rounded up to 16. Registers 0 to 3 add up
the vectors of a panel; 4 and 5 hold 16 rows x 32 numbers of the activations and the weights that go
with them, 6 and 7 half of that. All 16 rows are read, so memory for 15 must follow the last one.

The products of each segment are added up from 0, and then to what the row starts from. A single row
is multiplied by vector instructions, in the same order: they read weights faster.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastrnn.kernels.native.formats import AMX_ROWS as ROWS
from fastrnn.kernels.native.formats import Format

from .bfloat16 import call, each, halves, pair, read
from .loops import Loop, number
from .simd import Lanes

_WIDTH = 16  # numbers of float32 in a row of a register
_I8, _I32 = ir.IntType(8), ir.IntType(32)
_A, _B, _HALF_A, _HALF_B = 4, 5, 6, 7
_FULL_ROW = 4 * _WIDTH  # bytes
# Rows and bytes of a row of each register.
_SHAPES = [(ROWS, _FULL_ROW)] * 6 + [(ROWS, _FULL_ROW // 2), (ROWS // 2, _FULL_ROW)]


def configuration() -> bytes:
    """The operand of ldtilecfg: the shapes of the registers, in palette 1."""
    out = bytearray(64)
    out[0] = 1
    for i, (rows, row) in enumerate(_SHAPES):
        out[16 + 2 * i] = row
        out[48 + i] = rows
    return bytes(out)


def configure(builder) -> None:
    """Emit ldtilecfg, which each thread needs before it uses the registers."""
    kind = ir.ArrayType(_I8, 64)
    memory = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, bytearray(configuration())), memory)
    call(builder, "x86.ldtilecfg", ir.VoidType(), builder.bitcast(memory, _I8.as_pointer()))


def release(builder) -> None:
    """Emit tilerelease: the kernel then saves nothing more of them."""
    call(builder, "x86.tilerelease", ir.VoidType())


class Instructions:
    """The instructions on registers named by number."""

    def __init__(self, builder):
        self.builder = builder

    def _emit(self, name, *operands):
        values = [ir.Constant(_I8, n) if isinstance(n, int) else n for n in operands]
        call(self.builder, f"x86.{name}", ir.VoidType(), *values)

    def zero(self, register: int):
        self._emit("tilezero", register)

    def load(self, register: int, p, stride):
        self._emit("tileloadd64", register, p, stride)

    def store(self, register: int, p, stride):
        self._emit("tilestored64", register, p, stride)

    def multiply_add(self, to: int, a: int, b: int):
        self._emit("tdpbf16ps", to, a, b)


class EmulatedInstructions(Instructions):
    """The same in memory, in the order of sums of Intel's manual: for CPUs that have none."""

    def __init__(self, builder):
        super().__init__(builder)
        self.floats = Lanes(types.float32)
        assert self.floats.count == _WIDTH
        self.row = ir.VectorType(_I32, _WIDTH)
        self.registers = cgutils.alloca_once(builder, self.row, size=number(len(_SHAPES) * ROWS))

    def _row(self, register: int, i):
        return self.builder.gep(self.registers, [self.builder.add(number(ROWS * register), i)])

    def _each_row(self, register: int):
        return Loop(self.builder, number(_SHAPES[register][0]), [], "tile")

    def zero(self, register: int):
        loop = self._each_row(register)
        self.builder.store(each(0, _WIDTH), self._row(register, loop.n))
        loop.close([])

    def load(self, register: int, p, stride):
        loop, pairs = self._each_row(register), _SHAPES[register][1] // 4
        v = read(self.builder, self.builder.gep(p, [self.builder.mul(loop.n, stride)]), _I32, pairs)
        if pairs < _WIDTH:
            order = ir.Constant(self.row, list(range(_WIDTH)))
            v = self.builder.shuffle_vector(v, ir.Constant(v.type, [0] * pairs), order)
        self.builder.store(v, self._row(register, loop.n))
        loop.close([])

    def store(self, register: int, p, stride):
        loop = self._each_row(register)
        at = self.builder.gep(p, [self.builder.mul(loop.n, stride)])
        at = self.builder.bitcast(at, self.row.as_pointer())
        self.builder.store(self.builder.load(self._row(register, loop.n)), at, align=1)
        loop.close([])

    def multiply_add(self, to: int, a: int, b: int):
        builder, floats = self.builder, self.floats
        loop = self._each_row(to)
        pairs = builder.load(self._row(a, loop.n))
        totals = _no_sums(floats)
        for k in range(_SHAPES[b][0]):
            x = halves(builder, builder.shuffle_vector(pairs, pairs, each(k, _WIDTH)))
            y = halves(builder, builder.load(self._row(b, number(k))))
            totals = _add_pairs(builder, floats, x, y, totals)
        at = self._row(to, loop.n)
        before = builder.bitcast(builder.load(at), floats.vector)
        builder.store(builder.bitcast(_added(builder, before, totals), self.row), at)
        loop.close([])


# How a multiplication of registers adds up: for the first and for the second numbers of all pairs,
# and then both to what was there.


def _no_sums(floats: Lanes):
    return [each(0.0, _WIDTH, floats.element)] * 2


def _add_pairs(builder, floats: Lanes, x, y, totals):
    return [floats.call(builder, "fma", *terms) for terms in zip(x, y, totals, strict=True)]


def _added(builder, before, totals):
    return builder.fadd(before, builder.fadd(totals[1], totals[0]))


def _segment(builder, do: Instructions, segment, count: int, sums) -> None:
    """The products of a segment for ``count`` vectors, written to ``sums``."""
    a, a_at, row_stride, _, length, blocks, block_stride, b, b_at, b_stride = segment
    two = number(2)

    def bytes_at(p, *offsets):
        for offset in offsets:
            p = builder.gep(p, [offset])
        return builder.bitcast(p, _I8.as_pointer())

    def multiply(a_register, b_register, a_p, b_p):
        do.load(a_register, bytes_at(a_p), builder.mul(row_stride, two))
        for j in range(count):
            do.load(
                b_register, bytes_at(b_p, number(2 * _WIDTH * j)), builder.mul(b_stride, number(4))
            )
            do.multiply_add(j, a_register, b_register)

    for j in range(count):
        do.zero(j)
    a, b = builder.gep(a, [a_at]), builder.gep(b, [b_at])
    units = builder.sdiv(builder.add(length, number(15)), number(16))
    block = Loop(builder, blocks, [], "block")
    a_block = builder.gep(a, [builder.mul(block.n, block_stride)])
    b_block = builder.gep(b, [builder.mul(builder.mul(block.n, length), b_stride)])
    whole = Loop(builder, builder.sdiv(units, two), [], "k")
    k = builder.mul(whole.n, number(32))
    multiply(_A, _B, builder.gep(a_block, [k]), builder.gep(b_block, [builder.mul(k, b_stride)]))
    whole.close([])
    rest = Loop(builder, builder.srem(units, two), [], "rest")
    k = builder.mul(builder.sdiv(units, two), number(32))
    half = builder.gep(a_block, [k]), builder.gep(b_block, [builder.mul(k, b_stride)])
    multiply(_HALF_A, _HALF_B, *half)
    rest.close([])
    block.close([])
    for j in range(count):
        at = builder.gep(sums, [number(ROWS * j)])
        do.store(j, builder.bitcast(at, _I8.as_pointer()), number(_FULL_ROW))


def _row(builder, segment, count: int, sums) -> None:
    """`_segment` for the first row alone."""
    a, a_at, _, _, length, blocks, block_stride, b, b_at, b_stride = segment
    floats, two, most = Lanes(types.float32), number(2), number(_WIDTH)
    a, b = builder.gep(a, [a_at]), builder.gep(b, [b_at])
    units = builder.sdiv(builder.add(length, number(15)), number(16))
    pairs = builder.mul(units, number(8))
    zero = each(0.0, _WIDTH, floats.element)
    block = Loop(builder, blocks, [zero] * count, "block")
    a_block = builder.mul(block.n, block_stride)
    b_block = builder.mul(block.n, length)
    registers = builder.sdiv(builder.add(units, number(1)), two)
    whole = Loop(builder, registers, block.carried, "whole")
    first = builder.mul(whole.n, most)
    left = builder.sub(pairs, first)
    left = builder.select(builder.icmp_signed("<", left, most), left, most)
    inner = Loop(builder, left, _no_sums(floats) * count, "k")
    k = builder.mul(builder.add(first, inner.n), two)
    x = halves(builder, pair(builder, builder.gep(a, [builder.add(a_block, k)]), _WIDTH))
    b_k = builder.gep(b, [builder.mul(builder.add(b_block, k), b_stride)])
    new = []
    for j in range(count):
        y = halves(builder, read(builder, builder.gep(b_k, [number(2 * _WIDTH * j)]), _I32, _WIDTH))
        new += _add_pairs(builder, floats, x, y, inner.carried[2 * j : 2 * j + 2])
    new = inner.close(new)
    new = [
        _added(builder, before, new[2 * j : 2 * j + 2]) for j, before in enumerate(whole.carried)
    ]
    for j, total in enumerate(block.close(whole.close(new))):
        builder.store(total, builder.gep(sums, [number(ROWS * j)]))


def products(builder, form: Format, rows, segments, parts) -> Callable:
    """Emit all products; return what adds them to the vectors of a row, ``(i, acc) -> acc``."""
    do = (EmulatedInstructions if form.name.endswith("emulated") else Instructions)(builder)
    vector = ir.VectorType(ir.FloatType(), _WIDTH)
    areas = []
    for segment, part in zip(segments, parts, strict=True):
        sums = cgutils.alloca_once(builder, vector, size=number(ROWS * len(part)))
        is_one = builder.icmp_signed("==", rows, number(1))
        with builder.if_else(is_one) as (one, several):
            with one:
                _row(builder, segment, len(part), sums)
            with several:
                _segment(builder, do, segment, len(part), sums)
        areas.append(sums)

    def row(i, acc):
        acc = list(acc)
        for sums, part in zip(areas, parts, strict=True):
            for place, j in enumerate(part):
                at = builder.gep(sums, [builder.add(number(ROWS * place), i)])
                acc[j] = builder.fadd(acc[j], builder.load(at, align=4))
        return acc

    return row
