"""`PackedBatch`: where each step of a ragged batch lies in memory. Indices only, no data.

The layout is that of ``torch.nn.utils.rnn.PackedSequence``. Sequences are sorted by length, the
longest first, and stored step by step without padding: row ``offsets[t] + r`` is step t of
sequence ``sorted_indices[r]``. The rows that are active at step t are the first
``batch_sizes[t]`` ones, so kernels never see padding, and a product over all steps is one matrix
product over N rows. A dense batch ``[T, B, ...]`` is already in this layout.
"""

from functools import cached_property

import numpy as np


class PackedBatch:
    """The geometry of a batch of B sequences over T steps.

    Parameters
    ----------
    steps : int
        T, the length of the padded time axis.
    batch : int
        B, the number of sequences.
    lengths : array of int [B], optional
        Steps of each sequence, from 0 to T in any order; all T when left out.

    Attributes
    ----------
    sorted_indices : int64 [B] or None
        The sequences, longest first (stable); None if all lengths are T.
    lengths : int64 [B]
        The lengths in that order.
    batch_sizes : int64 [T']
        Active sequences at each step up to the longest length T'.
    offsets : int64 [T' + 1]
        First row of each step; the last entry is N.
    size : int
        N, the number of rows: the sum of the lengths.
    """

    def __init__(self, steps: int, batch: int, lengths: np.ndarray | None = None):
        self.steps, self.batch = steps, batch
        self.cuts: dict[int, list[tuple[int, int]]] = {}  # how a backend divides the sequences
        self.there: dict = {}  # these arrays on devices, as a backend wants them
        self.sorted_indices: np.ndarray | None = None
        if lengths is None or (lengths == steps).all():
            self.lengths = np.full(batch, steps, np.int64)
            self.batch_sizes = np.full(steps if batch else 0, batch, np.int64)
            self.offsets = np.arange(len(self.batch_sizes) + 1, dtype=np.int64) * batch
        else:
            from fastrnn._padding import sort_lengths  # not yet there while the package is built

            lengths = np.ascontiguousarray(lengths, np.int64)
            order, self.lengths, self.batch_sizes, self.offsets = sort_lengths(lengths)
            self.sorted_indices = order
        self.size = int(self.offsets[-1])

    @classmethod
    def of_sizes(cls, batch_sizes: np.ndarray) -> "PackedBatch":
        """Of sequences that are sorted already, from the number that is active at each step."""
        steps, batch = len(batch_sizes), int(batch_sizes[0]) if len(batch_sizes) else 0
        # The sizes fall from step to step, so a length is where a sequence's rank is first missing.
        lengths = steps - np.searchsorted(batch_sizes[::-1], np.arange(batch), side="right")
        return cls(steps, batch, lengths)

    @cached_property
    def times(self) -> np.ndarray:
        """The step of each row, int64 [N]."""
        return np.repeat(np.arange(len(self.batch_sizes)), self.batch_sizes)

    @cached_property
    def ranks(self) -> np.ndarray:
        """The sequence of each row, as its position in the sorted order, int64 [N]."""
        return np.arange(self.size) - self.offsets[self.times]

    @cached_property
    def sequences(self) -> np.ndarray:
        """The sequence of each row, as its position in the unsorted batch, int64 [N]."""
        return self.ranks if self.sorted_indices is None else self.sorted_indices[self.ranks]

    @cached_property
    def padded_indices(self) -> np.ndarray:
        """The position of each row in a padded ``[T, B]`` array, as a flat index, int64 [N]."""
        return self.times * self.batch + self.sequences

    @cached_property
    def padded_indices_batch_first(self) -> np.ndarray:
        """The same for a padded ``[B, T]`` array."""
        return self.sequences * self.steps + self.times

    def flat_indices(self, starts: np.ndarray) -> np.ndarray:
        """The position of each row where sequence b is stored at ``starts[b]``, step after step."""
        return starts[self.sequences] + self.times
