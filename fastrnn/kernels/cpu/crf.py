"""The linear-chain CRF on ragged rows: forward-backward and Viterbi, serial over the tags.

Forward-backward works with probabilities scaled to a sum of 1 at each step (Rabiner 1989,
section V.A) in float64, so it needs one exponential for each score and none for the pairs.
"""

import math

import numpy as np

from fastrnn.kernels import reference_crf
from fastrnn.kernels.rows import Rows
from fastrnn.kernels.threads import Job, spread

from .compiler import kernel


@kernel
def _gradient(
    scores, tags, offsets, lengths, pair, start, end, has_tags, loss, d_scores, d_pair, ends,
    alpha, work, first, last,
):  # fmt: skip
    """``loss[r]`` = log of the sum over all paths - score of the right one, and gradients.

    ``pair``, ``start`` and ``end`` are exponentials. ``d_scores`` [N, K] leaves as marginal
    probabilities, less 1 at the right tag if ``has_tags``; the rest is the right path's pairs'
    and ends' expectation. alpha [N, K] and work [B, 3, K] are scratch.
    """
    tag_count = scores.shape[1]
    for r in range(first, last):
        steps = lengths[r]
        loss[r] = 0
        if steps == 0:
            continue
        x, beta, next_beta = work[r, 0], work[r, 1], work[r, 2]
        log_z = 0.0
        for t in range(steps):
            p = offsets[t] + r
            top = np.float64(scores[p, 0])
            for k in range(1, tag_count):
                top = max(top, np.float64(scores[p, k]))
            total = 0.0
            for k in range(tag_count):
                reach = start[k]
                if t > 0:
                    reach = 0.0
                    q = offsets[t - 1] + r
                    for j in range(tag_count):
                        reach += alpha[q, j] * pair[j, k]
                if t == steps - 1:
                    reach *= end[k]
                value = reach * math.exp(scores[p, k] - top)
                alpha[p, k] = value
                total += value
            for k in range(tag_count):
                alpha[p, k] /= total
            log_z += math.log(total) + top
        for k in range(tag_count):
            beta[k] = 1.0
        for step in range(steps):
            t = steps - 1 - step
            p = offsets[t] + r
            total = 0.0
            for k in range(tag_count):
                total += alpha[p, k] * beta[k]
            for k in range(tag_count):
                d_scores[p, k] = alpha[p, k] * beta[k] / total
            if t == steps - 1:
                for k in range(tag_count):
                    ends[r, 1, k] = d_scores[p, k]
            if t == 0:
                for k in range(tag_count):
                    ends[r, 0, k] = d_scores[p, k]
                continue
            # What step t brings to each tag before it: x e^score beta, scaled like alpha.
            q = offsets[t - 1] + r
            for k in range(tag_count):
                reach = 0.0
                for j in range(tag_count):
                    reach += alpha[q, j] * pair[j, k]
                # alpha[p] is reach * (its factor) / its scale, whatever that was.
                x[k] = alpha[p, k] / reach * beta[k] if reach > 0 else 0.0
            scale = 0.0
            for j in range(tag_count):
                value = 0.0
                for k in range(tag_count):
                    value += pair[j, k] * x[k]
                next_beta[j] = value
                scale += alpha[q, j] * value
            for j in range(tag_count):
                for k in range(tag_count):
                    d_pair[r, j, k] += alpha[q, j] * pair[j, k] * x[k] / scale
                beta[j] = next_beta[j] / scale
        if has_tags:
            for t in range(steps):
                p = offsets[t] + r
                k = tags[p]
                log_z -= scores[p, k]
                d_scores[p, k] -= 1
                if t == 0:
                    ends[r, 0, k] -= 1
                    log_z -= math.log(start[k])
                else:
                    j = tags[offsets[t - 1] + r]
                    d_pair[r, j, k] -= 1
                    log_z -= math.log(pair[j, k])
                if t == steps - 1:
                    ends[r, 1, k] -= 1
                    log_z -= math.log(end[k])
        loss[r] = log_z


@kernel
def _viterbi(scores, offsets, lengths, pair, start, end, best, back, out, first, last):
    """``out[p]`` = the tag of row p on the best path; best [N, K] and back [N, K] are scratch."""
    tag_count = scores.shape[1]
    for r in range(first, last):
        steps = lengths[r]
        for t in range(steps):
            p = offsets[t] + r
            for k in range(tag_count):
                value, pick = start[k], 0
                if t > 0:
                    q = offsets[t - 1] + r
                    value = best[q, 0] + pair[0, k]
                    for j in range(1, tag_count):
                        other = best[q, j] + pair[j, k]
                        if other > value:
                            value, pick = other, j
                best[p, k] = value + scores[p, k]
                back[p, k] = pick
        tag = 0
        for step in range(steps):
            t = steps - 1 - step
            p = offsets[t] + r
            if step == 0:
                top = best[p, 0] + end[0]
                for k in range(1, tag_count):
                    if best[p, k] + end[k] > top:
                        top, tag = best[p, k] + end[k], k
            else:
                tag = back[offsets[t + 1] + r, tag]
            out[p] = tag


def crf_gradient(scores, tags, rows: Rows, pair, start, end):
    """See kernels/__init__.py."""
    n, k = scores.shape
    loss, d_scores = np.zeros(rows.batch), np.zeros((n, k))
    d_pair, ends = np.zeros((rows.batch, k, k)), np.zeros((rows.batch, 2, k))
    with np.errstate(over="ignore"):
        exps = [np.exp(a.astype(np.float64)) for a in (pair, start, end)]
    has_tags = tags is not None
    args = (
        scores, tags if has_tags else np.empty(0, np.int64), rows.offsets, rows.lengths, *exps,
        has_tags, loss, d_scores, d_pair, ends, np.empty((n, k)), np.empty((rows.batch, 3, k)),
    )  # fmt: skip
    spread(Job(_gradient, args, rows.batch, n * k * (4 * k + 20)))
    if not (np.isfinite(loss).all() and np.isfinite(d_scores).all()):
        # Scores so far apart that a probability is not a number any more: logarithms are slower.
        return reference_crf.crf_gradient(scores, tags, rows, pair, start, end)
    # One sequence after the other: the sums do not depend on who computed what.
    return loss, d_scores, d_pair.sum(axis=0), ends[:, 0].sum(axis=0), ends[:, 1].sum(axis=0)


def crf_viterbi(scores, rows: Rows, pair, start, end):
    """See kernels/__init__.py."""
    n, k = scores.shape
    out = np.empty(n, np.int64)
    wide = [a.astype(np.float64) for a in (pair, start, end)]
    scratch = np.empty((n, k)), np.empty((n, k), np.int64)
    args = (scores, rows.offsets, rows.lengths, *wide, *scratch, out)
    spread(Job(_viterbi, args, rows.batch, 4 * n * k * k))
    return out
