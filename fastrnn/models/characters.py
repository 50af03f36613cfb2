"""Word features from characters: of a BiLSTM (Lample et al. 2016) or a CNN (Ma & Hovy 2016).

Both read each distinct token of a batch once, and pad nothing.
"""

from typing import Any, Protocol

import numpy as np

from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.data.batches import Spelling
from fastrnn.kernels import host
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.cpu.pointwise import largest, largest_gradient
from fastrnn.layers import LSTM, Embedding, Linear


class CharacterEncoder(Protocol):
    """What the tagger needs of an encoder."""

    size: int  # numbers for each token
    layers: dict[str, Any]  # layers with parameters, by name
    products: Any  # the layer whose products have a precision

    def forward(self, spelling: Spelling, *, training: bool = False) -> tuple[np.ndarray, Any]:
        """``(y [N, size], tape)`` for the N tokens."""

    def backward(self, spelling: Spelling, tape: Any, dy: np.ndarray) -> dict[str, np.ndarray]:
        """Gradients by the names of the parameters."""


def _sum_by_token(spelling: Spelling, dy: np.ndarray) -> np.ndarray:
    """The gradient of each distinct token's features."""
    out = np.zeros((spelling.packed.batch, dy.shape[1]), dy.dtype)
    scatter_add_rows(dy, spelling.tokens, out=out)
    return out


class CharacterBiLSTM(UsesBackend):
    """The final states of a BiLSTM.

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
        self.size = 2 * hidden
        self.embedding = Embedding(characters, dim, dtype=dtype, backend=backend, seed=seeds[0])
        self.lstm = self.products = LSTM(
            dim, hidden, bidirectional=True, seed=seeds[1], dtype=dtype, precision=precision,
            backend=backend,
        )  # fmt: skip
        self.layers = {"char_embedding": self.embedding, "char_lstm": self.lstm}

    def forward(self, spelling, *, training=False):
        """See `CharacterEncoder`."""
        packed, x = spelling.packed, self.embedding.rows_forward(spelling.ids)
        _, (h, _), tape = self.lstm.rows_forward(x, packed, training=training)
        h = host.unsort(self._kernels.to_host(h), packed)
        distinct = np.ascontiguousarray(h.swapaxes(0, 1)).reshape(packed.batch, -1)
        return gather_rows(distinct, spelling.tokens), tape

    def backward(self, spelling, tape, dy):
        """See `CharacterEncoder`."""
        packed, to_device = spelling.packed, self._kernels.to_device
        d_distinct = _sum_by_token(spelling, dy)
        dh = np.ascontiguousarray(d_distinct.reshape(packed.batch, 2, -1).swapaxes(0, 1))
        dstate = to_device(host.sort(dh, packed)), to_device(np.zeros_like(dh))
        no_output = to_device(np.zeros((packed.size, dy.shape[1]), dy.dtype))
        dx, _, grads = self.lstm.rows_backward(tape, no_output, dstate)
        out = {f"char_lstm.{k}": v for k, v in grads.items()}
        of_embedding = self.embedding.rows_backward(spelling.ids, dx)
        return out | {f"char_embedding.{k}": v for k, v in of_embedding.items()}


class CharacterCNN(UsesBackend):
    """The largest output of each filter over all positions of a token.

    Before and after a token lies a padding symbol, whose embedding is trained, too.

    Parameters
    ----------
    characters : int
        Number of distinct characters.
    dim, filters, width : int
        Size of character embeddings, number of filters, and characters that a filter sees (odd).
    seeds, options
        As for `CharacterBiLSTM`.
    """

    def __init__(
        self, characters: int, dim: int, filters: int, width: int, *, seeds, dtype, precision,
        backend,
    ):  # fmt: skip
        self._kernels = get_backend(backend)
        self.size, self.width, self._padding = filters, width, characters
        options = {"dtype": dtype, "backend": backend}
        self.embedding = Embedding(characters + 1, dim, seed=seeds[0], **options)
        self.conv = self.products = Linear(
            width * dim, filters, seed=seeds[1], precision=precision, **options
        )
        self.layers = {"cnn_embedding": self.embedding, "char_cnn": self.conv}

    def forward(self, spelling, *, training=False):
        """See `CharacterEncoder`."""
        windows, starts = self._windows(spelling)
        x = self.embedding.rows_forward(windows.reshape(-1))
        x = x.reshape(len(windows), self.conv.in_features)
        y = self._kernels.to_host(self.conv.rows_forward(x, training=training))
        most, where = largest(y, starts)
        return gather_rows(most, spelling.tokens), (windows, starts, x, where)

    def backward(self, spelling, tape, dy):
        """See `CharacterEncoder`."""
        windows, starts, x, where = tape
        d_conv = largest_gradient(_sum_by_token(spelling, dy), starts, where)
        dx, grads = self.conv.rows_backward(x, self._kernels.to_device(d_conv))
        dx = dx.reshape(windows.size, self.embedding.embedding_dim)
        out = {f"char_cnn.{k}": v for k, v in grads.items()}
        of_embedding = self.embedding.rows_backward(windows.reshape(-1), dx)
        return out | {f"cnn_embedding.{k}": v for k, v in of_embedding.items()}

    def _windows(self, spelling: Spelling) -> tuple[np.ndarray, np.ndarray]:
        """The ids that each position of each distinct token sees, [n, width], and where each token
        begins and the last one ends."""
        packed, half = spelling.packed, self.width // 2
        lengths = np.empty_like(packed.lengths)
        lengths[slice(None) if packed.sorted_indices is None else packed.sorted_indices] = (
            packed.lengths
        )
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        starts, n = bounds[:-1], int(bounds[-1])
        # Tokens one after the other with padding between them: token s begins at first[s].
        first = starts + half * (1 + np.arange(len(starts)))
        ids = np.full(n + half * (1 + len(starts)), self._padding)
        at = np.arange(n) + np.repeat(first - starts, lengths)
        ids[at[packed.flat_indices(starts)]] = spelling.ids
        return ids[at[:, None] + np.arange(-half, half + 1)], bounds
