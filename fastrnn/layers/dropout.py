"""Dropout (Srivastava et al. 2014), scaled in training so that inference needs nothing."""

from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels import get_backend


def new_key(rng: np.random.Generator) -> int:
    """What a backend's ``dropout`` makes its choice from: the same again for the gradient."""
    return int(rng.integers(2**64, dtype=np.uint64))


class Tape(NamedTuple):
    """What `Dropout.backward` needs of `Dropout.forward`."""

    key: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Dropout:
    """Zero each number with probability ``p`` in training, and scale the rest by 1/(1-p).

    Parameters
    ----------
    p : float, default 0.5
        In [0, 1).
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional

    Raises
    ------
    ValueError
        ``p`` is out of its range, or there is no such backend.
    """

    def __init__(self, p: float = 0.5, *, backend: str = "cpu", seed: int | None = None):
        self.p = checks.number("p", p, 0.0, 1.0)
        self.rng = np.random.default_rng(seed)
        self._kernels = get_backend(backend)

    def __call__(self, x) -> np.ndarray:
        """Inference: x itself."""
        return np.asarray(x)

    def forward(self, x) -> tuple[np.ndarray, Tape]:
        """``(y, tape)``; x is any array of float32 or float64, and left alone."""
        x = np.asarray(x)
        if x.dtype.name not in checks.DTYPES:
            raise TypeError(f"x must be an array of floats, got dtype {x.dtype}")
        tape = Tape(new_key(self.rng), x.shape, x.dtype)
        y = np.array(x, order="C")
        self._kernels.dropout(y, self.p, tape.key)
        return y, tape

    def backward(self, tape: Tape, dy) -> np.ndarray:
        """The gradient of x."""
        dx = np.array(checks.real_array("dy", dy, tape.dtype, tape.shape), order="C")
        self._kernels.dropout(dx, self.p, tape.key)
        return dx
