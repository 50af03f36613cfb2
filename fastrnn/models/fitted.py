"""A fitted `Tagger`: its settings, words and network, and their files."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastrnn.checkpoint import load_arrays, load_json, save_arrays, save_json
from fastrnn.data.batches import CASES, Batch, Lexicon, Tokens, by_length, make_batch
from fastrnn.data.tags import TagCodes, check_scheme, may_follow, write_tags
from fastrnn.data.text import Vocabulary
from fastrnn.data.vectors import WordVectors
from fastrnn.kernels.backend import get_backend
from fastrnn.trainer import take_weights
from fastrnn.types import BackendName, Precision

from .bilstm import BiLSTMTagger
from .sizes import check_sizes, sizes_of_stack, width

_AT_ONCE = 4096  # tokens per batch in inference
_REMEMBERED = 1 << 17  # distinct tokens whose features are cached


# ``(type, first token, last token + 1, confidence)``.
FoundEntity: TypeAlias = tuple[str, int, int, float]

# Parameters that came later, with the values that taggers without them have.
BEFORE = {
    "char_filters": 0, "char_width": 3, "class_weight": None, "label_smoothing": 0.0,
    "schedule": "constant", "warmup_ratio": 0.0,
}  # fmt: skip


def allowed_pairs(tags: Sequence[str], scheme: str) -> np.ndarray:
    """Whether a tag may follow another, as `CRF` takes it."""
    ends = [*tags, "O"]  # the start and the end act like an O
    return np.array([[may_follow(a, b, scheme) for b in ends] for a in ends])


class Labeller(ABC):
    """Turns classes of tokens into tags and entities.

    Parameters
    ----------
    tags : list of str
        The classes.
    scheme, writes : str
        Their scheme, and that of the tags to return.
    features : list of list of str
        The known values of each feature of a token.
    """

    def __init__(self, tags: list[str], scheme: str, writes: str, features: list[list[str]]):
        for name in (scheme, writes):
            check_scheme(name)
        self.tags, self.scheme, self.writes, self.features = tags, scheme, writes, features
        self._codes = TagCodes.of(tags)

    @abstractmethod
    def probabilities(self, X) -> list[np.ndarray]:
        """The probability of each of ``tags`` for each token."""

    @abstractmethod
    def _best(self, X) -> tuple[np.ndarray, np.ndarray, Tokens]:
        """The class of each token, its probability, and where the sentences are."""

    def _ids(self, X) -> tuple[np.ndarray, Tokens]:
        ids, _, tokens = self._best(X)
        return ids, tokens

    def tag(self, X) -> list[list[str]]:
        """The tags of sentences."""
        ids, tokens = self._ids(X)
        found = self._codes.strict_entities(ids, tokens.lengths, self.scheme)
        flat = write_tags(found, len(ids), self.writes)
        return [flat[a : a + n] for a, n in _bounds(tokens)]

    def entities(self, X) -> list[list[FoundEntity]]:
        """The entities of sentences."""
        return self.label(X)[1]

    def label(self, X) -> tuple[list[list[str]], list[list[FoundEntity]]]:
        """The tags and the entities of sentences."""
        ids, p, tokens = self._best(X)
        found = self._codes.strict_entities(ids, tokens.lengths, self.scheme)
        flat = write_tags(found, len(ids), self.writes)
        tags = [flat[a : a + n] for a, n in _bounds(tokens)]
        entities: list[list[FoundEntity]] = [[] for _ in tokens.lengths]
        ends = np.cumsum(tokens.lengths)
        for e in found:
            s = int(np.searchsorted(ends, e.first, side="right"))
            first, confidence = int(tokens.starts[s]), float(p[e.first : e.last].min())
            entities[s].append((e.type, e.first - first, e.last - first, confidence))
        return tags, entities


class FittedTagger(Labeller):
    """A tagger's network with all that is needed to prepare its input.

    Parameters
    ----------
    config : dict
        JSON-compatible: "params", the parameters of the `Tagger`; "tags", the classes of the
        network; "words", whose vectors are trained; "symbols", the known characters; "features",
        the known values of each; "class_weights" of the tags, or None; "writes",
        the scheme of the returned tags; and "vectors", the `WordVectors.facts` of the vectors.
        A file also has "vectors_path", where the vectors are as seen from its folder.
    vectors : WordVectors
    backend : {"cpu", "cuda", "reference"}
    new : bool, default True
        False if weights are loaded next: trained word vectors are then left at zero.
    """

    def __init__(
        self, config: dict, vectors: WordVectors, backend: BackendName, *, new: bool = True
    ):
        self.config, self.vectors = config, vectors
        p = config["params"]
        super().__init__(config["tags"], p["scheme"], config["writes"], config["features"])
        allowed = None
        if p["crf"] and p["constrain"]:
            allowed = allowed_pairs(self.tags, self.scheme)
        weights = config["class_weights"]
        words, self._symbols = config["words"], config["symbols"]
        self._trained = {word: row for row, word in enumerate(words)}
        self.lexicon = self.new_lexicon()
        initial = vectors(words) if new else np.zeros((len(words), vectors.dimension))
        self.network = BiLSTMTagger(
            self.lexicon.table.shape[1], len(self.tags), words=initial if words else None,
            characters=len(self._symbols), char_dim=p["char_dim"],
            char_hidden=p["char_hidden"], char_filters=p["char_filters"],
            char_width=p["char_width"], hidden_size=p["hidden_size"],
            num_layers=p["num_layers"], dropout=p["dropout"], input_dropout=p["input_dropout"],
            crf=p["crf"], allowed=allowed, label_smoothing=p["label_smoothing"],
            class_weight=None if weights is None else np.array(weights, np.float64),
            dtype=p["dtype"], seed=p["seed"],
            precision=p.get("precision", "float32"), backend=backend,
        )  # fmt: skip

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "lexicon"}  # a cache

    def __setstate__(self, state):
        vars(self).update(state)
        self.lexicon = self.new_lexicon()

    def new_lexicon(self) -> Lexicon:
        """A new, empty lexicon."""
        characters = Vocabulary(list(self._symbols)) if self._symbols else None
        dtype = self.config["params"]["dtype"]
        return Lexicon(self.vectors, characters, self._trained, dtype, self.features)

    # Inference

    def _by_token(self, X: Sequence[Sequence[str]], compute) -> tuple[np.ndarray, Tokens]:
        """What ``compute`` returns for each token of the concatenated sentences, and the tokens."""
        if len(self.lexicon) > _REMEMBERED:
            self.lexicon = self.new_lexicon()
        lexicon = self.lexicon
        tokens = lexicon.encode(X)
        out: np.ndarray | None = None
        for chosen in by_length(tokens.lengths, max_tokens=_AT_ONCE):
            batch: Batch = make_batch(lexicon, tokens, chosen)
            values = compute(batch)
            if out is None:
                out = np.empty((len(tokens.ids), *values.shape[1:]), values.dtype)
            out[batch.positions] = values
        return np.empty(0, np.int64) if out is None else out, tokens

    def _ids(self, X):
        return self._by_token(X, self.network.decode)

    def _best(self, X):
        both, tokens = self._by_token(X, self.network.best)
        both = both.reshape(-1, 2)
        return both[:, 0].astype(np.int64), both[:, 1], tokens

    def probabilities(self, X) -> list[np.ndarray]:
        """The probability of each of ``tags`` for each token."""
        p, tokens = self._by_token(X, self.network.probabilities)
        return [p[a : a + n] for a, n in _bounds(tokens)]

    # Files

    def save_config(self, folder: Path, *, include_vectors: bool = False) -> None:
        """Write ``config.json`` and, if wanted, the word vectors."""
        config, source = dict(self.config), self.vectors.source
        config.pop("vectors_path", None)
        if include_vectors and len(self.vectors):
            self.vectors.save(folder)
            source = str(folder / "vectors.npy")
        if source not in ("", "glove"):
            source = str(Path(source).resolve())
            config["params"] = config["params"] | {"vectors": source}
            with suppress(ValueError):  # on another drive of Windows
                beside = os.path.relpath(source, folder.resolve())
                config["vectors_path"] = Path(beside).as_posix()
        save_json(folder / "config.json", config)

    def save(self, folder: Path, *, include_vectors: bool = False) -> None:
        """Write ``config.json``, ``weights.safetensors`` and, if wanted, the word vectors."""
        self.save_config(folder, include_vectors=include_vectors)
        weights = self.network.parameters.state_dict() | self.network.tables
        save_arrays(folder / "weights.safetensors", weights)

    @classmethod
    def load(
        cls, folder: Path, load_vectors, precision: Precision | None, backend: BackendName
    ) -> "FittedTagger":
        """Load the tagger of a folder; ``load_vectors(params)`` must return its word vectors.

        Raises
        ------
        FileNotFoundError, ValueError
            See `Tagger.load`.
        """
        get_backend(backend)
        path = folder / "config.json"
        config = read_config(path)
        if precision is not None:  # then the backend need not have the other one
            config["params"].pop("precision", None)
        known = config["vectors"]
        params = dict(config["params"])
        beside = folder / config.get("vectors_path", "")
        if beside != folder and (beside.exists() or beside.parent.is_file()):  # in an archive
            params["vectors"] = str(beside)
        vectors = load_vectors(params).with_moments(known["mean"], known["std"])
        if vectors.facts() != known:
            raise ValueError(
                f"{vectors.source or 'vectors'} must be the vectors that {path} was trained with, "
                f"{known['count']:,} words of {known['dimension']} numbers; got "
                f"{len(vectors):,} of {vectors.dimension} (values or seed may differ too)"
            )
        weights_path = folder / "weights.safetensors"
        weights = load_arrays(weights_path)[0]
        hidden_size, num_layers = sizes_of_stack(weights, "lstm.")
        char_hidden, _ = sizes_of_stack(weights, "char_lstm.")
        char_filters = width(weights, "char_cnn.bias")
        sizes = {
            "hidden_size": hidden_size, "num_layers": num_layers, "char_hidden": char_hidden,
            "char_filters": char_filters,
        }  # fmt: skip
        for encoder, name in ((char_hidden, "char"), (char_filters, "cnn")):
            if encoder:
                sizes["char_dim"] = width(weights, f"{name}_embedding.weight")
        check_sizes(path, config["params"], sizes)
        values = sum(map(len, config["features"]))
        others = CASES + values + 2 * char_hidden + char_filters
        dimension = width(weights, "lstm.weight_ih_l0") - others
        check_sizes(path, known, {"dimension": dimension})
        try:
            fitted = cls(config, vectors, backend, new=False)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        path = weights_path
        try:
            take_weights(fitted.network, weights)
        except ValueError as error:
            raise ValueError(f"{path} does not fit {folder}/config.json: {error}") from error
        if precision is not None:
            fitted.network.precision = precision
        config["params"]["precision"] = fitted.network.precision
        return fitted


def _bounds(tokens: Tokens):
    """The start and the length of each sentence."""
    return zip(tokens.starts.tolist(), tokens.lengths.tolist(), strict=True)


_PARTS = {
    "params": dict, "tags": list, "words": list, "symbols": str, "writes": str, "vectors": dict,
    "features": list,
}  # fmt: skip


def read_config(path: Path) -> dict:
    """Read a tagger's ``config.json``; the error for a missing part names it and the file."""
    config = load_json(path)
    if not isinstance(config, dict) or config.get("model") != "Tagger":
        raise ValueError(f"{path} does not belong to a tagger")
    added: dict[str, Any] = {"features": [], "class_weights": None}
    config = added | config
    for name, kind in _PARTS.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(f"{path} is damaged: {name} must be of type {kind.__name__}")
    if not isinstance(config.get("vectors_path", ""), str):
        raise ValueError(f"{path} is damaged: vectors_path must be of type str")
    if not all(isinstance(v, list) and all(isinstance(s, str) for s in v)
               for v in config["features"]):  # fmt: skip
        raise ValueError(f"{path} is damaged: features must be lists of strings")
    weights = config["class_weights"]
    if weights is not None and not (
        isinstance(weights, list) and len(weights) == len(config["tags"])
        and all(isinstance(w, float) for w in weights)
    ):  # fmt: skip
        raise ValueError(f"{path} is damaged: class_weights must be a number for each tag")
    config["params"] = BEFORE | config["params"]
    if config["vectors"].keys() != WordVectors.none(1).facts().keys():
        raise ValueError(f"{path} is damaged: vectors has {sorted(config['vectors'])}")
    return config
