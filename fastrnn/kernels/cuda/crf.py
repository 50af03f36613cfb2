"""The linear-chain CRF on the GPU: a block per sequence, its threads share the tags.

Forward-backward in logarithms and float64: no score is too large.
"""

from typing import NamedTuple

import numpy as np
from numba import cuda, float64, int64

from fastrnn.kernels.signature import D1, F1, I1, I
from fastrnn.packed import PackedBatch

from . import gemm
from .driver import SMALL
from .equations import exp, log
from .launch import Kernel, inlined, kernel
from .matrix import Matrix
from .memory import to_device, to_host
from .moves import zeros

_THREADS = 3 if SMALL else 32


class _Sequences(NamedTuple):
    scores: F1  # [N, K]
    tags: I1  # [N], not read if ``has_tags`` is 0
    has_tags: I
    offsets: I1
    lengths: I1
    count: I  # K


class _Transitions(NamedTuple):
    pair: D1  # [K, K]
    start: D1
    end: D1


class _Gradients(NamedTuple):
    loss: D1  # [B]
    d_scores: D1  # [N, K]
    d_pair: D1  # [B, K, K]
    d_ends: D1  # [B, 2, K]: start and end


def _log_add(a, b):
    """``log(exp(a) + exp(b))``, where either may be minus infinity."""
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + log(float64(1) + exp(low - high))


@kernel
def gradient_kernel(dtype) -> Kernel:
    threads, log_add = _THREADS, inlined(_log_add)

    def gradient(
        sequences: _Sequences, transitions: _Transitions, out: _Gradients, alpha: D1, beta: D1
    ):
        """The loss of each sequence and its gradients; alpha and beta [N, K] are scratch."""
        scores, tags, has_tags, offsets, lengths, count = sequences
        pair, start, end = transitions
        r, t = cuda.blockIdx.x, cuda.threadIdx.x
        steps = lengths[r]
        for step in range(steps):
            p = (offsets[step] + r) * count
            for k in range(t, count, threads):
                reach = start[k]
                if step > 0:
                    reach = float64(-np.inf)
                    q = (offsets[step - 1] + r) * count
                    for j in range(count):
                        reach = log_add(reach, alpha[q + j] + pair[j * count + k])
                alpha[p + k] = reach + scores[p + k]
            cuda.syncthreads()
        log_z = float64(-np.inf)
        if steps > 0:
            p = (offsets[steps - 1] + r) * count
            for k in range(count):
                log_z = log_add(log_z, alpha[p + k] + end[k])
        for back in range(steps):
            step = steps - 1 - back
            p = (offsets[step] + r) * count
            for k in range(t, count, threads):
                reach = end[k]
                if back > 0:
                    reach = float64(-np.inf)
                    q = (offsets[step + 1] + r) * count
                    for j in range(count):
                        following = scores[q + j] + beta[q + j]
                        reach = log_add(reach, pair[k * count + j] + following)
                beta[p + k] = reach
                out.d_scores[p + k] = exp(alpha[p + k] + reach - log_z)
                if step == 0:
                    out.d_ends[r * 2 * count + k] = out.d_scores[p + k]
                if back == 0:
                    out.d_ends[(r * 2 + 1) * count + k] = out.d_scores[p + k]
                if back > 0:
                    q = (offsets[step + 1] + r) * count
                    for j in range(count):
                        following = scores[q + j] + beta[q + j]
                        both = alpha[p + k] + pair[k * count + j] + following - log_z
                        out.d_pair[(r * count + k) * count + j] += exp(both)
            cuda.syncthreads()
        if t == 0:
            loss = float64(0)
            if steps > 0:
                loss = log_z
            if has_tags:
                before = int64(0)
                for step in range(steps):
                    p, k = (offsets[step] + r) * count, tags[offsets[step] + r]
                    loss -= scores[p + k]
                    out.d_scores[p + k] -= float64(1)
                    if step == 0:
                        loss -= start[k]
                        out.d_ends[r * 2 * count + k] -= float64(1)
                    else:
                        loss -= pair[before * count + k]
                        out.d_pair[(r * count + before) * count + k] -= float64(1)
                    if step == steps - 1:
                        loss -= end[k]
                        out.d_ends[(r * 2 + 1) * count + k] -= float64(1)
                    before = k
            out.loss[r] = loss

    return Kernel(gradient, threads, dtype)


@kernel
def viterbi_kernel(dtype) -> Kernel:
    threads = _THREADS

    def viterbi(sequences: _Sequences, transitions: _Transitions, best: D1, back: I1, out: I1):
        """``out[p]`` = the tag of row p on the best path; best and back [N, K] are scratch."""
        scores, _, _, offsets, lengths, count = sequences
        pair, start, end = transitions
        r, t = cuda.blockIdx.x, cuda.threadIdx.x
        steps = lengths[r]
        for step in range(steps):
            p = (offsets[step] + r) * count
            for k in range(t, count, threads):
                value, pick = start[k], int64(0)
                if step > 0:
                    q = (offsets[step - 1] + r) * count
                    value = best[q] + pair[k]
                    for j in range(1, count):
                        other = best[q + j] + pair[j * count + k]
                        if other > value:
                            value, pick = other, int64(j)
                best[p + k] = value + scores[p + k]
                back[p + k] = pick
            cuda.syncthreads()
        if t == 0 and steps > 0:
            p, tag = (offsets[steps - 1] + r) * count, int64(0)
            for k in range(1, count):
                if best[p + k] + end[k] > best[p + tag] + end[tag]:
                    tag = int64(k)
            out[offsets[steps - 1] + r] = tag
            for step in range(steps - 1, 0, -1):
                tag = back[(offsets[step] + r) * count + tag]
                out[offsets[step - 1] + r] = tag

    return Kernel(viterbi, threads, dtype)


def _on_device(scores, tags, packed: PackedBatch, ends):
    given = np.zeros(1, np.int64) if tags is None else tags
    indices = to_device(packed.offsets), to_device(packed.lengths)
    sequences = _Sequences(scores, to_device(given), tags is not None, *indices, scores.shape[1])
    return sequences, _Transitions(*(to_device(a.astype(np.float64).reshape(-1)) for a in ends))


def crf_gradient(scores, tags, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py; the losses and the gradients of the transitions go to the host."""
    (n, k), b = scores.shape, packed.batch
    sequences, transitions = _on_device(scores, tags, packed, (pair, start, end))
    out = _Gradients(*(zeros(s, np.float64) for s in (b, (n, k), (b, k * k), (b, 2 * k))))
    kernel = gradient_kernel(scores.dtype)
    scratch = [zeros(n * k, np.float64) for _ in range(2)]
    kernel((b, 1), sequences, transitions, out, *scratch)
    d_pair = to_host(gemm.sum_rows(Matrix(out.d_pair, 0, k * k), b, k * k)).reshape(k, k)
    d_start, d_end = to_host(gemm.sum_rows(Matrix(out.d_ends, 0, 2 * k), b, 2 * k)).reshape(2, k)
    return to_host(out.loss), out.d_scores, d_pair, d_start, d_end


def crf_viterbi(scores, packed: PackedBatch, pair, start, end):
    """See kernels/backend.py."""
    n, k = scores.shape
    sequences, transitions = _on_device(scores, None, packed, (pair, start, end))
    out = zeros(n, np.int64)
    scratch = zeros(n * k, np.float64), zeros(n * k, np.int64)
    viterbi_kernel(scores.dtype)((packed.batch, 1), sequences, transitions, *scratch, out)
    return to_host(out)
