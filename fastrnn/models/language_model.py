"""A language model: embedding or one-hot input, stacked recurrent layers, softmax."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastrnn import checks, parameters
from fastrnn.checkpoint import load_arrays, load_json, save_arrays, save_json
from fastrnn.data.text import Chunk
from fastrnn.data.vocabularies import AnyVocabulary, vocabulary_of
from fastrnn.kernels.backend import UsesBackend, get_backend
from fastrnn.kernels.options import Embedded
from fastrnn.layers import GRU, LSTM, RNN, AdaptiveSoftmax, Embedding
from fastrnn.layers.dropout import new_key
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.softmax import Softmax
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, DType, Precision
from fastrnn.types import Path as FilePath

from .sizes import check_sizes, sizes_of_stack, width
from .text_predictor import TextPredictor

CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
CELL_OPTIONS = (
    "variant", "nonlinearity", "proj_size", "bias", "activations", "zoneout", "recurrent_dropout",
    "constants",
)  # fmt: skip

# Standard deviation of the first layer's input weights when the input is one-hot. Only one of
# the V inputs is 1, so the gates receive one column of these weights, not a sum over V: with the
# usual bound for V inputs they would at first hardly depend on the character. With an embedding
# of standard normal rows and Glorot weights, the gates' inputs have about this deviation.
ONE_HOT_STD = 0.5
# Of tied weights, which are also those of the logits.
TIED_STD = 0.05

# What may differ from the saved model when it is loaded: it does not change the weights' shapes.
_FREE = ("dropout", "input_dropout", "weight_dropout", "seed")


class LanguageModel(UsesBackend, TextPredictor):
    """Predicts the next unit of a text: a character, a word or a byte-pair token.

    Parameters
    ----------
    vocabulary : Vocabulary, WordVocabulary or BytePairs
        Of V units.
    embedding_dim : int, default 64
        E, or 0 for one-hot input, which selects a column of the first layer's input weights
        without a matrix product.
    hidden_size : int, default 512
    num_layers : int, default 1
    cell : {"lstm", "gru", "rnn"}, default "lstm"
    cell_options : mapping, optional
        Further arguments of `LSTM`, `GRU` or `RNN`: variant, nonlinearity, proj_size, bias,
        activations, zoneout, recurrent_dropout and constants.
    tied : bool, default False
        Whether the embedding's weight is that of the logits, too (Press & Wolf 2017);
        ``embedding_dim`` must be the size of the recurrent layer's output.
    cutoffs : sequence of int, optional
        Use an `AdaptiveSoftmax` with these cutoffs, for a large V. It supposes that frequent units
        come first, as in a `WordVocabulary`.
    dropout : float, default 0.0
        Dropout between recurrent layers and before the softmax, in training. With
        ``input_dropout`` of the same value this is the dropout of Zaremba et al. (2014).
    input_dropout : float, default 0.0
        Dropout of the embedding's output.
    weight_dropout : float, default 0.0
        Dropout of the recurrent weights (Merity et al. 2018), see `LSTM`.
    dtype : {"float32", "float64"}
    precision : {"float32", "bf16", "int8"}, default "float32"
        What products are computed in, see `LSTM`; int8 is for inference.
    backend : {"cpu", "cuda", "reference"}
    seed : int, optional
        Seed of the initial weights and dropout.

    Attributes
    ----------
    parameters : Parameters
        Those of all layers in one vector: ``embedding.*``, ``lstm.*`` (or the other cell's name),
        ``linear.*`` (``softmax.*`` if it is adaptive; tied weights are only ``embedding.weight``).

    Examples
    --------
    >>> from fastrnn import Adam, Trainer
    >>> from fastrnn.data.text import TextStream, Vocabulary
    >>> from fastrnn.models import LanguageModel
    >>> text = "a rose is a rose is a rose. " * 40
    >>> model = LanguageModel(Vocabulary.of(text), embedding_dim=8, hidden_size=32, seed=0)
    >>> data = TextStream(model.vocabulary.encode(text), batch=8, bptt=20)
    >>> Trainer(model, Adam(0.02), data, "roses", progress=False).train(steps=60)
    >>> model.sample(14, prime="a rose is", temperature=0)
    ' a rose is a r'
    """

    def __init__(
        self,
        vocabulary: AnyVocabulary,
        *,
        embedding_dim: int = 64,
        hidden_size: int = 512,
        num_layers: int = 1,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        cell_options: Mapping[str, Any] | None = None,
        tied: bool = False,
        cutoffs: Sequence[int] | None = None,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
        seed: int | None = None,
    ):
        if not isinstance(vocabulary, AnyVocabulary):
            raise TypeError(f"vocabulary must be a Vocabulary, got {type(vocabulary).__name__}")
        self.vocabulary = vocabulary
        self.embedding_dim = checks.integer("embedding_dim", embedding_dim, 0)
        self.cell = checks.choice("cell", cell, CELLS)
        if not isinstance(cell_options, Mapping | None):
            raise TypeError(f"cell_options must be a mapping, got {type(cell_options).__name__}")
        self.cell_options = dict(cell_options or {})
        for name in self.cell_options:
            checks.choice("cell_options", name, CELL_OPTIONS)
        self.tied = checks.flag("tied", tied)
        self.dropout = checks.number("dropout", dropout, 0.0, 1.0)
        self.input_dropout = checks.number("input_dropout", input_dropout, 0.0, 1.0)
        if self.input_dropout and not embedding_dim:
            raise ValueError(f"input_dropout must be 0 for a one-hot input, got {input_dropout}")
        self.rng = checks.generator("seed", seed)
        size, num_layers = len(vocabulary), checks.integer("num_layers", num_layers)
        seeds = [int(s) for s in self.rng.integers(2**31, size=3)]
        options: dict[str, Any] = {"dtype": dtype, "backend": backend}
        products = options | {"precision": precision}
        self._kernels = get_backend(backend)
        self.embedding = None
        if embedding_dim:
            self.embedding = Embedding(size, embedding_dim, seed=seeds[0], **options)
        # "recurrent", as the models' layer may be of any cell.
        self.recurrent = CELLS[cell](
            embedding_dim or size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            weight_dropout=weight_dropout,
            seed=seeds[1],
            **self.cell_options,
            **products,
        )
        self.recurrent.rng = self.rng  # one generator, so that only one state must be saved
        outputs = self.recurrent.output_size
        if self.tied and (embedding_dim != outputs or cutoffs is not None):
            raise ValueError(
                f"tied weights need an embedding_dim of {outputs}, the size of the recurrent "
                f"layer's output, and no cutoffs; got {embedding_dim} and {cutoffs}"
            )
        self.softmax: Softmax | AdaptiveSoftmax
        if cutoffs is None:
            self.softmax = Softmax(outputs, size, seed=seeds[2], **products)
        else:
            self.softmax = AdaptiveSoftmax(outputs, size, cutoffs, seed=seeds[2], **products)
        if not embedding_dim:
            self._set("recurrent", "weight_ih_l0", ONE_HOT_STD)
        if self.tied:
            self._set("embedding", "weight", TIED_STD)
        self._join()
        self.gradient = parameters.Gradient(self.parameters, self._kernels.empty)
        self._state: tuple[Any, ...] | None = None

    def _set(self, layer: str, name: str, std: float) -> None:
        """Initialise a weight with normal numbers."""
        own = getattr(self, layer).parameters
        values = own.state_dict()
        values[name] = self.rng.normal(0, std, values[name].shape)
        own.load_state_dict(values)

    def _join(self) -> None:
        """Move all layers' parameters into one vector; tied weights have one place in it."""
        softmax = "linear" if isinstance(self.softmax, Softmax) else "softmax"
        layers: dict[str, Any] = {"embedding": self.embedding} if self.embedding else {}
        layers |= {self.cell: self.recurrent, softmax: self.softmax}
        if not self.tied:
            self.parameters = parameters.join(layers)
            return
        self.softmax.parameters = parameters.Parameters(
            {"bias": self.softmax.parameters["bias"]}, self.softmax.dtype
        )
        self.parameters = parameters.join(layers)
        self.softmax.parameters = self.parameters.renamed(
            {"weight": "embedding.weight", "bias": "linear.bias"}
        )

    def __getstate__(self):
        return super().__getstate__() | {"gradient": None, "_state": self.carried()}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.gradient = parameters.Gradient(self.parameters, self._kernels.empty)
        self.carry(state["_state"])

    @property
    def precision(self) -> Precision:
        """What products are computed in, see `LSTM`; it may be set at any time."""
        return self.recurrent.precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        self.recurrent.precision = self.softmax.precision = value

    def _input(self, ids: np.ndarray, key: int | None = None) -> Any:
        size, fused = len(self.vocabulary), self.recurrent.cell.program is None
        embedded = self._kernels.takes_embedded and fused and size < len(ids) and key is None
        if self.embedding is not None and not embedded:
            x = self.embedding.rows_forward(ids)
            if key is not None:
                self._kernels.dropout(x, self.input_dropout, key)
            return x
        ids = checks.integer_array("ids", ids)
        checks.below("ids", "id", ids, size)  # the kernels do not check
        if self.embedding is not None:  # fewer products than with a vector for each unit
            return Embedded(self.embedding.parameters["weight"], ids)
        return self._kernels.to_device(ids)

    # Training

    def loss_and_gradient(self, chunk: Chunk) -> tuple[float, np.ndarray, int]:
        """Mean loss in nats per unit, its gradient, and the number of units.

        The state continues from the previous chunk unless the streams begin here; the gradient
        stops at the chunk's start (truncated BPTT, Williams & Peng 1990). The gradient is
        a buffer that the next call overwrites.
        """
        self.gradient.begin()
        steps, batch = chunk.ids.shape
        packed, ids = PackedBatch(steps, batch), chunk.ids.reshape(-1)
        if chunk.first or self._state is None or self._state[0].shape[1] != batch:
            self._state = None
        key_in = new_key(self.rng) if self.input_dropout else None
        x = self._input(ids, key_in)
        h, self._state, tape = self.recurrent.rows_forward(x, packed, self._state, training=True)
        key = new_key(self.rng) if self.dropout else None
        if key is not None:
            self._kernels.dropout(h, self.dropout, key)
        loss, dh, own = self.softmax.rows_loss(h, chunk.targets.reshape(-1))
        if key is not None:
            self._kernels.dropout(dh, self.dropout, key)
        table = own.pop("weight") if self.tied else None
        prefix = "linear." if isinstance(self.softmax, Softmax) else "softmax."
        self.gradient.put(prefix, own)
        dx, _, _ = self.recurrent.rows_backward(
            tape,
            dh,
            need_dx=self.embedding is not None,
            put=lambda grads: self.gradient.put(f"{self.cell}.", grads),
        )
        if self.embedding is not None:
            if key_in is not None:
                self._kernels.dropout(dx, self.input_dropout, key_in)
            every = np.arange(len(self.vocabulary))
            shared = isinstance(x, Embedded)  # dx is then the gradient of the table already
            if self.tied:  # one table, so one sum
                dx = self._kernels.concatenate([dx, table])
                ids = np.concatenate([every if shared else ids, every])
            if self.tied or not shared:
                dx = self.embedding.rows_backward(ids, dx)["weight"]
            self.gradient.put("embedding.", {"weight": dx})
        return loss, self.gradient.take(), packed.size

    def carried(self) -> dict[str, np.ndarray]:
        """The state that the next chunk starts from."""
        if self._state is None:
            return {}
        names = self.recurrent.cell.states
        return dict(zip(names, map(self._kernels.to_host, self._state), strict=True))

    def carry(self, carried: dict[str, np.ndarray]) -> None:
        """Restore the state returned by `carried`."""
        names = self.recurrent.cell.states if carried else ()
        self._state = tuple(self._kernels.to_device(carried[name]) for name in names) or None

    # Files

    def config(self) -> dict:
        """The settings from which `load` rebuilds the model, apart from the weights."""
        return {
            "model": "LanguageModel",
            **self.vocabulary.config(),
            "embedding_dim": self.embedding_dim,
            "hidden_size": self.recurrent.hidden_size,
            "num_layers": self.recurrent.num_layers,
            "cell": self.cell,
            "cell_options": json.loads(json.dumps(self.cell_options, default=float)),
            "tied": self.tied,
            "cutoffs": getattr(self.softmax, "cutoffs", None),
            "dropout": self.dropout,
            "input_dropout": self.input_dropout,
            "weight_dropout": self.recurrent.weight_dropout,
            "dtype": self.parameters.dtype.name,
            "precision": self.precision,
        }

    def save(self, folder: FilePath) -> None:
        """Write ``config.json`` and ``weights.safetensors`` into a folder."""
        save_json(Path(folder) / "config.json", self.config())
        save_arrays(Path(folder) / "weights.safetensors", self.parameters.state_dict())

    @classmethod
    def load(
        cls,
        folder: FilePath,
        *,
        precision: Precision | None = None,
        backend: BackendName = "cpu",
        **changed: Any,
    ) -> "LanguageModel":
        """Load the model from a folder written by `save` or by ``fastrnn train lm``.

        Parameters
        ----------
        folder : path
        precision : {"float32", "bf16", "int8"}, optional
            Another one than the model was saved with.
        backend : {"cpu", "cuda", "reference"}
        changed
            Other values of ``dropout``, ``input_dropout``, ``weight_dropout`` or ``seed``.

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged or belongs to another model; the message names it.
        """
        get_backend(backend)
        _check_changed(changed)
        folder = checks.path("folder", folder)
        weights_path = folder / "weights.safetensors"
        config_path = folder / "config.json"
        config = _read_config(config_path)
        weights = load_arrays(weights_path)[0]
        hidden_size, num_layers = sizes_of_stack(weights, f"{config.get('cell', 'lstm')}.")
        check_sizes(config_path, config, {
            "hidden_size": hidden_size, "num_layers": num_layers,
            "embedding_dim": width(weights, "embedding.weight"),
        })  # fmt: skip
        model = cls.from_config(config_path, precision=precision, backend=backend, **changed)
        try:
            model.parameters.load_state_dict(weights)
        except ValueError as error:
            raise ValueError(f"{weights_path} does not fit {config_path}: {error}") from error
        return model

    @classmethod
    def from_config(
        cls,
        path: FilePath,
        *,
        precision: Precision | None = None,
        backend: BackendName = "cpu",
        **changed: Any,
    ) -> "LanguageModel":
        """A new model with the settings in a ``config.json``; arguments are those of `load`."""
        get_backend(backend)
        _check_changed(changed)
        config = _read_config(checks.path("path", path))
        if precision is not None:  # then the backend need not have the other one
            config.pop("precision", None)
        try:
            vocabulary = vocabulary_of(config)
            model = cls(vocabulary, **config, backend=backend)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if changed:
            model = cls(vocabulary, **config | changed, backend=backend)
        if precision is not None:
            model.precision = precision
        return model


def _check_changed(names: Mapping[str, Any]) -> None:
    for name in names:
        checks.choice("changed", name, _FREE)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a ``config.json``."""
    config = load_json(path)
    if not isinstance(config, dict) or config.pop("model", None) != "LanguageModel":
        raise ValueError(f"{path} does not belong to a language model")
    return config
