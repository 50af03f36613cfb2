"""The tagger's network: word features and characters, BiLSTM, linear, softmax or CRF.

After Huang, Xu & Yu (2015) and Lample et al. (2016).
"""

from typing import Any

import numpy as np
from scipy.special import softmax

from fastrnn import checks, parameters
from fastrnn._gather import gather_rows, scatter_add_rows
from fastrnn.data.batches import Batch
from fastrnn.kernels.backend import get_backend
from fastrnn.layers import CRF, LSTM, Linear
from fastrnn.layers.dropout import new_key
from fastrnn.losses import cross_entropy
from fastrnn.optim import RowGradient
from fastrnn.packed import PackedBatch

from .characters import CharacterBiLSTM


class BiLSTMTagger:
    """Scores of K tags for each token, and the loss of right ones.

    Parameters
    ----------
    features : int
        F, numbers that come in for each token.
    words : array [V, E], optional
        Vectors of V words that are trained too, E numbers of the F. A batch trains the rows that
        it has.
    tags : int
        K.
    characters : int, default 0
        Distinct characters; 0 leaves the character BiLSTM out.
    char_dim, char_hidden : int, default 25
        Size of a character's embedding, and of its BiLSTM in each direction.
    hidden_size, num_layers : int, default 100 and 1
        Of the BiLSTM over tokens, in each direction.
    dropout : float, default 0.5
        Of what the BiLSTM returns and between its layers.
    input_dropout : float, default 0.25
        Of what goes into the BiLSTM. What goes in and comes out loses the same numbers at all
        tokens of a sentence (Gal & Ghahramani 2016); between layers each token loses its own.
    crf : bool, default False
    allowed : array of bool, optional
        As `CRF` takes it.
    dtype, backend, seed
        As `LSTM` takes them.

    Attributes
    ----------
    parameters : Parameters
        All layers' in one vector: ``lstm.*``, ``linear.*``, ``char_embedding.*``,
        ``char_lstm.*``, ``crf.*``.
    """

    def __init__(
        self,
        features: int,
        tags: int,
        *,
        words: np.ndarray | None = None,
        characters: int = 0,
        char_dim: int = 25,
        char_hidden: int = 25,
        hidden_size: int = 100,
        num_layers: int = 1,
        dropout: float = 0.5,
        input_dropout: float = 0.25,
        crf: bool = False,
        allowed=None,
        dtype="float32",
        backend: str = "cpu",
        seed: int | None = None,
    ):
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.input_dropout = checks.number("input_dropout", input_dropout, 0.0, 1.0)
        self.rng = np.random.default_rng(seed)
        seeds = [int(s) for s in self.rng.integers(2**31, size=5)]
        options = {"dtype": dtype, "backend": backend}
        self._kernels = get_backend(backend)
        layers: dict[str, Any] = {}
        self.characters: CharacterBiLSTM | None = None
        if characters:
            part = CharacterBiLSTM(characters, char_dim, char_hidden, seeds=seeds[:2], **options)
            layers |= {"char_embedding": part.embedding, "char_lstm": part.lstm}
            self.characters = part
            features += 2 * char_hidden
        self.lstm = LSTM(
            features, hidden_size, num_layers, bidirectional=True,
            dropout=dropout if num_layers > 1 else 0.0, seed=seeds[2], **options,
        )  # fmt: skip
        self.lstm.rng = self.rng  # one generator, so that one state is all there is to save
        self.linear = Linear(2 * hidden_size, tags, seed=seeds[3], **options)
        layers |= {"lstm": self.lstm, "linear": self.linear}
        self.crf: CRF | None = None
        if crf:
            layers["crf"] = self.crf = CRF(tags, allowed=allowed, seed=seeds[4], **options)
        self.parameters = parameters.join(layers)
        self.tables = {} if words is None else {"words": np.array(words, dtype)}
        self._row_gradients: dict[str, RowGradient] = {}
        self._gradient = self._kernels.empty(self.parameters.size, self.parameters.dtype)

    def _mask(self, packed: PackedBatch, width: int, p: float) -> np.ndarray | None:
        """The factors of each sequence's rows, [B, width], on the host, or None."""
        if not p:
            return None
        kernels = self._kernels
        mask = kernels.to_device(np.ones((packed.batch, width), self.parameters.dtype))
        kernels.dropout(mask, p, new_key(self.rng))
        return kernels.to_host(mask)

    def _input(self, batch: Batch, *, training: bool = False):
        """``(x, tape of the characters)``: what goes into the BiLSTM."""
        x, tape = batch.inputs, None
        if self.tables:
            table = self.tables["words"]
            trained = batch.words >= 0
            if trained.all():
                x[:, : table.shape[1]] = gather_rows(table, batch.words)
            else:
                x[trained, : table.shape[1]] = table[batch.words[trained]]
        if self.characters is not None:
            assert batch.spelling is not None
            spelled, tape = self.characters.forward(batch.spelling, training=training)
            x = np.concatenate([x, spelled], axis=1)
        return x, tape

    # Training, as `fastrnn.trainer.Model` asks for it.

    def loss_and_gradient(self, batch: Batch) -> tuple[float, np.ndarray, int]:
        """Mean loss in nats per token, its gradient, and the number of tokens.

        Only tokens count, as there is no padding. The gradient is a buffer that the next call
        writes again.
        """
        packed, kernels = batch.packed, self._kernels
        x, spelling = self._input(batch, training=True)
        mask_in = self._mask(packed, x.shape[1], self.input_dropout)
        if mask_in is not None:
            x = x * mask_in[packed.ranks]
        h, _, tape = self.lstm.rows_forward(kernels.to_device(x), packed, training=True)
        mask_out = self._mask(packed, h.shape[1], self.dropout)
        if mask_out is not None:
            kernels.scale(h, mask_out, packed.ranks)
        scores = self.linear.rows_forward(h)
        grads: dict[str, np.ndarray] = {}
        if self.crf is None:
            loss, d_scores, _ = cross_entropy(scores, batch.tags, ignore_index=None)
        else:
            loss, d_scores, own = self.crf.rows_loss(scores, batch.tags, packed)
            grads |= {f"crf.{k}": v for k, v in own.items()}
        dh, own = self.linear.rows_backward(h, d_scores)
        grads |= {f"linear.{k}": v for k, v in own.items()}
        if mask_out is not None:
            kernels.scale(dh, mask_out, packed.ranks)
        need_dx = self.characters is not None or bool(self.tables)
        dx, _, own = self.lstm.rows_backward(tape, dh, need_dx=need_dx)
        grads |= {f"lstm.{k}": v for k, v in own.items()}
        dx = kernels.to_host(dx) if need_dx else None
        if need_dx and mask_in is not None:
            dx *= mask_in[packed.ranks]
        if self.tables:
            table = self.tables["words"]
            values, words = np.ascontiguousarray(dx[:, : table.shape[1]]), batch.words
            if (words < 0).any():
                values, words = values[words >= 0], words[words >= 0]
            sums = scatter_add_rows(values, words, num_rows=len(table))
            self._row_gradients = {"words": RowGradient(table, *sums)}
        if self.characters is not None:
            assert batch.spelling is not None
            d_spelled = np.ascontiguousarray(dx[:, batch.inputs.shape[1] :])
            grads |= self.characters.backward(batch.spelling, spelling, d_spelled)
        return loss, self.parameters.flatten(grads, self._gradient), packed.size

    def row_gradients(self) -> dict[str, RowGradient]:
        """Of the words' vectors, where they are trained."""
        return self._row_gradients

    def carried(self) -> dict[str, np.ndarray]:
        """Nothing: sentences do not depend on each other."""
        return {}

    def carry(self, carried: dict[str, np.ndarray]) -> None:
        """Go on from `carried`."""

    # Use

    def _scores(self, batch: Batch):
        x, _ = self._input(batch)
        h, _, _ = self.lstm.rows_forward(self._kernels.to_device(x), batch.packed)
        return self.linear.rows_forward(h)

    def decode(self, batch: Batch) -> np.ndarray:
        """The most likely tag of each row, or the most likely sequences' with a CRF: int64 [N]."""
        scores = self._scores(batch)
        if self.crf is None:
            return self._kernels.to_host(scores).argmax(axis=1)
        return self.crf.rows_decode(scores, batch.packed)

    def probabilities(self, batch: Batch) -> np.ndarray:
        """Of each tag at each row, [N, K]."""
        scores = self._scores(batch)
        if self.crf is None:
            return softmax(self._kernels.to_host(scores), axis=1)
        return self.crf.rows_marginals(scores, batch.packed).astype(self.parameters.dtype)
