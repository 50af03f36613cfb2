"""`Tagger`: a named-entity tagger with an interface like scikit-learn's."""

import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import only_one
from fastrnn.data.batches import SentenceBatches, word_of
from fastrnn.data.corpus import Corpus, scheme_written
from fastrnn.data.sentences import checked_sentences, checked_tags, named_tags
from fastrnn.data.tags import all_tags, check_scheme, read_entities, split_tag, write_tags
from fastrnn.data.text import Vocabulary
from fastrnn.data.vectors import WordVectors, load_vectors
from fastrnn.distributed import Group
from fastrnn.kernels.backend import training_precisions
from fastrnn.metrics import entity_scores
from fastrnn.optim import OPTIMIZERS, Constant, Cosine
from fastrnn.trainer import Trainer
from fastrnn.types import BackendName, DType, Input, Precision
from fastrnn.types import Path as FilePath

from .bilstm import BiLSTMTagger
from .estimator import Estimator
from .fitted import FittedTagger, read_config
from .predictor import Predictor, Sentences, Tags

UNKNOWN = ("mean", "normal")
SCHEDULES = ("constant", "cosine")


def _features(token: str | tuple[str, ...]) -> int:
    """How many features a token has."""
    return 0 if isinstance(token, str) else len(token) - 1


def _unknown(vectors: WordVectors, corpus: Corpus) -> str:
    """A line about the words that have no vector."""
    counts: Counter[str] = Counter()
    of_tokens = corpus.counts(corpus.tokens.ids, len(corpus.distinct)).tolist()
    for token, n in zip(corpus.distinct, of_tokens, strict=True):
        counts[word_of(token)] += n
    unknown, words, lacking, tokens = vectors.count_unknown(counts)
    return f"{unknown:,} of {words:,} words have no vector, {lacking / tokens:.1%} of tokens"


def _f1(fitted: FittedTagger, group: Group, X: Sentences, y: Sequence[Sequence[str]]) -> float:
    """Micro-averaged entity F1 in percent."""
    return 100 * entity_scores(y, group.map(fitted.tag, X), scheme=fitted.writes).micro.f1


class Tagger(Estimator, Predictor):
    """A BiLSTM that tags the entities in sentences.

    Parameters
    ----------
    vectors : path, "glove", mapping, WordVectors or None, default None
        Word vectors, as for `load_vectors`. With None the table is empty: every word is unknown.
    word_dim : int, default 50
        Size of the word vectors if ``vectors`` is None.
    unknown : {"mean", "normal"}
        The vector of a word that the table lacks: one for all, with the mean of all values in the
        table as each component; or random, drawn from a normal distribution as a function of the
        word and ``vector_seed``. With vectors, the first is better, see docs/tagging.md; without
        any, words are always told apart by random ones. No effect if ``vectors`` is a
        `WordVectors`.
    fine_tune : bool, default True
        Also train the vectors of the training set's words; a batch changes only those it has.
    hidden_size, num_layers : int, default 100 and 1
        Units per direction, and layers, of the BiLSTM.
    char_hidden : int, default 0
        Units of a BiLSTM over the characters of a word, in each direction; 0 for none.
    char_filters, char_width : int, default 50 and 5
        Filters of a CNN over the characters of a word (0 for none; it may stand beside the
        BiLSTM), and how many characters each sees, an odd number.
    char_dim : int, default 25
        Size of character embeddings.
    crf : bool, default True
        Use a linear-chain CRF, not a softmax for each token.
    constrain : bool, default True
        With a CRF, forbid what the scheme does not allow, such as I after O.
    dropout, input_dropout : float, default 0.5 and 0.25
        Dropout of the BiLSTM's output and of its input, with one mask for all tokens of a sentence.
    class_weight : mapping of str to float or "balanced", optional
        The weight of "O" and of each entity type in the loss, 1 for those that are not named;
        "balanced" weights each class by the inverse of its frequency. Without a CRF.
    label_smoothing : float, default 0.0
        See `cross_entropy`. Without a CRF.
    tag_names : sequence of str, optional
        The names of tags that are given as integers, as datasets of Hugging Face have them.
    scheme : {"BIOES", "IOB2"}
        Scheme of the network's classes. `predict` returns BIOES if the training tags are BIOES or
        BILOU, else IOB2.
    optimizer : {"adam", "adamw", "sgd"}
    lr : float, default 3e-3
    schedule : {"constant", "cosine"}
        Cosine: the learning rate falls to 0 along half a cosine.
    warmup_ratio : float, default 0.0
        The share of all steps in which it first rises from 0, in [0, 1); with "cosine".
    max_norm : float or None, default 5.0
        Gradients with a larger norm are scaled down to this norm.
    epochs, patience : int, default 10 and 0
        Number of epochs; stop after ``patience`` of them without a better F1 on ``dev`` (0: never).
    batch_size : int, default 32
        Sentences per batch; they are of similar length.
    max_tokens : int or None, default None
        Instead of ``batch_size``: as many sentences as have at most this many tokens in total.
    max_len : int or None, default None
        Training sentences are cut to this many tokens, with a warning that counts what is lost.
    seed, vector_seed : int, default 0
        Seed of all randomness in training; seed of the vectors of unknown words.
    dtype : {"float32", "float64"}
    precision : {"float32", "bf16"}, default "float32"
        What products are computed in, see `LSTM`. Inference may be in another one, see `load`.
    backend : {"cpu", "cuda", "reference"}

    Attributes
    ----------
    trainer_ : Trainer
        Set by `fit`; its ``stopped`` says why training ended.
    history_ : list of dict
        Set by `fit`: the lines of the history, see `Trainer`.

    Examples
    --------
    >>> from fastrnn.models import Tagger
    >>> X = [["Ann", "saw", "Bob"], ["He", "ran"]] * 20
    >>> y = [["B-PER", "O", "B-PER"], ["O", "O"]] * 20
    >>> tagger = Tagger(epochs=3).fit(X, y, progress=False)
    >>> tagger.predict([["Bob", "ran"]])
    [['B-PER', 'O']]
    """

    def __init__(
        self,
        vectors: "FilePath | Mapping[str, Input] | WordVectors | None" = None,
        *,
        word_dim: int = 50,
        unknown: Literal["mean", "normal"] = "mean",
        fine_tune: bool = True,
        hidden_size: int = 100,
        num_layers: int = 1,
        char_hidden: int = 0,
        char_filters: int = 50,
        char_width: int = 5,
        char_dim: int = 25,
        crf: bool = True,
        constrain: bool = True,
        dropout: float = 0.5,
        input_dropout: float = 0.25,
        class_weight: Mapping[str, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        tag_names: Sequence[str] | None = None,
        scheme: Literal["BIOES", "IOB2"] = "BIOES",
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        lr: float = 3e-3,
        schedule: Literal["constant", "cosine"] = "constant",
        warmup_ratio: float = 0.0,
        max_norm: float | None = 5.0,
        epochs: int = 10,
        patience: int = 0,
        batch_size: int = 32,
        max_tokens: int | None = None,
        max_len: int | None = None,
        seed: int = 0,
        vector_seed: int = 0,
        dtype: DType = "float32",
        precision: Precision = "float32",
        backend: BackendName = "cpu",
    ):
        self.vectors = vectors
        self.word_dim, self.unknown, self.fine_tune = word_dim, unknown, fine_tune
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.char_hidden, self.char_dim = char_hidden, char_dim
        self.char_filters, self.char_width = char_filters, char_width
        self.crf, self.constrain = crf, constrain
        self.dropout, self.input_dropout = dropout, input_dropout
        self.class_weight, self.label_smoothing = class_weight, label_smoothing
        self.tag_names = tag_names
        self.scheme, self.optimizer, self.lr, self.max_norm = scheme, optimizer, lr, max_norm
        self.schedule, self.warmup_ratio = schedule, warmup_ratio
        self.epochs, self.patience = epochs, patience
        self.batch_size, self.max_tokens, self.max_len = batch_size, max_tokens, max_len
        self.seed, self.vector_seed = seed, vector_seed
        self.dtype, self.precision, self.backend = dtype, precision, backend
        self._loaded: tuple[Any, Any, WordVectors] | None = None
        self._fitted: FittedTagger | None = None

    def __getstate__(self):
        """Without the trainer and the vectors before `fit`, which ``vectors`` names."""
        return {k: v for k, v in vars(self).items() if k != "trainer_"} | {"_loaded": None}

    # Training

    def fit(
        self,
        X: Sentences | Corpus,
        y: Tags | None = None,
        *,
        dev: tuple[Sentences, Tags] | None = None,
        run: FilePath | None = None,
        resume: bool = False,
        progress: bool | None = None,
        report: Callable[[str], None] | None = None,
        group: Group | None = None,
    ) -> "Tagger":
        """Train on sentences; with ``dev``, keep the weights of the epoch with the best F1 on it.

        Parameters
        ----------
        X : sequence of sequence of str, or Corpus
            The tokens of each sentence. A token may also be a tuple of a word and the values of
            further features, such as its part of speech; all tokens then have as many. Tagged
            sentences that are larger than memory: `fastrnn.data.corpus.load_sentences`.
        y : sequence of sequence of str or int
            Their tags, in any scheme; integers are positions in ``tag_names``. None for a `Corpus`.
        dev : (X, y), optional
            Sentences to measure F1 on after each epoch.
        run : path, optional
            Folder for the history, checkpoints and the model; by default none of these is kept.
        resume : bool, default False
            Resume the run in ``run``.
        progress, report, group
            See `Trainer`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            A parameter or a sentence does not fit, or the folder holds another run.
        FileNotFoundError, ImportError
            The word vectors do not exist or are not installed.
        Diverged
            The loss or the gradient is not finite.

        Notes
        -----
        Ctrl-C stops training after the current step; ``trainer_.stopped`` is then "interrupted",
        and a run in a folder can be continued with ``resume=True``.
        """
        self._check_params()
        group = Group.given(group)
        if resume and run is None:
            raise ValueError("resume needs the folder of a run")
        if self.patience and dev is None:
            raise ValueError("patience needs dev, sentences to measure F1 on")
        corpus = self._corpus(X, y)
        if dev is not None:
            if not isinstance(dev, (tuple, list)) or len(dev) != 2:
                raise ValueError("dev must be a pair (X, y)")
            held_out = checked_sentences("dev[0]", dev[0], _features(corpus.distinct[0]))
            named = named_tags("dev[1]", dev[1], self.tag_names)
            dev = held_out, checked_tags("dev[1]", held_out, named, corpus.writes)

        fitted = FittedTagger(self._config(corpus), self._vectors(), self.backend)
        if report is not None and len(fitted.vectors) and group.lead:
            report(_unknown(fitted.vectors, corpus))
        fitted.lexicon.encode([corpus.distinct])  # gives them the corpus's indices
        data = SentenceBatches(
            fitted.lexicon, corpus.tokens, corpus.tags,
            batch_size=self.batch_size, max_tokens=self.max_tokens, seed=self.seed,
        )  # fmt: skip

        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                fitted.network, OPTIMIZERS[self.optimizer](self.lr), data, run or scratch,
                max_norm=self.max_norm, schedule=self._schedule(self.epochs * len(data)),
                evaluate=None if dev is None else partial(_f1, fitted, group, *dev),
                metric="valid_f1", maximize=True, patience=self.patience or None,
                checkpoint_every=len(data), progress=progress, report=report,
                group=group,
            )  # fmt: skip
            if run is not None:
                path = Path(run)
                group.share(lambda: self._begin(fitted, trainer, path, resume))
                if resume and not trainer.resume():
                    group.share(lambda: fitted.save_config(path))
            self._fitted, self.trainer_ = fitted, trainer
            trainer.train(epochs=self.epochs)
            lines = group.share(lambda: trainer.history.read_text(encoding="utf-8")).splitlines()
            self.history_ = [json.loads(line) for line in lines]
        return self

    def _corpus(self, X: Sentences | Corpus, y: Tags | None) -> Corpus:
        """The training data, checked."""
        if isinstance(X, Corpus):
            if any(given is not None for given in (y, self.max_len, self.tag_names)):
                raise ValueError("y, max_len and tag_names must be None for a Corpus")
            if X.names != all_tags({split_tag(tag)[1] for tag in X.names} - {""}, self.scheme):
                raise ValueError(f"X must be encoded with the scheme {self.scheme}")
            return X
        X, raw = checked_sentences("X", X), named_tags("y", y, self.tag_names)
        y = checked_tags("y", X, raw, self.scheme)
        pairs = [(x, t) for x, t in zip(X, y, strict=True) if len(x)]
        if not pairs:
            raise ValueError("X has no tokens")
        if self.max_len is not None:
            pairs = self._cut(pairs, self.max_len)
        writes = scheme_written(tag for tags in raw for tag in tags)
        return Corpus.of([x for x, _ in pairs], [t for _, t in pairs], self.scheme, writes)

    def _check_params(self) -> None:
        """Check what would otherwise fail late, or under another name."""
        for name in "fine_tune", "crf", "constrain":
            checks.flag(name, getattr(self, name))
        check_scheme(self.scheme)
        checks.choice("optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.number("warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        if self.warmup_ratio and self.schedule == "constant":
            raise ValueError("warmup_ratio needs the schedule cosine")
        checks.number("label_smoothing", self.label_smoothing, 0.0, 1.0)
        if self.crf and (self.label_smoothing or self.class_weight is not None):
            raise ValueError("label_smoothing and class_weight need crf=False")
        checks.choice("unknown", self.unknown, UNKNOWN)
        checks.choice("precision", self.precision, training_precisions(self.backend))
        for name, least in (
            ("word_dim", 1), ("hidden_size", 1), ("num_layers", 1), ("char_hidden", 0),
            ("char_filters", 0), ("char_width", 1), ("char_dim", 1), ("epochs", 1),
            ("patience", 0), ("batch_size", 1), ("max_tokens", 1), ("max_len", 1),
            ("seed", 0), ("vector_seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None or name not in ("max_tokens", "max_len"):
                checks.integer(name, value, least)
        if self.char_width % 2 == 0:
            raise ValueError(f"char_width must be odd, got {self.char_width}")
        names = self.tag_names
        if names is not None:
            if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
                raise TypeError(f"tag_names must be a sequence of str, got {type(names).__name__}")
            for name in checks.as_array("tag_names", names).reshape(-1).tolist():
                try:
                    split_tag(name)
                except (ValueError, TypeError, AttributeError) as error:
                    raise ValueError(f"tag_names has {name!r}, which is not a tag") from error
        if self.max_norm is not None:
            checks.above_zero("max_norm", self.max_norm)
        checks.float_dtype("dtype", self.dtype)

    def _begin(self, fitted: FittedTagger, trainer: Trainer, run: Path, resume: bool) -> None:
        """Start a run in the folder or, with ``resume``, check that it is this run."""
        run.mkdir(parents=True, exist_ok=True)
        if not resume:
            with only_one(run):
                if trainer.begun:
                    raise ValueError(f"{run} holds a run: resume it, or choose another folder")
                fitted.save_config(run)
            return
        if trainer.checkpoint.exists():
            before, now = read_config(run / "config.json"), fitted.config
            # All but the first may be changed.
            free = ["params", "patience", "lr", "precision"]
            free += ["epochs"] if self.schedule == "constant" else []
            others = {k for k in now if before.get(k) != now[k]}
            params = {k: v for k, v in now["params"].items() if k != "vectors"}  # moved, perhaps
            others |= {k for k, v in params.items() if before["params"].get(k) != v}
            if others - {*free}:
                named = ", ".join(sorted(others - {*free}))
                raise ValueError(f"{run} holds another run: {named} differ")

    def _config(self, corpus: Corpus) -> dict:
        """The config of `FittedTagger`, with a checksum of the training data."""
        vectors = self._vectors()
        plain = list(map(word_of, corpus.distinct))
        words = sorted({str(vectors.key(w)) for w in plain}) if self.fine_tune else []
        text = "".join(plain) if self.char_hidden or self.char_filters else ""
        rows = zip(
            *(token[1:] for token in corpus.distinct if not isinstance(token, str)), strict=True
        )
        features = [sorted(set(values)) for values in rows]
        source = vectors.source if self.vectors is not None else None
        if source and source != "glove":
            source = str(Path(source).resolve())
        params = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        params |= {"vectors": source or None, "dtype": np.dtype(self.dtype).name}
        weights = self._class_weights(corpus)
        if isinstance(self.class_weight, Mapping):
            params["class_weight"] = {str(k): float(v) for k, v in self.class_weight.items()}
        if self.tag_names is not None:
            params["tag_names"] = list(map(str, self.tag_names))
        return {
            "model": "Tagger",
            "params": params,
            "tags": corpus.names,
            "words": words,
            "symbols": "".join(Vocabulary.of(text, min_count=1).symbols) if text else "",
            "features": features,
            "class_weights": weights,
            "writes": corpus.writes,
            "vectors": vectors.facts(),
            "data": corpus.checksum,
        }

    def _schedule(self, steps: int) -> Constant:
        """The schedule of a run of this many steps."""
        if self.schedule == "constant":
            return Constant()
        return Cosine(steps, warmup=int(self.warmup_ratio * steps))

    def _class_weights(self, corpus: Corpus) -> list[float] | None:
        """The weight of each tag."""
        given = self.class_weight
        if given is None:
            return None
        if isinstance(given, str):
            checks.choice("class_weight", given, ("balanced",))
            counts = corpus.counts(corpus.tags, len(corpus.names)).tolist()
            share = sum(counts) / sum(n > 0 for n in counts)
            return [share / n if n else 1.0 for n in counts]
        if not isinstance(given, Mapping):
            raise TypeError(f"class_weight must be a mapping, got {type(given).__name__}")
        types = [split_tag(tag)[1] or "O" for tag in corpus.names]
        for name in given:
            checks.choice("class_weight", name, dict.fromkeys(types))
        return [
            checks.number("class_weight", given.get(name, 1.0), 0.0, math.inf) for name in types
        ]

    def _cut(self, pairs, limit: int):
        longer = sum(len(x) > limit for x, _ in pairs)
        if longer:
            lost = sum(max(0, len(x) - limit) for x, _ in pairs)
            warnings.warn(
                f"{longer:,} of {len(pairs):,} sentences are longer than max_len={limit}: "
                f"{lost:,} tokens are not trained on",
                stacklevel=4,
            )

        def cut(tags):  # an entity that is cut ends there
            return write_tags(read_entities(tags[:limit]), len(tags[:limit]), self.scheme)

        return [(x[:limit], cut(t)) for x, t in pairs]

    def _vectors(self) -> WordVectors:
        """The vectors that the parameters specify, loaded only once."""
        if isinstance(self.vectors, WordVectors):
            return self.vectors
        key = self.word_dim, self.unknown, self.vector_seed
        if self._loaded is None or self._loaded[0] is not self.vectors or self._loaded[1] != key:
            if self.vectors is None:
                vectors = WordVectors.none(self.word_dim, seed=self.vector_seed)
            else:
                vectors = load_vectors(self.vectors, seed=self.vector_seed)
            if self.unknown == "mean" and len(vectors):
                vectors = vectors.with_moments(vectors.mean, 0.0)
            self._loaded = self.vectors, key, vectors
        return self._loaded[2]

    # Inference

    @property
    def fitted_(self) -> FittedTagger:
        """The result of `fit` or `load`.

        Raises
        ------
        ValueError
            Neither has been called yet.
        """
        if self._fitted is None:
            raise ValueError("this Tagger is not fitted yet: call fit or load first")
        return self._fitted

    @property
    def network_(self) -> BiLSTMTagger:
        """The network."""
        return self.fitted_.network

    # Files

    def save(self, folder: FilePath, *, include_vectors: bool = False) -> None:
        """Write ``config.json`` and ``weights.safetensors`` into a folder.

        Parameters
        ----------
        folder : path
        include_vectors : bool, default False
            Also write the whole table of word vectors, so that the folder needs no other file.
            Otherwise `load` looks for the vectors at the same place, as seen from the folder or
            from the root.
        """
        self.fitted_.save(Path(folder), include_vectors=include_vectors)

    @classmethod
    def load(
        cls,
        folder: FilePath,
        *,
        vectors: Any = None,
        precision: Precision | None = None,
        backend: BackendName = "cpu",
    ) -> "Tagger":
        """Load the tagger from a folder written by `save` or by `fit` with ``run``.

        Parameters
        ----------
        folder : path
        vectors : optional
            The word vectors, if they are no longer where they were in training.
        precision : {"float32", "bf16", "int8"}, optional
            Another one than in training.
        backend : {"cpu", "cuda", "reference"}

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged or of another model, or the vectors differ; the message names it.
        """
        folder, made = checks.path("folder", folder), list[Tagger]()

        def find(params: dict) -> WordVectors:
            try:
                tagger = cls(**params).set_params(backend=backend)
            except TypeError as error:
                raise ValueError(f"{folder}/config.json is damaged: {error}") from error
            tagger.vectors = vectors if vectors is not None else tagger.vectors
            made.append(tagger)
            try:
                return tagger._vectors()
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error}: the word vectors of the tagger in {folder}; say where they are now "
                    "(vectors=, --vectors)"
                ) from error

        fitted = FittedTagger.load(folder, find, precision, backend)
        made[0]._fitted, made[0].precision = fitted, fitted.network.precision
        return made[0]
