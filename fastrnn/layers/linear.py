"""The linear layer."""

import numpy as np

from fastrnn import checks

from .base import PackedLayer
from .initial import glorot


class Linear(PackedLayer):
    """``y = x @ weight.T + bias``, with the names and shapes of ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    dtype : {"float32", "float64"}
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Of the initial weight, Glorot uniform; the bias starts at 0.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype="float32",
        backend: str = "cpu",
        seed: int | None = None,
    ):
        self.in_features = checks.positive_int("in_features", in_features)
        self.out_features = checks.positive_int("out_features", out_features)
        values = {"weight": glorot(np.random.default_rng(seed), out_features, in_features)}
        if bias:
            values["bias"] = np.zeros(out_features)
        super().__init__(values, checks.float_dtype("dtype", dtype), backend)

    def _pack(self):
        values = self._kernels.values(self.parameters)
        return self._kernels.LinearWeights(values["weight"], values.get("bias"))

    def rows_forward(self, x: np.ndarray) -> np.ndarray:
        """``y [N, O]`` for ``x [N, I]``; nothing is checked."""
        return self._kernels.linear_forward(self._weights(), x)

    def rows_backward(self, x, dy, *, need_dx: bool = True):
        """``(dx or None, grads)``."""
        dx, weight, bias = self._kernels.linear_backward(self._weights(), x, dy, need_dx=need_dx)
        grads = {"weight": weight, "bias": bias}
        return dx, {name: grads[name] for name in self.parameters}

    def __call__(self, x) -> np.ndarray:
        """``y [..., O]`` for ``x [..., I]``.

        Raises
        ------
        ValueError, TypeError
            x does not fit or is not finite.
        """
        return self.forward(x)[0]

    def forward(self, x) -> tuple[np.ndarray, np.ndarray]:
        """``(y, tape)``."""
        x = checks.real_array("x", x, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got {x.shape}")
        y = self.rows_forward(x.reshape(-1, self.in_features))
        return y.reshape(*x.shape[:-1], self.out_features), x

    def backward(self, tape: np.ndarray, dy) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """``(dx, grads)`` for the gradient of y.

        ``tape`` is x itself where nothing had to be converted: leave it as it is until then.
        """
        if tape.dtype != self.dtype or tape.shape[-1:] != (self.in_features,):
            raise ValueError("tape is not of this layer")
        dy = checks.real_array("dy", dy, self.dtype, (*tape.shape[:-1], self.out_features))
        dx, grads = self.rows_backward(
            tape.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)
        )
        return dx.reshape(tape.shape), grads
