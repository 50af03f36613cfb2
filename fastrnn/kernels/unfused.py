"""The driver of cells whose step is a program of products and functions of whole rows.

Layer norm, projection, a reset gate before its product: what a step needs next depends on the whole
row, so a step is a few kernels instead of one tile. The time loop runs here, the same for every
backend; `Ops` is what a backend provides. Every operation treats each row on its own and adds in a
fixed order, so a sequence has the same bits in any batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastrnn.cells import Cell
from fastrnn.cells.activations import fma
from fastrnn.packed import PackedBatch

from .options import StepMasks

Array = Any
EPS = 1e-5  # of `Ops.normalise`


class Ops(Protocol):
    """Operations on arrays [n, .] of a backend, for one direction of one layer."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Uninitialised memory."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """An array of zeros."""

    def project(self, x: Array, bias: Array | None) -> Array:
        """``W_ih x + bias`` for x [N, I] or indices [N]; bias [G H]."""

    def project_backward(self, x: Array, dy: Array, need_dx: bool) -> tuple[Array | None, Array]:
        """``(dx or None, gradient of weight_ih)``."""

    def product(self, weight: str, source: Array) -> Array:
        """``source @ W.T``; "weight_hh:1:3" names the gates 1 and 2 of weight_hh, see `resolve`."""

    def product_backward(self, weight: str, dy: Array) -> Array:
        """The gradient of ``source``."""

    def weight_gradient(self, source: Array, dy: Array) -> Array:
        """``dy.T @ source``."""

    def elementwise(self, function: Callable, count: int, *inputs: Any) -> list[Array]:
        """``count`` new arrays [n, H]: what ``function`` returns for the numbers of each unit.

        An input is an array [n, H], a vector [H] for all rows, or ``(array [n, k H], block)``.
        """

    def join(self, blocks: Sequence[Array]) -> Array:
        """Arrays [n, H] side by side, [n, k H]."""

    def split(self, x: Array, widths: Sequence[int]) -> list[Array]:
        """The inverse of `join`: arrays of these widths."""

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Arrays [...] as one, [k, ...]."""

    def normalise(self, x: Array) -> tuple[Array, Array]:
        """``(x - mean) / sqrt(variance + EPS)`` of each row, and the factor [n, 1]."""

    def normalise_backward(self, dy: Array, y: Array, factor: Array) -> Array:
        """The gradient of x."""

    def sum_rows(self, x: Array) -> Array:
        """The sum over the rows in their order, [K]."""


class UnfusedWeights:
    """The parameters of one layer of such a cell, see kernels/backend.py.

    ``ops`` makes the `Ops` of a direction from the cell, the parameters by name and whether they
    are for training.
    """

    def __init__(self, cell: Cell, parameters: Sequence[Mapping[str, Array]], ops: Callable):
        self.cell, self.parameters = cell, parameters
        self.inference, self.training = (
            [ops(cell, p, training) for p in parameters] for training in (False, True)
        )


@dataclass
class Tape:
    """What `backward` needs of `forward`, for each direction."""

    x: Array
    packed: PackedBatch
    prepared: list[Any]
    previous: list[list[Array]]  # the states that each row started from
    saved: list[list[Any]]  # of each step
    sources: list[dict[str, Array]]
    masks: "list[_Masks | None]"
    used: bool = False


def _steps(packed: PackedBatch, reverse: bool):
    """``(first row, rows)`` of each step in the order of the time loop."""
    sizes, offsets = packed.batch_sizes.tolist(), packed.offsets.tolist()
    steps = list(zip(offsets, sizes, strict=False))
    return reversed(steps) if reverse else iter(steps)


class _Masks:
    """Zoneout and recurrent dropout of one direction.

    A new state becomes ``previous + keep * (new - previous)``, and a step starts from
    ``recurrent * h``.
    """

    def __init__(self, ops: Ops, masks: StepMasks, d: int, widths: Sequence[int]):
        self.ops, self.recurrent = ops, masks.recurrent[d]
        keep = ops.split(masks.keep[d], widths)
        # One row serves all as a vector.
        self.keep = [part.reshape(-1) if len(part) == 1 else part for part in keep]

    def _rows(self, first: int, last: int) -> list[Array]:
        return [part if part.ndim == 1 else part[first:last] for part in self.keep]

    def drop(self, h: Array) -> Array:
        """h on its way into the next step; its gradient is treated in the same way."""
        return self.ops.elementwise(multiply, 1, h, self.recurrent[0 : len(h)])[0]

    def blend(self, before: list[Array], new: list[Array], first: int) -> list[Array]:
        rows = self._rows(first, first + len(new[0]))
        triples = zip(before, new, rows, strict=True)
        return [self.ops.elementwise(blend, 1, *triple)[0] for triple in triples]

    def of_new(self, dstate: list[Array], first: int) -> list[Array]:
        """The part of a gradient that goes to the new state before `blend`."""
        rows = self._rows(first, first + len(dstate[0]))
        pairs = zip(dstate, rows, strict=True)
        return [self.ops.elementwise(multiply, 1, *pair)[0] for pair in pairs]

    def of_previous(self, dprevious: list[Array], dstate: list[Array], first: int) -> list[Array]:
        """The gradient of the previous state: what the cell passes on, and what `blend` kept."""
        rows = self._rows(first, first + len(dstate[0]))
        triples = zip(dprevious, dstate, rows, strict=True)
        h, *others = [self.ops.elementwise(pass_on, 1, *triple)[0] for triple in triples]
        return [self.drop(h), *others]


def recurrent_forward(
    weights: UnfusedWeights,
    x,
    packed: PackedBatch,
    state_0,
    *,
    training: bool,
    masks: StepMasks | None,
):
    """All directions of one layer, see kernels/backend.py."""
    w, program, n = weights, weights.cell.step_program(), packed.size
    ops_of = w.training if training else w.inference
    ys, states_n = [], []
    tape = Tape(x, packed, [], [], [], [], [])
    widths = [s.shape[2] for s in state_0]
    for d, (ops, p) in enumerate(zip(ops_of, w.parameters, strict=True)):
        a, prepared = program.prepare(ops, x, p)
        state = [_copy(ops, s[d]) for s in state_0]
        of_direction = _Masks(ops, masks, d, widths) if masks else None
        y = ops.empty((n, state[0].shape[1]))
        previous = [ops.empty((n if training else 0, s.shape[1])) for s in state]
        sources: dict[str, Array] = {}
        saved = []
        for first, active in _steps(packed, d == 1):
            last = first + active
            before = [s[0:active] for s in state]
            if of_direction:
                before[0] = of_direction.drop(before[0])
            new, kept, of_step = program.forward(ops, a[first:last], before, p)
            if of_direction:
                new = of_direction.blend(before, new, first)
            if training:
                for rows, part in zip(previous, before, strict=True):
                    rows[first:last] = part
                _collect(ops, sources, of_step, n, first)
                saved.append(kept)
            for s, part in zip(state, new, strict=True):
                s[0:active] = part
            y[first:last] = new[0]
        ys.append(y)
        states_n.append(state)
        tape.prepared.append(prepared)
        tape.previous.append(previous)
        tape.saved.append(saved)
        tape.sources.append(sources)
        tape.masks.append(of_direction)
    ops = ops_of[0]
    state_n = tuple(ops.stack(parts) for parts in zip(*states_n, strict=True))
    return ops.join(ys), state_n, tape if training else None


def recurrent_backward(weights: UnfusedWeights, tape: Any, dy, dstate_n, *, need_dx: bool = True):
    """Gradients of `recurrent_forward`, see kernels/backend.py."""
    if tape.used:
        raise ValueError("tape was used by an earlier backward: run forward again for a new one")
    tape.used = True
    w, program, n = weights, weights.cell.step_program(), tape.packed.size
    dys = w.training[0].split(dy, [dy.shape[1] // len(w.training)] * len(w.training))
    dx, dstates, grads = None, [], []
    for d, (ops, p) in enumerate(zip(w.training, w.parameters, strict=True)):
        dstate, masks = [_copy(ops, s[d]) for s in dstate_n], tape.masks[d]
        rows: dict[str, Array] = {}  # gradients of each row, by the name of a weight or a vector
        steps = list(_steps(tape.packed, d == 1))
        for (first, active), kept in zip(reversed(steps), reversed(tape.saved[d]), strict=True):
            last = first + active
            current = [s[0:active] for s in dstate]
            (current[0],) = ops.elementwise(add, 1, current[0], dys[d][first:last])
            before = [s[first:last] for s in tape.previous[d]]
            dnew = masks.of_new(current, first) if masks else current
            da, dprevious, dproducts, dvectors = program.backward(ops, before, p, kept, dnew)
            if masks:
                dprevious = masks.of_previous(dprevious, current, first)
            _collect(ops, rows, {"a": da, **dproducts, **dvectors}, n, first)
            for s, part in zip(dstate, dprevious, strict=True):
                s[0:active] = part
        da = rows.pop("a", None)
        if da is None:  # there was no step
            da = ops.zeros((0, p["weight_ih"].shape[0]))
        da, of_vectors = program.unprepare(ops, da, p, tape.prepared[d])
        named = _gradients(w.cell, ops, p, tape.sources[d], rows | of_vectors)
        of_x, named["weight_ih"] = ops.project_backward(tape.x, da, need_dx)
        if of_x is not None:
            dx = of_x if dx is None else ops.elementwise(add, 1, dx, of_x)[0]
        dstates.append(dstate)
        grads.append({name: named[name] for name in p})
    dstate_0 = tuple(w.training[0].stack(parts) for parts in zip(*dstates, strict=True))
    return dx, dstate_0, grads


def _copy(ops: Ops, x: Array) -> Array:
    out = ops.empty(tuple(x.shape))
    out[0 : len(out)] = x
    return out


def _collect(ops: Ops, all_rows: dict, of_step: Mapping[str, Array], n: int, first: int) -> None:
    """Store the rows of a step in arrays of all N rows, by name."""
    for name, part in of_step.items():
        if name not in all_rows:
            all_rows[name] = ops.empty((n, part.shape[1]))
        all_rows[name][first : first + part.shape[0]] = part


def resolve(cell: Cell, p: Mapping[str, Array], name: str) -> Array:
    """A weight, or some gates of it: "weight_hh:1:3" are the gates 1 and 2 of weight_hh."""
    base, first, last = _rows(cell, p, name)
    return p[base][first:last]


def _rows(cell: Cell, p: Mapping[str, Array], name: str) -> tuple[str, int, int]:
    """``(weight, first row, last row)`` of a name."""
    base, *gates = name.split(":")
    rows = p[base].shape[0]
    if not gates:
        return base, 0, rows
    size = rows // len(cell.gates)
    return base, int(gates[0]) * size, int(gates[1]) * size


def _gradients(cell: Cell, ops: Ops, p: Mapping[str, Array], sources, rows) -> dict[str, Array]:
    """The gradients of all parameters but weight_ih; zero where there was no step."""
    named = {name: ops.zeros(tuple(value.shape)) for name, value in p.items()}
    for name, part in rows.items():
        if name in sources:
            base, first, last = _rows(cell, p, name)
            named[base][first:last] = ops.weight_gradient(sources[name], part)
        elif name in p:
            named[name] = ops.sum_rows(part)
    return named


# Elementwise functions, see `Ops.elementwise`.


def add(a, b):
    return (a + b,)


def multiply(a, b):
    return (a * b,)


def blend(previous, new, keep):
    return (fma(keep, new - previous, previous),)


def pass_on(dprevious, d, keep):
    return (fma(d, 1.0 - keep, dprevious),)
