"""The linear layer."""

from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.kernels.device import Door
from fastrnn.types import BackendName, DType, Grads, Input, Precision

from .base import PackedLayer
from .initial import glorot


class Linear(PackedLayer):
    """``y = x @ weight.T + bias``, with the names and shapes of ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    dtype : {"float32", "float64"}
    precision : {"float32", "bf16", "int8"}, default "float32"
        What products are computed in, see `LSTM`.
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial weight, which is Glorot uniform; the bias starts at 0.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> linear = fastrnn.Linear(4, 2, seed=0)
    >>> y, tape = linear.forward(np.ones((3, 4)))
    >>> dx, grads = linear.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, grads["weight"].shape
    ((3, 2), (3, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        self.in_features = checks.integer("in_features", in_features)
        self.out_features = checks.integer("out_features", out_features)
        rng = checks.generator("seed", seed)
        values = {"weight": glorot(rng, out_features, in_features)}
        if checks.flag("bias", bias):
            values["bias"] = np.zeros(out_features)
        super().__init__(values, checks.float_dtype("dtype", dtype), backend, precision)

    def _pack(self, precision):
        by_name = self._kernels.parameters_on(self.parameters)
        return self._kernels.LinearWeights(by_name["weight"], by_name.get("bias"), precision)

    # Rows in, rows out: for models. Arrays lie where the backend computes; nothing is checked.

    def rows_forward(self, x, *, training: bool = False):
        """``y [N, O]`` for ``x [N, I]``."""
        return self._kernels.linear_forward(self._weights(), x, training=training)

    def rows_backward(self, x, dy, *, need_dx: bool = True):
        """``(dx or None, grads)``."""
        dx, weight, bias = self._kernels.linear_backward(self._weights(), x, dy, need_dx=need_dx)
        grads = {"weight": weight, "bias": bias}
        return dx, {name: grads[name] for name in self.parameters}

    def __repr__(self) -> str:
        shown = f"precision={self.precision!r}, " if self.precision != "float32" else ""
        return (
            f"Linear({self.in_features}, {self.out_features}, bias={'bias' in self.parameters}, "
            f"dtype={self.dtype.name!r}, {shown}backend={self.backend!r})"
        )

    def __call__(self, x: Input) -> np.ndarray:
        """``y [..., O]`` for ``x [..., I]``.

        With the backend "cuda" x may also be an array on the device, see `LSTM`.

        Raises
        ------
        ValueError, TypeError
            x has a wrong shape or type or is not finite.
        """
        return self._run(x, training=False)[0]

    def forward(self, x: Input) -> tuple[np.ndarray, Any]:
        """``(y, tape)``."""
        self._check_trains()
        return self._run(x, training=True)

    def _run(self, x: Input, *, training: bool) -> tuple[np.ndarray, Any]:
        door = Door(self._kernels, x)
        with door.stream():
            x = door.take("x", x, self.dtype)
            if x.ndim == 0 or x.shape[-1] != self.in_features:
                raise ValueError(f"x must have shape (..., {self.in_features}), got {x.shape}")
            y = self.rows_forward(x.reshape(-1, self.in_features), training=training)
            return door.give(y.reshape(*x.shape[:-1], self.out_features)), x

    def backward(self, tape: Any, dy: Input) -> tuple[np.ndarray, Grads]:
        """``(dx, grads)`` for the gradient of y.

        ``tape`` may be x itself: do not change x before `backward`.
        """
        if getattr(tape, "dtype", None) != self.dtype or tape.shape[-1:] != (self.in_features,):
            raise ValueError("tape must come from forward of this layer")
        door = Door(self._kernels, dy, "dy")
        if isinstance(tape, np.ndarray):
            tape = np.ascontiguousarray(tape)
        with door.stream():
            dy = door.take("dy", dy, self.dtype, (*tape.shape[:-1], self.out_features))
            dx, grads = self.rows_backward(
                tape.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)
            )
            dx = door.give(dx.reshape(*tape.shape))
            return dx, {name: door.give(g) for name, g in grads.items()}
