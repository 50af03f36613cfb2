"""Losses with their gradients."""

import numpy as np

from fastrnn import checks
from fastrnn.kernels.device import backend_of
from fastrnn.types import Input


def cross_entropy(
    logits: Input,
    targets: Input,
    *,
    weight: Input = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
) -> tuple[float, np.ndarray, int]:
    """Softmax cross-entropy, averaged over the targets that are not ignored.

    Arguments have the meaning that they have in ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    logits : array_like of real [..., V], or an array on a device
    targets : array_like of int [...]
        The correct class at each position, in ``[0, V)``.
    weight : array_like of real [V], optional
        The weight of each class, not negative; the mean is weighted by that of the target.
    ignore_index : int or None, default -100
        Targets of this value are ignored in the loss, its mean and the gradient.
    label_smoothing : float, default 0.0
        In [0, 1): how much of a target's probability is shared by all classes (Szegedy et al.
        2016). Above 0 the loss is computed in plain NumPy, which is for a small V.

    Returns
    -------
    loss : float
        Mean of ``-log softmax(logits)[target]`` in nats; 0 if all targets are ignored.
    dlogits : array [..., V]
        Its gradient, of the type (float64 for integers) and on the device of ``logits``.
    count : int
        Number of targets that are not ignored.

    Raises
    ------
    IndexError
        A target that is not ignored is outside ``[0, V)``; the message names its position, the
        target and V.
    ValueError, TypeError
        The shapes or types do not fit, or ``weight`` or ``label_smoothing`` is out of its range.

    Examples
    --------
    >>> import fastrnn
    >>> loss, dlogits, count = fastrnn.cross_entropy([[0.0, 0.0], [0.0, 0.0]], [1, -100])
    >>> round(loss, 4), dlogits.tolist(), count
    (0.6931, [[0.5, -0.5], [0.0, 0.0]], 1)
    """
    kernels, given = backend_of(logits), logits
    logits = (
        kernels.device_view(logits, "logits")
        if kernels.on_device
        else checks.as_array("logits", logits)
    )
    if logits.dtype.kind not in "fiu":
        raise TypeError(f"logits must be real, got dtype {logits.dtype}")
    if logits.dtype.kind != "f":
        logits = logits.astype(np.float64)
    targets = checks.integer_array("targets", targets)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index, -(2**63))
    smoothing = checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes, flat = logits.shape[-1], targets.reshape(-1)
    if not classes:
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    counts = np.ones(flat.shape, bool) if ignore_index is None else flat != ignore_index
    checks.below("targets", "class", flat, classes, counts)
    of_class = None if weight is None else _class_weights(weight, classes)
    rows, count = counts.astype(np.float64), int(counts.sum())
    if of_class is not None:
        rows[counts] = of_class[flat[counts]]
    total = rows.sum() or 1.0
    rows /= total
    with kernels.stream_of(given):
        z = logits.reshape(-1, classes)
        if smoothing:
            of_class = np.ones(classes) if of_class is None else of_class
            shares = np.outer(counts, of_class * (smoothing / (classes * total)))
            shares[counts, flat[counts]] += (1 - smoothing) * rows[counts]
            loss, d = _soft_cross_entropy(kernels.to_host(z), shares)
            dlogits = kernels.to_device(d)
        else:
            loss, dlogits = kernels.cross_entropy(z, flat, rows)
        return loss, kernels.to_caller(given, dlogits.reshape(*logits.shape)), count


def _class_weights(weight: Input, classes: int) -> np.ndarray:
    out = checks.real_array("weight", weight, np.float64, (classes,))
    if (out < 0).any():
        raise ValueError(f"weight must not be negative, got {out.min()}")
    return out


def _soft_cross_entropy(z: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
    """``sum of shares * -log softmax(z)`` and its gradient, [N, V]."""
    from scipy.special import log_softmax  # takes long to import

    with np.errstate(invalid="ignore"):  # infinite logits have a loss that is NaN
        log_p = log_softmax(z.astype(np.float64), axis=1)
        gradient = np.exp(log_p) * shares.sum(axis=1, keepdims=True) - shares
    return float(-(shares * log_p).sum()), gradient.astype(z.dtype)
