"""The linear layer, where its input lies."""

from functools import cached_property
from typing import Any

from fastrnn.kernels import cpu

from .gemm import Matrix, product, sum_rows
from .memory import DeviceArray, empty, to_device, to_host


class Weights:
    """``weight [O, I]`` and ``bias [O]`` or None, on the device and on the host."""

    def __init__(self, weight, bias):
        self.weight = to_device(weight)
        self.bias = None if bias is None else to_device(bias)

    @cached_property
    def host(self) -> Any:
        bias = None if self.bias is None else to_host(self.bias)
        return cpu.LinearWeights(to_host(self.weight), bias)


def forward(weights: Weights, x):
    """``x [N, I] @ weight.T + bias``, [N, O]."""
    if not isinstance(x, DeviceArray):
        return cpu.linear_forward(weights.host, x)
    w = weights.weight
    outputs, inputs = w.shape
    y = empty((len(x), outputs), w.dtype)
    sizes = len(x), inputs, outputs
    part = Matrix(w, 0, inputs).transposed
    product(Matrix(x, 0, inputs), part, Matrix(y, 0, outputs), sizes, bias=weights.bias)
    return y


def backward(weights: Weights, x, dy, *, need_dx: bool = True):
    """``(dx or None, dweight, dbias)`` for ``dy [N, O]``."""
    if not isinstance(x, DeviceArray):
        return cpu.linear_backward(weights.host, x, dy, need_dx=need_dx)
    w = weights.weight
    (outputs, inputs), count, dx = w.shape, len(x), None
    dz = Matrix(dy, 0, outputs)
    if need_dx:
        dx = empty(x.shape, w.dtype)
        to = Matrix(dx, 0, inputs)
        product(dz, Matrix(w, 0, inputs), to, (count, outputs, inputs))
    dweight = empty(w.shape, w.dtype)
    sizes = outputs, count, inputs
    product(dz.transposed, Matrix(x, 0, inputs), Matrix(dweight, 0, inputs), sizes)
    return dx, dweight, sum_rows(dz, count, outputs)
