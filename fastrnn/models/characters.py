"""Words by their characters: the states that a BiLSTM over each ends with (Lample et al. 2016)."""

import numpy as np

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.data.batches import Spelling
from fastrnn.kernels import host
from fastrnn.kernels.backend import get_backend
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
        self._kernels = get_backend(backend)
        self.embedding = Embedding(characters, dim, dtype=dtype, backend=backend, seed=seeds[0])
        self.lstm = LSTM(
            dim, hidden, bidirectional=True, seed=seeds[1], dtype=dtype, backend=backend
        )

    def forward(self, spelling: Spelling, *, training: bool = False):
        """``(y [N, 2 hidden], tape)`` for the N tokens."""
        packed, x = spelling.packed, self.embedding.rows_forward(spelling.ids)
        _, (h, _), tape = self.lstm.rows_forward(x, packed, training=training)
        h = host.unsort(self._kernels.to_host(h), packed)
        distinct = np.ascontiguousarray(h.swapaxes(0, 1)).reshape(packed.batch, -1)
        return gather_rows(distinct, spelling.tokens), tape

    def backward(self, spelling: Spelling, tape, dy) -> dict[str, np.ndarray]:
        """Gradients by name, with ``char_embedding.`` and ``char_lstm.`` before it."""
        packed, to_device = spelling.packed, self._kernels.to_device
        d_distinct = np.zeros((packed.batch, dy.shape[1]), dy.dtype)
        scatter_add_rows(dy, spelling.tokens, out=d_distinct)
        dh = np.ascontiguousarray(d_distinct.reshape(packed.batch, 2, -1).swapaxes(0, 1))
        dstate = to_device(host.sort(dh, packed)), to_device(np.zeros_like(dh))
        no_output = to_device(np.zeros((packed.size, dy.shape[1]), dy.dtype))
        dx, _, grads = self.lstm.rows_backward(tape, no_output, dstate)
        out = {f"char_lstm.{k}": v for k, v in grads.items()}
        of_embedding = self.embedding.rows_backward(spelling.ids, dx)
        return out | {f"char_embedding.{k}": v for k, v in of_embedding.items()}
