"""One training step: the model's gradient, the optimizer's update. `Trainer` runs them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from fastrnn.optim import Optimizer, RowGradient
from fastrnn.parameters import Parameters

T = TypeVar("T")


class Model(Protocol):
    """Interface of a trainable model.

    A model may also have ``tables``, a dict of arrays of which each batch trains only some rows.
    It must then have ``row_gradients()``, which returns a dict with the same keys: the
    `RowGradient` of each table, as computed by the last `loss_and_gradient`.

    It may have ``gradient``, the `fastrnn.parameters.Gradient` that `loss_and_gradient` fills and
    returns: the gradients of the last layers are then sent while others are computed.
    """

    parameters: Parameters
    rng: np.random.Generator

    def loss_and_gradient(self, batch: Any, /) -> tuple[float, np.ndarray, int]:
        """Mean loss of a batch, its flat gradient, and the number of items averaged over."""

    def carried(self) -> dict[str, np.ndarray]:
        """State carried from one batch to the next, apart from the parameters."""

    def carry(self, carried: dict[str, np.ndarray]) -> None:
        """Restore the state returned by `carried`."""


class Data(Protocol):
    """Interface of training data.

    A batch may have a ``rate``, by which the learning rate of its step is multiplied. To train in
    shards, data needs ``part(s, shards)``, the data whose batches are shard s of these batches; a
    batch then has a ``size``, its number of items, which may be 0.
    """

    def __len__(self) -> int:
        """Number of batches per epoch."""

    def batches(self, epoch: int, skip: int, /) -> Iterator[Any]:
        """The batches of an epoch without the first ``skip``; the same on every call."""


class Done(NamedTuple):
    """What a step reports."""

    loss: float
    norm: float
    items: int
    stop: bool


def tables_of(model: Model) -> dict[str, np.ndarray]:
    return getattr(model, "tables", {})


class Steps:
    """The steps of one process: each a whole batch.

    `fastrnn.distributed.sharded.ShardedSteps` has the same interface for batches in shards.
    """

    lead = True
    shards = 1

    def __init__(self, model: Model, optimizer: Optimizer, data: Data):
        self.model, self.optimizer, self.data = model, optimizer, data

    @property
    def sent(self) -> int:
        """Bytes that this process has sent to others."""
        return 0

    def batches(self, epoch: int, skip: int) -> Iterator[Any]:
        return self.data.batches(epoch, skip)

    def rate(self, batch: Any) -> float:
        """The factor of the learning rate that a batch has."""
        return getattr(batch, "rate", 1.0)

    def step(self, batch: Any, lr: float, max_norm: float | None, stop: Callable[[], bool]) -> Done:
        """Train on a batch. ``stop()`` says whether this process was asked to stop; that of the
        result, whether any was.

        Raises
        ------
        FloatingPointError
            The loss or the gradient is not finite.
        """
        loss, gradient, items = self.model.loss_and_gradient(batch)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        rows: dict[str, RowGradient] = getattr(self.model, "row_gradients", dict)()
        norm = self.optimizer.step(
            self.model.parameters, gradient, lr=lr, max_norm=max_norm, rows=rows
        )
        return Done(loss, norm, items, stop())

    def averaged(self) -> AbstractContextManager:
        """Let the model have the weights to evaluate and to save."""
        return self.optimizer.averaged(self.model.parameters)

    def state(self) -> dict[str, np.ndarray]:
        """What the lead saves to continue from here, apart from the weights."""
        arrays = {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        return arrays | {f"carried.{k}": v for k, v in self.model.carried().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore `state`."""
        self.optimizer.load_state_dict(part(arrays, "optimizer."))
        self.model.carry(part(arrays, "carried."))

    def share(self, compute: Callable[[], T]) -> T:
        """What ``compute()`` returns or raises in the lead."""
        return compute()


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Those whose names begin with a prefix, under their names without it."""
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
