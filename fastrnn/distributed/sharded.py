"""Training steps of all processes of a group on the shards of a batch."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.kernels.device import backend_of
from fastrnn.optim import Optimizer, RowGradient
from fastrnn.steps import Data, Done, Model, Steps, part, tables_of

from .dense import BLOCK, DenseSum
from .group import Group
from .rows import Rows, RowSum


class ShardedSteps(Steps):
    """Steps on batches in shards; all processes of the group must call the same methods.

    The state of the optimizer is divided over the processes (as in ZeRO, stage 1, Rajbhandari et
    al. 2020): each updates the weights whose gradient it adds up, and sends them to the others.

    Parameters
    ----------
    model, optimizer, data
        See `Trainer`.
    group : Group
    """

    def __init__(self, model: Model, optimizer: Optimizer, data: Data, group: Group):
        super().__init__(model, optimizer, data)
        checks.has("data", data, "part")
        self._gradient = getattr(model, "gradient", None)
        if self._gradient is not None and not isinstance(self._gradient.flat, np.ndarray):
            raise ValueError("shards need a model on the CPU, with the backend cpu or reference")
        self.group, self.shards, self.lead = group, group.shards, group.lead
        self._mine = group.divided(group.shards)
        parameters = model.parameters
        self._dense = DenseSum(group, parameters.size, parameters.dtype)
        self._rows = {name: RowSum(group, table) for name, table in tables_of(model).items()}
        self._parts = {s: data.part(s, group.shards) for s in self._mine}  # type: ignore[attr-defined]
        self._carried: dict[int, dict[str, np.ndarray]] = {s: {} for s in self._mine}
        self._weights_sent = 0
        shapes = {name: table.shape for name, table in tables_of(model).items()}
        group.check_same(
            "the shards, parameters and batches",
            (group.shards, parameters.size, parameters.dtype.name, shapes, len(data)),
        )
        if group.size > 1:  # a model without a seed differs between processes
            comm = group.comm
            parameters.writing()[:] = comm.bcast(parameters.flat)
            for table in tables_of(model).values():
                table[:] = comm.bcast(table)
            model.rng.bit_generator.state = comm.bcast(model.rng.bit_generator.state)

    @property
    def sent(self) -> int:
        """Bytes that this process has sent to others in steps, apart from a few numbers in each."""
        of_tables = sum(rows.sent for rows in self._rows.values())
        return self._dense.sent + self._weights_sent + of_tables

    def batches(self, epoch: int, skip: int) -> Iterator[dict[int, Any]]:
        streams = [part.batches(epoch, skip) for part in self._parts.values()]
        for batches in zip(*streams, strict=True):
            yield dict(zip(self._mine, batches, strict=True))

    def rate(self, batch: dict[int, Any]) -> float:
        return super().rate(batch[self._mine[0]])

    def step(self, batch: dict[int, Any], lr: float, max_norm: float | None, stop) -> Done:
        # The loss and the items of each shard, and whether to stop.
        facts = np.zeros(2 * self.shards + 1)
        rows: dict[str, dict[int, Rows]] = {name: {} for name in self._rows}
        # The model's generator stays as it is: what a shard draws depends on the step and on s.
        rng = self.model.rng
        start = rng.bit_generator.state
        seed = int(rng.integers(1 << 63))

        def shard(s: int, done) -> None:
            own = type(rng.bit_generator)([seed, self.optimizer.steps, s])
            rng.bit_generator.state = own.state
            facts[2 * s : 2 * s + 2] = self._shard(s, batch[s], done, rows)

        try:
            for number in range(max(map(len, self.group.nodes))):
                self._dense.node(number, shard)
        finally:
            rng.bit_generator.state = start
        facts[-1] = stop()
        gradient = self._dense.mine()
        of_tables = {name: self._rows[name].mine(shards) for name, shards in rows.items()}
        return self._update(gradient, of_tables, facts, lr, max_norm)

    def _shard(self, s: int, batch, done, rows) -> tuple[float, int]:
        """Compute the gradient of a shard; its loss and its items."""
        model, items = self.model, batch.size
        if not items:  # fewer sentences than shards
            for name, table in tables_of(model).items():
                rows[name][s] = Rows(np.empty(0, np.int64), table[:0])
            done(np.zeros(model.parameters.size, model.parameters.dtype), 0, 0)
            return 0.0, 0
        model.carry(self._carried[s])
        listened = self._gradient
        if listened is not None:
            listened.listener = lambda first: done(listened.flat, items, first)
        try:
            loss, gradient, _ = model.loss_and_gradient(batch)
        finally:
            if listened is not None:
                listened.listener = None
        done(gradient, items, 0)
        self._carried[s] = model.carried()
        for name, (_, at, values) in getattr(model, "row_gradients", dict)().items():
            rows[name][s] = Rows(at, values * values.dtype.type(items))
        return loss * items, items

    def _update(self, gradient, of_tables: dict[str, Rows], facts, lr, max_norm) -> Done:
        """Update the weights of this process, and send them."""
        optimizer, parameters, size = self.optimizer, self.model.parameters, self.group.size
        # Sums of squares: each is of one process, so the total is exact.
        squares = np.zeros((len(gradient), size))
        np.einsum("kb,kb->k", gradient, gradient, dtype=np.float64, out=squares[:, self.group.rank])
        of_rows = [self._rows[name].squares(mine) for name, mine in of_tables.items()]
        totals = self.group.total(np.concatenate([facts, squares.reshape(-1), *of_rows]))
        facts, squares = totals[: len(facts)], totals[len(facts) :]
        items = int(facts[1:-1:2].sum())
        loss = math.fsum(facts[:-1:2]) / items
        norm = math.sqrt(math.fsum(squares)) / items
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient is not finite: its norm is {norm}")
        scale = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
        own = self._dense.own(parameters.flat)
        rows = {}
        for name, (at, values) in of_tables.items():
            first, last = self._rows[name].first, self._rows[name].last
            table = tables_of(self.model)[name][first:last]
            rows[name] = RowGradient(table, at - first, values)
        optimizer.update(
            backend_of(gradient), own.reshape(-1), gradient.reshape(-1), rows, scale / items, lr
        )
        self._dense.whole(own, parameters.writing())
        self._weights_sent += own.nbytes * (size - 1)
        for name, mine in of_tables.items():
            self._rows[name].everywhere(tables_of(self.model)[name], mine.rows)
        return Done(loss, norm, items, facts[-1] > 0)

    # Saving. Files are those of one process, so any number of processes can read them.

    def averaged(self):
        return self.optimizer.averaged(self.model.parameters, self._whole)

    def _whole(self, own: np.ndarray) -> np.ndarray:
        """The vector of which each process has a part."""
        flat = np.empty(self._dense.size, own.dtype)
        return self._dense.whole(own.reshape(-1, BLOCK), flat)

    def state(self):
        whole = {}
        for name, own in self.optimizer.state_dict().items():
            if name in self.optimizer.slots:
                own = self._whole(own)
            elif name.startswith("rows."):
                own = np.concatenate(self._gathered(own))
            whole[f"optimizer.{name}"] = own
        carried = {
            f"carried.{s}.{name}": array
            for s, of_shard in self._carried.items()
            for name, array in of_shard.items()
        }
        for of_process in self._gathered(carried):
            whole |= of_process
        return whole

    def _gathered(self, value: Any) -> list[Any]:
        """The value of each process in the lead, that of this process in others."""
        comm = self.group.comm
        return (comm.gather(value) if self.group.size > 1 else None) or [value]

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        state = part(arrays, "optimizer.")
        size = (self.model.parameters.size,)
        for name in state.keys() & {*self.optimizer.slots}:
            if state[name].shape != size:
                raise ValueError(f"{name} must have shape {size}, got {state[name].shape}")
            state[name] = self._dense.own(state[name]).reshape(-1)
        for name, rows in self._rows.items():
            for key in [k for k in state if k.startswith(f"rows.{name}.")]:
                state[key] = state[key][rows.first : rows.last]
        self.optimizer.load_state_dict(state)
        self._carried = {s: part(arrays, f"carried.{s}.") for s in self._mine}

    def share(self, compute):
        return self.group.share(compute)
