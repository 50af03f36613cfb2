"""Optimizers over one flat vector.

An optimizer computes the norm of the gradient, then clips it and updates the parameters in one
pass. Its state is a dict of arrays that can be saved and loaded.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels import cpu
from fastrnn.kernels.backend import Backend
from fastrnn.kernels.device import backend_of
from fastrnn.kernels.options import AdamStep, SGDStep
from fastrnn.parameters import Parameters
from fastrnn.schedules import Constant, Cosine, ReduceOnPlateau, StepDecay

__all__ = [
    "ASGD", "OPTIMIZERS", "SGD", "Adam", "AdamW", "Constant", "Cosine", "Optimizer",
    "ReduceOnPlateau", "RowGradient", "StepDecay",
]  # fmt: skip

_LARGEST = float(np.finfo(np.float32).max)


class RowGradient(NamedTuple):
    """The gradient of some rows of a table: table [V, E], rows int64 [R] without duplicates,
    values [R, E]."""

    table: np.ndarray
    rows: np.ndarray
    values: np.ndarray


class Optimizer:
    """Base class of the optimizers: clipping, and state that can be saved.

    Attributes
    ----------
    lr : float
        The learning rate that `step` uses by default.
    steps : int
        Number of updates so far.
    """

    slots: tuple[str, ...] = ()  # names of the state vectors

    def __init__(self, lr: float):
        self.lr = checks.number("lr", lr, 0.0, _LARGEST)
        self.steps = 0
        self._state: dict[str, Any] = {}
        self._kernels: Backend | None = None  # where the state lies, None for the host
        self._tables: dict[str, np.ndarray] = {}
        self._parameters: Parameters | None = None

    def step(
        self,
        parameters: Parameters,
        gradient: np.ndarray | Mapping[str, np.ndarray],
        *,
        lr: float | None = None,
        max_norm: float | None = None,
        rows: Mapping[str, RowGradient] | None = None,
    ) -> float:
        """Update the parameters and return the gradient's norm before clipping.

        Parameters
        ----------
        parameters : Parameters
            ``layer.parameters`` or ``model.parameters``; the same object at each step, as the
            optimizer's state belongs to it.
        gradient : array [parameters.size] or mapping of str to array
            In the layout of the flat vector, with zeros between the parameters, or by name as
            returned by `LSTM.backward`. If it is a `DeviceArray` of the backend "cuda", the update
            runs on the device.
        lr : float, optional
            Learning rate of this step; by default ``self.lr``.
        max_norm : float, optional
            Above 0. A gradient with a larger Euclidean norm is scaled down to this norm (Pascanu
            et al. 2013).
        rows : mapping of str to RowGradient, optional
            Tables of which only some rows have a gradient, under names that stay the same between
            steps. Other rows and their state do not change (as with ``torch.optim.SparseAdam``).
            These gradients are included in the norm.

        Raises
        ------
        FloatingPointError
            The gradient is not finite; nothing was changed.
        ValueError
            The gradient or the state does not fit the parameters, the parameters are not those of
            earlier steps, or ``max_norm`` is not above 0.
        """
        if max_norm is not None:
            checks.above_zero("max_norm", max_norm)
        lr = self.lr if lr is None else checks.number("lr", lr, 0.0, _LARGEST)
        if not isinstance(parameters, Parameters):
            raise TypeError(f"parameters must be Parameters, got {type(parameters).__name__}")
        if self._parameters is not None and self._parameters is not parameters:
            raise ValueError("parameters are not those of the steps before: use another optimizer")
        first: Any = gradient
        if isinstance(gradient, Mapping):
            first = next(iter(gradient.values()), None)
        kernels = backend_of(first)
        with kernels.stream_of(first):
            return self._step(kernels, parameters, gradient, rows, max_norm, lr)

    def _step(
        self,
        kernels: Backend,
        parameters: Parameters,
        gradient: Any,
        rows: Any,
        max_norm,
        lr: float,
    ) -> float:
        """`step` where the gradient lies."""
        shape, dtype = (parameters.size,), parameters.dtype
        if isinstance(gradient, Mapping):
            gradient = parameters.flatten(gradient, kernels.empty(shape, dtype))
        if not (kernels.on_device or isinstance(gradient, np.ndarray)):
            raise TypeError(
                f"gradient must be an array or a mapping of arrays, got {type(gradient).__name__}"
            )
        if gradient.shape != shape or gradient.dtype != dtype:
            raise ValueError(
                f"gradient must be {dtype} {shape}, got {gradient.dtype} {gradient.shape}"
            )
        gradient = kernels.device_view(gradient, "gradient")
        if not kernels.on_device:
            gradient = np.ascontiguousarray(gradient)
        if not isinstance(rows, Mapping | None):
            raise TypeError(f"rows must be a mapping, got {type(rows).__name__}")
        rows = {name: self._checked(name, given) for name, given in (rows or {}).items()}
        norms = [cpu.norm(g.values.reshape(-1)) for g in rows.values()]
        norm = math.hypot(kernels.norm(gradient), *norms)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient is not finite: its norm is {norm}")
        self._parameters = parameters
        scale = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
        self.update(kernels, kernels.writable(parameters), gradient, rows, scale, lr)
        return norm

    def update(
        self,
        kernels: Backend,
        w: Any,
        gradient: Any,
        rows: Mapping[str, RowGradient],
        scale: float,
        lr: float,
    ) -> None:
        """Update w, the vector of parameters or the part of it that this optimizer has the state
        of, and tables. The gradients are multiplied by ``scale``; nothing else is checked."""
        if not self._state:
            self._state = {name: np.zeros(w.shape, w.dtype) for name in self.slots}
        for name, kept in self._state.items():
            if kept.shape != w.shape or kept.dtype != w.dtype:
                raise ValueError(
                    f"{name} must be {w.dtype} {w.shape}, got {kept.dtype} {kept.shape}"
                )
        self.steps += 1
        self._move_state(kernels)
        self._update(kernels, w, gradient, self._state, scale, lr)
        for name, (table, at, values) in rows.items():
            state = {slot: self._rows_state(f"{name}.{slot}", table) for slot in self.slots}
            self._update(cpu, table, values, state, scale, lr, rows=at)

    @property
    def needs_evaluations(self) -> bool:
        """Whether it does what it is for only if `observe` is called."""
        return False

    def observe(self, value: float) -> None:
        """Record the result of an evaluation (lower is better)."""

    @contextmanager
    def averaged(
        self, parameters: Parameters, whole: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[None]:
        """Let the parameters be those to evaluate and to save; the others come back at the end.

        ``whole`` makes a whole vector of the part that this optimizer has.
        """
        yield

    def _move_state(self, kernels: Backend) -> None:
        """Let the state lie where ``kernels`` compute."""
        if kernels is not self._kernels:
            self._state = {name: kernels.to_device(a) for name, a in self._on_host().items()}
            self._kernels = kernels

    def _checked(self, name: str, given: RowGradient) -> RowGradient:
        """Check a row gradient: the kernels do not."""
        if not isinstance(given, tuple) or len(given) != 3:
            raise TypeError(f"rows[{name!r}] must be a RowGradient, got {type(given).__name__}")
        table, rows, values = given
        for part, array in ("table", table), ("values", values):
            if not isinstance(array, np.ndarray) or array.ndim != 2:
                raise TypeError(
                    f"{name}: {part} must be an array of 2 dimensions, got {checks.short(array)}"
                )
        rows = checks.integer_array(f"{name}: rows", rows, dimensions=1)
        shape = len(rows), table.shape[1]
        if table.dtype.name not in checks.DTYPES or not table.dtype.isnative:
            raise ValueError(f"{name}: table must be float32 or float64, got {table.dtype.str}")
        if values.shape != shape or values.dtype != table.dtype:
            raise ValueError(
                f"{name}: values must be {table.dtype} {shape}, got {values.dtype} {values.shape}"
            )
        checks.below(f"{name}: rows", "row", rows, len(table))
        if not (rows[1:] > rows[:-1]).all() and len(np.unique(rows)) < len(rows):
            raise ValueError(f"{name}: rows must differ: an update of a repeated row would be lost")
        for slot in self.slots:
            self._rows_state(f"{name}.{slot}", table)
        return RowGradient(table, rows, np.ascontiguousarray(values))

    def _rows_state(self, name: str, table: np.ndarray) -> np.ndarray:
        if name not in self._tables:
            self._tables[name] = np.zeros_like(table)
        kept = self._tables[name]
        if kept.shape != table.shape or kept.dtype != table.dtype:
            raise ValueError(
                f"{name} must be {table.dtype} {table.shape}, got {kept.dtype} {kept.shape}"
            )
        return kept

    def _update(
        self, kernels: Any, w: Any, g: Any, state: dict, scale: float, lr: float, **rows: Any
    ) -> None:
        """Update w, or the ``rows`` of a table w on the host."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state vectors and the number of steps."""
        tables = {f"rows.{name}": kept for name, kept in self._tables.items()}
        return {"steps": np.asarray(self.steps), **self._on_host(), **tables}

    def _on_host(self) -> dict[str, np.ndarray]:
        if self._kernels is None:
            return dict(self._state)
        return {name: self._kernels.to_host(kept) for name, kept in self._state.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        missing = [n for n in ("steps",) if n not in state]
        if missing or (state["steps"] > 0 and any(n not in state for n in self.slots)):
            raise ValueError(f"state must have steps and {', '.join(self.slots)}")
        self.steps = int(state["steps"])
        self._state = {n: np.array(state[n]) for n in self.slots if n in state}
        self._kernels = None
        self._tables = {n[5:]: np.array(a) for n, a in state.items() if n.startswith("rows.")}


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

        v = momentum * v + g;  w = w - lr * v      (Nesterov: w - lr * (g + momentum * v))

    Parameters
    ----------
    lr : float, default 0.1
    momentum : float, default 0.0
    weight_decay : float, default 0.0
        Added to the gradient as ``weight_decay * w``.
    nesterov : bool, default False
    """

    slots: tuple[str, ...] = ("velocity",)

    def __init__(
        self,
        lr: float = 0.1,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(lr)
        self.momentum = checks.number("momentum", momentum, 0.0, 1.0)
        self.weight_decay = checks.number("weight_decay", weight_decay, 0.0, math.inf)
        self.nesterov = checks.flag("nesterov", nesterov)

    def _update(self, kernels, w, g, state, scale, lr, **rows):
        options = SGDStep(scale, lr, self.momentum, self.weight_decay, self.nesterov)
        kernels.sgd(w, g, state["velocity"], options, **rows)


class ASGD(SGD):
    """Averaged stochastic gradient descent (Polyak & Juditsky 1992), for language models.

    From some step on, the mean of the weights after each step is kept. `Trainer` evaluates and
    saves this mean; training itself goes on from the weights, as with `SGD`.

    Parameters
    ----------
    lr : float, default 0.1
    weight_decay : float, default 0.0
        Added to the gradient as ``weight_decay * w``.
    start : int, optional
        The number of steps after which averaging begins, as ``t0`` of ``torch.optim.ASGD``. By
        default it begins when an evaluation is worse than the best of those more than
        ``patience`` evaluations ago (NT-ASGD, Merity et al. 2018, algorithm 1).
    patience : int, default 5
    """

    slots = ("velocity", "average")  # without momentum, the velocity is only working memory

    def __init__(
        self,
        lr: float = 0.1,
        *,
        weight_decay: float = 0.0,
        start: int | None = None,
        patience: int = 5,
    ):
        super().__init__(lr, weight_decay=weight_decay)
        self.start = None if start is None else checks.integer("start", start, 0)
        self.patience = checks.integer("patience", patience)
        self._values: list[float] = []

    @property
    def needs_evaluations(self):
        return self.start is None

    def update(self, kernels, w, gradient, rows, scale, lr):
        if rows:
            raise ValueError(f"rows must be empty: ASGD averages no tables, got {', '.join(rows)}")
        super().update(kernels, w, gradient, rows, scale, lr)

    def _update(self, kernels, w, g, state, scale, lr, **rows):
        super()._update(kernels, w, g, state, scale, lr)
        if self.start is not None and self.steps > self.start:
            # average += (w - average) / n, written as a step with the gradient average - w.
            n = self.steps - self.start
            options = SGDStep(-1.0, 1 / n, 0.0, 1.0, False)
            kernels.sgd(state["average"], w, state["velocity"], options)

    def observe(self, value):
        before = self._values[: -self.patience]
        if self.start is None and before and value > min(before):
            self.start = self.steps
        self._values.append(float(value))

    @contextmanager
    def averaged(self, parameters, whole=None):
        if self.start is None or self.steps <= self.start:
            yield
            return
        kept = parameters.flat.copy()
        average = self._on_host()["average"]
        parameters.writing()[:] = average if whole is None else whole(average)
        try:
            yield
        finally:
            parameters.writing()[:] = kept

    def state_dict(self):
        start = -1 if self.start is None else self.start
        own = {"start": np.asarray(start), "values": np.array(self._values, np.float64)}
        return super().state_dict() | own

    def load_state_dict(self, state):
        if "start" not in state or "values" not in state:
            raise ValueError("state must have start and values")
        super().load_state_dict(state)
        self.start = None if state["start"] < 0 else int(state["start"])
        self._values = state["values"].tolist()


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), as ``torch.optim.Adam``.

        m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g**2
        w = w - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    lr : float, default 1e-3
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
        Added outside the square root.
    weight_decay : float, default 0.0
        Added to the gradient as ``weight_decay * w``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> layer, adam = fastrnn.Linear(2, 1, seed=0), fastrnn.Adam(0.01)
    >>> grads = {"weight": np.full((1, 2), 3.0), "bias": np.array([4.0])}
    >>> round(adam.step(layer.parameters, grads, max_norm=1.0), 3)
    5.831
    """

    slots = ("first_moment", "second_moment")
    decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
        self.betas = tuple(checks.number("betas", b, 0.0, 1.0) for b in betas)
        self.eps = checks.number("eps", eps, 0.0, math.inf)
        self.weight_decay = checks.number("weight_decay", weight_decay, 0.0, math.inf)

    def _update(self, kernels, w, g, state, scale, lr, **rows):
        moments = state["first_moment"], state["second_moment"]
        l2 = 0.0 if self.decoupled else self.weight_decay
        shrink = 1.0 - lr * self.weight_decay if self.decoupled else 1.0
        beta1, beta2 = self.betas
        options = AdamStep(scale, lr, beta1, beta2, self.eps, l2, shrink, self.steps)
        kernels.adam(w, g, moments, options, **rows)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``.

    The parameters are those of `Adam`, but ``weight_decay`` defaults to 0.01: each step shrinks w
    by the fraction ``lr * weight_decay``, and the moments are not affected.
    """

    decoupled = True

    def __init__(self, lr: float = 1e-3, *, weight_decay: float = 0.01, **options):
        super().__init__(lr, weight_decay=weight_decay, **options)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD, "asgd": ASGD, "adam": Adam, "adamw": AdamW,
}  # fmt: skip
