"""Dropout (Srivastava et al. 2014), scaled in training so that inference is the identity."""

from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.device import Door
from fastrnn.types import BackendName, Input


def new_key(rng: np.random.Generator) -> int:
    """A random key for a backend's ``dropout``; the backward pass uses the same key."""
    return int(rng.integers(2**64, dtype=np.uint64))


class Tape(NamedTuple):
    """What `Dropout.backward` needs from `Dropout.forward`."""

    key: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Dropout(UsesBackend):
    """Zero each element with probability ``p`` in training, and scale the rest by 1/(1-p).

    Parameters
    ----------
    p : float, default 0.5
        Dropout probability, in [0, 1).
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional

    Raises
    ------
    ValueError
        ``p`` is out of its range, or there is no such backend.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> y, tape = fastrnn.Dropout(0.5, seed=0).forward(np.ones(1000))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float = 0.5, *, backend: BackendName = "cpu", seed: int | None = None):
        self.p = checks.number("p", p, 0.0, 1.0)
        self.rng = checks.generator("seed", seed)
        self._kernels = get_backend(backend)

    def __call__(self, x: Input) -> np.ndarray:
        """Inference: return x unchanged."""
        return x if Door(self._kernels, x).is_device else checks.as_array("x", x)

    def forward(self, x: Input) -> tuple[np.ndarray, "Tape"]:
        """``(y, tape)``; x is a finite array of float32 or float64, and is not changed."""
        kernels, door = self._kernels, Door(self._kernels, x)
        with door.stream():
            x = kernels.device_view(x) if door.is_device else checks.as_array("x", x)
            if x.dtype.name not in checks.DTYPES:
                raise TypeError(f"x must be an array of floats, got dtype {x.dtype}")
            if not door.is_device:
                x = checks.real_array("x", x, x.dtype.name, None, kernels.all_finite)
            y = (
                kernels.copy(x)
                if door.is_device
                else kernels.to_device(np.array(x, x.dtype.name, order="C"))
            )
            tape = Tape(new_key(self.rng), tuple(y.shape), y.dtype)
            kernels.dropout(y, self.p, tape.key)
            return door.give(y), tape

    def backward(self, tape: Tape, dy: Input) -> np.ndarray:
        """The gradient of x."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must come from forward, got {type(tape).__name__}")
        door = Door(self._kernels, dy)
        with door.stream():
            dx = self._kernels.copy(door.take("dy", dy, tape.dtype, tape.shape))
            self._kernels.dropout(dx, self.p, tape.key)
            return door.give(dx)
