"""A stack of layers as a differentiable function of tensors: for eager mode, and as an operator.

Tensors and NumPy arrays share their memory on the way in and out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastrnn.cells import CELLS
from fastrnn.kernels import cpu
from fastrnn.kernels.backend import Backend, get_backend
from fastrnn.layers.stack import Stack, State
from fastrnn.packed import PackedBatch

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def array(tensor: Tensor, kernels: Backend = cpu, name: str = "x") -> Any:
    """The memory of a tensor as an array of a backend, or a copy if it is not contiguous."""
    if kernels.on_device:
        return kernels.device_view(tensor.detach().contiguous(), name)
    return np.ascontiguousarray(tensor.numpy(force=True))


def _tensor(value, like: Tensor, kernels: Backend) -> Tensor:
    """The inverse."""
    return kernels.to_caller(like, value) if kernels.on_device else torch.from_numpy(value)


def _rows(x: Tensor, kernels: Backend) -> Any:
    """The rows [N, I] of x [T, B, I], or of x itself."""
    turned = x.transpose(0, 1)
    batch_first = x.dim() == 3 and not x.is_contiguous() and turned.is_contiguous()
    if batch_first and not kernels.on_device:  # there PyTorch's own copy needs no indices
        return kernels.pack(array(turned, kernels), PackedBatch(*x.shape[:2]), batch_first=True)
    return array(x, kernels).reshape(-1, x.shape[-1])


class Spec(NamedTuple):
    """A stack of layers, apart from its weights."""

    backend: str
    cell: str  # a name in `CELLS`
    directions: int
    dropout: float
    names: tuple[str, ...]  # of the weights of a layer and direction, from `NAMES`
    precision: str

    def text(self) -> str:
        """For an operator, whose arguments are tensors and plain values."""
        return " ".join(
            (self.backend, self.cell, str(self.directions), str(self.dropout), self.precision)
            + self.names
        )

    @classmethod
    def read(cls, text: str) -> "Spec":
        """The inverse of `text`."""
        backend, cell, directions, dropout, precision, *names = text.split()
        return cls(backend, cell, int(directions), float(dropout), tuple(names), precision)


def stack_of(spec: Spec, weights: Sequence[Tensor]) -> Stack:
    """The layers, on the memory of their weights."""
    kernels, names, layers = get_backend(spec.backend), spec.names, []
    with kernels.stream_of(weights[0]):
        for first in range(0, len(weights), spec.directions * len(names)):
            parts = []
            for d in range(spec.directions):
                own = weights[first + d * len(names) : first + (d + 1) * len(names)]
                named = zip(names, own, strict=True)
                parts.append({name: array(w, kernels, name) for name, w in named})
            layers.append(kernels.RecurrentWeights(CELLS[spec.cell], parts, spec.precision))
    return Stack(kernels, layers, spec.directions, spec.dropout)


def compute(stack: Stack, packed: PackedBatch, keys, x: Tensor, states, *, training: bool):
    """``(y, final states, tape)``; y and states as tensors."""
    kernels = stack.kernels
    with kernels.stream_of(x):
        state, rows = tuple(array(s, kernels) for s in states), _rows(x, kernels)
        y, state_n, tape = stack.forward(rows, packed, state, training=training, keys=keys)
        y = _tensor(y, x, kernels).view(*x.shape[:-1], y.shape[1])
        return y, [_tensor(s, x, kernels) for s in state_n], tape


def gradients(stack: Stack, tape, names: Sequence[str], x: Tensor, dy, dstates, need_dx: bool):
    """``(dx or None, gradients of the initial states, gradients of the weights)``."""
    kernels = stack.kernels
    with kernels.stream_of(x):
        dstate: State = tuple(array(d, kernels) for d in dstates)
        by_layer: dict[int, list[dict[str, Any]]] = {}
        dx, dstate = stack.backward(
            tape, _rows(dy, kernels), dstate, by_layer.__setitem__, need_dx=need_dx
        )
        dweights = [
            own[name] for layer in sorted(by_layer) for own in by_layer[layer] for name in names
        ]
        return (
            None if dx is None else _tensor(dx, x, kernels).view(x.shape),
            [_tensor(d, x, kernels) for d in dstate],
            [_tensor(d, x, kernels) for d in dweights],
        )


class Pass(torch.autograd.Function):
    """Eager mode."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, packed, keys, names, count, x, *tensors):
        states = tensors[:count]  # the others are the weights
        ctx.call, ctx.names, ctx.count = (stack, packed, keys), names, count
        ctx.save_for_backward(x, *tensors)  # which notices changes in place
        # Under activation checkpointing nothing may be kept: the backward pass computes it again.
        keep = torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        y, state_n, ctx.tape = compute(stack, packed, keys, x, states, training=keep)
        return (y, *state_n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy, *dstates):
        x, *tensors = ctx.saved_tensors
        states = tensors[: ctx.count]
        tape, ctx.tape = ctx.tape, None
        if tape is None:  # or this is not the first backward of a graph that is retained
            stack, packed, keys = ctx.call
            _, _, tape = compute(stack, packed, keys, x, states, training=True)
        need_dx = ctx.needs_input_grad[5]
        dx, dstate, dweights = gradients(ctx.call[0], tape, ctx.names, x, dy, dstates, need_dx)
        return None, None, None, None, None, dx, *dstate, *dweights


# torch.compile sees one opaque operator. It may pass only tensors and plain values from the forward
# to the backward pass, so the latter computes the former again.


def _call(
    x: Tensor, batch_sizes: Tensor | None, weights, keys: Tensor, spec: Spec
) -> tuple[Stack, PackedBatch, list[int | None]]:
    """The stack, the packed batch and the keys of a call."""
    if batch_sizes is None:
        packed = PackedBatch(*x.shape[:2])
    else:
        packed = PackedBatch.of_sizes(array(batch_sizes))
    return stack_of(spec, weights), packed, [None if key < 0 else key for key in keys.tolist()]


@torch.library.custom_op("fastrnn::recurrent", mutates_args=(), device_types=("cpu", "cuda"))
def recurrent(
    x: Tensor,
    batch_sizes: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    keys: Tensor,
    spec: str,
) -> list[Tensor]:
    """``[y, *final states]`` of x [T, B, I], or [N, I] with ``batch_sizes``; a negative key stands
    for no dropout."""
    call = _call(x, batch_sizes, weights, keys, Spec.read(spec))
    y, state_n, _ = compute(*call, x, states, training=False)
    return [y, *state_n]


@recurrent.register_fake
def _(x, batch_sizes, states, weights, keys, spec):
    y = x.new_empty((*x.shape[:-1], Spec.read(spec).directions * states[0].shape[2]))
    return [y, *(s.new_empty(s.shape) for s in states)]


@torch.library.custom_op(
    "fastrnn::recurrent_backward", mutates_args=(), device_types=("cpu", "cuda")
)
def recurrent_backward(
    dy: Tensor,
    dstates: list[Tensor],
    x: Tensor,
    batch_sizes: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    keys: Tensor,
    spec: str,
) -> list[Tensor]:
    """``[dx, *gradients of the initial states, *gradients of the weights]``."""
    known = Spec.read(spec)
    call = _call(x, batch_sizes, weights, keys, known)
    _, _, tape = compute(*call, x, states, training=True)
    dx, dstate, dweights = gradients(call[0], tape, known.names, x, dy, dstates, True)
    return [dx, *dstate, *dweights]


@recurrent_backward.register_fake
def _(dy, dstates, x, batch_sizes, states, weights, keys, spec):
    return [t.new_empty(t.shape) for t in (x, *states, *weights)]


def _setup(ctx, inputs, output):
    x, batch_sizes, states, weights, keys, ctx.spec = inputs
    ctx.count = len(states)
    ctx.save_for_backward(x, batch_sizes, keys, *states, *weights)


def _backward(ctx, grads):
    dy, *dstates = grads
    x, batch_sizes, keys, *tensors = ctx.saved_tensors
    states, weights = tensors[: ctx.count], tensors[ctx.count :]
    dx, *others = recurrent_backward(dy, dstates, x, batch_sizes, states, weights, keys, ctx.spec)
    return dx, None, others[: ctx.count], others[ctx.count :], None, None


recurrent.register_autograd(_backward, setup_context=_setup)
