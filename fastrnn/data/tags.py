"""Tags of tokens, and the entities that they stand for.

A tag is ``O``, or a prefix and a type such as ``B-Disease``. Schemes (Ramshaw & Marcus 1995;
Ratinov & Roth 2009): in IOB2 an entity is ``B I I``; in IOB1 it is ``I I I``, and B only separates
it from a preceding entity of its type; in BIOES it is ``B I E``, or ``S`` if it is one token
(BILOU has L for E and U for S).
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn._tags import strict_spans

SCHEMES = ("IOB2", "BIOES")
_PREFIX = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


class Entity(NamedTuple):
    """Tokens ``[first, last)`` are an entity of this type."""

    type: str
    first: int
    last: int


@lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """The prefix, one of O, B, I, E and S, and the type (empty for O).

    Raises
    ------
    ValueError
        It is not a tag of any scheme.
    """
    if tag == "O":
        return "O", ""
    prefix, _, kind = tag.partition("-")
    if prefix not in _PREFIX or not kind:
        raise ValueError(f"{tag!r} is not a tag: expected O, or B-, I-, E- or S- and a type")
    return _PREFIX[prefix], kind


def read_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of tags in any of the schemes, read leniently.

    An I or E that continues no entity begins one, and an entity without an end tag ends where it
    is not continued: so the scheme, IOB1, IOB2 or BIOES, need not be known.
    """
    out: list[Entity] = []
    first, kind = -1, ""  # of the current entity, if first >= 0
    for i, (prefix, k) in enumerate(map(split_tag, tags)):
        if first >= 0 and (prefix in "OBS" or k != kind):
            out.append(Entity(kind, first, i))
            first = -1
        if prefix != "O" and first < 0:
            first, kind = i, k
        if first >= 0 and prefix in "ES":
            out.append(Entity(kind, first, i + 1))
            first = -1
    if first >= 0:
        out.append(Entity(kind, first, len(tags)))
    return out


def write_tags(entities: Iterable[Entity], length: int, scheme: str = "IOB2") -> list[str]:
    """Tags of ``length`` tokens in one of `SCHEMES`; entities must not overlap."""
    check_scheme(scheme)
    out = ["O"] * length
    for kind, first, last in entities:
        out[first:last] = [f"I-{kind}"] * (last - first)
        out[first] = f"B-{kind}"
        if scheme == "BIOES":
            out[last - 1] = f"{'E' if last - first > 1 else 'S'}-{kind}"
    return out


class TagCodes(NamedTuple):
    """Tags as numbers, for `strict_spans`."""

    prefixes: np.ndarray  # letters, uint8 [K]
    types: np.ndarray  # positions in ``names``, int64 [K]
    names: list[str]

    @classmethod
    def of(cls, tags: Iterable[str]) -> "TagCodes":
        """Of K tags."""
        split = [split_tag(tag) for tag in tags]
        names = {kind: i for i, kind in enumerate(dict.fromkeys(kind for _, kind in split))}
        prefixes = np.frombuffer("".join(prefix for prefix, _ in split).encode(), np.uint8)
        return cls(prefixes, np.array([names[k] for _, k in split], np.int64), list(names))

    def strict_entities(self, ids: np.ndarray, lengths: np.ndarray, scheme: str) -> list[Entity]:
        """The entities of sequences of these lengths, one after the other, from their tags' ids."""
        first, last = strict_spans(self.prefixes, self.types, ids, lengths, scheme == "BIOES")
        kinds = [self.names[i] for i in self.types[ids[first]]]
        return list(map(Entity, kinds, first.tolist(), last.tolist()))


def strict_entities(tags: Sequence[str], scheme: str = "IOB2") -> list[Entity]:
    """Only the entities that follow the scheme, beginning at their B (or S).

    The same as in seqeval's strict mode: a stray ``I-`` is not an entity and, in BIOES, neither
    is one without an end tag.
    """
    check_scheme(scheme)
    number = {tag: i for i, tag in enumerate(dict.fromkeys(tags))}
    ids = np.array([number[tag] for tag in tags], np.int64)
    return TagCodes.of(number).strict_entities(ids, np.array([len(tags)], np.int64), scheme)


def may_follow(before: str, after: str, scheme: str) -> bool:
    """Whether one tag may follow another; "O" also stands for the start and the end."""
    (p, kind), (q, k) = split_tag(before), split_tag(after)
    if scheme == "IOB2":
        return q != "I" or (p in "BI" and k == kind)
    inside = p in "BI"
    return (q in "IE" and k == kind) if inside else q not in "IE"


def all_tags(types: Iterable[str], scheme: str) -> list[str]:
    """Every tag of the scheme for these types, O first."""
    check_scheme(scheme)
    prefixes = "BI" if scheme == "IOB2" else "BIES"
    return ["O"] + [f"{p}-{t}" for t in sorted(set(types)) for p in prefixes]


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that is not one of `SCHEMES`."""
    checks.choice("scheme", scheme, SCHEMES)
