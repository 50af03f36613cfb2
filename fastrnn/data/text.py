"""Text as streams of characters: vocabulary, encoding, batches for truncated BPTT."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastrnn import checks

UNKNOWN = "\ufffd"


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
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} ({error.reason})") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text


class Vocabulary:
    """Characters and their indices; index 0 stands for every unknown character.

    Parameters
    ----------
    symbols : list of str
        The unknown symbol, then the known characters, one per entry.
    """

    def __init__(self, symbols: list[str]):
        if not symbols or symbols[0] != UNKNOWN or any(len(s) != 1 for s in symbols):
            raise ValueError("symbols must be single characters, the first the unknown symbol")
        if len(set(symbols)) != len(symbols):
            raise ValueError("symbols must differ")
        self.symbols = list(symbols)
        self._table = np.zeros(max(map(ord, symbols)) + 1, np.int64)
        self._table[[ord(s) for s in symbols]] = np.arange(len(symbols))

    @classmethod
    def of(cls, text: str, *, min_count: int | None = None) -> "Vocabulary":
        """The characters that occur at least ``min_count`` times, sorted by code point.

        ``min_count`` defaults to one in 100,000 characters, at least 1 and at most 100.
        """
        if min_count is None:
            min_count = min(100, max(1, len(text) // 100_000))
        checks.positive_int("min_count", min_count)
        codes, counts = np.unique(_codes(text), return_counts=True)
        kept = [chr(c) for c, n in zip(codes, counts, strict=True) if n >= min_count]
        return cls([UNKNOWN] + [c for c in kept if c != UNKNOWN])

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The index of each character, int64 [len(text)]."""
        codes = _codes(text)
        known = codes < len(self._table)
        return np.where(known, self._table[np.where(known, codes, 0)], 0)

    def decode(self, ids) -> str:
        """The text that these indices stand for."""
        return "".join(self.symbols[i] for i in np.asarray(ids).reshape(-1))


def _codes(text: str) -> np.ndarray:
    # A Python string may hold lone surrogates; "surrogatepass" encodes them too.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class Chunk(NamedTuple):
    """Consecutive characters of several streams; the next chunk continues where this one ends."""

    ids: np.ndarray  # [T, B]
    targets: np.ndarray  # [T, B]: the character after each
    first: bool  # whether the streams begin here


class TextStream:
    """A text split into B streams that are read in parallel, T characters at a time.

    Parameters
    ----------
    ids : int array [n]
    batch : int
        B; stream b is the b-th of B equal parts.
    bptt : int
        T, the characters that gradients are propagated over. The last chunk may be shorter.

    Raises
    ------
    ValueError
        The text is too short for one character and its successor in every stream.
    """

    def __init__(self, ids: np.ndarray, batch: int, bptt: int):
        self.batch = checks.positive_int("batch", batch)
        self.bptt = checks.positive_int("bptt", bptt)
        self.length = (len(ids) - 1) // self.batch
        if self.length < 1:
            raise ValueError(
                f"the text has {len(ids)} characters, batch {batch} needs at least {batch + 1}"
            )
        n = self.length * self.batch
        self._ids = np.ascontiguousarray(ids[:n].reshape(self.batch, -1).T)
        self._targets = np.ascontiguousarray(ids[1 : n + 1].reshape(self.batch, -1).T)

    def __len__(self) -> int:
        """Number of chunks."""
        return -(-self.length // self.bptt)

    def batches(self, epoch: int = 0, skip: int = 0) -> Iterator[Chunk]:
        """The chunks in order, without the first ``skip``; every epoch is the same."""
        for k in range(skip, len(self)):
            part = slice(k * self.bptt, (k + 1) * self.bptt)
            yield Chunk(self._ids[part], self._targets[part], k == 0)
