"""Drawing the next unit of a text from its distribution."""

import math

import numpy as np

from fastrnn import checks


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse what is out of range, see `LanguageModel.sample`."""
    checks.number("temperature", temperature, 0.0, math.inf)
    if top_k is not None:
        checks.integer("top_k", top_k)
    if top_p is not None:
        checks.above_zero("top_p", top_p)
        checks.number("top_p", top_p, 0.0, 1.0, closed=True)


def draw(
    rng: np.random.Generator,
    log_p: np.ndarray,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> int:
    """An index, by its log-probability (or logit) [V]."""
    if temperature == 0:
        return int(log_p.argmax())
    order = np.argsort(-log_p, kind="stable")[:top_k]
    p = np.exp((log_p[order] - log_p[order[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:
        # Up to the first with which the sum reaches top_p.
        kept = int(np.searchsorted(np.cumsum(p), top_p)) + 1
        order, p = order[:kept], p[:kept] / p[:kept].sum()
    return int(rng.choice(order, p=p))
