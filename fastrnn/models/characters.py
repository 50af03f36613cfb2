"""Words by their characters: the states that a BiLSTM over each ends with (Lample et al. 2016)."""

import numpy as np

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.data.batches import Spelling
from fastrnn.layers import LSTM, Embedding


class CharacterBiLSTM:
    """Each distinct token of a batch is spelled once, with no padding.

    Parameters
    ----------
    characters : int
        How many there are.
    dim, hidden : int
        Size of a character's embedding, and of the BiLSTM in each direction.
    seeds : (int, int)
        Of the two layers.
    options
        ``dtype`` and ``backend``, as layers take them.
    """

    def __init__(self, characters: int, dim: int, hidden: int, *, seeds, dtype, backend):
        self.embedding = Embedding(characters, dim, dtype=dtype, seed=seeds[0])
        self.lstm = LSTM(
            dim, hidden, bidirectional=True, seed=seeds[1], dtype=dtype, backend=backend
        )

    def forward(self, spelling: Spelling, *, training: bool = False):
        """``(y [N, 2 hidden], tape)`` for the N tokens."""
        rows, x = spelling.rows, self.embedding.rows_forward(spelling.ids)
        _, (h, _), tape = self.lstm.rows_forward(x, rows, training=training)
        distinct = np.ascontiguousarray(rows.unsort(h).swapaxes(0, 1)).reshape(rows.batch, -1)
        return gather_rows(distinct, spelling.tokens), tape

    def backward(self, spelling: Spelling, tape, dy) -> dict[str, np.ndarray]:
        """Gradients by name, with ``char_embedding.`` and ``char_lstm.`` before it."""
        rows = spelling.rows
        d_distinct = np.zeros((rows.batch, dy.shape[1]), dy.dtype)
        scatter_add_rows(dy, spelling.tokens, out=d_distinct)
        dh = np.ascontiguousarray(d_distinct.reshape(rows.batch, 2, -1).swapaxes(0, 1))
        no_output = np.zeros((rows.count, dy.shape[1]), dy.dtype)
        dx, _, grads = self.lstm.rows_backward(tape, no_output, (rows.sort(dh), np.zeros_like(dh)))
        out = {f"char_lstm.{k}": v for k, v in grads.items()}
        of_embedding = self.embedding.rows_backward(spelling.ids, dx)
        return out | {f"char_embedding.{k}": v for k, v in of_embedding.items()}
