"""A character language model: embedding or one-hot input, stacked LSTM, linear, softmax."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import checks, parameters
from fastrnn.checkpoint import load_arrays, load_json, save_arrays, save_json
from fastrnn.data.text import Chunk, TextStream, Vocabulary
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.options import Embedded
from fastrnn.layers import LSTM, Embedding, Linear
from fastrnn.layers.dropout import new_key
from fastrnn.losses import cross_entropy
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, DType, Precision
from fastrnn.types import Path as FilePath

from .sizes import check_sizes, sizes_of_stack, width

# Standard deviation of the first layer's input weights when the input is one-hot. Only one of
# the V inputs is 1, so the gates receive one column of these weights, not a sum over V: with the
# usual bound for V inputs they would at first hardly depend on the character. With an embedding
# of standard normal rows and Glorot weights, the gates' inputs have about this deviation.
ONE_HOT_STD = 0.5


class LanguageModel(UsesBackend):
    """Predicts the next character of a text.

    Parameters
    ----------
    vocabulary : Vocabulary
    embedding_dim : int, default 64
        E, or 0 for one-hot input, which selects a column of the first layer's input weights
        without a matrix product.
    hidden_size : int, default 512
    num_layers : int, default 1
    dropout : float, default 0.0
        Dropout between LSTM layers and before the linear layer, in training.
    dtype : {"float32", "float64"}
    precision : {"float32", "bf16", "int8"}, default "float32"
        What products are computed in, see `LSTM`; int8 is for inference.
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial weights and dropout.

    Attributes
    ----------
    parameters : Parameters
        Those of all layers in one vector: ``embedding.*``, ``lstm.*``, ``linear.*``.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        embedding_dim: int = 64,
        hidden_size: int = 512,
        num_layers: int = 1,
        dropout: float = 0.0,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        if not isinstance(vocabulary, Vocabulary):
            raise TypeError(f"vocabulary must be a Vocabulary, got {type(vocabulary).__name__}")
        self.vocabulary = vocabulary
        self.embedding_dim = checks.integer("embedding_dim", embedding_dim, 0)
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.rng = checks.generator("seed", seed)
        size, num_layers = len(vocabulary), checks.integer("num_layers", num_layers)
        seeds = [int(s) for s in self.rng.integers(2**31, size=3)]
        options: dict[str, Any] = {"dtype": dtype, "backend": backend}
        products = options | {"precision": precision}
        self._kernels = get_backend(backend)
        self.embedding = None
        if embedding_dim:
            self.embedding = Embedding(size, embedding_dim, seed=seeds[0], **options)
        self.lstm = LSTM(
            embedding_dim or size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            seed=seeds[1],
            **products,
        )
        self.linear = Linear(hidden_size, size, seed=seeds[2], **products)
        self.lstm.rng = self.rng  # one generator, so that only one state must be saved
        if not embedding_dim:
            w = self.lstm.parameters["weight_ih_l0"]
            values = self.lstm.state_dict()
            values["weight_ih_l0"] = self.rng.normal(0, ONE_HOT_STD, w.shape)
            self.lstm.load_state_dict(values)
        layers = {"embedding": self.embedding, "lstm": self.lstm, "linear": self.linear}
        self.parameters = parameters.join({k: v for k, v in layers.items() if v is not None})
        self._gradient = self._kernels.empty(self.parameters.size, self.parameters.dtype)
        self._state: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self):
        return super().__getstate__() | {"_gradient": None, "_state": self.carried()}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._gradient = self._kernels.empty(self.parameters.size, self.parameters.dtype)
        self.carry(state["_state"])

    @property
    def precision(self) -> Precision:
        """What products are computed in, see `LSTM`; it may be set at any time."""
        return self.lstm.precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        self.lstm.precision = self.linear.precision = value

    def _input(self, ids: np.ndarray) -> Any:
        size = len(self.vocabulary)
        embedded = self._kernels.takes_embedded and size < len(ids)
        if self.embedding is not None and not embedded:
            return self.embedding.rows_forward(ids)
        ids = checks.integer_array("ids", ids)
        checks.below("ids", "id", ids, size)  # the kernels do not check
        if self.embedding is not None:  # fewer products than with a vector for each character
            return Embedded(self.embedding.parameters["weight"], ids)
        return self._kernels.to_device(ids)

    # Training

    def loss_and_gradient(self, chunk: Chunk) -> tuple[float, np.ndarray, int]:
        """Mean loss in nats per character, its gradient, and the number of characters.

        The state continues from the previous chunk unless the streams begin here; the gradient
        stops at the chunk's start (truncated BPTT, Williams & Peng 1990). The gradient is
        a buffer that the next call overwrites.
        """
        steps, batch = chunk.ids.shape
        packed, ids = PackedBatch(steps, batch), chunk.ids.reshape(-1)
        if chunk.first or self._state is None or self._state[0].shape[1] != batch:
            self._state = None
        x = self._input(ids)
        h, self._state, tape = self.lstm.rows_forward(x, packed, self._state, training=True)
        key = new_key(self.rng) if self.dropout else None
        if key is not None:
            self._kernels.dropout(h, self.dropout, key)
        loss, dlogits, count = cross_entropy(
            self.linear.rows_forward(h, training=True),
            chunk.targets.reshape(-1),
            ignore_index=None,
        )
        dh, linear = self.linear.rows_backward(h, dlogits)
        if key is not None:
            self._kernels.dropout(dh, self.dropout, key)
        dx, _, lstm = self.lstm.rows_backward(tape, dh, need_dx=self.embedding is not None)
        grads = {f"lstm.{k}": v for k, v in lstm.items()}
        grads |= {f"linear.{k}": v for k, v in linear.items()}
        if self.embedding is not None:
            if not isinstance(x, Embedded):
                dx = self.embedding.rows_backward(ids, dx)["weight"]
            grads["embedding.weight"] = dx
        return loss, self.parameters.flatten(grads, self._gradient), count

    def carried(self) -> dict[str, np.ndarray]:
        """The state that the next chunk starts from."""
        if self._state is None:
            return {}
        h, c = map(self._kernels.to_host, self._state)
        return {"h": h, "c": c}

    def carry(self, carried: dict[str, np.ndarray]) -> None:
        """Restore the state returned by `carried`."""
        to_device = self._kernels.to_device
        self._state = (to_device(carried["h"]), to_device(carried["c"])) if carried else None

    # Inference

    def bits_per_character(
        self, text: str | np.ndarray, *, batch: int = 64, bptt: int = 100
    ) -> float:
        """Mean of ``-log2 p(character | preceding characters)`` over a text.

        Parameters
        ----------
        text : str or int array
            At least two characters.
        batch : int, default 64
            The text is read as this many streams of equal length, each from a zero state that is
            then carried along; fewer for a short text. The remainder at the end, less than one
            character per stream, is not read.
        bptt : int, default 100
            Characters at a time. It changes the result only by rounding, except for a text of
            less than ``2 * batch * bptt`` characters, where it limits the number of streams.
        """
        ids = self.vocabulary.encode(text) if isinstance(text, str) else text
        ids = checks.integer_array("text", ids, dimensions=1)
        checks.below("text", "id", ids, len(self.vocabulary))
        batch, bptt = checks.integer("batch", batch), checks.integer("bptt", bptt)
        if len(ids) < 2:
            raise ValueError(f"text must have at least 2 characters, got {len(ids)}")
        stream = TextStream(ids, min(batch, max(1, len(ids) // (2 * bptt))), bptt)
        state, total, seen = None, 0.0, 0
        for chunk in stream.batches():
            packed = PackedBatch(*chunk.ids.shape)
            x = self._input(chunk.ids.reshape(-1))
            h, state, _ = self.lstm.rows_forward(x, packed, state)
            logits = self.linear.rows_forward(h)
            loss, _, count = cross_entropy(logits, chunk.targets.reshape(-1), ignore_index=None)
            total, seen = total + loss * count, seen + count
        return total / seen / math.log(2)

    def sample(
        self, length: int, *, prime: str = "\n", temperature: float = 1.0, seed: int | None = None
    ) -> str:
        """Generate ``length`` characters that continue ``prime``.

        Parameters
        ----------
        length : int
        prime : str, default a line break
            Read first and not part of the result; at least one character.
        temperature : float, default 1.0
            Logits are divided by it; 0 takes the most likely character each time.
        seed : int, optional

        Raises
        ------
        ValueError
            ``prime`` is empty or ``temperature`` negative.
        """
        from scipy.special import softmax  # takes long to import

        checks.integer("length", length, 0)
        checks.number("temperature", temperature, 0.0, math.inf)
        if not isinstance(prime, str):
            raise TypeError(f"prime must be a str, got {type(prime).__name__}")
        if not prime:
            raise ValueError("prime must have at least one character")
        rng = checks.generator("seed", seed)
        ids = self.vocabulary.encode(prime)
        h, state, _ = self.lstm.rows_forward(self._input(ids), PackedBatch(len(ids), 1))
        one, out = PackedBatch(1, 1), []
        for _ in range(length):
            logits = self._kernels.to_host(self.linear.rows_forward(h[-1:]))[0].astype(np.float64)
            logits[0] = -np.inf  # never generate the unknown symbol
            if temperature == 0:
                pick = int(logits.argmax())
            else:
                pick = int(rng.choice(len(logits), p=softmax(logits / temperature)))
            out.append(pick)
            h, state, _ = self.lstm.rows_forward(self._input(np.array([pick])), one, state)
        return self.vocabulary.decode(out)

    # Files

    def config(self) -> dict:
        """The settings from which `load` rebuilds the model, apart from the weights."""
        return {
            "model": "LanguageModel",
            "symbols": "".join(self.vocabulary.symbols),
            "embedding_dim": self.embedding_dim,
            "hidden_size": self.lstm.hidden_size,
            "num_layers": self.lstm.num_layers,
            "dropout": self.dropout,
            "dtype": self.parameters.dtype.name,
            "precision": self.precision,
        }

    def save(self, folder: FilePath) -> None:
        """Write ``config.json`` and ``weights.safetensors`` into a folder."""
        save_json(Path(folder) / "config.json", self.config())
        save_arrays(Path(folder) / "weights.safetensors", self.parameters.state_dict())

    @classmethod
    def load(
        cls, folder: FilePath, *, precision: Precision | None = None, backend: BackendName = "cpu"
    ) -> "LanguageModel":
        """Load the model from a folder written by `save` or by ``fastrnn train lm``.

        Parameters
        ----------
        folder : path
        precision : {"float32", "bf16", "int8"}, optional
            Another one than the model was saved with.
        backend : {"cpu", "cuda", "reference"}

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged or belongs to another model; the message names it.
        """
        get_backend(backend)
        folder = checks.path("folder", folder)
        path = folder / "config.json"
        config = load_json(path)
        if not isinstance(config, dict) or config.pop("model", None) != "LanguageModel":
            raise ValueError(f"{path} does not belong to a language model")
        weights_path = folder / "weights.safetensors"
        weights = load_arrays(weights_path)[0]
        hidden_size, num_layers = sizes_of_stack(weights, "lstm.")
        check_sizes(path, config, {
            "hidden_size": hidden_size, "num_layers": num_layers,
            "embedding_dim": width(weights, "embedding.weight"),
        })  # fmt: skip
        if precision is not None:  # then the backend need not have the other one
            config.pop("precision", None)
        try:
            vocabulary = Vocabulary(list(config.pop("symbols")))
            model = cls(vocabulary, **config, backend=backend)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        path = weights_path
        try:
            model.parameters.load_state_dict(weights)
        except ValueError as error:
            raise ValueError(f"{path} does not fit {folder}/config.json: {error}") from error
        if precision is not None:
            model.precision = precision
        return model
