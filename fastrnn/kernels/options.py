"""Records that every backend takes: an optimizer's update, the masks of a time loop."""

import math
from typing import Any, NamedTuple


class SGDStep(NamedTuple):
    """Stochastic gradient descent: ``g`` is multiplied by ``scale`` first.

    ``v = momentum * v + (g + weight_decay * w);  w -= lr * v``, or with Nesterov's momentum
    ``w -= lr * (g + weight_decay * w + momentum * v)``.
    """

    scale: float
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool


class AdamStep(NamedTuple):
    """Adam (Kingma & Ba 2015): ``g`` is multiplied by ``scale`` first, ``l2 * w`` is added to it,
    and ``w`` is multiplied by ``shrink``; ``step`` counts from 1."""

    scale: float
    lr: float
    beta1: float
    beta2: float
    eps: float
    l2: float
    shrink: float
    step: int

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What a kernel's loop needs. The corrections for moments that start at zero are made here,
        in float64: ``(scale, corrected lr, 1 - beta1, beta2, 1 - beta2, eps, l2, shrink,
        sqrt(1 - beta2 ** step))``."""
        corrected = self.lr / (1 - self.beta1**self.step)
        root = math.sqrt(1 - self.beta2**self.step)
        return (
            self.scale, corrected, 1 - self.beta1, self.beta2, 1 - self.beta2, self.eps, self.l2,
            self.shrink, root,
        )  # fmt: skip


class Embedded(NamedTuple):
    """An input whose row p is ``vectors[indices[p]]``: each vector is multiplied only once."""

    vectors: Any  # [V, I]
    indices: Any  # int64 [N], in range

    @property
    def shape(self) -> tuple[int, int]:
        """Of the rows."""
        return len(self.indices), self.vectors.shape[1]


class StepMasks(NamedTuple):
    """Zoneout and recurrent dropout for one layer and one call, in the sorted order."""

    keep: Any  # [D, N, K], or [D, 1, K] for all rows: the share of each new state that is kept;
    # K is the sum of the states' sizes, which lie side by side
    recurrent: Any  # [D, B, size of h]: factors of h on its way into the next step
