"""Raw text as tokens that know where they came from; entities back in the text."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# Numbers with their separators, words with their apostrophes, single other symbols.
TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['\u2019]\w+)*|[^\w\s]")

Tokenizer = Callable[[str], Iterable[str]]


class TextEntity(NamedTuple):
    """An entity in a text: ``text[start:end]``."""

    type: str
    start: int  # characters
    end: int
    text: str
    confidence: float  # the lowest probability among its tags, from 0 to 1


def token_spans(text: str, tokenize: Tokenizer | None = None) -> list[tuple[int, int]]:
    """The first character and the end of each token of a text.

    Parameters
    ----------
    text : str
    tokenize : callable, optional
        Returns the tokens of a text in their order, as ``nltk.wordpunct_tokenize`` does. By default
        words, numbers and single other symbols are tokens.

    Raises
    ------
    ValueError
        A token of ``tokenize`` is not in the text.

    Examples
    --------
    >>> from fastrnn.data.tokens import token_spans
    >>> text = "Take 2.5 mg (daily)."
    >>> [text[a:b] for a, b in token_spans(text)]
    ['Take', '2.5', 'mg', '(', 'daily', ')', '.']
    """
    if tokenize is None:
        return [match.span() for match in TOKEN.finditer(text)]
    spans, at, tokens = [], 0, tokenize(text)
    if not isinstance(tokens, Iterable):
        raise TypeError(f"tokenize must return strings, got {type(tokens).__name__}")
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(f"tokenize must return strings, got {type(token).__name__}")
        first = text.find(token, at)
        if first < 0 and token in ("``", "''"):  # how the Penn Treebank writes quotation marks
            token, first = '"', text.find('"', at)
        if not token or first < 0:
            raise ValueError(f"tokenize returned {token!r}, which is not in the rest of the text")
        at = first + len(token)
        spans.append((first, at))
    return spans


def entities_in(
    text: str, spans: Sequence[tuple[int, int]], found: Iterable[tuple[str, int, int, float]]
) -> list[TextEntity]:
    """The entities of a text from ``(type, first token, last token + 1, confidence)``."""
    out = []
    for kind, first, last, confidence in found:
        start, end = spans[first][0], spans[last - 1][1]
        out.append(TextEntity(kind, start, end, text[start:end], confidence))
    return out
