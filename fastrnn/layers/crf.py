"""The linear-chain conditional random field (Lafferty, McCallum & Pereira 2001)."""

from typing import Any, NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.kernels import host
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.device import Door
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, DType, Input

from .base import Layer


class CRF(UsesBackend, Layer):
    """Scores whole tag sequences: each tag, each pair of adjacent tags, the first and the last.

    Parameters
    ----------
    num_tags : int
        K, the number of tags.
    allowed : array_like of bool [K + 1, K + 1], optional
        ``allowed[i, j]``: tag j may follow tag i; ``allowed[K, j]``: a sequence may begin with
        j; ``allowed[i, K]``: it may end with i. By default all are True.
    dtype : {"float32", "float64"}
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial transition scores, uniform in [-0.1, 0.1].

    Attributes
    ----------
    parameters : Parameters
        ``start_transitions [K]``, ``end_transitions [K]`` and ``transitions [K, K]``, from
        row to column (the names of the pytorch-crf package).

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range or of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> crf = fastrnn.CRF(3, seed=0)
    >>> scores = np.eye(3)[[[0], [2], [1]]] * 9.0  # [T, B, K]
    >>> crf.decode(scores).tolist()
    [[0], [2], [1]]
    """

    def __init__(
        self,
        num_tags: int,
        *,
        allowed: Input = None,
        dtype: DType = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        k = self.num_tags = checks.integer("num_tags", num_tags)
        mask = (
            np.ones((k + 1, k + 1), bool)
            if allowed is None
            else checks.as_array("allowed", allowed)
        )
        if mask.shape != (k + 1, k + 1) or mask.dtype != bool:
            raise ValueError(
                f"allowed must be bool {(k + 1, k + 1)}, got {mask.dtype} {mask.shape}"
            )
        reach = mask[k, :k]
        for length in range(1, 2 * k + 1):
            if not (reach & mask[:k, k]).any():
                raise ValueError(f"allowed must have a path of {length} tags, it has none")
            reach = mask[:k, :k][reach].any(axis=0)
        self.allowed = mask
        rng = checks.generator("seed", seed)
        values = {
            "start_transitions": rng.uniform(-0.1, 0.1, k),
            "end_transitions": rng.uniform(-0.1, 0.1, k),
            "transitions": rng.uniform(-0.1, 0.1, (k, k)),
        }
        super().__init__(values, checks.float_dtype("dtype", dtype))
        self._kernels = get_backend(backend)

    def _scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pair, start and end scores, minus infinity where not allowed."""
        k, p, minus = self.num_tags, self.parameters, self.dtype.type(-np.inf)
        return (
            np.where(self.allowed[:k, :k], p["transitions"], minus),
            np.where(self.allowed[k, :k], p["start_transitions"], minus),
            np.where(self.allowed[:k, k], p["end_transitions"], minus),
        )

    # Rows in, rows out: for models. Scores lie where the backend computes, tags on the host;
    # nothing is checked.

    def rows_loss(self, scores, tags, packed: PackedBatch):
        """``(loss, dscores [N, K], grads)``: the mean over rows of ``-log p(tags | scores)``."""
        loss, d_scores, d_pair, d_start, d_end = self._kernels.crf_gradient(
            scores, tags, packed, *self._scores()
        )
        n = max(1, packed.size)
        grads = {"start_transitions": d_start, "end_transitions": d_end, "transitions": d_pair}
        grads = {name: (g / n).astype(self.dtype) for name, g in grads.items()}
        kernels = self._kernels
        d_scores = kernels.to_device((kernels.to_host(d_scores) / n).astype(self.dtype))
        return float(loss.sum()) / n, d_scores, grads

    def rows_marginals(self, scores, packed: PackedBatch) -> np.ndarray:
        """The probability of each tag at each row, [N, K] float64."""
        p = self._kernels.crf_gradient(scores, None, packed, *self._scores())[1]
        return self._kernels.to_host(p)

    def rows_decode(self, scores, packed: PackedBatch) -> np.ndarray:
        """The tags of the most likely sequences (Viterbi 1967), int64 [N]."""
        return self._kernels.crf_viterbi(scores, packed, *self._scores())

    # Padded arrays in, padded arrays out: the public interface.

    def _checked(self, door: Door, lengths) -> tuple[Any, PackedBatch]:
        scores = door.take("scores", door.x, self.dtype, (None, None, self.num_tags))
        steps, batch = scores.shape[:2]
        if lengths is not None:
            lengths = checks.lengths_array("lengths", lengths, batch, steps)
        return scores, PackedBatch(steps, batch, lengths)

    def forward(self, scores: Input, tags: Input, lengths: Input = None) -> tuple[float, "Tape"]:
        """``(loss, tape)``: the mean over all steps of ``-log p(tags | scores)`` in nats.

        Parameters
        ----------
        scores : array_like of real [T, B, K]
            The score of each tag at each step, for example from `Linear`.
        tags : array_like of int [T, B]
            The correct tags; entries beyond a sequence's length are ignored.
        lengths : array_like of int [B], optional
            Length of each sequence, from 0 to T; by default all T.

        Raises
        ------
        ValueError, TypeError
            A shape or type does not fit, or the tags are not an allowed sequence.
        IndexError
            A tag is not in ``[0, K)``.
        """
        door = Door(self._kernels, scores, "scores")
        with door.stream():
            scores, packed = self._checked(door, lengths)
            tags = checks.integer_array("tags", tags)
            if tags.shape != scores.shape[:2]:
                raise ValueError(f"tags must have shape {scores.shape[:2]}, got {tags.shape}")
            right = host.pack(tags, packed)
            checks.below("tags", "tag", right, self.num_tags)
            rows = self._kernels.pack(scores, packed)
            loss, d_scores, grads = self.rows_loss(rows, right, packed)
            if not np.isfinite(loss):
                raise ValueError("tags must be a sequence that is allowed")
            return loss, Tape(door.give(self._kernels.unpack(d_scores, packed)), grads)

    def backward(self, tape: "Tape") -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """``(dscores [T, B, K], grads)`` of the loss; zero beyond a length."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must come from forward, got {type(tape).__name__}")
        return tape.d_scores, tape.grads

    def decode(self, scores: Input, lengths: Input = None) -> np.ndarray:
        """The most likely tags, int64 [T, B]; zero beyond a length."""
        door = Door(self._kernels, scores, "scores")
        with door.stream():
            scores, packed = self._checked(door, lengths)
            tags = self.rows_decode(self._kernels.pack(scores, packed), packed)
            return host.unpack(tags, packed)

    def marginals(self, scores: Input, lengths: Input = None) -> np.ndarray:
        """The probability of each tag at each step, [T, B, K]; zero beyond a length."""
        door = Door(self._kernels, scores, "scores")
        with door.stream():
            scores, packed = self._checked(door, lengths)
            p = self.rows_marginals(self._kernels.pack(scores, packed), packed)
            return host.unpack(p, packed).astype(self.dtype)


class Tape(NamedTuple):
    """What `CRF.backward` returns: the gradients are computed together with the loss."""

    d_scores: np.ndarray
    grads: dict[str, np.ndarray]
