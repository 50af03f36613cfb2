"""Entity-level precision, recall and F1."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from fastrnn.data.sentences import checked_lists
from fastrnn.data.tags import TagCodes, check_scheme


class Score(NamedTuple):
    """Precision, recall and their harmonic mean, each in [0, 1], and 0 where undefined."""

    precision: float
    recall: float
    f1: float
    support: int  # number of true entities


def _score(right: int, found: int, there: int) -> Score:
    precision = right / found if found else 0.0
    recall = right / there if there else 0.0
    f1 = 2 * right / (found + there) if found + there else 0.0
    return Score(precision, recall, f1, there)


class EntityScores(NamedTuple):
    """The result of `entity_scores`."""

    micro: Score  # over all entities
    by_type: dict[str, Score]
    accuracy: float  # of tokens
    confusion: dict[tuple[str, str], int]  # by (true, predicted) type of a span, "" for none


def entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: str = "IOB2"
) -> EntityScores:
    """Compare tags of sentences, entity by entity.

    An entity is correct if its type, first token and last token are correct (Tjong Kim Sang &
    De Meulder 2003). Tags are read strictly, as by seqeval with ``mode="strict"``: an entity that
    does not begin or end as the scheme requires does not count.

    Parameters
    ----------
    true, predicted : sequence of sequence of str
        Tags of each sentence.
    scheme : {"IOB2", "BIOES"}

    Raises
    ------
    ValueError
        The number of sentences or their lengths differ, or a tag is invalid.
    TypeError
        A tag is not a string.

    Examples
    --------
    >>> from fastrnn.metrics import entity_scores
    >>> scores = entity_scores([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]])
    >>> scores.micro.f1, scores.accuracy
    (0.0, 0.6666666666666666)
    """
    true, predicted = (
        checked_lists(name, y, "tags") for name, y in (("true", true), ("predicted", predicted))
    )
    if len(true) != len(predicted):
        raise ValueError(
            f"predicted must have {len(true)} sentences as true has, got {len(predicted)}"
        )
    for number, (t, p) in enumerate(zip(true, predicted, strict=True)):
        if len(t) != len(p):
            raise ValueError(f"predicted[{number}] must have {len(t)} tags, got {len(p)}")
        for name, tags in (("true", t), ("predicted", p)):
            if not all(isinstance(tag, str) for tag in tags):
                raise TypeError(f"{name}[{number}] must hold strings, got {tags!r:.80}")
    check_scheme(scheme)
    flat = [list(chain.from_iterable(tags)) for tags in (true, predicted)]
    lengths = np.array([len(t) for t in true], np.int64)
    distinct = dict.fromkeys(chain(*flat))
    codes, number_of = TagCodes.of(distinct), {tag: i for i, tag in enumerate(distinct)}
    true_ids, ids = (np.array([number_of[tag] for tag in part], np.int64) for part in flat)
    gold, ours = (
        {(e.first, e.last): e.type for e in codes.strict_entities(part, lengths, scheme)}
        for part in (true_ids, ids)
    )
    there, found = Counter(gold.values()), Counter(ours.values())
    right = Counter(kind for span, kind in gold.items() if ours.get(span) == kind)
    confusion = Counter((gold.get(s, ""), ours.get(s, "")) for s in gold.keys() | ours.keys())
    types = sorted(there.keys() | found.keys())
    return EntityScores(
        _score(right.total(), found.total(), there.total()),
        {k: _score(right[k], found[k], there[k]) for k in types},
        float((true_ids == ids).mean()) if len(ids) else 0.0,
        dict(confusion),
    )


def report(scores: EntityScores) -> str:
    """A human-readable table of the scores, in percent."""
    width = max(map(len, ["all types", *scores.by_type]))
    lines = [f"{'':<{width}}  precision  recall      F1  entities"]
    for name, s in [*scores.by_type.items(), ("all types", scores.micro)]:
        lines.append(
            f"{name:<{width}}  {100 * s.precision:9.2f}  {100 * s.recall:6.2f}  "
            f"{100 * s.f1:6.2f}  {s.support:8,}"
        )
    lines.append(f"token accuracy {100 * scores.accuracy:.2f}")
    mixed = {k: n for k, n in scores.confusion.items() if k[0] and k[1] and k[0] != k[1]}
    for (a, b), n in sorted(mixed.items(), key=lambda item: -item[1]):
        lines.append(f"{a} taken for {b}: {n:,}")
    missed = sum(n for (_, b), n in scores.confusion.items() if not b)
    extra = sum(n for (a, _), n in scores.confusion.items() if not a)
    lines.append(f"spans missed {missed:,}, spurious spans {extra:,}")
    return "\n".join(lines)
