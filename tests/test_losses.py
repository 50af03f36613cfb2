"""Cross-entropy: PyTorch, finite differences, what does not count, extremes."""

import numpy as np
import pytest

import fastrnn
from helpers import check_close, check_gradient, needs_torch


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
def test_agrees_with_torch(rng, dtype, ignore_index):
    import torch

    logits = rng.standard_normal((4, 6, 5)) * 5
    targets = rng.integers(0, 5, (4, 6))
    targets[0, :3] = ignore_index
    z = torch.tensor(logits.reshape(-1, 5), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        z, torch.from_numpy(targets.reshape(-1)), ignore_index=ignore_index
    )
    loss.backward()
    got, gradient, count = fastrnn.cross_entropy(
        logits.astype(dtype), targets, ignore_index=ignore_index
    )
    check_close(got, loss.item(), dtype)
    check_close(gradient, z.grad.numpy().reshape(4, 6, 5), dtype)
    assert gradient.dtype == dtype and count == (targets != ignore_index).sum()


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_and_smoothing_agree_with_torch(rng, dtype, label_smoothing, weighted):
    import torch

    logits, targets = rng.standard_normal((30, 5)) * 3, rng.integers(0, 5, 30)
    targets[3:6] = -100
    weight = np.array([0.2, 1.0, 3.0, 0.0, 2.0]) if weighted else None
    z = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        z, torch.from_numpy(targets), label_smoothing=label_smoothing,
        weight=None if weight is None else torch.from_numpy(weight),
    )  # fmt: skip
    loss.backward()
    got, gradient, count = fastrnn.cross_entropy(
        logits.astype(dtype), targets, weight=weight, label_smoothing=label_smoothing
    )
    check_close(got, loss.item(), dtype)
    check_close(gradient, z.grad.numpy(), dtype)
    assert gradient.dtype == dtype and count == 27


def test_gradient_of_smoothed_and_weighted_loss(rng):
    logits, targets = rng.standard_normal((6, 4)), np.array([0, 1, -100, 3, 3, -100])
    options = {"weight": [1, 2, 0.5, 0.1], "label_smoothing": 0.2}
    gradient = fastrnn.cross_entropy(logits, targets, **options)[1]
    check_gradient(lambda z: fastrnn.cross_entropy(z, targets, **options)[0], [logits], [gradient])


def test_gradient(rng):
    logits, targets = rng.standard_normal((6, 4)), np.array([0, 1, -100, 3, 3, -100])
    gradient = fastrnn.cross_entropy(logits, targets)[1]
    check_gradient(lambda z: fastrnn.cross_entropy(z, targets)[0], [logits], [gradient])
    assert not gradient[2].any() and not gradient[5].any()


def test_what_does_not_count_changes_nothing(rng):
    logits, targets = rng.standard_normal((5, 3)), np.array([2, -100, 0, -100, 1])
    loss, gradient, count = fastrnn.cross_entropy(logits, targets)
    kept = targets >= 0
    alone = fastrnn.cross_entropy(logits[kept], targets[kept])
    assert (loss, count) == (pytest.approx(alone[0], rel=1e-15), 3)
    assert np.array_equal(gradient[kept], alone[1])


def test_extremes():
    loss, gradient, _ = fastrnn.cross_entropy(np.array([[1e4, 0.0, -1e4]], "f"), [1])
    assert loss == pytest.approx(1e4) and gradient.tolist() == [[1, -1, 0]]
    loss, gradient, count = fastrnn.cross_entropy(np.zeros((2, 3)), [-100, -100])
    assert (loss, count) == (0, 0) and not gradient.any()
    loss, gradient, count = fastrnn.cross_entropy(np.zeros((0, 3)), [])
    assert (loss, count, gradient.shape) == (0, 0, (0, 3))
    assert np.isnan(fastrnn.cross_entropy(np.array([[np.nan, 0.0]]), [0])[0])


def test_refused():
    with pytest.raises(ValueError, match=r"at least one class, got shape \(2, 0\)"):
        fastrnn.cross_entropy(np.zeros((2, 0)), [-100, -100])
    with pytest.raises(IndexError, match=r"class 3 at position 1 is not in \[0, 3\)"):
        fastrnn.cross_entropy(np.zeros((2, 3)), [0, 3])
    with pytest.raises(IndexError, match="class -1 at position 0"):
        fastrnn.cross_entropy(np.zeros((2, 3)), [-1, 0])
    with pytest.raises(IndexError, match="class -100 at position 0"):
        fastrnn.cross_entropy(np.zeros((1, 3)), [-100], ignore_index=None)
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), got \(3,\)"):
        fastrnn.cross_entropy(np.zeros((2, 3)), [0, 1, 2])
    with pytest.raises(TypeError, match="targets must be integers, got dtype float64"):
        fastrnn.cross_entropy(np.zeros((2, 3)), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"weight must have shape \(3"):
        fastrnn.cross_entropy(np.zeros((1, 3)), [0], weight=[1, 2])
    with pytest.raises(ValueError, match="weight must not be negative, got -2"):
        fastrnn.cross_entropy(np.zeros((1, 3)), [0], weight=[1, -2, 0])
    with pytest.raises(ValueError, match="label_smoothing must be"):
        fastrnn.cross_entropy(np.zeros((1, 3)), [0], label_smoothing=1.0)
    with pytest.raises(TypeError, match="logits must be real"):
        fastrnn.cross_entropy(np.zeros((2, 3), complex), [0, 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_near_the_largest_number(dtype):
    big = float(np.finfo("float32").max)  # of float64, the loss itself is no number
    loss, dlogits, _ = fastrnn.cross_entropy(np.array([[big, -big], [big, big]], dtype), [1, 0])
    assert loss == pytest.approx((2 * big + np.log(2)) / 2)
    assert dlogits == pytest.approx(np.array([[0.5, -0.5], [-0.25, 0.25]]))
