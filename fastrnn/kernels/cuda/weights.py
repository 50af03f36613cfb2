"""The parameters of a recurrent layer on the GPU."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell

from . import cluster, moves
from .launch import has_clusters, most_shared
from .memory import empty

# Which time loop: "grid", "cluster", or None for clusters if the device has them and the layer
# fits.
loop: str | None = None


class Run(NamedTuple):
    """Gates of weight_ih that are neighbours among the accumulators too."""

    accumulator: int
    gate: int
    size: int


class Direction(NamedTuple):
    """The parameters of one direction."""

    weight_ih: Any
    weight_hh: Any
    bias: Any  # [A H]: what the accumulators start from
    unit: Any  # [P, H]: per-unit parameters and constants


class FusedWeights:
    """The parameters of one layer, see kernels/backend.py."""

    def __init__(self, cell: Cell, parameters, precision: str):
        self.cell, self.parameters, self.precision = cell, parameters, precision
        w_ih, w_hh = parameters[0]["weight_ih"], parameters[0]["weight_hh"]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.gates_size = cell.accumulators * self.units  # of one direction
        self.gates_stride = self.directions * self.gates_size
        self._packed: dict[tuple, Any] = {}

    @cached_property
    def by_direction(self) -> list[Direction]:
        """The parameters of each direction."""
        out = []
        for p in self.parameters:
            bias = moves.zeros(self.gates_size, self.dtype)
            if "bias_ih" in p:
                for run in self.runs():
                    source, to = run.gate * self.units, run.accumulator * self.units
                    moves.move(p["bias_ih"], source, bias, to, run.size * self.units)
                to = self.cell.first_recurrent * self.units
                moves.move(p["bias_hh"], 0, bias, to, p["bias_hh"].size, add=True)
            names = self.cell.unit_inputs
            unit = empty((max(1, len(names)), self.units), self.dtype)
            for row, name in enumerate(names):
                unit[row : row + 1] = p[name].reshape(1, self.units)
            out.append(Direction(p["weight_ih"], p["weight_hh"], bias, unit))
        return out

    def plan(self) -> cluster.Plan | None:
        """How the time loop is laid out on clusters, None for the loop over the grid."""
        if self.cell != cluster.CELL or self.dtype != np.float32 or loop == "grid":
            return None
        if loop is None and not has_clusters():
            return None
        return cluster.plan(self.units, self.precision, most_shared())

    def packed(self, layout: cluster.Plan, d: int, *, backward: bool):
        """W_hh of one direction as a cluster reads it."""
        key = layout, d, backward
        if key not in self._packed:
            out = empty((layout.words, layout.blocks, layout.threads), np.uint32)
            grid = layout.blocks, layout.words
            w_hh = self.by_direction[d].weight_hh
            cluster.pack(layout, backward)(grid, w_hh, self.units, out)
            self._packed[key] = out
        return self._packed[key]

    def runs(self) -> Iterator[Run]:
        """The row blocks of weight_ih, as few runs as possible."""
        order, first = self.cell.input_order, 0
        for i in range(1, len(order) + 1):
            if i == len(order) or order[i] != order[i - 1] + 1:
                yield Run(first, order[first], i - first)
                first = i
