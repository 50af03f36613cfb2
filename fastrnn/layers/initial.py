"""Initial values of weights."""

import numpy as np


def glorot(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """Uniform with variance ``2 / (inputs + outputs)`` (Glorot & Bengio 2010), [O, I]."""
    limit = np.sqrt(6 / (inputs + outputs))
    return rng.uniform(-limit, limit, (outputs, inputs))


def orthogonal(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random orthogonal matrix [size, size] (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))
