"""Sentences with a tag for each token, from columns (CoNLL) or JSON lines."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from fastrnn import checks
from fastrnn.checks import as_list, integer_array

from .tags import check_scheme, read_entities, split_tag, write_tags

_BLANKS = " \t"  # other spaces, such as no-break spaces, may be part of a token
_COLUMNS = 1 << 20  # no file has as many


# A word, or a word and the values of its features.
Token: TypeAlias = str | tuple[str, ...]


class Sentence(NamedTuple):
    """Tokens and their tags; no tags if only tokens were read."""

    tokens: list[Token]
    tags: list[str]


def read_sentences(
    path,
    *,
    token_column: int = 0,
    tag_column: int | None = -1,
    feature_columns: Sequence[int] = (),
    scheme: str | None = "IOB2",
) -> Iterator[Sentence]:
    """Iterate over the sentences of a file without reading all of it first.

    Parameters
    ----------
    path : path
        A UTF-8 file. ``.jsonl``: an object with "tokens" and "tags" per line, where a token may be
        a list of a word and the values of its features. Any other: a token
        per line, in columns separated by tabs or, without tabs, by spaces; a sentence ends at a
        line that is empty, has only tabs and spaces, or begins with ``-DOCSTART-``.
    token_column, tag_column : int, default the first and the last
        Counted from 0, or from the end if negative. ``tag_column=None`` reads tokens alone.
    feature_columns : sequence of int
        Columns of features, such as parts of speech or marks of a gazetteer. A token is then a
        tuple of the word and their values. Not for ``.jsonl``.
    scheme : {"IOB2", "BIOES"} or None
        Scheme of the returned tags; the file's tags may be IOB1, IOB2, BIOES or BILOU. None
        returns them as they are.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A line lacks a column, is not UTF-8 or has an invalid tag; the message names file and line.
    """
    path = checks.path("path", path)
    checks.integer("token_column", token_column, -_COLUMNS)
    if tag_column is not None:
        checks.integer("tag_column", tag_column, -_COLUMNS)
    for column in checks.integer_array("feature_columns", feature_columns, dimensions=1).tolist():
        checks.integer("feature_columns", column, -_COLUMNS)
    if scheme is not None:
        check_scheme(scheme)
    lines, name = read_lines(path), str(path)
    if path.suffix == ".jsonl" and len(feature_columns):
        raise ValueError(f"feature_columns must be empty for {path}, got {feature_columns}")
    if path.suffix == ".jsonl":
        yield from _from_json(lines, name, tag_column is not None, scheme)
    else:
        yield from parse_columns(lines, name, token_column, tag_column, scheme, feature_columns)


def read_lines(path=None) -> Iterator[str]:
    """Iterate over the lines of a UTF-8 file, or of standard input, without line breaks."""
    if path is None:
        yield from _decoded(sys.stdin.buffer, "standard input")
        return
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as file:
        yield from _decoded(file, str(path))


def _decoded(file: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number} is not UTF-8: byte {error.start} ({error.reason})"
            ) from None
        yield text.rstrip("\r\n")


def parse_columns(
    lines: Iterable[str],
    name: str,
    token_column: int = 0,
    tag_column: int | None = -1,
    scheme: str | None = "IOB2",
    feature_columns: Sequence[int] = (),
) -> Iterator[Sentence]:
    """`read_sentences` for lines from any source; ``name`` is used in error messages."""
    wanted = [token_column, *feature_columns, *([] if tag_column is None else [tag_column])]
    needed = max(c + 1 if c >= 0 else -c for c in wanted)
    if tag_column is not None:
        needed = max(needed, 2)
    tokens: list[Token] = []
    tags: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip(_BLANKS) or line.startswith("-DOCSTART-"):
            if tokens:
                yield Sentence(tokens, _in_scheme(tags, scheme))
                tokens, tags = [], []
            continue
        columns = line.split("\t") if "\t" in line else [c for c in line.split(" ") if c]
        if len(columns) < needed:
            raise ValueError(
                f"{name}, line {number} must have at least {needed} columns, "
                f"got {len(columns)}: {line!r}"
            )
        token = columns[token_column].strip(_BLANKS)
        if not token:
            raise ValueError(f"{name}, line {number} has an empty token: {line!r}")
        features = [columns[c].strip(_BLANKS) for c in feature_columns]
        tokens.append((token, *features) if features else token)
        if tag_column is not None:
            tags.append(_checked(columns[tag_column].strip(_BLANKS), name, number))
    if tokens:
        yield Sentence(tokens, _in_scheme(tags, scheme))


def _in_scheme(tags: list[str], scheme: str | None) -> list[str]:
    return tags if scheme is None else write_tags(read_entities(tags), len(tags), scheme)


def _checked(tag: str, name: str, number: int) -> str:
    try:
        split_tag(tag)
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {error}") from None
    return tag


def _from_json(lines, name: str, with_tags: bool, scheme: str | None) -> Iterator[Sentence]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            tokens = entry["tokens"]
            tags = entry["tags"] if with_tags else []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{name}, line {number} must be {{"tokens": [...], "tags": [...]}}: {error!r}'
            ) from None
        parts = words = tokens
        if isinstance(tokens, list):  # JSON has no tuples
            tokens = [tuple(t) if isinstance(t, list) and t else t for t in tokens]
            words = [t[0] if isinstance(t, tuple) else t for t in tokens]
            parts = [part for t in tokens for part in (t if isinstance(t, tuple) else [t])]
        for what, values in (("tokens", parts), ("tags", tags)):
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise ValueError(f"{name}, line {number}: {what} must be a list of strings")
        if any(not t or "\t" in t or "\n" in t for t in words):
            raise ValueError(f"{name}, line {number}: a token is empty or has a tab or line break")
        if with_tags and len(tokens) != len(tags):
            raise ValueError(f"{name}, line {number} has {len(tokens)} tokens but {len(tags)} tags")
        for tag in tags:
            _checked(tag, name, number)
        if tokens:
            yield Sentence(tokens, _in_scheme(tags, scheme))


def _is_list(value) -> bool:
    """Whether it is a sequence other than a string."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def checked_lists(name: str, value: Any, of: str) -> Any:
    """Check that ``value`` is a sequence of sequences; errors name ``name`` and what it is of."""
    value = as_list(value)
    if not _is_list(value):
        raise TypeError(f"{name} must be a sequence of lists of {of}, got {type(value).__name__}")
    for i, inner in enumerate(value):
        if not _is_list(inner):
            raise TypeError(f"{name}[{i}] must be a list of {of}, got {type(inner).__name__}")
    return value


def checked_sentences(name: str, X, features: int | None = None) -> list[Sequence[Token]]:
    """Check ``X``, a sequence of token sequences, and return it as a list; errors name ``name``.

    Tokens must have this number of ``features`` (by default that of the first one) beside the word.
    """
    X = list(checked_lists(name, X, "tokens"))
    for i, x in enumerate(X):
        # NumPy's strings, a subclass of str, are allowed.
        if all(issubclass(kind, str) for kind in set(map(type, x))):
            if "" in x:
                raise TypeError(f"{name}[{i}] must hold strings that are not empty, got {x!r}")
            found = [0] * bool(len(x))
        else:
            for token in x:
                parts = [token] if isinstance(token, str) else token
                if not (isinstance(parts, tuple | list) and all(isinstance(p, str) for p in parts)
                        and parts and parts[0]):  # fmt: skip
                    raise TypeError(
                        f"{name}[{i}] must hold strings that are not empty, or tuples of a word "
                        f"and its features, got {token!r:.80}"
                    )
            X[i] = x = [token if isinstance(token, str) else tuple(token) for token in x]
            found = [0 if isinstance(token, str) else len(token) - 1 for token in x]
        features = found[0] if features is None and found else features
        wrong = [n for n in found if n != features]
        if wrong:
            raise ValueError(
                f"{name}[{i}] must have {features} features for each token, got {wrong[0]}"
            )
    return X


def named_tags(name: str, y: Any, names: Sequence[str] | None) -> Any:
    """The tags ``y`` with names instead of integers, if there are ``names``."""
    y = as_list(y)
    if names is None or not _is_list(y):
        return y
    out = []
    for i, tags in enumerate(y):
        if not _is_list(tags):
            raise TypeError(f"{name}[{i}] must be a list of tags, got {type(tags).__name__}")
        if any(isinstance(tag, str) for tag in tags):
            out.append(tags)
            continue
        ids = integer_array(f"{name}[{i}]", tags).tolist()
        bad = [k for k in ids if not 0 <= k < len(names)]
        if bad:
            raise ValueError(
                f"{name}[{i}] has the tag {bad[0]}, but tag_names has {len(names)} names"
            )
        out.append([names[k] for k in ids])
    return out


def checked_tags(name: str, X, y: Any, scheme: str) -> list[list[str]]:
    """Check the tags ``y`` of ``X`` and convert them to ``scheme``; errors name ``name``."""
    y = checked_lists(name, y, "tags")
    if len(X) != len(y):
        raise ValueError(f"{name} must have {len(X)} sentences, got {len(y)}")
    out = []
    for i, (x, given) in enumerate(zip(X, y, strict=True)):
        tags: Any = given
        if len(x) != len(tags):
            raise ValueError(f"{name}[{i}] must have {len(x)} tags, got {len(tags)}")
        if not all(isinstance(tag, str) for tag in tags):
            raise TypeError(
                f"{name}[{i}] must hold strings (or integers, with tag_names), got {tags!r}"
            )
        try:
            out.append(write_tags(read_entities(list(tags)), len(tags), scheme))
        except ValueError as error:
            raise ValueError(f"{name}[{i}]: {error}") from None
    return out
