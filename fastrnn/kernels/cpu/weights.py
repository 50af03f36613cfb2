"""The parameters of a recurrent layer, packed for the kernels."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from fastrnn.cells import Cell
from fastrnn.runtime import buffers
from fastrnn.runtime.threads import Job, parallel_for

from . import fused, linear, panels
from .simd import width
from .tile import PANEL


class Side:
    """Where the rows of weight_ih or weight_hh lie in packed panels."""

    def __init__(self, order: tuple[int, ...], units: int, dtype, first: int, single: bool):
        self.positions = panels.gate_positions(units, order, dtype)  # the column of each row
        # The row of each column, -1 for none; in whole panels of one gate for a single one.
        gates = panels.plain_columns(units, dtype) if single else None
        self.columns = panels.gate_columns(units, order, dtype) if gates is None else gates
        self.offset = first * width(dtype)  # of these columns in a panel of all accumulators


class FusedWeights:
    """The parameters of one layer, packed when first needed and kept until they change.

    Parameters
    ----------
    cell : Cell
    parameters : sequence over the D directions of mappings of str to array
        See `kernels.backend`.
    """

    def __init__(self, cell: Cell, parameters):
        self.cell, self.parameters = cell, parameters
        w_ih, w_hh = parameters[0]["weight_ih"], parameters[0]["weight_hh"]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.lanes = width(self.dtype)
        self.hp = -(-self.units // self.lanes) * self.lanes
        single = cell.accumulators == 1
        self.x = Side(cell.input_order, self.units, self.dtype, 0, single)
        self.h = Side(cell.recurrent_order, self.units, self.dtype, cell.first_recurrent, single)
        self.panel = (PANEL if single else cell.accumulators) * self.lanes
        self.panels = -(-self.hp // self.panel) if single else self.hp // self.lanes
        # Numbers that a row of gates has for one direction.
        self.gates_size = self.hp if single else self.panels * self.panel
        # Length and stride of the runs of gates that belong to the product with a weight.
        self.x_runs, self.h_runs = (
            (self.hp, self.hp) if single else (len(gates) * self.lanes, self.panel)
            for gates in (cell.input_gates, cell.recurrent_gates)
        )
        # A row of states is not a multiple of 1 KB: its columns would share few cache sets.
        self.state_size = self.hp + self.lanes * (self.hp * self.dtype.itemsize % 1024 == 0)
        self._packed: dict[str, np.ndarray] = {}
        self.scratch: dict[int, list] = {}  # of `recurrent_step`, by the size of the batch

    def prepare(self, *, training: bool, dx: bool) -> None:
        """Pack what is not yet packed, all at once."""
        wanted = {"x": self._forward, "h": self._forward}
        if training:
            wanted["back_h"] = self._backward
        if training and dx:
            wanted["back_x"] = self._backward
        packed, jobs = {}, list[Job]()
        for name, make in wanted.items():
            if name not in self._packed:
                packed[name] = make(name.removeprefix("back_"), jobs)
        if jobs:
            parallel_for(*jobs)
            # Two callers may have packed the same arrays; both copies are valid.
            self._packed.update(packed)

    def _side(self, which: str) -> tuple[Side, str, int]:
        """``(where its rows lie, name of the weight, its depth)``."""
        return (
            (self.x, "weight_ih", self.inputs)
            if which == "x"
            else (self.h, "weight_hh", self.units)
        )

    def _forward(self, which: str, jobs: list) -> np.ndarray:
        side, name, depth = self._side(which)
        shape = (self.directions, self.panels, depth, len(side.columns) // self.panels)
        out = buffers.empty(shape, self.dtype)
        for p, part in zip(self.parameters, out, strict=True):
            jobs.append(linear.pack_forward(p[name], side.columns, part))
        return out

    def _backward(self, which: str, jobs: list) -> np.ndarray:
        """Of h for each direction, [D, R, ., 4W]; of x all directions in one, [R, D ., 4W]."""
        side, name, depth = self._side(which)
        columns = side.columns[: self.hp] if self.cell.accumulators == 1 else side.columns
        panel = PANEL * self.lanes
        r, m, d = -(-depth // panel), len(columns), self.directions
        if which == "x":
            out = buffers.empty((r, d * m, panel), self.dtype)
            parts = [(out, i * m) for i in range(d)]
        else:
            out = buffers.empty((d, r, m, panel), self.dtype)
            parts = [(part, 0) for part in out]
        for p, (part, offset) in zip(self.parameters, parts, strict=True):
            jobs.append(linear.pack_backward(p[name], columns, part, offset))
        return out

    def __getitem__(self, name: str) -> np.ndarray:
        """What `prepare` packed: ``x [D, P, I, .]``, ``h [D, P, H, .]``, ``back_x``, ``back_h``."""
        return self._packed[name]

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
    def step(self) -> Callable:
        """The kernel of a single step."""
        step = fused.loops(self.cell, False).step
        assert step
        return step.of(self.dtype)

    @cached_property
    def for_step(self) -> tuple[np.ndarray, ...]:
        """What `step` reads: the weights of the one direction, bias, per-unit parameters."""
        self.prepare(training=False, dx=False)
        return self["x"][0], self["h"][0], self.bias.reshape(-1), self.unit[0]

    @cached_property
    def no_masks(self) -> fused.Masks:
        """The masks of a layer without zoneout and recurrent dropout."""
        none = np.empty((0, 0), self.dtype)
        return fused.Masks(none, 0, none)

    @cached_property
    def table(self) -> np.ndarray:
        """[D, P, I, panel]: bias + W_ih x for each of the I values of a one-hot input."""
        x = self["x"]
        out = np.repeat(self.bias[:, :, None], self.inputs, axis=2)
        out[..., : x.shape[3]] += x
        return out
