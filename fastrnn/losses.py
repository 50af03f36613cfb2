"""Losses with their gradients."""

import numpy as np

from fastrnn import checks
from fastrnn.kernels import get_backend, is_on_device


def cross_entropy(logits, targets, *, ignore_index: int | None = -100):
    """Softmax cross-entropy, averaged over what counts.

    Parameters
    ----------
    logits : array_like of real [..., V], or an array on a device
    targets : array_like of int [...]
        The right class of each, in ``[0, V)``.
    ignore_index : int or None, default -100
        A target that does not count, neither in the loss nor in the gradient nor in the
        mean, as ``torch.nn.functional.cross_entropy``.

    Returns
    -------
    loss : float
        Mean of ``-log softmax(logits)[target]`` in nats; 0 when nothing counts.
    dlogits : array [..., V]
        Its gradient, of the type of ``logits`` and where they are.
    count : int
        How many targets count.

    Raises
    ------
    IndexError
        A target that counts is not in ``[0, V)``: names its position, the target and V.
    ValueError, TypeError
        The shapes or types do not fit.
    """
    given, there = logits, is_on_device(logits)
    logits = get_backend("cuda").to_device(logits) if there else np.asarray(logits)
    if logits.dtype.kind not in "fiu":
        raise TypeError(f"logits must be real, got dtype {logits.dtype}")
    if logits.dtype.kind != "f":
        logits = logits.astype(np.float64)
    targets = checks.integer_array("targets", targets)
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes = logits.shape[-1]
    flat = targets.reshape(-1)
    counts = np.ones(flat.shape, bool) if ignore_index is None else flat != ignore_index
    checks.below("targets", "class", flat, classes, counts)
    if there:
        where = get_backend("cuda")
        loss, dlogits, count = where.cross_entropy(logits.reshape(-1, classes), flat, counts)
        return loss, where.like(given, dlogits.reshape(*logits.shape)), count
    count = int(counts.sum())
    rows = np.arange(flat.size)
    safe = np.where(counts, flat, 0)

    z = logits.reshape(-1, classes)
    p = z - z.max(axis=1, keepdims=True, initial=-np.inf if classes else 0)
    right = p[rows, safe]
    np.exp(p, out=p)
    total = p.sum(axis=1)
    losses = np.log(total, dtype=np.float64) - right
    loss = float(losses[counts].sum() / max(count, 1))
    p *= ((counts / max(count, 1)) / total).astype(p.dtype)[:, None]
    p[rows[counts], flat[counts]] -= p.dtype.type(1 / max(count, 1))
    return loss, p.reshape(logits.shape), count
