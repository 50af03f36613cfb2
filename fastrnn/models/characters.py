"""Word features from characters: the final states of a BiLSTM over them (Lample et al. 2016)."""

import numpy as np

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.data.batches import Spelling
from fastrnn.kernels import host
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.layers import LSTM, Embedding


class CharacterBiLSTM(UsesBackend):
    """A BiLSTM over the characters of a batch's distinct tokens, without padding.

    Parameters
    ----------
    characters : int
        Number of distinct characters.
    dim, hidden : int
        Size of character embeddings, and units per direction of the BiLSTM.
    seeds : (int, int)
        Seeds of the embedding and of the BiLSTM.
    options
        ``dtype``, ``precision`` and ``backend``, as for layers.
    """

    def __init__(self, characters: int, dim: int, hidden: int, *, seeds, dtype, precision, backend):
        self._kernels = get_backend(backend)
        self.embedding = Embedding(characters, dim, dtype=dtype, backend=backend, seed=seeds[0])
        self.lstm = LSTM(
            dim, hidden, bidirectional=True, seed=seeds[1], dtype=dtype, precision=precision,
            backend=backend,
        )  # fmt: skip

    def forward(self, spelling: Spelling, *, training: bool = False):
        """``(y [N, 2 hidden], tape)`` for the N tokens."""
        packed, x = spelling.packed, self.embedding.rows_forward(spelling.ids)
        _, (h, _), tape = self.lstm.rows_forward(x, packed, training=training)
        h = host.unsort(self._kernels.to_host(h), packed)
        distinct = np.ascontiguousarray(h.swapaxes(0, 1)).reshape(packed.batch, -1)
        return gather_rows(distinct, spelling.tokens), tape

    def backward(self, spelling: Spelling, tape, dy) -> dict[str, np.ndarray]:
        """Gradients by name, prefixed with ``char_embedding.`` or ``char_lstm.``."""
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
