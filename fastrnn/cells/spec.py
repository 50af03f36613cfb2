"""`Cell`: everything that the package knows about a recurrent cell, in one record.

A unit of a cell has some *accumulators*: sums that start from the biases, to which the products
``W_ih x`` and ``W_hh h`` are added, and that its equations turn into gates and states. W_ih adds to
the first accumulators (`input_gates`), W_hh to the last (`recurrent_gates`); most cells add both
to all of them. Kernels, layers, parameter names and tests are derived from this record.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from .activations import activation, parse

MAX_ACCUMULATORS = 4  # vectors of a register tile


class Equations(NamedTuple):
    """A cell's equations for one unit, over any kind of number (see `activations`).

    They are made with the cell's activation functions, each a pair of the function and its slope,
    which takes the function's result.

    ``forward(z, state, p) -> (saved, new_state)`` and
    ``backward(saved, state, p, dstate) -> (dz, dprevious, dp)``, all tuples: z, saved and dz of the
    accumulators, the states in the order of `Cell.states`, p and dp of the per-unit parameters.
    ``dprevious`` is the gradient of the previous states that does not pass through the products.
    `backward` may only read those of the states that `forward` reads.
    """

    forward: Callable
    backward: Callable


class Reference(NamedTuple):
    """One step of the cell for a whole batch in plain NumPy, the oracle of all kernels.

    ``forward(x [B, I], state, w) -> (new_state, cache)`` and
    ``backward(x, state, w, cache, dstate) -> (dx, dprevious, dw)``; w and dw are parameters by
    name, without a layer's suffix. It shares no code with the equations, and its activation
    functions are pairs ``(f(x), backward(y, dy))`` of its own (`oracle.function`).
    """

    forward: Callable
    backward: Callable


class Parameter(NamedTuple):
    """A parameter beyond weight_ih, weight_hh and the biases."""

    name: str
    shape: tuple[str, ...]  # of "H" units, "P" the size of h, "GH" gates times units
    initial: str  # "glorot", "zeros" or "ones"


class Program(NamedTuple):
    """A cell whose step is not elementwise: products and functions of whole rows, in order.

    ``ops`` (`kernels.unfused.Ops`) computes on arrays [n, .] of any backend; w are the parameters
    by name. All functions return new arrays.

    ``prepare(ops, x, w) -> (a, saved)`` and ``unprepare(ops, da, w, saved) -> (dproduct, dw)``
        For all rows at once, before and after the time loop: what x brings to each step, and the
        gradient of ``W_ih x``.
    ``forward(ops, a, state, w) -> (new_state, saved, sources)``
        One step; sources are what each recurrent weight multiplied, by its name.
    ``backward(ops, state, w, saved, dstate) -> (da, dprevious, dproducts, dw)``
        dproducts are the gradients of the products by the names of the weights. dw are the
        gradients of vectors by name for each row, which are summed over the rows afterwards.
    """

    prepare: Callable
    unprepare: Callable
    forward: Callable
    backward: Callable


class Cell(NamedTuple):
    """A recurrent cell."""

    name: str
    gates: tuple[str, ...]  # in PyTorch's order, the row blocks of weight_ih and weight_hh
    states: tuple[str, ...]  # h first; each [B, H]
    accumulators: int  # per unit
    input_gates: tuple[str, ...]  # added to the first accumulators, in this order
    recurrent_gates: tuple[str, ...]  # added to the last accumulators, in this order
    equations: Callable[..., Equations]  # of the functions of `activations`
    activations: tuple[str, ...]  # see `activations.parse`
    reference: Callable[..., Reference]  # of their names and parameters, see `oracle.function`
    unit_parameters: tuple[str, ...] = ()  # trained, [H] each
    unit_constants: tuple[str, ...] = ()  # not trained, [H] each; they follow the parameters in p
    initial_biases: tuple[tuple[str, float], ...] = ()  # gates whose bias_ih does not start at 0
    parameters: tuple[Parameter, ...] = ()  # of a cell with a program
    program: Callable[..., Program] | None = None  # of the functions of `activations`; None: fused

    @property
    def input_order(self) -> tuple[int, ...]:
        """The row block of weight_ih behind each of the first accumulators."""
        return tuple(map(self.gates.index, self.input_gates))

    @property
    def recurrent_order(self) -> tuple[int, ...]:
        """The row block of weight_hh behind each of the last accumulators."""
        return tuple(map(self.gates.index, self.recurrent_gates))

    @property
    def first_recurrent(self) -> int:
        """The first accumulator that W_hh adds to."""
        return self.accumulators - len(self.recurrent_gates)

    @property
    def unit_inputs(self) -> tuple[str, ...]:
        """The names of p."""
        return self.unit_parameters + self.unit_constants

    def with_activations(self, *names: str) -> "Cell":
        """The same cell with other activation functions.

        Raises
        ------
        ValueError
            There are too few or too many, or a name is unknown.
        """
        if len(names) != len(self.activations):
            raise ValueError(
                f"activations must be {len(self.activations)} names for the cell {self.name}, "
                f"got {len(names)}"
            )
        for name in names:
            parse(name)
        return self._replace(activations=names)

    def step_equations(self) -> Equations:
        """The equations with the cell's activation functions."""
        return self.equations(*map(activation, self.activations))

    def step_program(self) -> Program:
        """The program with the cell's activation functions."""
        return _step_program(self)

    def shape(self, parameter: Parameter, units: int, size: int) -> tuple[int, ...]:
        """The shape of a parameter for H ``units`` and an h of ``size``."""
        sizes = {"H": units, "P": size, "GH": len(self.gates) * units}
        return tuple(sizes[symbol] for symbol in parameter.shape)

    def oracle(self) -> Reference:
        """The reference with the cell's activation functions."""
        return self.reference(*map(parse, self.activations))

    @property
    def key(self) -> str:
        """A name of its own for each cell and choice of activations."""
        return "_".join((self.name, *self.activations))


@cache
def _step_program(cell: Cell) -> Program:
    """Once: kernels are made for the functions in it."""
    assert cell.program
    return cell.program(*map(activation, cell.activations))


def check(cell: Cell) -> Cell:
    """The cell, or AssertionError if it is not one that the kernels can compute."""
    assert cell.states[0] == "h", cell
    assert {gate for gate, _ in cell.initial_biases} <= set(cell.gates), cell
    assert 1 <= cell.accumulators <= MAX_ACCUMULATORS, cell
    if cell.program:
        cell.step_program()
        return cell
    for gates in (cell.input_gates, cell.recurrent_gates):
        # Every row of a weight is packed exactly once.
        assert sorted(gates) == sorted(cell.gates) and len(gates) <= cell.accumulators, cell
    # Every accumulator has a sum.
    assert len(cell.input_gates) + len(cell.recurrent_gates) >= cell.accumulators, cell
    cell.step_equations()  # the activations exist
    return cell
