"""The linear layer on the GPU."""

from typing import Any, NamedTuple

from .gemm import product, sum_rows
from .matrix import Matrix, Sizes
from .memory import empty


class LinearWeights(NamedTuple):
    """``weight [O, I]`` and ``bias [O]`` or None."""

    weight: Any
    bias: Any
    precision: str = "float32"


def linear_forward(weights: LinearWeights, x, *, training: bool = False):
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    w = weights.weight
    outputs, inputs = w.shape
    y = empty((len(x), outputs), w.dtype)
    sizes = Sizes(len(x), inputs, outputs)
    part = Matrix(w, 0, inputs).transposed
    product(
        Matrix(x, 0, inputs), part, Matrix(y, 0, outputs), sizes, bias=weights.bias,
        precision=weights.precision,
    )  # fmt: skip
    return y


def linear_backward(weights: LinearWeights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    w = weights.weight
    (outputs, inputs), count, dx, precision = w.shape, len(x), None, weights.precision
    dz = Matrix(dy, 0, outputs)
    if need_dx:
        dx = empty(x.shape, w.dtype)
        sizes = Sizes(count, outputs, inputs)
        product(dz, Matrix(w, 0, inputs), Matrix(dx, 0, inputs), sizes, precision=precision)
    dweight = empty(w.shape, w.dtype)
    sizes = Sizes(outputs, count, inputs)
    to = Matrix(dweight, 0, inputs)
    product(dz.transposed, Matrix(x, 0, inputs), to, sizes, precision=precision)
    return dx, dweight, sum_rows(dz, count, outputs)
