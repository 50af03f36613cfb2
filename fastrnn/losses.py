"""Losses with their gradients."""

import numpy as np

from fastrnn import checks
from fastrnn.kernels.device import backend_of
from fastrnn.types import Input


def cross_entropy(
    logits: Input, targets: Input, *, ignore_index: int | None = -100
) -> tuple[float, np.ndarray, int]:
    """Softmax cross-entropy, averaged over the targets that are not ignored.

    Parameters
    ----------
    logits : array_like of real [..., V], or an array on a device
    targets : array_like of int [...]
        The correct class at each position, in ``[0, V)``.
    ignore_index : int or None, default -100
        Targets of this value are ignored in the loss, its mean and the gradient, as in
        ``torch.nn.functional.cross_entropy``.

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
        The shapes or types do not fit.
    """
    kernels, given = backend_of(logits), logits
    logits = kernels.device_view(logits) if kernels.on_device else checks.as_array("logits", logits)
    if logits.dtype.kind not in "fiu":
        raise TypeError(f"logits must be real, got dtype {logits.dtype}")
    if logits.dtype.kind != "f":
        logits = logits.astype(np.float64)
    targets = checks.integer_array("targets", targets)
    if ignore_index is not None:
        checks.integer("ignore_index", ignore_index, -(2**63))
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes, flat = logits.shape[-1], targets.reshape(-1)
    if not classes:
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    counts = np.ones(flat.shape, bool) if ignore_index is None else flat != ignore_index
    checks.below("targets", "class", flat, classes, counts)
    with kernels.stream_of(given):
        loss, dlogits, count = kernels.cross_entropy(logits.reshape(-1, classes), flat, counts)
        return loss, kernels.to_caller(given, dlogits.reshape(*logits.shape)), count
