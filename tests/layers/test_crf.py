"""The linear-chain CRF against all paths, one by one."""

import itertools

import numpy as np
import pytest

import fastrnn
from fastrnn.layers import CRF
from helpers import check_close, check_gradient

LENGTHS = [4, 0, 2, 5, 1, 4]


def example(rng, dtype="float64", tags=3, allowed=None, backend="cpu", scale=1.0):
    crf = CRF(tags, dtype=dtype, backend=backend, allowed=allowed)
    crf.load_state_dict(
        {k: scale * rng.standard_normal(v.shape) for k, v in crf.parameters.items()}
    )
    scores = scale * rng.standard_normal((5, len(LENGTHS), tags)).astype(dtype)
    return crf, scores


def paths(crf, scores):
    """Every path of one sequence and its score, with the numbers that the layer holds."""
    pair, start, end = crf._scores()
    out = {}
    for path in itertools.product(range(crf.num_tags), repeat=len(scores)):
        score = float(start[path[0]]) + float(end[path[-1]]) + sum(map(float, (
            *(scores[t, k] for t, k in enumerate(path)),
            *(pair[a, b] for a, b in itertools.pairwise(path)),
        )))  # fmt: skip
        out[path] = score
    return out


def banned(tags=3):
    allowed = np.ones((tags + 1, tags + 1), bool)
    allowed[0, 2] = allowed[tags, 1] = allowed[1, tags] = False
    return allowed


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("allowed", [None, banned()], ids=["all", "some"])
@pytest.mark.parametrize("scale", [1.0, 60.0, 2000.0])
def test_against_all_paths(rng, dtype, allowed, backend, scale):
    """Losses, marginals, gradients and the best path, by summing over every path in logarithms."""
    crf, scores = example(rng, dtype, allowed=allowed, backend=backend, scale=scale)
    best, p = crf.decode(scores, LENGTHS), crf.marginals(scores, LENGTHS)
    tags, total = np.zeros((5, len(LENGTHS)), int), 0.0
    d_pair, d_start, d_end = np.zeros((3, 3)), np.zeros(3), np.zeros(3)

    def count(path, weight):
        np.add.at(d_pair, (list(path[:-1]), list(path[1:])), weight)
        d_start[path[0]] += weight
        d_end[path[-1]] += weight

    for b, n in enumerate(LENGTHS):
        assert not best[n:, b].any() and not p[n:, b].any()
        if not n:
            continue
        all_paths = paths(crf, scores[:n, b])
        z = np.logaddexp.reduce(list(all_paths.values()))
        assert tuple(best[:n, b]) == max(all_paths, key=all_paths.get)
        wanted = np.zeros((n, 3))
        for path, score in all_paths.items():
            wanted[range(n), path] += np.exp(score - z)
            count(path, np.exp(score - z))
        check_close(p[:n, b], wanted, dtype)
        usable = [path for path, score in all_paths.items() if np.isfinite(score)]
        path = usable[int(rng.integers(len(usable)))]
        tags[:n, b] = path
        total += z - all_paths[path]
        count(path, -1.0)
    loss, tape = crf.forward(scores, tags, LENGTHS)
    grads = crf.backward(tape)[1]
    for name, wanted in (
        ("transitions", d_pair), ("start_transitions", d_start), ("end_transitions", d_end),
    ):  # fmt: skip
        check_close(grads[name], wanted / sum(LENGTHS), dtype, name, least=1.0)
    assert loss == pytest.approx(total / sum(LENGTHS), rel=1e-6 if dtype == "float32" else 1e-12)


SCALES = [(500.0, 300.0), (150.0, 1.0), (1.0, 150.0), (300.0, 220.0), (90.0, 90.0)]


@pytest.mark.parametrize(("emissions", "transitions"), SCALES)
def test_no_probability_underflows(emissions, transitions):
    """40 random layers, where a path that looks hopeless at one step may win, against all paths."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crf, _ = example(rng, tags=6, scale=transitions)
        scores = emissions * rng.standard_normal((4, 1, 6))
        tags = rng.integers(0, 6, (4, 1))
        scored = paths(crf, scores[:, 0])
        values = np.array(list(scored.values()))
        log_z = values.max() + np.log(np.exp(values - values.max()).sum())
        loss, tape = crf.forward(scores, tags)
        assert 4 * loss == pytest.approx(log_z - scored[tuple(tags[:, 0])], rel=1e-12, abs=1e-9)
        wanted = np.zeros((4, 6))
        for path, value in scored.items():
            wanted[range(4), path] += np.exp(value - log_z)
        np.testing.assert_allclose(crf.marginals(scores)[:, 0], wanted, atol=1e-10)
        wanted[range(4), tags[:, 0]] -= 1
        np.testing.assert_allclose(4 * tape.d_scores[:, 0], wanted, atol=1e-10)


@pytest.mark.parametrize("allowed", [None, banned()], ids=["all", "some"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients(rng, backend, allowed):
    crf, scores = example(rng, allowed=allowed, backend=backend)
    tags = crf.decode(scores[::-1].copy(), LENGTHS)  # right ones that are allowed
    names = list(crf.parameters)

    def loss(scores, *values):
        crf.load_state_dict(dict(zip(names, values, strict=True)))
        return crf.forward(scores, tags, LENGTHS)[0]

    inputs = [scores, *crf.state_dict().values()]
    d_scores, grads = crf.backward(crf.forward(scores, tags, LENGTHS)[1])
    assert not d_scores[4, 0].any()
    check_gradient(loss, inputs, [d_scores, *(grads[n] for n in names)])


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_agrees_with_the_reference(rng, scale):
    """Also where scores differ by hundreds, as those of an overconfident network do. (Beyond that
    the kernels hand over to the reference, which is judged by all paths above.)"""
    for tags in (2, 5, 9):
        allowed = (
            None if tags == 2 else np.pad(banned(), ((0, tags - 3),) * 2, constant_values=True)
        )
        crf, scores = example(rng, tags=tags, scale=scale, allowed=allowed)
        judge = CRF(tags, dtype="float64", backend="reference", allowed=allowed)
        judge.load_state_dict(crf.state_dict())
        right = judge.decode(rng.standard_normal(scores.shape), LENGTHS)
        assert np.array_equal(crf.decode(scores, LENGTHS), judge.decode(scores, LENGTHS))
        (loss, tape), (wanted, judged) = (
            c.forward(scores, right, LENGTHS) for c in (crf, judge)
        )  # fmt: skip
        assert loss == pytest.approx(wanted, rel=1e-12)
        check_close(tape.d_scores, judged.d_scores, "float64")
        for name, gradient in tape.grads.items():
            check_close(gradient, judged.grads[name], "float64", name)


def test_same_bits_alone_and_for_any_number_of_threads(rng, monkeypatch):
    monkeypatch.setattr("fastrnn.runtime.threads.MIN_WORK", 1)
    crf, scores = example(rng, "float32", tags=7)
    tags = rng.integers(7, size=scores.shape[:2])
    results = []
    for threads in (1, 2, 3):
        fastrnn.set_num_threads(threads)
        loss, tape = crf.forward(scores, tags, LENGTHS)
        results.append((loss, tape.d_scores, *tape.grads.values(), crf.decode(scores, LENGTHS)))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    p = crf.marginals(scores, LENGTHS)
    for b, n in enumerate(LENGTHS):
        if n:
            alone = crf.marginals(np.ascontiguousarray(scores[:n, b : b + 1]))
            assert np.array_equal(alone[:, 0], p[:n, b])


def test_wrong_input(rng):
    crf, scores = example(rng, allowed=banned())
    tags = np.zeros(scores.shape[:2], int)
    with pytest.raises(ValueError, match=r"scores must have shape \(\*, \*, 3\)"):
        crf.decode(scores[0])
    with pytest.raises(ValueError, match=r"tags must have shape \(5, 6\)"):
        crf.forward(scores, tags[:2])
    with pytest.raises(IndexError, match="tag 3 at position"):
        crf.forward(scores, tags + 3)
    with pytest.raises(ValueError, match="tags must be a sequence that is allowed"):
        crf.forward(scores, tags + 1)
    nothing = np.zeros((4, 4), bool)
    with pytest.raises(ValueError, match="allowed must have a path of 1 tags, it has none"):
        CRF(3, allowed=nothing)
    with pytest.raises(ValueError, match=r"allowed must be bool \(4, 4\)"):
        CRF(3, allowed=np.ones((3, 3), bool))
