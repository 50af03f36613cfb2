"""The linear-chain CRF on packed rows: forward-backward and Viterbi."""

import numpy as np

from fastrnn.kernels.native.library import find
from fastrnn.kernels.native.records import Gradients, Sequences, Transitions
from fastrnn.packed import PackedBatch
from fastrnn.runtime.threads import Job, parallel_for

_MOST = 230.0  # the logarithm of 1 / LEAST in native/source/crf.py


def crf_gradient(scores, tags, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    loss, d_scores = np.zeros(packed.batch), np.zeros((n, k))
    d_pair, ends = np.zeros((packed.batch, k, k)), np.zeros((packed.batch, 2, k))
    with np.errstate(over="ignore"):
        factors = Transitions(*(np.exp(a.astype(np.float64)) for a in (pair, start, end)))
    args = (
        _sequences(scores, tags, packed), factors, Gradients(loss, d_scores, d_pair, ends),
        np.empty((n, k)), np.empty((packed.batch, 3, k)),
    )  # fmt: skip
    parallel_for(Job(find("crf.gradient", scores.dtype), args, packed.batch, n * k * (4 * k + 20)))
    finite = np.isfinite(loss).all() and np.isfinite(d_scores).all()
    if not (finite and _is_moderate(pair) and _is_moderate(start, end)):
        # Scores so far apart that a probability underflows: logarithms are slower but always work.
        from fastrnn.kernels import reference  # late, as it imports SciPy

        return reference.crf_gradient(scores, tags, packed, pair, start, end)
    # Summed one sequence after the other, so the bits do not depend on the threads.
    return loss, d_scores, d_pair.sum(axis=0), ends[:, 0].sum(axis=0), ends[:, 1].sum(axis=0)


def _is_moderate(*scores) -> bool:
    """Whether exponentials of all scores but those that forbid are far from 0 and infinity."""
    return all((np.abs(s[s > -np.inf]) < _MOST).all() for s in scores)


def crf_viterbi(scores, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    out = np.empty(n, np.int64)
    transitions = Transitions(*(a.astype(np.float64) for a in (pair, start, end)))
    sequences = _sequences(scores, None, packed)
    args = (sequences, transitions, np.empty((n, k)), np.empty((n, k), np.int64), out)
    parallel_for(Job(find("crf.viterbi", scores.dtype), args, packed.batch, 4 * n * k * k))
    return out


def _sequences(scores, tags, packed: PackedBatch) -> Sequences:
    some = np.empty(0, np.int64) if tags is None else tags
    return Sequences(scores, some, tags is not None, packed.offsets, packed.lengths)
