"""The parameters of a recurrent layer, packed for the kernels."""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from fastrnn._native import Kernel
from fastrnn.cells import Cell
from fastrnn.kernels.native import layouts
from fastrnn.kernels.native.formats import Format, choose, plain
from fastrnn.kernels.native.isa import PANEL, width
from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import Masks
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import Job, parallel_for

from . import linear


class Side:
    """Where the rows of weight_ih or weight_hh lie in packed panels."""

    def __init__(self, order: tuple[int, ...], units: int, dtype, first: int, single: bool):
        self.positions = layouts.gate_positions(units, order, dtype)  # the column of each row
        # The row of each column, -1 for none; in whole panels of one gate for a single one.
        gates = layouts.plain_columns(units, dtype) if single else None
        self.columns = layouts.gate_columns(units, order, dtype) if gates is None else gates
        self.offset = first * width(dtype)  # of these columns in a panel of all accumulators


class Shape:
    """What the layout of a layer's parameters depends on, and the kernels of its cell."""

    def __init__(
        self, cell: Cell, inputs: int, units: int, directions: int, dtype: np.dtype, precision: str
    ):
        self.cell, self.dtype = cell, dtype
        self.inference = choose(precision, dtype, training=False)
        self.gradients = choose(precision, dtype, training=True)
        self.inputs, self.units, self.directions = inputs, units, directions
        self.lanes = width(dtype)
        self.hp = -(-units // self.lanes) * self.lanes
        single = cell.accumulators == 1
        self.x = Side(cell.input_order, units, dtype, 0, single)
        self.h = Side(cell.recurrent_order, units, dtype, cell.first_recurrent, single)
        self.panel = (PANEL if single else cell.accumulators) * self.lanes
        self.panels = -(-self.hp // self.panel) if single else self.hp // self.lanes
        # Numbers that a row of gates has for one direction.
        self.gates_size = self.hp if single else self.panels * self.panel
        # Length and stride of the runs of gates that belong to the product with a weight.
        self.x_runs, self.h_runs = (
            (self.hp, self.hp) if single else (len(gates) * self.lanes, self.panel)
            for gates in (cell.input_gates, cell.recurrent_gates)
        )
        self.state_size = linear.row_size(units, dtype)
        none = np.empty((0, 0), dtype)
        self.no_masks = Masks(none, 0, none)  # of a layer without zoneout and recurrent dropout
        self._loops: dict[tuple, Kernel] = {}

    def loop(self, which: str, form: Format, regularised: bool) -> Kernel:
        """The time loop "forward" or "backward"."""
        key = which, form.name, regularised
        if key not in self._loops:
            self._loops[key] = find(f"fused.{which}", form, self.cell, regularised)
        return self._loops[key]


_shape = lru_cache(256)(Shape)


class FusedWeights(Shape):
    """The parameters of one layer, packed when first needed and kept until they change.

    Parameters
    ----------
    cell : Cell
    parameters : sequence over the D directions of mappings of str to array
    precision : str
        See `kernels.backend`.
    """

    def __init__(self, cell: Cell, parameters, precision: str):
        w_ih, w_hh = parameters[0]["weight_ih"], parameters[0]["weight_hh"]
        # All that does not depend on the parameters is made once.
        shape = _shape(cell, w_ih.shape[1], w_hh.shape[1], len(parameters), w_ih.dtype, precision)
        vars(self).update(vars(shape))
        self.parameters = parameters
        self._packed: dict[tuple[str, str], np.ndarray] = {}

    def packed(
        self, names: Sequence[str], form: Format
    ) -> tuple[dict[tuple[str, str], np.ndarray], list[Job]]:
        """``x [D, P, I, .]``, ``h [D, P, H, .]``, ``back_x``, ``back_h``, and the jobs that pack
        what is not yet packed; when these have run, the arrays may be kept (`keep`). Keys are
        the names, with that of the format."""
        arrays, jobs = {}, list[Job]()
        for name in names:
            array = self._packed.get((name, form.name))
            if array is None:
                which = name.removeprefix("back_")
                make = self._forward if which == name else self._backward
                array = make(which, form, jobs)
            arrays[name, form.name] = array
        return arrays, jobs

    def keep(self, arrays: dict[tuple[str, str], np.ndarray]) -> None:
        """Keep what is packed now; of two callers that packed the same, either is valid."""
        self._packed.update(arrays)

    def now(self, *names: str) -> None:
        """Pack for inference what is not yet packed."""
        arrays, jobs = self.packed(names, self.inference)
        if jobs:
            parallel_for(*jobs)
            self.keep(arrays)

    def side(self, which: str) -> tuple[Side, str]:
        """Where the rows of "x" or "h" lie, and the name of that weight."""
        return (self.x, "weight_ih") if which == "x" else (self.h, "weight_hh")

    def _forward(self, which: str, form: Format, jobs: list) -> np.ndarray:
        side, name = self.side(which)
        depth = form.depth(self.parameters[0][name].shape[1])
        shape = (self.directions, self.panels, depth, len(side.columns) // self.panels)
        out = buffers.empty(shape, np.dtype(form.weights))
        for p, part in zip(self.parameters, out, strict=True):
            jobs.append(linear.pack_forward(form, p[name], side.columns, part))
        return out

    def _backward(self, which: str, form: Format, jobs: list) -> np.ndarray:
        """Of h for each direction, [D, R, ., 4W]; of x all directions in one, [R, D ., 4W]."""
        side, name = self.side(which)
        depth = self.parameters[0][name].shape[1]
        columns = side.columns[: self.hp] if self.cell.accumulators == 1 else side.columns
        panel = PANEL * self.lanes
        r, m, d = -(-depth // panel), len(columns), self.directions
        dtype = np.dtype(form.weights)
        if which == "x":
            out = buffers.empty((r, d * m, panel), dtype)
            parts = [(out, i * m) for i in range(d)]
        else:
            out = buffers.empty((d, r, m, panel), dtype)
            parts = [(part, 0) for part in out]
        for p, (part, offset) in zip(self.parameters, parts, strict=True):
            jobs.append(linear.pack_backward(form, p[name], columns, part, offset))
        return out

    @cached_property
    def bias(self) -> np.ndarray:
        """[D, P, panel]: what the accumulators of every row start from."""
        out = np.zeros((self.directions, self.panels, self.panel), self.dtype)
        for part, parameters in zip(out, self.parameters, strict=True):
            if "bias_ih" in parameters:
                for side, name in ((self.x, "bias_ih"), (self.h, "bias_hh")):
                    values = np.zeros(len(side.columns), self.dtype)
                    values[side.positions] = parameters[name]
                    values = values.reshape(self.panels, -1)
                    part[:, side.offset : side.offset + values.shape[1]] += values
        return out

    @cached_property
    def unit(self) -> np.ndarray:
        """[D, inputs, Hp]: the cell's per-unit parameters and constants."""
        names = self.cell.unit_inputs
        out = np.zeros((self.directions, len(names), self.hp), self.dtype)
        for part, parameters in zip(out, self.parameters, strict=True):
            for row, name in zip(part, names, strict=True):
                row[: self.units] = parameters[name]
        return out

    @cached_property
    def table(self) -> np.ndarray:
        """[D, P, I, panel]: bias + W_ih x for each of the I values of a one-hot input."""
        form, columns = plain(self.dtype), self.x.columns
        out = np.repeat(self.bias[:, :, None], self.inputs, axis=2)
        shape = (self.panels, self.inputs, len(columns) // self.panels)
        for part, parameters in zip(out, self.parameters, strict=True):
            x = np.empty(shape, self.dtype)
            parallel_for(linear.pack_forward(form, parameters["weight_ih"], columns, x))
            part[..., : x.shape[2]] += x
        return out
