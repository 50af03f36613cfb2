"""`Tagger`: sentences and tags in, tags out, after scikit-learn's habits."""

import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import load_arrays, load_json, save_arrays, save_json
from fastrnn.data.batches import Lexicon, SentenceBatches, Tokens, by_length, make_batch
from fastrnn.data.tags import (
    SCHEMES,
    all_tags,
    check_scheme,
    may_follow,
    read_entities,
    strict_entities,
    write_tags,
)
from fastrnn.data.text import Vocabulary
from fastrnn.data.vectors import WordVectors, load_vectors
from fastrnn.metrics import EntityScores, entity_scores
from fastrnn.optim import OPTIMIZERS
from fastrnn.trainer import Trainer, take_weights

from .bilstm import BiLSTMTagger

_TAGGED_AT_ONCE = 4096  # tokens of a batch that is not trained on
_REMEMBERED = 1 << 17  # distinct tokens that tagging keeps the features of


class Tagger:
    """A BiLSTM that tags the entities in sentences.

    Parameters
    ----------
    vectors : path, "glove", WordVectors or None, default None
        Word vectors as `load_vectors` takes them; without any, words have random vectors of
        ``word_dim`` numbers. Words that the table lacks have random ones in any case, functions of
        the word and ``vector_seed``.
    word_dim : int, default 50
        Without ``vectors``.
    unknown : {"normal", "mean"}
        What a word that the table lacks gets: numbers drawn from a normal distribution, or the
        same for all, the table's mean. A `WordVectors` that is given says so itself.
    fine_tune : bool, default True
        Train the vectors of the training set's words too; a batch touches only those it has.
    hidden_size, num_layers : int, default 100 and 1
        Of the BiLSTM, in each direction.
    char_hidden : int, default 0
        Units of a BiLSTM over the characters of a word, in each direction; 0 for none.
    char_dim : int, default 25
    crf : bool, default False
        A linear-chain CRF instead of a softmax for each token.
    constrain : bool, default True
        With a CRF, forbid what the scheme does not allow, such as I after O.
    dropout, input_dropout : float, default 0.5 and 0.25
        Of what comes out of the BiLSTM, and of what goes in; the same at all tokens of a sentence.
    scheme : {"BIOES", "IOB2"}
        Of the tags that the network tells apart. `predict` returns BIOES if that is what it was
        trained on, and else IOB2.
    optimizer : {"adam", "adamw", "sgd"}
    lr : float, default 3e-3
    max_norm : float or None, default 5.0
        Gradients of a larger norm are scaled down to it.
    epochs, patience : int, default 10 and 0
        Stop after ``patience`` epochs without a better F1 on ``dev``; 0 for never.
    batch_size : int, default 32
        Sentences of like length.
    max_tokens : int or None, default None
        Instead of ``batch_size``, as many sentences as have this many tokens together.
    max_len : int or None, default None
        Training sentences are cut after so many tokens, with a warning that counts them.
    seed, vector_seed : int, default 0
        Of everything random; of the vectors of unknown words.
    dtype : {"float32", "float64"}
    backend : {"cpu", "reference"}

    Attributes
    ----------
    classes_ : list of str
        The tags of `predict_proba`, in ``scheme``, "O" first.
    network_ : BiLSTMTagger
    trainer_ : Trainer
        After `fit`.
    """

    def __init__(
        self,
        vectors=None,
        *,
        word_dim: int = 50,
        unknown: str = "normal",
        fine_tune: bool = True,
        hidden_size: int = 100,
        num_layers: int = 1,
        char_hidden: int = 0,
        char_dim: int = 25,
        crf: bool = False,
        constrain: bool = True,
        dropout: float = 0.5,
        input_dropout: float = 0.25,
        scheme: str = "BIOES",
        optimizer: str = "adam",
        lr: float = 3e-3,
        max_norm: float | None = 5.0,
        epochs: int = 10,
        patience: int = 0,
        batch_size: int = 32,
        max_tokens: int | None = None,
        max_len: int | None = None,
        seed: int = 0,
        vector_seed: int = 0,
        dtype: str = "float32",
        backend: str = "cpu",
    ):
        self.vectors = vectors
        self.word_dim, self.unknown, self.fine_tune = word_dim, unknown, fine_tune
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.char_hidden, self.char_dim = char_hidden, char_dim
        self.crf, self.constrain = crf, constrain
        self.dropout, self.input_dropout = dropout, input_dropout
        self.scheme, self.optimizer, self.lr, self.max_norm = scheme, optimizer, lr, max_norm
        self.epochs, self.patience = epochs, patience
        self.batch_size, self.max_tokens, self.max_len = batch_size, max_tokens, max_len
        self.seed, self.vector_seed, self.dtype, self.backend = seed, vector_seed, dtype, backend

    # scikit-learn's habits: parameters are set as they come and looked at in `fit`.

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params) -> "Tagger":
        """Change parameters, for the next `fit`."""
        unknown = sorted(params.keys() - set(self._names()))
        if unknown:
            raise ValueError(f"unknown parameters: {', '.join(unknown)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        shown = [f"{k}={v!r}" for k, v in self.get_params().items() if v != defaults[k].default]
        return f"Tagger({', '.join(shown)})"

    # Training

    def fit(self, X, y, *, dev=None, run=None, resume=False, progress=None, report=None):
        """Train on sentences; with ``dev``, keep the weights of the epoch with its best F1.

        Parameters
        ----------
        X : sequence of sequence of str
            The tokens of each sentence.
        y : sequence of sequence of str
            Their tags, in any scheme.
        dev : (X, y), optional
            Sentences to measure F1 on after each epoch.
        run : path, optional
            Folder for the history, checkpoints and the model; nothing is written when left out.
        resume : bool, default False
            Go on with the run in ``run``.
        progress, report
            As `Trainer` takes them.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            A parameter or a sentence does not fit, or the folder holds another run.
        """
        check_scheme(self.scheme)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}"
            )
        checks.positive_int("epochs", self.epochs)
        if resume and run is None:
            raise ValueError("resume needs the folder of a run")
        X, raw = self._sentences("X", X), y
        y = self._tags("y", X, raw, self.scheme)
        writes = "BIOES" if any(t[0] in "ESLU" for ts in raw for t in ts) else "IOB2"
        if dev is not None:
            if not isinstance(dev, (tuple, list)) or len(dev) != 2:
                raise ValueError("dev must be a pair (X, y)")
            dev = self._sentences("dev[0]", dev[0]), self._tags("dev[1]", dev[0], dev[1], writes)
        pairs = [(x, t) for x, t in zip(X, y, strict=True) if len(x)]
        if not pairs:
            raise ValueError("X has no tokens")
        if self.max_len is not None:
            pairs = self._cut(pairs, checks.positive_int("max_len", self.max_len))
        X, y = [x for x, _ in pairs], [t for _, t in pairs]
        vectors = self._load_vectors()
        words = sorted({vectors.key(w) for x in X for w in x}) if self.fine_tune else []
        types = sorted({t.partition("-")[2] for ts in y for t in ts if t != "O"})
        symbols: list[str] = []
        if self.char_hidden:
            symbols = Vocabulary.of("".join(w for x in X for w in x), min_count=1).symbols
        self._build(vectors, all_tags(types, self.scheme), words, symbols, writes)

        number = {tag: i for i, tag in enumerate(self.classes_)}
        tokens = self._lexicon.encode(X)
        data = SentenceBatches(
            self._lexicon, tokens, np.array([number[t] for ts in y for t in ts]),
            batch_size=self.batch_size, max_tokens=self.max_tokens, seed=self.seed,
        )  # fmt: skip

        def f1():
            return 100 * entity_scores(dev[1], self.predict(dev[0]), scheme=writes).micro.f1

        with tempfile.TemporaryDirectory() as scratch:
            self.trainer_ = Trainer(
                self.network_, OPTIMIZERS[self.optimizer](self.lr), data, run or scratch,
                max_norm=self.max_norm, evaluate=None if dev is None else f1,
                metric="valid_f1", maximize=True, patience=self.patience or None,
                checkpoint_every=10**9,  # at each epoch, as an epoch takes seconds
                progress=progress, report=report,
            )  # fmt: skip
            resumed = resume and self.trainer_.resume()
            if run is not None and not resumed and not self.trainer_.begun:
                self._save_config(Path(run))
            self.trainer_.train(epochs=self.epochs)
        return self

    @staticmethod
    def _cut(pairs, limit: int):
        longer = sum(len(x) > limit for x, _ in pairs)
        if longer:
            import warnings

            lost = sum(max(0, len(x) - limit) for x, _ in pairs)
            warnings.warn(
                f"{longer:,} of {len(pairs):,} sentences are longer than max_len={limit}: "
                f"{lost:,} tokens are not trained on",
                stacklevel=3,
            )
        return [(x[:limit], t[:limit]) for x, t in pairs]

    def _load_vectors(self) -> WordVectors:
        if isinstance(self.vectors, WordVectors):
            return self.vectors
        if self.unknown not in ("normal", "mean"):
            raise ValueError(f"unknown must be normal or mean, got {self.unknown!r}")
        if self.vectors is None:
            vectors = WordVectors.none(self.word_dim, seed=self.vector_seed)
        else:
            vectors = load_vectors(self.vectors, seed=self.vector_seed)
        if self.unknown == "mean":
            vectors.std = 0.0
        return vectors

    def _build(self, vectors: WordVectors, tags, words, symbols, writes: str) -> None:
        """Everything but the values of what is trained."""
        self.classes_, self._words, self._symbols, self._writes = tags, words, symbols, writes
        self._vectors = vectors
        allowed = None
        if self.crf and self.constrain:
            ends = [*tags, "O"]  # the start and the end are like an O
            allowed = np.array([[may_follow(a, b, self.scheme) for b in ends] for a in ends])
        self._new_lexicon()
        self.network_ = BiLSTMTagger(
            self._lexicon.table.shape[1], len(tags), words=vectors(words) if words else None,
            characters=len(symbols), char_dim=self.char_dim, char_hidden=self.char_hidden or 1,
            hidden_size=self.hidden_size, num_layers=self.num_layers, dropout=self.dropout,
            input_dropout=self.input_dropout, crf=self.crf, allowed=allowed,
            dtype=self.dtype, backend=self.backend, seed=self.seed,
        )  # fmt: skip

    def _new_lexicon(self) -> None:
        characters = Vocabulary(self._symbols) if self._symbols else None
        trained = {word: row for row, word in enumerate(self._words)}
        self._lexicon = Lexicon(self._vectors, characters, trained, self.dtype)

    # What comes in

    @staticmethod
    def _sentences(name: str, X) -> list[Sequence[str]]:
        if isinstance(X, str) or not isinstance(X, Sequence | np.ndarray):
            raise TypeError(f"{name} must be a sequence of sentences, got {type(X).__name__}")
        for i, x in enumerate(X):
            if isinstance(x, str) or not isinstance(x, Sequence | np.ndarray):
                raise TypeError(f"{name}[{i}] must be a list of tokens, got {type(x).__name__}")
            # NumPy's strings are strings too.
            if "" in x or not all(issubclass(kind, str) for kind in set(map(type, x))):
                raise TypeError(f"{name}[{i}] must hold strings that are not empty, got {x!r}")
        return list(X)

    @staticmethod
    def _tags(name: str, X, y, scheme: str) -> list[list[str]]:
        """Checked, and in this scheme."""
        if len(X) != len(y):
            raise ValueError(f"{name} must have {len(X)} sentences, got {len(y)}")
        out = []
        for i, (x, tags) in enumerate(zip(X, y, strict=True)):
            if len(x) != len(tags):
                raise ValueError(f"{name}[{i}] must have {len(x)} tags, got {len(tags)}")
            try:
                out.append(write_tags(read_entities(tags), len(tags), scheme))
            except ValueError as error:
                raise ValueError(f"{name}[{i}]: {error}") from None
        return out

    # Use

    def _by_sentence(self, X, compute) -> tuple[np.ndarray | None, Tokens]:
        """What ``compute`` gives for each token, of all sentences one after the other."""
        if not hasattr(self, "network_"):
            raise ValueError("this Tagger is not fitted yet: call fit or load first")
        X = self._sentences("X", X)
        if len(self._lexicon) > _REMEMBERED:
            self._new_lexicon()  # training goes on with the one that it began with
        tokens = self._lexicon.encode(X)
        out = None
        for chosen in by_length(tokens.lengths, max_tokens=_TAGGED_AT_ONCE):
            batch = make_batch(self._lexicon, tokens, chosen)
            values = compute(batch)
            if out is None:
                out = np.empty((len(tokens.ids), *values.shape[1:]), values.dtype)
            out[batch.places] = values
        return out, tokens

    def predict(self, X) -> list[list[str]]:
        """The tags of sentences. A sentence's do not depend on the others, to the last bit.

        What the network says and is no entity by its scheme, such as an end without a beginning,
        is O.
        """
        ids, tokens = self._by_sentence(X, lambda batch: self.network_.decode(batch))
        if ids is None:
            return []
        names = [self.classes_[i] for i in ids]
        return [
            write_tags(strict_entities(names[a : a + n], self.scheme), n, self._writes)
            for a, n in zip(tokens.starts, tokens.lengths, strict=True)
        ]

    def predict_proba(self, X) -> list[np.ndarray]:
        """The probability of each of `classes_` for each token, ``[n, K]`` for each sentence."""
        p, tokens = self._by_sentence(X, lambda batch: self.network_.probabilities(batch))
        if p is None:
            return []
        return [p[a : a + n] for a, n in zip(tokens.starts, tokens.lengths, strict=True)]

    def evaluate(self, X, y) -> EntityScores:
        """Entity scores of `predict` against right tags in any scheme."""
        found = self.predict(X)
        return entity_scores(self._tags("y", X, y, self._writes), found, scheme=self._writes)

    def score(self, X, y) -> float:
        """Micro-averaged entity F1, from 0 to 1."""
        return self.evaluate(X, y).micro.f1

    # Files

    def _save_config(self, folder: Path) -> None:
        source = self._vectors.source if self.vectors is not None else None
        if source and source != "glove":
            source = str(Path(source).resolve())
        params = self.get_params() | {"vectors": source or None}
        config = {
            "model": "Tagger",
            "params": params,
            "tags": self.classes_,
            "writes": self._writes,
            "words": self._words,
            "symbols": "".join(self._symbols),
            "vectors": {
                "count": len(self._vectors), "dimension": self._vectors.dimension,
                "mean": self._vectors.mean, "std": self._vectors.std,
            },
        }  # fmt: skip
        save_json(folder / "config.json", config)

    def save(self, folder) -> None:
        """Write ``config.json`` and ``weights.safetensors``; word vectors stay where they are."""
        if not hasattr(self, "network_"):
            raise ValueError("this Tagger is not fitted yet: call fit or load first")
        self._save_config(Path(folder))
        weights = self.network_.parameters.state_dict() | self.network_.tables
        save_arrays(Path(folder) / "weights.safetensors", weights)

    @classmethod
    def load(cls, folder, *, vectors=None, backend: str = "cpu") -> "Tagger":
        """The tagger of a folder written by `save` or by `fit` with ``run``.

        Parameters
        ----------
        folder : path
        vectors : optional
            Where the word vectors are now, if they are not where they were.
        backend : {"cpu", "reference"}

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged or of another model, or the vectors are others; names the file.
        """
        path = Path(folder) / "config.json"
        config = load_json(path)
        if not isinstance(config, dict) or config.get("model") != "Tagger":
            raise ValueError(f"{path} is not of a tagger")
        try:
            tagger = cls(**config["params"]).set_params(backend=backend)
            parts = config["tags"], config["words"], list(config["symbols"]), config["writes"]
            known = config["vectors"]
            if tagger.scheme not in SCHEMES or not {"count", "dimension"} <= known.keys():
                raise ValueError("a part of it is missing")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        if vectors is not None:
            tagger.vectors = vectors
        table = tagger._load_vectors()
        if (len(table), table.dimension) != (known["count"], known["dimension"]):
            raise ValueError(
                f"{table.source or 'vectors'} must have {known['count']:,} words of "
                f"{known['dimension']} numbers, as in {path}; got {len(table):,} of "
                f"{table.dimension}"
            )
        if vectors is not table:  # the table is ours: it need not be summed up again
            table.mean, table.std = known["mean"], known["std"]
        try:
            tagger._build(table, *parts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        path = Path(folder) / "weights.safetensors"
        try:
            take_weights(tagger.network_, load_arrays(path)[0])
        except ValueError as error:
            raise ValueError(f"{path} does not fit {folder}/config.json: {error}") from error
        return tagger
