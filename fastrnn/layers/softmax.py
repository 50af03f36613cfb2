"""Softmax over many classes, with its loss: plain or adaptive."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn import checks, parameters
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.device import Door
from fastrnn.parameters import Parameters
from fastrnn.types import BackendName, DType, Grads, Input, Precision

from .base import Layer
from .linear import Linear


class Softmax(Linear):
    """A linear layer whose outputs are the logits of V classes."""

    # Rows in, rows out: for models. h lies where the backend computes, targets lie on the host, and
    # nothing is checked.

    def rows_loss(self, h, targets: np.ndarray, *, training: bool = True):
        """``(loss, dh, grads)``: the mean loss in nats; without ``training`` no gradients."""
        logits = self.rows_forward(h, training=training)
        weights = np.full(len(targets), 1 / max(len(targets), 1))
        loss, dlogits = self._kernels.cross_entropy(logits, targets, weights)
        return (loss, *self.rows_backward(h, dlogits)) if training else (loss, None, {})

    def rows_log_prob(self, h) -> np.ndarray:
        """The log-probability of each class, float64 [N, V] on the host."""
        from scipy.special import log_softmax  # takes long to import

        return log_softmax(self._kernels.to_host(self.rows_forward(h)).astype(np.float64), axis=1)


class AdaptiveSoftmax(UsesBackend, Layer):
    """Softmax over many classes of which few are frequent (Grave et al. 2017).

    Classes are sorted by frequency, the most frequent first. The first ``cutoffs[0]`` are outputs
    of the head, the others lie in clusters, which have an output of the head each and whose own
    products are only computed for the rows whose target is there. The parameters are those of
    ``torch.nn.AdaptiveLogSoftmaxWithLoss``.

    Parameters
    ----------
    in_features, n_classes : int
        H and V.
    cutoffs : sequence of int
        Where each cluster begins, ascending, between 1 and V - 1.
    div_value : float, default 4.0
        At least 1. Cluster k has ``H / div_value ** (k + 1)`` inputs, at least 1.
    head_bias : bool, default False
    dtype, precision, backend, seed
        See `Linear`.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> softmax = fastrnn.AdaptiveSoftmax(16, 1000, [100, 500], seed=0)
    >>> loss, tape = softmax.forward(np.ones((3, 16)), [0, 250, 999])
    >>> dh, grads = softmax.backward(tape)
    >>> dh.shape, softmax.log_prob(np.ones(16)).shape
    ((3, 16), (1000,))
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        *,
        div_value: float = 4.0,
        head_bias: bool = False,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        self.in_features = checks.integer("in_features", in_features)
        self.n_classes = checks.integer("n_classes", n_classes)
        ids = checks.integer_array("cutoffs", cutoffs, dimensions=1).tolist()
        if not ids or ids[0] < 1 or ids[-1] >= n_classes or sorted(set(ids)) != ids:
            raise ValueError(
                f"cutoffs must ascend and be between 1 and {n_classes - 1}, below n_classes, "
                f"got {cutoffs}"
            )
        self.cutoffs = ids
        div = checks.number("div_value", div_value, 1.0, 1e3, closed=True)
        rng = checks.generator("seed", seed)
        self._kernels = get_backend(backend)
        options: dict[str, Any] = {"dtype": dtype, "precision": precision, "backend": backend}

        def linear(inputs: int, outputs: int, bias: bool = False) -> Linear:
            return Linear(inputs, outputs, bias=bias, seed=int(rng.integers(2**31)), **options)

        self.head = linear(in_features, ids[0] + len(ids), checks.flag("head_bias", head_bias))
        self.tail = []
        for k, (first, end) in enumerate(self._clusters()):
            inner = max(1, int(in_features // div ** (k + 1)))
            self.tail.append((linear(in_features, inner), linear(inner, end - first)))
        self._parameters = parameters.join(self._layers())

    def _clusters(self) -> list[tuple[int, int]]:
        """The first and the last + 1 class of each cluster."""
        return list(zip(self.cutoffs, [*self.cutoffs[1:], self.n_classes], strict=True))

    def _layers(self) -> dict[str, Linear]:
        tails = {f"tail.{k}.{n}": layer for k, pair in enumerate(self.tail)
                 for n, layer in enumerate(pair)}  # fmt: skip
        return {"head": self.head, **tails}

    @property
    def parameters(self) -> Parameters:
        """``head.weight``, ``tail.0.0.weight``, ``tail.0.1.weight``, ..."""
        return self._parameters

    @parameters.setter
    def parameters(self, value: Parameters) -> None:
        self._parameters = value
        for name, layer in self._layers().items():
            layer.parameters = value.sub(f"{name}.")

    @property
    def precision(self) -> Precision:
        """What products are computed in, see `LSTM`."""
        return self.head.precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        for layer in self._layers().values():
            layer.precision = value

    # Rows in, rows out: for models, see `Softmax`.

    def rows_loss(self, h, targets: np.ndarray, *, training: bool = True):
        """``(loss, dh, grads)``: the mean loss in nats; without ``training`` no gradients."""
        kernels, n = self._kernels, max(len(targets), 1)
        cluster = np.searchsorted(self.cutoffs, targets, side="right")  # 0 for the head
        of_head = np.where(cluster == 0, targets, self.cutoffs[0] + cluster - 1)
        logits = self.head.rows_forward(h, training=training)
        loss, d = kernels.cross_entropy(logits, of_head, np.full(len(targets), 1 / n))
        grads: dict[str, Any] = {}
        dh = None
        if training:
            dh, own = self.head.rows_backward(h, d)
            grads |= {f"head.{name}": g for name, g in own.items()}
        parts, rows = [dh], [np.arange(len(targets))]
        for k, (first, _) in enumerate(self._clusters()):
            inside = np.flatnonzero(cluster == k + 1)
            inner, outer = self.tail[k]
            x = kernels.embedding_forward(h, inside)
            z = inner.rows_forward(x, training=training)
            logits = outer.rows_forward(z, training=training)
            weights = np.full(len(inside), 1 / n)
            more, d = kernels.cross_entropy(logits, targets[inside] - first, weights)
            loss += more
            if training:
                dz, of_outer = outer.rows_backward(z, d)
                dx, of_inner = inner.rows_backward(x, dz)
                parts.append(dx)
                rows.append(inside)
                grads[f"tail.{k}.0.weight"] = of_inner["weight"]
                grads[f"tail.{k}.1.weight"] = of_outer["weight"]
        if training:
            dh = kernels.embedding_backward(
                kernels.concatenate(parts), np.concatenate(rows), len(h)
            )
        return loss, dh, grads

    def rows_log_prob(self, h) -> np.ndarray:
        """The log-probability of each class, float64 [N, V] on the host."""
        from scipy.special import log_softmax  # takes long to import

        def of(layer, x):
            values = self._kernels.to_host(layer.rows_forward(x)).astype(np.float64)
            return log_softmax(values, axis=1)

        head, first = of(self.head, h), self.cutoffs[0]
        tails = [
            head[:, first + k, None] + of(outer, inner.rows_forward(h))
            for k, (inner, outer) in enumerate(self.tail)
        ]
        return np.concatenate([head[:, :first], *tails], axis=1)

    # Arrays of the caller.

    def forward(self, h: Input, targets: Input) -> tuple[float, tuple[Any, Grads]]:
        """``(loss, tape)``: the mean of ``-log p(target)`` in nats.

        Parameters
        ----------
        h : array_like of real [..., H]
        targets : array_like of int [...]
            In ``[0, V)``.

        Raises
        ------
        IndexError
            A target is out of range.
        ValueError, TypeError
            A shape or type does not fit.
        """
        self.head._check_trains()
        door = Door(self._kernels, h)
        with door.stream():
            rows = self._rows(door, h)
            ids = checks.integer_array("targets", targets)
            if ids.shape != np.shape(h)[:-1]:
                raise ValueError(f"targets must have shape {np.shape(h)[:-1]}, got {ids.shape}")
            checks.below("targets", "class", ids, self.n_classes)
            loss, dh, grads = self.rows_loss(rows, ids.reshape(-1))
            named = {name: door.give(g) for name, g in grads.items()}
            return loss, (door.give(dh.reshape(*np.shape(h))), named)

    def backward(self, tape: tuple[Any, Grads]) -> tuple[np.ndarray, Grads]:
        """``(dh, grads)`` of the loss."""
        if not isinstance(tape, tuple) or len(tape) != 2:
            raise ValueError(f"tape must come from forward, got {type(tape).__name__}")
        return tape

    def log_prob(self, h: Input) -> np.ndarray:
        """The log-probability of every class, float64 [..., V]."""
        door = Door(self._kernels, h)
        with door.stream():
            log_p = self.rows_log_prob(self._rows(door, h))
            return log_p.reshape(*np.shape(h)[:-1], self.n_classes)

    def _rows(self, door: Door, h: Input):
        rows = door.take("h", h, self.dtype)
        if rows.ndim == 0 or rows.shape[-1] != self.in_features:
            raise ValueError(f"h must have shape (..., {self.in_features}), got {rows.shape}")
        return rows.reshape(-1, self.in_features)

    def __repr__(self) -> str:
        return (
            f"AdaptiveSoftmax({self.in_features}, {self.n_classes}, {self.cutoffs}, "
            f"dtype={self.dtype.name!r}, backend={self.head.backend!r})"
        )
