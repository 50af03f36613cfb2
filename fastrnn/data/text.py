"""Text as streams of units: characters, encoding, batches for truncated BPTT."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn import checks

UNKNOWN = "\ufffd"
_BLOCK = 1 << 17  # characters


def read_text(path) -> str:
    """The text of a UTF-8 file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is empty or not UTF-8; the message names the file and the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    text = decoded(path.read_bytes(), path)
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def decoded(data: bytes, path: Path, first: int = 0) -> str:
    """The text of a part of a file that begins at the byte ``first``."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = first + error.start
        raise ValueError(f"{path} is not UTF-8: byte {at} ({error.reason})") from None


class Vocabulary:
    """Characters and their indices; index 0 stands for every unknown character.

    Parameters
    ----------
    symbols : list of str
        The unknown symbol, then the known characters, one per entry.

    Examples
    --------
    >>> from fastrnn.data.text import Vocabulary
    >>> vocabulary = Vocabulary.of("abracadabra")
    >>> vocabulary.encode("cab").tolist(), vocabulary.decode([1, 2])
    ([3, 1, 2], 'ab')
    """

    unit = "character"
    unknown = 0

    def __init__(self, symbols: list[str]):
        if not symbols or symbols[0] != UNKNOWN or any(len(s) != 1 for s in symbols):
            raise ValueError("symbols must be single characters, the first the unknown symbol")
        if len(set(symbols)) != len(symbols):
            raise ValueError("symbols must differ")
        self.symbols = list(symbols)
        # The last entry stands for all code points after it.
        self._table = np.zeros(max(map(ord, symbols)) + 2, np.int64)
        self._table[[ord(s) for s in symbols]] = np.arange(len(symbols))

    @classmethod
    def of(cls, text: str | Iterable[str], *, min_count: int | None = None) -> "Vocabulary":
        """The characters that occur at least ``min_count`` times, sorted by code point.

        ``text`` may be given in parts, for one that is larger than memory. ``min_count`` defaults
        to one in 100,000 characters, at least 1 and at most 100.
        """
        if min_count is not None:
            checks.integer("min_count", min_count)
        counts = np.zeros(sys.maxunicode + 1, np.int64)
        for part in parts_of(text):
            for _, codes in _blocks(part):
                some = np.bincount(codes)
                counts[: len(some)] += some
        if min_count is None:
            min_count = min(100, max(1, int(counts.sum()) // 100_000))
        kept = map(chr, np.flatnonzero(counts >= min_count))
        return cls([UNKNOWN] + [c for c in kept if c != UNKNOWN])

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The index of each character, int64 [len(text)]."""
        check_text(text)
        out = np.empty(len(text), np.int64)
        for first, codes in _blocks(text):
            self._table.take(codes, mode="clip", out=out[first : first + len(codes)])
        return out

    def decode(self, ids) -> str:
        """The text that these indices stand for."""
        ids = checks.integer_array("ids", ids).reshape(-1)
        checks.below("ids", "id", ids, len(self))
        return "".join(self.symbols[i] for i in ids)

    def config(self) -> dict[str, str]:
        """What `vocabularies.vocabulary_of` makes it from again."""
        return {"symbols": "".join(self.symbols)}


def check_text(text) -> None:
    """Refuse what is no str."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")


def parts_of(text: str | Iterable[str]) -> Iterator[str]:
    """The parts of a text, or the text itself, checked."""
    parts: Iterable[Any] = [text]
    if not isinstance(text, str | bytes):
        with suppress(TypeError):
            parts = iter(text)
    for part in parts:
        check_text(part)
        yield part


def _blocks(text: str) -> Iterator[tuple[int, np.ndarray]]:
    """Where a part of the text begins, and its code points; a part fits the cache."""
    for first in range(0, len(text), _BLOCK):
        # A Python string may hold lone surrogates; "surrogatepass" encodes them too.
        part = text[first : first + _BLOCK].encode("utf-32-le", "surrogatepass")
        yield first, np.frombuffer(part, np.uint32)


class Units(ABC):
    """The indices of a text that need not be in memory."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    @abstractmethod
    def __getitem__(self, part: slice) -> np.ndarray:
        """The indices of a part, int64."""


class Chunk(NamedTuple):
    """Consecutive units of several streams; the next chunk continues where this one ends."""

    ids: np.ndarray  # [T, B]
    targets: np.ndarray  # [T, B]: the unit after each
    first: bool  # whether the streams begin here
    rate: float = 1.0  # factor of the learning rate, see `fastrnn.steps.Data`

    @property
    def size(self) -> int:
        """Number of units."""
        return self.ids.size


class TextStream:
    """A text split into B streams that are read in parallel, T units at a time.

    Parameters
    ----------
    ids : int array [n], or EncodedText
    batch : int
        B; stream b is the b-th of B equal parts.
    bptt : int
        T, the units that gradients are propagated over. The last chunk may be shorter.
    variable : bool, default False
        Draw the length of each chunk anew in each epoch, so that the same units do not always
        begin a chunk: a normal distribution with a standard deviation of 5 (T/8 if that is less)
        around T or, in one of twenty cases, T/2. The learning rate is scaled by the length
        (Merity et al. 2018, section 3.2). The number of chunks stays the same.
    seed : int, default 0
        Of these lengths.

    Raises
    ------
    ValueError
        The text is too short for one unit and its successor in every stream.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.data.text import TextStream
    >>> chunk = next(TextStream(np.arange(9), batch=2, bptt=3).batches())
    >>> chunk.ids.T.tolist(), chunk.targets.T.tolist()
    ([[0, 1, 2], [4, 5, 6]], [[1, 2, 3], [5, 6, 7]])
    """

    def __init__(
        self, ids: np.ndarray | Units, batch: int, bptt: int, *, variable: bool = False,
        seed: int = 0,
    ):  # fmt: skip
        if not isinstance(ids, Units):
            ids = checks.integer_array("ids", ids, dimensions=1)
        self.batch = checks.integer("batch", batch)
        self.bptt = checks.integer("bptt", bptt)
        self.variable = checks.flag("variable", variable)
        self.seed = checks.integer("seed", seed, 0)
        self.length = (len(ids) - 1) // self.batch
        if self.length < 1:
            raise ValueError(
                f"ids: the text has {len(ids)} units, batch {batch} needs at least {batch + 1}"
            )
        self._ids, self._streams = ids, range(self.batch)

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-self.length // self.bptt)

    def part(self, s: int, shards: int) -> "TextStream":
        """Shard s of the streams, see `fastrnn.steps.Data`.

        Raises
        ------
        ValueError
            There are more shards than streams.
        """
        if shards > self.batch:
            raise ValueError(f"shards must be at most the batch of {self.batch}, got {shards}")
        out = copy(self)
        out._streams = self._streams[s * self.batch // shards : (s + 1) * self.batch // shards]
        out.batch = len(out._streams)
        return out

    def _bounds(self, epoch: int) -> np.ndarray:
        """Where the chunks begin, and where the last one ends."""
        if not self.variable:
            return np.minimum(np.arange(len(self) + 1) * self.bptt, self.length)
        rng = np.random.default_rng([self.seed, epoch])
        n, t = len(self), self.bptt
        lengths = rng.normal(np.where(rng.random(n) < 0.05, t / 2, t), min(5, t / 8))
        ends = np.cumsum(np.maximum(lengths, t / 8))
        # Scaled to the whole text, at least one unit each.
        ends = np.rint(ends * ((self.length - n) / ends[-1])).astype(np.int64) + np.arange(1, n + 1)
        return np.concatenate([[0], ends])

    def batches(self, epoch: int = 0, skip: int = 0) -> Iterator[Chunk]:
        """The chunks of an epoch in order, without the first ``skip``; the same on every call."""
        bounds = self._bounds(epoch)
        for k in range(skip, len(self)):
            first, steps = bounds[k], bounds[k + 1] - bounds[k]
            units = np.empty((steps + 1, self.batch), np.int64)
            for column, stream in enumerate(self._streams):
                at = stream * self.length + first
                units[:, column] = self._ids[at : at + steps + 1]
            rate = steps / self.bptt if self.variable else 1.0
            yield Chunk(units[:-1], units[1:], k == 0, rate)
