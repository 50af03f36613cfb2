"""`Rows`: how a ragged batch lies in memory, worked out once from its lengths.

Sequences are taken longest first and laid out step by step, with nothing for the steps
that a sequence does not have: row ``offsets[t] + r`` holds step t of sequence ``order[r]``.
A kernel then never meets padding, the rows that are active at step t are the first
``sizes[t]`` ones, and every product over all steps is one product over N rows. A dense
batch is the case where nothing needs to be moved.
"""

from functools import cached_property

import numpy as np

from . import buffers


class Rows:
    """Geometry of a batch of B sequences over T steps.

    Parameters
    ----------
    steps : int
        T, the length of the padded time axis.
    batch : int
        B, the number of sequences.
    lengths : array of int [B], optional
        Each between 0 and T, in any order; all T when left out.

    Attributes
    ----------
    order : int64 [B] or None
        The sequences, longest first (stable); None when they already are and are all full.
    sizes : int64 [T']
        Active rows at each step up to the longest length T'.
    offsets : int64 [T' + 1]
        First row of each step; the last entry is the number of rows N.
    """

    def __init__(self, steps: int, batch: int, lengths: np.ndarray | None = None):
        self.steps, self.batch = steps, batch
        if lengths is None or (lengths == steps).all():
            self.order = None
            self.lengths = np.full(batch, steps, np.int64)
            self.sizes = np.full(steps if batch else 0, batch, np.int64)
        else:
            order = np.argsort(-lengths, kind="stable")
            self.order = order
            self.lengths = lengths[order].astype(np.int64)
            longest = int(self.lengths[0]) if batch else 0
            self.sizes = np.searchsorted(-self.lengths, -np.arange(longest), side="left").astype(
                np.int64
            )
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.count = int(self.offsets[-1])

    @cached_property
    def times(self) -> np.ndarray:
        """The step that each row is, int64 [N]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def ranks(self) -> np.ndarray:
        """Which of the sequences, counted in the order of the rows, each row is of, int64 [N]."""
        return np.arange(self.count) - self.offsets[self.times]

    @cached_property
    def _places(self) -> dict[bool, np.ndarray]:
        """Where each row lies in a padded ``[T, B]`` array, as a flat index; True: ``[B, T]``."""
        b = self.ranks if self.order is None else self.order[self.ranks]
        return {False: self.times * self.batch + b, True: b * self.steps + self.times}

    def places(self, starts: np.ndarray) -> np.ndarray:
        """Where each row lies if sequence b begins at ``starts[b]`` and its steps follow."""
        b = self.ranks if self.order is None else self.order[self.ranks]
        return starts[b] + self.times

    def pack(self, x: np.ndarray, *, batch_first: bool = False) -> np.ndarray:
        """Rows ``[N, ...]`` of a padded C-contiguous ``[T, B, ...]`` (or ``[B, T, ...]``) array."""
        if self.order is None:
            x = x.swapaxes(0, 1) if batch_first else x
            return np.ascontiguousarray(x).reshape(self.count, *x.shape[2:])
        out = buffers.empty((self.count, *x.shape[2:]), x.dtype)
        flat = x.reshape(-1, *x.shape[2:])
        # "clip" lets NumPy write to ``out`` at once; no place is out of bounds.
        return flat.take(self._places[batch_first], axis=0, out=out, mode="clip")

    def unpack(self, rows: np.ndarray, *, batch_first: bool = False) -> np.ndarray:
        """The padded array of ``rows``; what lies beyond a length is zero."""
        tail = rows.shape[1:]
        if self.order is None:
            out = rows.reshape(self.steps, self.batch, *tail)
            return np.ascontiguousarray(out.swapaxes(0, 1)) if batch_first else out
        shape = (self.batch, self.steps) if batch_first else (self.steps, self.batch)
        out = buffers.empty((self.batch * self.steps, *tail), rows.dtype)
        out.fill(0)
        out[self._places[batch_first]] = rows
        return out.reshape(*shape, *tail)

    def sort(self, state: np.ndarray) -> np.ndarray:
        """A ``[..., B, H]`` array in the order of the rows."""
        return state if self.order is None else state[..., self.order, :]

    def unsort(self, state: np.ndarray) -> np.ndarray:
        """The inverse of `sort`."""
        if self.order is None:
            return state
        out = np.empty_like(state)
        out[..., self.order, :] = state
        return out
