"""The linear-chain CRF on packed rows: forward-backward and Viterbi, serial over the steps.

Forward-backward works with probabilities in float64 that are scaled to a sum of 1 at each step
(Rabiner 1989, section V.A), so it needs one exponential per score and none per pair.
"""

import math

import numpy as np

from fastrnn.kernels.native.records import Gradients, Sequences, Transitions
from fastrnn.kernels.signature import D2, D3, I1, I2, I

from .compiler import kernel

# With probabilities and factors of at least this (and at most its inverse), products of two
# probabilities and a factor neither underflow nor overflow.
LEAST = 1e-100


@kernel
def gradient(
    sequences: Sequences, factors: Transitions, out: Gradients, alpha: D2, work: D3,
    first: I, last: I,
):  # fmt: skip
    """The losses of the sequences [first, last) and their gradients.

    A loss is the log of the sum over all paths, minus the score of the right one if there are tags;
    NaN if a probability falls below `LEAST`, as those it leads to might underflow.

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
        lost = False
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
                lost = lost or (reach > 0 and value == 0)
                alpha[p, k] = value
                total += value
            for k in range(tag_count):
                alpha[p, k] /= total
                lost = lost or 0 < alpha[p, k] < LEAST
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
        loss[r] = np.nan if lost else log_z


@kernel
def viterbi(
    sequences: Sequences, transitions: Transitions, best: D2, back: I2, out: I1, first: I, last: I
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
