"""Matrices as products take them: parts of flat arrays."""

from typing import NamedTuple

from fastrnn.kernels.signature import F1, I


class Matrix(NamedTuple):
    """Part of an array: element (i, j) is ``values[offset + i * row + j * column]``."""

    values: F1
    offset: I
    row: I
    column: I = 1

    @property
    def transposed(self) -> "Matrix":
        return Matrix(self.values, self.offset, self.column, self.row)


class Sizes(NamedTuple):
    """Of a product: rows and columns of the result, and what is summed over."""

    rows: I
    inner: I
    columns: I
