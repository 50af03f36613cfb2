"""The tagger's network: word features and characters, BiLSTM, linear, softmax or CRF.

After Huang, Xu & Yu (2015) and Lample et al. (2016).
"""

from typing import Any

import numpy as np

from fastrnn import checks, parameters
from fastrnn._gather import sum_rows
from fastrnn.data.batches import Batch
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.cpu.pointwise import insert
from fastrnn.layers import CRF, LSTM, Linear
from fastrnn.layers.dropout import new_key
from fastrnn.losses import cross_entropy
from fastrnn.optim import RowGradient
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, DType, Precision

from .characters import CharacterBiLSTM, CharacterCNN, CharacterEncoder


class BiLSTMTagger(UsesBackend):
    """Computes scores of K tags for each token, and the loss for the correct tags.

    Parameters
    ----------
    features : int
        F, the number of input features per token.
    words : array [V, E], optional
        Initial vectors of V words that are trained too, the first E of the F features. A batch
        trains only the rows of its own words.
    tags : int
        K, the number of tags.
    characters : int, default 0
        Number of distinct characters; 0 omits all encoders of characters.
    char_dim, char_hidden : int, default 25
        Size of character embeddings, and units per direction of the character BiLSTM; 0 for none.
    char_filters, char_width : int, default 0 and 3
        Filters of the character CNN (0 for none), and characters that each sees.
    hidden_size, num_layers : int, default 100 and 1
        Units per direction, and layers, of the BiLSTM over tokens.
    dropout : float, default 0.5
        Dropout of the BiLSTM's output and between its layers.
    input_dropout : float, default 0.25
        Dropout of the BiLSTM's input. All tokens of a sentence share one mask for the input and
        one for the output (Gal & Ghahramani 2016); between layers each token has its own.
    crf : bool, default False
    allowed : array of bool, optional
        See `CRF`.
    class_weight : array [K], optional
    label_smoothing : float, default 0.0
        See `cross_entropy`; without a CRF.
    dtype, precision, backend, seed
        See `LSTM`.

    Attributes
    ----------
    parameters : Parameters
        Those of all layers in one vector: ``lstm.*``, ``linear.*``, ``char_embedding.*``,
        ``char_lstm.*``, ``cnn_embedding.*``, ``char_cnn.*``, ``crf.*``.
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
        char_filters: int = 0,
        char_width: int = 3,
        hidden_size: int = 100,
        num_layers: int = 1,
        dropout: float = 0.5,
        input_dropout: float = 0.25,
        crf: bool = False,
        allowed=None,
        class_weight: np.ndarray | None = None,
        label_smoothing: float = 0.0,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.input_dropout = checks.number("input_dropout", input_dropout, 0.0, 1.0)
        self.rng = checks.generator("seed", seed)
        if crf and (class_weight is not None or label_smoothing):
            raise ValueError("class_weight and label_smoothing need crf=False")
        self.class_weight, self.label_smoothing = class_weight, label_smoothing
        seeds = [int(s) for s in self.rng.integers(2**31, size=7)]
        options: dict[str, Any] = {"dtype": dtype, "backend": backend}
        self._kernels = get_backend(backend)
        products = options | {"precision": precision}
        layers: dict[str, Any] = {}
        self.encoders: list[CharacterEncoder] = []
        if characters and char_hidden:
            self.encoders.append(
                CharacterBiLSTM(characters, char_dim, char_hidden, seeds=seeds[:2], **products)
            )
        if characters and char_filters:
            self.encoders.append(
                CharacterCNN(
                    characters, char_dim, char_filters, char_width, seeds=seeds[5:], **products
                )
            )
        for encoder in self.encoders:
            layers |= encoder.layers
            features += encoder.size
        self.lstm = LSTM(
            features, hidden_size, num_layers, bidirectional=True,
            dropout=dropout if num_layers > 1 else 0.0, seed=seeds[2], **products,
        )  # fmt: skip
        self.lstm.rng = self.rng  # one generator, so that only one state must be saved
        self.linear = Linear(2 * hidden_size, tags, seed=seeds[3], **products)
        layers |= {"lstm": self.lstm, "linear": self.linear}
        self.crf: CRF | None = None
        if crf:
            layers["crf"] = self.crf = CRF(tags, allowed=allowed, seed=seeds[4], **options)
        self.parameters = parameters.join(layers)
        self.tables = {} if words is None else {"words": np.array(words, dtype)}
        self._row_gradients: dict[str, RowGradient] = {}
        self.gradient = parameters.Gradient(self.parameters, self._kernels.empty)

    def __getstate__(self):
        return super().__getstate__() | {"_row_gradients": {}, "gradient": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.gradient = parameters.Gradient(self.parameters, self._kernels.empty)

    @property
    def precision(self) -> Precision:
        """What products are computed in, see `LSTM`; it may be set at any time."""
        return self.lstm.precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        self.lstm.precision = self.linear.precision = value
        for encoder in self.encoders:
            encoder.products.precision = value

    def _mask(self, packed: PackedBatch, width: int, p: float) -> np.ndarray | None:
        """The factors of each sequence's rows, [B, width], on the host, or None."""
        if not p:
            return None
        kernels = self._kernels
        mask = kernels.to_device(np.ones((packed.batch, width), self.parameters.dtype))
        kernels.dropout(mask, p, new_key(self.rng))
        return kernels.to_host(mask)

    def _input(self, batch: Batch, *, training: bool = False):
        """``(x, tapes of the encoders)``; x is the input of the BiLSTM over tokens."""
        x, parts, tapes = batch.inputs, [], []
        if self.tables:
            x = insert(x, self.tables["words"], batch.words)
        for encoder in self.encoders:
            assert batch.spelling is not None
            y, tape = encoder.forward(batch.spelling, training=training)
            parts.append(y)
            tapes.append(tape)
        return np.concatenate([x, *parts], axis=1) if parts else x, tapes

    # Training: the interface `fastrnn.steps.Model`.

    def loss_and_gradient(self, batch: Batch) -> tuple[float, np.ndarray, int]:
        """Mean loss in nats per token, its gradient, and the number of tokens.

        Only real tokens count, as there is no padding. The gradient is a buffer that the next
        call overwrites.
        """
        self.gradient.begin()
        packed, kernels = batch.packed, self._kernels
        x, tapes = self._input(batch, training=True)
        mask_in = self._mask(packed, x.shape[1], self.input_dropout)
        x = kernels.to_device(x.copy() if mask_in is not None and x is batch.inputs else x)
        if mask_in is not None:
            kernels.scale(x, mask_in, packed.ranks)
        h, _, tape = self.lstm.rows_forward(x, packed, training=True)
        mask_out = self._mask(packed, h.shape[1], self.dropout)
        if mask_out is not None:
            kernels.scale(h, mask_out, packed.ranks)
        scores = self.linear.rows_forward(h, training=True)
        if self.crf is None:
            loss, d_scores, _ = cross_entropy(
                scores, batch.tags, ignore_index=None, weight=self.class_weight,
                label_smoothing=self.label_smoothing,
            )  # fmt: skip
        else:
            loss, d_scores, own = self.crf.rows_loss(scores, batch.tags, packed)
            self.gradient.put("crf.", own)
        dh, own = self.linear.rows_backward(h, d_scores)
        self.gradient.put("linear.", own)
        if mask_out is not None:
            kernels.scale(dh, mask_out, packed.ranks)
        need_dx = bool(self.encoders or self.tables)
        d_input, _, _ = self.lstm.rows_backward(
            tape, dh, need_dx=need_dx, put=lambda grads: self.gradient.put("lstm.", grads)
        )
        if need_dx and mask_in is not None:
            kernels.scale(d_input, mask_in, packed.ranks)
        dx: Any = kernels.to_host(d_input) if need_dx else None
        if self.tables:
            table = self.tables["words"]
            sums = sum_rows(dx, batch.words, table.shape[1], len(table))
            self._row_gradients = {"words": RowGradient(table, *sums)}
        first = batch.inputs.shape[1]
        for encoder, own_tape in zip(self.encoders, tapes, strict=True):
            assert batch.spelling is not None
            d_spelled = np.ascontiguousarray(dx[:, first : first + encoder.size])
            self.gradient.put("", encoder.backward(batch.spelling, own_tape, d_spelled))
            first += encoder.size
        return loss, self.gradient.take(), packed.size

    def row_gradients(self) -> dict[str, RowGradient]:
        """The gradient of the word vectors, if they are trained."""
        return self._row_gradients

    def carried(self) -> dict[str, np.ndarray]:
        """Nothing: sentences do not depend on each other."""
        return {}

    def carry(self, carried: dict[str, np.ndarray]) -> None:
        """Restore the state returned by `carried`."""

    # Inference

    def _scores(self, batch: Batch):
        x, _ = self._input(batch)
        h, _, _ = self.lstm.rows_forward(self._kernels.to_device(x), batch.packed)
        return self.linear.rows_forward(h)

    def decode(self, batch: Batch) -> np.ndarray:
        """The most likely tag of each row or, with a CRF, the most likely sequences: int64 [N]."""
        scores = self._scores(batch)
        if self.crf is None:
            return self._kernels.to_host(scores).argmax(axis=1)
        return self.crf.rows_decode(scores, batch.packed)

    def probabilities(self, batch: Batch) -> np.ndarray:
        """The probability of each tag at each row, [N, K]."""
        return self._probabilities(self._scores(batch), batch)

    def best(self, batch: Batch) -> np.ndarray:
        """What `decode` returns, and the probability of it, float64 [N, 2]."""
        scores = self._scores(batch)
        p = self._probabilities(scores, batch)
        ids = p.argmax(axis=1) if self.crf is None else self.crf.rows_decode(scores, batch.packed)
        return np.stack([ids, p[np.arange(len(p)), ids]], axis=1)

    def _probabilities(self, scores, batch: Batch) -> np.ndarray:
        if self.crf is None:
            from scipy.special import softmax  # takes long to import

            return softmax(self._kernels.to_host(scores), axis=1)
        return self.crf.rows_marginals(scores, batch.packed).astype(self.parameters.dtype)
