"""The parameters of a recurrent layer on the GPU."""

from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from fastrnn.cells import Cell

from . import placement, tensor
from .driver import SIMULATED, graph_memory
from .fused import Bias
from .launch import has_clusters, most_shared
from .memory import empty, zero_state

# Which time loop: "cluster" or "group" on tensor cores (tensor.py), "grid" without (fused.py); None
# for the first of them that the device has and the layer fits.
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
    bias: Bias
    unit: Any  # [P, H]: per-unit parameters and constants


@cache
def _runs(order: tuple[int, ...]) -> list[Run]:
    """As few as possible."""
    out, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or order[i] != order[i - 1] + 1:
            out.append(Run(first, order[first], i - first))
            first = i
    return out


class FusedWeights:
    """The parameters of one layer, see kernels/backend.py."""

    def __init__(self, cell: Cell, parameters, precision: str):
        self.cell, self.parameters, self.precision = cell, parameters, precision
        w_ih, w_hh = parameters[0]["weight_ih"], parameters[0]["weight_hh"]
        self.inputs, self.units, self.directions = w_ih.shape[1], w_hh.shape[1], len(parameters)
        self.dtype = w_ih.dtype
        self.gates_size = cell.accumulators * self.units  # of one direction
        self.gates_stride = self.directions * self.gates_size
        self._packed: dict[placement.Plan, tuple[Any, bool]] = {}
        self._plans: dict[tuple, placement.Plan | None] = {}
        self._by_direction: list[Direction] = []

    # What is derived from the parameters is kept, but not while a graph is captured: it is to be
    # derived again at each replay.

    @property
    def by_direction(self) -> list[Direction]:
        """The parameters of each direction."""
        if self._by_direction and not graph_memory():
            return self._by_direction
        out = [
            Direction(p["weight_ih"], p["weight_hh"], self._bias(p), self._unit(p))
            for p in self.parameters
        ]
        if not graph_memory():
            self._by_direction = out
        return out

    def _bias(self, p) -> Bias:
        if "bias_ih" in p:
            return Bias(p["bias_ih"], p["bias_hh"])
        none = zero_state((len(self.cell.gates) * self.units,), self.dtype)
        return Bias(none, none)

    def _unit(self, p) -> Any:
        names = self.cell.unit_inputs
        if not names:
            return p["weight_hh"]  # any array: it is not read
        unit = empty((len(names), self.units), self.dtype)
        for row, name in enumerate(names):
            unit[row : row + 1] = p[name].reshape(1, self.units)
        return unit

    def plan(self, training: bool) -> placement.Plan | None:
        """How the time loop is laid out on clusters or groups, None for the loop over the grid."""
        key = training, loop
        if key not in self._plans:
            self._plans[key] = self._plan(training)
        return self._plans[key]

    def _plan(self, training: bool) -> placement.Plan | None:
        if self.cell not in tensor.ON_TENSOR_CORES or self.dtype != np.float32 or loop == "grid":
            return None
        if loop:
            kinds = [loop]
        elif SIMULATED:  # tests choose these, as they take longer there
            kinds = []
        else:
            kinds = ["cluster", "group"] if has_clusters() else ["group"]
        for kind in kinds:
            slots = self.cell.accumulators
            plan = placement.plan(
                self.units, self.precision, slots, slots if training else 1, most_shared(),
                is_cluster=kind == "cluster",
            )  # fmt: skip
            if plan and tensor.most_groups(self.cell, plan, training):
                return plan
        return None

    def packed(self, layout: placement.Plan, *, training: bool):
        """W_hh as loops on tensor cores read it: [D, 2, words, blocks, threads], for the backward
        pass too if ``training``."""
        out, has_both = self._packed.get(layout, (None, False))
        if out is None or has_both < training or graph_memory():
            words = layout.words
            out = empty((self.directions, 2, words, layout.blocks, layout.threads), np.uint32)
            grid = layout.blocks, words * (2 if training else 1)
            pack = placement.pack(layout, self.cell.first_recurrent)
            for d, of in enumerate(self.by_direction):
                pack(grid, of.weight_hh, self.units, out[d])
            if not graph_memory():
                self._packed[layout] = out, training
        return out

    @cached_property
    def runs(self) -> list[Run]:
        """The row blocks of weight_ih."""
        return _runs(self.cell.input_order)
