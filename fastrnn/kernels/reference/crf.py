"""The linear-chain CRF in NumPy, in logarithms, one sequence at a time."""

import numpy as np
from scipy.special import logsumexp

from fastrnn.packed import PackedBatch


def _sequences(packed: PackedBatch):
    for r in range(packed.batch):
        yield packed.offsets[: packed.lengths[r]] + r


def crf_gradient(scores, tags, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    scores, pair, start, end = (a.astype(np.float64) for a in (scores, pair, start, end))
    loss, d_scores = np.zeros(packed.batch), np.zeros((n, k))
    d_pair, d_start, d_end = np.zeros((k, k)), np.zeros(k), np.zeros(k)
    for r, at in enumerate(_sequences(packed)):
        if not len(at):
            continue
        s = scores[at]
        alpha, beta = np.empty_like(s), np.empty_like(s)
        alpha[0], beta[-1] = start + s[0], end
        for t in range(1, len(s)):
            alpha[t] = s[t] + logsumexp(alpha[t - 1][:, None] + pair, axis=0)
        for t in reversed(range(len(s) - 1)):
            beta[t] = logsumexp(pair + s[t + 1] + beta[t + 1], axis=1)
        log_z = logsumexp(alpha[-1] + end)
        p = np.exp(alpha + beta - log_z)
        for t in range(1, len(s)):
            d_pair += np.exp(alpha[t - 1][:, None] + pair + s[t] + beta[t] - log_z)
        if tags is not None:
            right = tags[at]
            score = start[right[0]] + s[range(len(s)), right].sum() + end[right[-1]]
            score += pair[right[:-1], right[1:]].sum()
            np.subtract.at(d_pair, (right[:-1], right[1:]), 1)
            p[range(len(s)), right] -= 1
            log_z -= score
        loss[r], d_scores[at] = log_z, p
        d_start += p[0]
        d_end += p[-1]
    return loss, d_scores, d_pair, d_start, d_end


def crf_viterbi(scores, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    out = np.empty(len(scores), np.int64)
    for at in _sequences(packed):
        if not len(at):
            continue
        best, back = start + scores[at[0]].astype(np.float64), []
        for p in at[1:]:
            paths = best[:, None] + pair
            back.append(paths.argmax(axis=0))
            best = paths.max(axis=0) + scores[p]
        path = [int((best + end).argmax())]
        for pointers in reversed(back):
            path.insert(0, int(pointers[path[0]]))
        out[at] = path
    return out
