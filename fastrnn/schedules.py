"""Learning-rate schedules: the factor of an optimizer's rate at each step."""

import math
from collections.abc import Mapping

from fastrnn import checks


class Constant:
    """A constant learning rate: its factor is always 1."""

    def factor(self, step: int) -> float:
        """The factor of the learning rate at step ``step``, counted from 0."""
        return 1.0

    def observe(self, value: float) -> None:
        """Record the result of an evaluation (lower is better)."""

    def state(self) -> dict:
        """The state needed to resume after an interruption."""
        return {}

    def load(self, state: Mapping) -> None:
        """Restore what `state` returned."""


class Cosine(Constant):
    """Linear warm-up, then half a cosine down to ``final`` (Loshchilov & Hutter 2017).

    Parameters
    ----------
    total : int
        Total number of steps.
    warmup : int, default 0
        Warm-up steps.
    final : float, default 0.0
        The factor at the end.

    Examples
    --------
    >>> from fastrnn.optim import Cosine
    >>> [round(Cosine(8, warmup=2).factor(step), 2) for step in range(0, 9, 2)]
    [0.5, 1.0, 0.75, 0.25, 0.0]
    """

    def __init__(self, total: int, *, warmup: int = 0, final: float = 0.0):
        self.total = checks.integer("total", total)
        self.warmup = checks.integer("warmup", warmup, 0)
        if self.warmup >= self.total:
            raise ValueError(f"warmup must be below total ({total}), got {warmup}")
        self.final = checks.number("final", final, 0.0, 1.0, closed=True)

    def factor(self, step):
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / (self.total - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class StepDecay(Constant):
    """Multiply the rate by ``gamma`` every ``every`` steps, from step ``start`` on.

    With the steps of one epoch and of four, this is the schedule of Zaremba et al. (2014): the
    fifth epoch is the first whose rate is lower.

    Parameters
    ----------
    every : int
    gamma : float, default 0.5
    start : int, optional
        By default ``every``.
    warmup : int, default 0
        Steps of a linear warm-up before.

    Examples
    --------
    >>> from fastrnn.optim import StepDecay
    >>> [StepDecay(10, start=20).factor(step) for step in (0, 19, 20, 30)]
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(
        self, every: int, *, gamma: float = 0.5, start: int | None = None, warmup: int = 0
    ):
        self.every = checks.integer("every", every)
        self.gamma = checks.number("gamma", gamma, 0.0, 1.0, closed=True)
        self.start = self.every if start is None else checks.integer("start", start, 0)
        self.warmup = checks.integer("warmup", warmup, 0)

    def factor(self, step):
        if step < self.warmup:
            return (step + 1) / self.warmup
        times = max(0, 1 + (step - self.start) // self.every)
        return self.gamma**times


class ReduceOnPlateau(Constant):
    """Multiply the rate by ``shrink`` after ``patience`` evaluations without a new best.

    Parameters
    ----------
    shrink : float, default 0.5
    patience : int, default 3
    least : float, default 1e-3
        The smallest factor.
    """

    def __init__(self, *, shrink: float = 0.5, patience: int = 3, least: float = 1e-3):
        self.shrink = checks.number("shrink", shrink, 0.0, 1.0)
        self.patience = checks.integer("patience", patience)
        self.least = checks.number("least", least, 0.0, 1.0, closed=True)
        self._best, self._bad, self._factor = math.inf, 0, 1.0

    def factor(self, step):
        return self._factor

    def observe(self, value):
        if value < self._best:
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad >= self.patience:
            self._factor, self._bad = max(self.least, self._factor * self.shrink), 0

    def state(self):
        return {"best": self._best, "bad": self._bad, "factor": self._factor}

    def load(self, state):
        self._best, self._bad, self._factor = state["best"], state["bad"], state["factor"]
