"""Dropout (Srivastava et al. 2014), scaled in training so that inference needs nothing."""

import numpy as np

from fastrnn import checks


def drop(x: np.ndarray, p: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``(x * factors, factors)`` with factors 0 or ``1 / (1 - p)``; x is left alone."""
    keep = rng.random(x.shape, np.float32) >= p
    factors = keep.astype(x.dtype)
    factors *= 1 / (1 - p)
    return x * factors, factors


class Dropout:
    """Zero each number with probability ``p`` in training, and scale the rest by 1/(1-p).

    Parameters
    ----------
    p : float, default 0.5
        In [0, 1).
    seed : int, optional

    Raises
    ------
    ValueError
        ``p`` is out of its range.
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None):
        self.p = checks.number("p", p, 0.0, 1.0)
        self.rng = np.random.default_rng(seed)

    def __call__(self, x) -> np.ndarray:
        """Inference: x itself."""
        return np.asarray(x)

    def forward(self, x) -> tuple[np.ndarray, np.ndarray]:
        """``(y, tape)``; x is any array of floats."""
        x = np.asarray(x)
        if x.dtype.kind != "f":
            raise TypeError(f"x must be an array of floats, got dtype {x.dtype}")
        return drop(x, self.p, self.rng)

    def backward(self, tape: np.ndarray, dy) -> np.ndarray:
        """The gradient of x."""
        return checks.real_array("dy", dy, tape.dtype, tape.shape) * tape
