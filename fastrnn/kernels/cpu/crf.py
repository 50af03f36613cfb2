"""The linear-chain CRF on packed rows: forward-backward and Viterbi, serial over the steps.

Forward-backward works with probabilities in float64 that are scaled to a sum of 1 at each step
(Rabiner 1989, section V.A), so it needs one exponential per score and none per pair.
"""

import math
from typing import NamedTuple

import numpy as np

from fastrnn.kernels import reference
from fastrnn.kernels.signature import D1, D2, D3, F2, I1, I2, B, I
from fastrnn.packed import PackedBatch
from fastrnn.runtime.threads import Job, parallel_for

from .compiler import kernel


class _Sequences(NamedTuple):
    scores: F2  # [N, K]
    tags: I1  # [N], or [0] where ``has_tags`` is False
    has_tags: B
    offsets: I1
    lengths: I1


class _Transitions(NamedTuple):
    pair: D2  # [K, K]
    start: D1
    end: D1


class _Gradients(NamedTuple):
    loss: D1  # [B]
    d_scores: D2  # [N, K]
    d_pair: D3  # [B, K, K]
    d_ends: D3  # [B, 2, K]: start and end


@kernel
def _gradient(
    sequences: _Sequences, factors: _Transitions, out: _Gradients, alpha: D2, work: D3,
    first: I, last: I,
):  # fmt: skip
    """The losses of the sequences [first, last) and their gradients.

    A loss is the log of the sum over all paths, minus the score of the right one if there are tags.

    ``factors`` are exponentials. d_scores are the marginal probabilities, minus 1 at the right tag;
    the others likewise. alpha [N, K] and work [B, 3, K] are scratch.
    """
    scores, tags, has_tags, offsets, lengths = sequences
    pair, start, end = factors
    loss, d_scores, d_pair, ends = out
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
            # What step t contributes to each previous tag: x e^score beta, scaled like alpha.
            q = offsets[t - 1] + r
            for k in range(tag_count):
                reach = 0.0
                for j in range(tag_count):
                    reach += alpha[q, j] * pair[j, k]
                # alpha[p] is reach * (its factor) / its scale.
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
def _viterbi(
    sequences: _Sequences, transitions: _Transitions, best: D2, back: I2, out: I1, first: I, last: I
):
    """``out[p]`` = the tag of row p on the best path; best [N, K] and back [N, K] are scratch."""
    scores, _, _, offsets, lengths = sequences
    pair, start, end = transitions
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


def crf_gradient(scores, tags, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    loss, d_scores = np.zeros(packed.batch), np.zeros((n, k))
    d_pair, ends = np.zeros((packed.batch, k, k)), np.zeros((packed.batch, 2, k))
    with np.errstate(over="ignore"):
        factors = _Transitions(*(np.exp(a.astype(np.float64)) for a in (pair, start, end)))
    args = (
        _sequences(scores, tags, packed), factors, _Gradients(loss, d_scores, d_pair, ends),
        np.empty((n, k)), np.empty((packed.batch, 3, k)),
    )  # fmt: skip
    parallel_for(Job(_gradient.of(scores.dtype), args, packed.batch, n * k * (4 * k + 20)))
    if not (np.isfinite(loss).all() and np.isfinite(d_scores).all()):
        # Scores so far apart that a probability underflows: logarithms are slower but always work.
        return reference.crf_gradient(scores, tags, packed, pair, start, end)
    # Summed one sequence after the other, so the bits do not depend on the threads.
    return loss, d_scores, d_pair.sum(axis=0), ends[:, 0].sum(axis=0), ends[:, 1].sum(axis=0)


def crf_viterbi(scores, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    out = np.empty(n, np.int64)
    transitions = _Transitions(*(a.astype(np.float64) for a in (pair, start, end)))
    sequences = _sequences(scores, None, packed)
    args = (sequences, transitions, np.empty((n, k)), np.empty((n, k), np.int64), out)
    parallel_for(Job(_viterbi.of(scores.dtype), args, packed.batch, 4 * n * k * k))
    return out


def _sequences(scores, tags, packed: PackedBatch) -> _Sequences:
    some = np.empty(0, np.int64) if tags is None else tags
    return _Sequences(scores, some, tags is not None, packed.offsets, packed.lengths)
