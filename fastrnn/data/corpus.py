"""Tagged sentences as indices: in memory, or on disk for those larger than memory.

A folder holds ``config.json``, with the distinct tokens and the tags, ``lengths.npy`` of the
sentences, and ``tokens.npy`` and ``tags.npy``, which are mapped into memory and read as needed.
"""

import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn.checkpoint import save_json
from fastrnn.types import Path as FilePath

from .batches import Tokens
from .encoded import mapped, read_config
from .sentences import Token, read_sentences
from .tags import all_tags, read_entities, split_tag, write_tags

FORMAT = "fastrnn encoded sentences"
_AT_ONCE = 1 << 22  # tokens


class Corpus(NamedTuple):
    """Tagged sentences as indices."""

    distinct: list[Token]
    tokens: Tokens  # indices of ``distinct``
    tags: np.ndarray  # [n], indices of ``names``
    names: list[str]  # all tags of the scheme of the network
    writes: str  # scheme of the tags that predictions have
    checksum: int

    @classmethod
    def of(
        cls, X: Sequence[Sequence[Token]], y: Sequence[Sequence[str]], scheme: str, writes: str
    ) -> "Corpus":
        """Of sentences and their tags in ``scheme``."""
        tokens = list(chain.from_iterable(X))
        distinct = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        tags = list(chain.from_iterable(y))
        names = all_tags({split_tag(tag)[1] for tag in set(tags)} - {""}, scheme)
        number = {tag: i for i, tag in enumerate(names)}
        return cls(
            list(distinct),
            Tokens.of(list(map(distinct.__getitem__, tokens)), list(map(len, X))),
            np.array(list(map(number.__getitem__, tags)), np.int64),
            names,
            writes,
            zlib.crc32(repr((X, y)).encode("utf-8", "surrogatepass")),
        )

    def counts(self, indices: np.ndarray, size: int) -> np.ndarray:
        """How often each index occurs among ``tokens.ids`` or ``tags``."""
        out = np.zeros(size, np.int64)
        for first in range(0, len(indices), _AT_ONCE):
            out += np.bincount(indices[first : first + _AT_ONCE], minlength=size)
        return out


def scheme_written(tags: Iterable[str]) -> str:
    """The scheme of predictions for a training set with these tags."""
    return "BIOES" if any(tag[0] in "ESLU" for tag in tags) else "IOB2"


def encode_sentences(
    paths: Sequence[FilePath], folder: FilePath, *, scheme: str = "BIOES", **columns
) -> None:
    """Write the tagged sentences of files of any size into a folder, for `load_sentences`.

    Parameters
    ----------
    paths : sequence of path
        Files as for `read_sentences`; each is read twice.
    folder : path
        Created if missing.
    scheme : {"BIOES", "IOB2"}
        That of the `Tagger`.
    columns
        ``token_column``, ``tag_column`` and ``feature_columns`` of `read_sentences`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_sentences`; there are no tokens, or the folder holds encoded sentences.
    """
    if isinstance(paths, str) or not isinstance(paths, Sequence):
        raise TypeError(f"paths must be a sequence of paths, got {type(paths).__name__}")
    folder = checks.path("folder", folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds something already: choose another folder")

    def sentences():
        for path in paths:
            for sentence in read_sentences(path, scheme=None, **columns):
                if len(sentence.tokens):
                    yield sentence

    lengths, seen = list[int](), set[str]()
    features = set[int]()
    for sentence in sentences():
        features.update(0 if isinstance(t, str) else len(t) - 1 for t in sentence.tokens)
        if len(features) > 1:
            raise ValueError(
                f"paths must have as many features for each token, got {sorted(features)}"
            )
        lengths.append(len(sentence.tokens))
        seen.update(sentence.tags)
    if not lengths:
        raise ValueError("paths must have tagged sentences, got none")
    names = all_tags({split_tag(tag)[1] for tag in seen} - {""}, scheme)
    number = {tag: i for i, tag in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "lengths.npy", np.array(lengths, np.uint32))
    tokens, tags = (
        np.lib.format.open_memmap(folder / name, "w+", dtype, (sum(lengths),))
        for name, dtype in (("tokens.npy", np.uint32), ("tags.npy", np.uint16))
    )
    distinct: dict[Token, int] = {}
    at = checksum = 0
    for sentence in sentences():
        part = slice(at, at + len(sentence.tokens))
        tokens[part] = [distinct.setdefault(token, len(distinct)) for token in sentence.tokens]
        written = write_tags(read_entities(sentence.tags), len(sentence.tags), scheme)
        tags[part] = [number[tag] for tag in written]
        for array in tokens, tags:
            checksum = zlib.crc32(array[part].tobytes(), checksum)
        at = part.stop
    for array in tokens, tags:
        array.flush()
    facts = {
        "format": FORMAT, "sentences": len(lengths), "tokens": at, "distinct": list(distinct),
        "names": names, "writes": scheme_written(seen), "checksum": checksum,
    }  # fmt: skip
    save_json(folder / "config.json", facts)  # last: then all is there


def load_sentences(folder: FilePath) -> Corpus:
    """The sentences that `encode_sentences` wrote, for `Tagger.fit`.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is damaged; the message names it.
    """
    folder = checks.path("folder", folder)
    path, config = read_config(folder, FORMAT)
    try:
        distinct = [t if isinstance(t, str) else tuple(t) for t in config["distinct"]]
        names, writes, checksum = config["names"], config["writes"], config["checksum"]
        sentences, count = config["sentences"], config["tokens"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    lengths = np.array(mapped(folder / "lengths.npy", sentences), np.int64)
    ids, tags = (mapped(folder / name, count) for name in ("tokens.npy", "tags.npy"))
    if lengths.sum() != count:
        raise ValueError(f"{folder / 'lengths.npy'} must have {count} tokens, got {lengths.sum()}")
    for name, array, size in ("tokens.npy", ids, len(distinct)), ("tags.npy", tags, len(names)):
        largest = max(int(array[at : at + _AT_ONCE].max()) for at in range(0, count, _AT_ONCE))
        if largest >= size:
            raise ValueError(f"{folder / name} must have indices below {size}, got {largest}")
    tokens = Tokens(ids, np.cumsum(lengths) - lengths, lengths)
    return Corpus(distinct, tokens, tags, names, writes, checksum)
