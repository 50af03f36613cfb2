"""Texts on disk as indices, for those larger than memory.

A folder holds ``config.json``, with the vocabulary, and ``ids-00000.npy`` and so on, the indices in
the smallest unsigned type. They are mapped into memory and read as needed.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import load_json, save_json, writing
from fastrnn.types import Path as FilePath

from .text import Units, decoded, parts_of
from .vocabularies import AnyVocabulary, vocabulary_of

FORMAT = "a fastrnn encoded text"
_BLOCK = 1 << 24  # bytes read at a time
_PER_FILE = 1 << 26  # units in a file, at least, apart from the last


def read_blocks(paths: Iterable[FilePath]) -> Iterator[str]:
    """The text of UTF-8 files, in parts that end with a line.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_text`.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        at = 0
        with open(path, "rb") as file:
            while lines := file.readlines(_BLOCK):
                block = b"".join(lines)
                yield decoded(block, path, at)
                at += len(block)
        if not at:
            raise ValueError(f"{path} is empty")


class EncodedText(Units):
    """A text that `encode_text` wrote, as indices of its vocabulary.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    vocabulary : Vocabulary, WordVocabulary or BytePairs
    characters : int
        Of the text that was encoded.
    checksum : int
        Of the indices.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is damaged; the message names it.

    Examples
    --------
    >>> from fastrnn.data.encoded import EncodedText, encode_text
    >>> from fastrnn.data.text import Vocabulary
    >>> text = ["the first line\\n", "the second line\\n"]
    >>> encode_text(text, Vocabulary.of(text), "encoded")
    >>> encoded = EncodedText("encoded")
    >>> encoded.vocabulary.decode(encoded[4:14]), len(encoded)
    ('first line', 31)
    """

    def __init__(self, folder: FilePath):
        folder = checks.path("folder", folder)
        path, config = read_config(folder, FORMAT)
        try:
            counts = [int(count) for count in config.pop("counts")]
            self.characters, self.checksum = config.pop("characters"), config.pop("checksum")
            self.vocabulary = vocabulary_of(config)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        self._files = [mapped(_name(folder, n), count) for n, count in enumerate(counts)]
        self._ends, self._folder = np.cumsum(counts), folder

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        """The indices of a part, int64."""
        first, last, _ = part.indices(len(self))
        out = np.empty(max(0, last - first), np.int64)
        at = first
        while at < last:
            n = int(np.searchsorted(self._ends, at, side="right"))
            start = int(self._ends[n]) - len(self._files[n])
            some = self._files[n][at - start : last - start]
            out[at - first : at - first + len(some)] = some
            at += len(some)
        try:
            checks.below("ids", "id", out, len(self.vocabulary))
        except IndexError as error:
            raise ValueError(f"{self._folder} is damaged: {error}") from None
        return out


def encode_text(parts: Iterable[str], vocabulary: AnyVocabulary, folder: FilePath) -> None:
    """Write a text as the indices of a vocabulary into a folder, for `EncodedText`.

    Parameters
    ----------
    parts : iterable of str
        The text in parts that end with a line, such as `read_blocks` yields.
    vocabulary : Vocabulary, WordVocabulary or BytePairs
    folder : path
        Created if missing.

    Raises
    ------
    ValueError
        The text has no units, or the folder holds an encoded text.
    """
    folder = checks.path("folder", folder)
    checks.has("vocabulary", vocabulary, "encode", "config")
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds something already: choose another folder")
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    pieces, counts = list[np.ndarray](), list[int]()
    characters = checksum = 0

    def save() -> None:
        ids = np.concatenate(pieces)
        with writing(_name(folder, len(counts))) as file:
            np.save(file, ids)
        counts.append(len(ids))
        pieces.clear()

    for part in parts_of(parts):
        ids = vocabulary.encode(part).astype(dtype)
        characters, checksum = characters + len(part), zlib.crc32(ids.tobytes(), checksum)
        pieces.append(ids)
        if sum(map(len, pieces)) >= _PER_FILE:
            save()
    if any(map(len, pieces)):
        save()
    if not counts:
        raise ValueError("parts must hold a text, got no units")
    facts = {"format": FORMAT, "counts": counts, "characters": characters, "checksum": checksum}
    save_json(folder / "config.json", facts | vocabulary.config())  # last: then all is there


def _name(folder: Path, number: int) -> Path:
    return folder / f"ids-{number:05}.npy"


def read_config(folder: Path, format: str) -> tuple[Path, dict[str, Any]]:
    """The path of a folder's ``config.json`` and what it holds, of a folder of this format."""
    path = folder / "config.json"
    config = load_json(path)
    if not isinstance(config, dict) or config.pop("format", None) != format:
        raise ValueError(f"{path} does not belong to {format}")
    return path, config


def mapped(path: Path, count: int) -> np.ndarray:
    """The indices in a file of which so many are expected, mapped into memory."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        ids = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if ids.shape != (count,) or ids.dtype.kind != "u":
        raise ValueError(f"{path} must hold {count} indices, got {checks.short(ids)}")
    return ids
