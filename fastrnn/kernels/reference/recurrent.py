"""The time loop of the reference: padded arrays, one step after the other, in plain NumPy.

T steps, B sequences, I inputs, H hidden units, S states. `forward` takes x [T, B, I], lengths [B],
the parameters by name and a tuple of states [B, H]; with ``reverse`` each sequence runs from its
own end to its start. Precision is that of the inputs (use float64).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell
from fastrnn.kernels import host
from fastrnn.kernels.options import StepMasks
from fastrnn.packed import PackedBatch

from .rounding import Rounded, operand, weight


class Masks(NamedTuple):
    """Zoneout (Krueger et al. 2016) and recurrent dropout (Gal & Ghahramani 2016).

    A new state becomes ``previous + keep * (new - previous)``, and a step starts from
    ``recurrent * h``.
    """

    keep: Sequence[Any]  # of each state, [T or 1, B or 1, its size]
    recurrent: Any  # [B, size of h]

    def at(self, t: int, state: int):
        keep = self.keep[state]
        return keep[t % len(keep)]


def forward(cell: Cell, x, lengths, w, state, *, reverse=False, masks: Masks | None = None):
    """``(y [T, B, H], state, cache)`` of one direction of one layer."""
    oracle = cell.oracle()
    y, cache = np.zeros((*x.shape[:2], state[0].shape[1]), x.dtype), list[Any]()
    steps = range(len(x))
    for t in reversed(steps) if reverse else steps:
        active, previous = (t < lengths)[:, None], state
        if masks:
            previous = (state[0] * masks.recurrent, *state[1:])
        if isinstance(x, Rounded):
            previous = (previous[0].view(Rounded), *previous[1:])
        new, kept = oracle.forward(x[t], previous, w)
        if masks:
            pairs = enumerate(zip(previous, new, strict=True))
            new = tuple(a + masks.at(t, i) * (b - a) for i, (a, b) in pairs)
        cache.append((t, active, previous, kept))
        y[t] = np.where(active, new[0], 0)
        state = tuple(np.where(active, a, b) for a, b in zip(new, state, strict=True))
    return y, state, cache


def backward(cell: Cell, x, w, cache, dy, dstate, *, masks: Masks | None = None):
    """``(dx, dstate of the start, dw by name)``."""
    oracle = cell.oracle()
    dx, dw = np.zeros(x.shape, x.dtype), {n: np.zeros(v.shape, x.dtype) for n, v in w.items()}
    for t, active, previous, kept in reversed(cache):
        dh, *others = dstate
        d = tuple(np.where(active, v, 0) for v in (dh + dy[t], *others))
        dnew = d
        if masks:
            dnew = tuple(masks.at(t, i) * v for i, v in enumerate(d))
        dx[t], dprevious, of_step = oracle.backward(x[t], previous, w, kept, dnew)
        if masks:
            past = [(1 - masks.at(t, i)) * v for i, v in enumerate(d)]
            dprevious = [a + b for a, b in zip(dprevious, past, strict=True)]
            dprevious[0] = dprevious[0] * masks.recurrent
        for name, value in of_step.items():
            dw[name] += value
        dstate = tuple(np.where(active, a, b) for a, b in zip(dprevious, dstate, strict=True))
    return dx, dstate, dw


class RecurrentWeights(NamedTuple):
    """The parameters of one layer, see kernels/backend.py."""

    cell: Cell
    parameters: Sequence[Mapping[str, np.ndarray]]
    precision: str = "float32"

    def of_direction(self, d: int, dtype) -> dict[str, np.ndarray]:
        """The parameters of a direction by name, with biases of 0 where there are none."""
        w = {name: weight(value, self.precision) for name, value in self.parameters[d].items()}
        for name, like in (("bias_ih", "weight_ih"), ("bias_hh", "weight_hh")):
            w.setdefault(name, np.zeros(len(w[like]), dtype))
        return w


class Tape(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: np.ndarray  # [T, B, I]
    is_index: bool
    packed: PackedBatch
    caches: list
    masks: list


def _masks(masks: StepMasks | None, d: int, packed: PackedBatch, state_0) -> Masks | None:
    """The masks of a direction for padded arrays."""
    if masks is None:
        return None
    keep = masks.keep[d]
    padded = keep[None] if len(keep) == 1 else host.unpack(keep, packed)
    ends = np.cumsum([s.shape[-1] for s in state_0])
    return Masks(np.split(padded, ends[:-1], axis=2), masks.recurrent[d])


def _sorted(packed: PackedBatch) -> PackedBatch:
    """The same batch with its sequences in the sorted order."""
    return PackedBatch(packed.steps, packed.batch, packed.lengths)


def _stack(states) -> tuple[np.ndarray, ...]:
    """The states of each direction as one array per state."""
    return tuple(np.stack(parts) for parts in zip(*states, strict=True))


def recurrent_forward(
    weights: RecurrentWeights,
    x,
    packed: PackedBatch,
    state_0,
    *,
    training: bool,
    masks: StepMasks | None = None,
):
    """See kernels/backend.py."""
    packed = _sorted(packed)
    is_index = x.ndim == 1
    if is_index:
        x = np.eye(weights.parameters[0]["weight_ih"].shape[1], dtype=state_0[0].dtype)[x]
    padded = operand(host.unpack(x, packed), weights.precision)
    ys, states, caches, all_masks = [], [], [], []
    for d in range(len(weights.parameters)):
        w = weights.of_direction(d, x.dtype)
        state = tuple(s[d] for s in state_0)
        all_masks.append(_masks(masks, d, packed, state_0))
        y, state_n, cache = forward(
            weights.cell, padded, packed.lengths, w, state, reverse=d == 1, masks=all_masks[d]
        )
        ys.append(host.pack(y, packed))
        states.append(state_n)
        caches.append(cache)
    tape = Tape(padded, is_index, packed, caches, all_masks) if training else None
    return np.concatenate(ys, axis=1), _stack(states), tape


def recurrent_backward(
    weights: RecurrentWeights, tape: Tape, dy, dstate_n, *, need_dx: bool = True
):
    """See kernels/backend.py."""
    parts = np.split(host.unpack(dy, tape.packed), len(weights.parameters), axis=2)
    dxs, states, grads = [], [], []
    for d, (cache, part) in enumerate(zip(tape.caches, parts, strict=True)):
        w = weights.of_direction(d, tape.x.dtype)
        dstate = tuple(s[d] for s in dstate_n)
        dx, dstate_0, dw = backward(
            weights.cell, tape.x, w, cache, part, dstate, masks=tape.masks[d]
        )
        dxs.append(dx)
        states.append(dstate_0)
        constants = weights.cell.unit_constants
        grads.append({name: dw[name] for name in weights.parameters[d] if name not in constants})
    dx = None if tape.is_index else host.pack(sum(dxs), tape.packed)
    return dx, _stack(states), grads


def recurrent_plan(layers: Sequence[RecurrentWeights], steps: int, batch: int) -> None:
    """None: this backend has no plans, see kernels/backend.py."""
    return None
