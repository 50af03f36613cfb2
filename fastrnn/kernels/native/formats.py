"""Formats: the types that products are computed with, beside the types of everything else.

A product multiplies *activations* (x, h or the gradients of the accumulators) by *weights* in
packed panels (layouts.py) and adds up numbers of the type F. A kernel that multiplies is made for a
format; its source is the same for all of them, with the letters F, A, P and S for the types
(kernels/signature.py), and source/products.py has what is different: how a panel is loaded,
multiplied and scaled.

    float32, float64   all of one type
    bf16               activations and weights in bfloat16, two numbers of k in one instruction
    bf16_tiles         the same by the tile instructions of AMX
    bf16_weights       weights in bfloat16, widened when they are loaded
    int8               weights in int8 with a scale for each column, activations in int16 with a
                       scale for each row (source/int8.py)

All but the first two are for float32 sums. Arrays of bfloat16 are uint16 to NumPy.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .isa import ISA, Isa

AMX_ROWS = 16  # of one of its registers
ROW_HEAD = 2  # int16 in which a row of integers begins: its scale in float32


class Format(NamedTuple):
    """The types of a product, and how its panels lie."""

    name: str
    numbers: str  # F: sums, states, biases, gradients
    activations: str  # A
    weights: str  # P
    step: int = 1  # numbers of k that lie side by side in a panel
    unit: int = 1  # k is rounded up to a multiple of this
    head: int = 0  # rows of a panel before the weights: its scales
    trains: bool = True  # has kernels for gradients
    saved: str = "float32"  # S: gates that are kept for the backward pass; int16 stands for float16

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded where they are produced."""
        return self.activations == "uint16"

    @property
    def quantises(self) -> bool:
        """Whether rows of activations become integers when the whole row is there."""
        return self.activations == "int16"

    @property
    def row_head(self) -> int:
        """Numbers before the activations of a row: its scale."""
        return ROW_HEAD if self.quantises else 0

    def types(self) -> dict[str, np.dtype]:
        """By the letters of signatures."""
        letters = {"F": self.numbers, "A": self.activations, "P": self.weights, "S": self.saved}
        return {letter: np.dtype(name) for letter, name in letters.items()}

    def depth(self, k: int) -> int:
        """Rows of a panel for k rows of weights."""
        return self.head + -(-k // self.unit) * self.unit

    @property
    def is_tiled(self) -> bool:
        """Whether it multiplies whole tiles, of rows that may follow the last one too."""
        return self.unit > self.step

    @property
    def tile_rows(self) -> int:
        """Rows of a tile at most."""
        return AMX_ROWS if self.is_tiled else ISA.tile_rows

    @property
    def spare_rows(self) -> int:
        """How many rows of memory must follow the activations."""
        return AMX_ROWS - 1 if self.is_tiled else 0


_HALVES = ("float32", "uint16", "uint16")
FORMATS = {
    f.name: f
    for f in (
        Format("float32", "float32", "float32", "float32"),
        Format("float64", "float64", "float64", "float64", saved="float64"),
        Format("bf16", *_HALVES, step=2, unit=2, saved="int16"),
        Format("bf16_tiles", *_HALVES, step=2, unit=16, saved="int16"),
        # The same bits by instructions that all CPUs of the path have, for tests.
        Format("bf16_emulated", *_HALVES, step=2, unit=2, saved="int16"),
        Format("bf16_tiles_emulated", *_HALVES, step=2, unit=16, saved="int16"),
        Format("bf16_weights", "float32", "float32", "uint16", trains=False),
        # Four bytes of a column are its scale in float32.
        Format("int8", "float32", "int16", "int8", step=2, unit=2, head=4, trains=False),
    )
}


@cache
def plain(dtype) -> Format:
    """All of one type.

    Raises
    ------
    TypeError
        ``dtype`` is not in the machine's byte order.
    """
    if not dtype.isnative:
        raise TypeError(f"arrays must be in the machine's byte order, got {dtype.str}")
    return FORMATS[dtype.name]


@cache
def choose(precision: str, dtype: np.dtype, training: bool) -> Format:
    """What this CPU computes a precision with.

    Where it has no instruction for bfloat16, training is in float32, which is faster there than
    anything else.
    """
    if precision == "float32":
        return plain(dtype)
    if precision == "int8":
        return FORMATS["int8"]
    return FORMATS[ISA.bf16 or ("float32" if training else "bf16_weights")]


def precompiled_formats(isa: Isa) -> list[str]:
    """Those that a build for a path contains."""
    if isa.base:  # all others are in the base
        return [isa.bf16, "int8"]
    return ["float32", "float64", "bf16_weights", "int8"]
