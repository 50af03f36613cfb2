"""Schemes of tags, and scores of entities."""

import itertools

import numpy as np
import pytest

from fastrnn.data.tags import (
    Entity,
    TagCodes,
    all_tags,
    may_follow,
    read_entities,
    split_tag,
    strict_entities,
    write_tags,
)
from fastrnn.metrics import entity_scores, report

WANTED = [Entity("X", 0, 1), Entity("X", 1, 3), Entity("Y", 3, 4), Entity("X", 5, 8)]


@pytest.mark.parametrize("tags", [
    "I-X B-X I-X I-Y O I-X I-X I-X",  # IOB1
    "B-X B-X I-X B-Y O B-X I-X I-X",  # IOB2
    "S-X B-X E-X S-Y O B-X I-X E-X",  # BIOES
    "U-X B-X L-X U-Y O B-X I-X L-X",  # BILOU
])  # fmt: skip
def test_every_scheme_is_read(tags):
    assert read_entities(tags.split()) == WANTED


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES"])
def test_what_is_written_is_read(scheme):
    tags = write_tags(WANTED, 9, scheme)
    assert read_entities(tags) == strict_entities(tags, scheme) == WANTED and tags[8] == "O"
    names = all_tags({"Y", "X"}, scheme)
    assert names[0] == "O" and set(tags) <= set(names)
    assert len(names) == len(set(names)) == 1 + 2 * (2 if scheme == "IOB2" else 4)
    # Every tag may follow the one before it, and "O" both ends.
    assert all(may_follow(a, b, scheme) for a, b in itertools.pairwise(["O", *tags, "O"]))


def test_strict_reading():
    assert strict_entities(["I-X", "O", "B-X", "I-Y", "I-X"]) == [Entity("X", 2, 3)]
    assert strict_entities(["B-X", "I-X", "O", "S-Y", "I-Y", "E-Y"], "BIOES") == [Entity("Y", 3, 4)]


def test_what_may_follow():
    iob2 = {("O", "I-X"), ("B-Y", "I-X"), ("I-Y", "I-X")}
    for a, b in itertools.product(["O", "B-X", "I-X", "B-Y", "I-Y"], ["O", "B-X", "I-X"]):
        assert may_follow(a, b, "IOB2") == ((a, b) not in iob2)
    for a, b, wanted in [
        ("O", "I-X", False), ("O", "E-X", False), ("O", "S-X", True), ("B-X", "O", False),
        ("B-X", "E-X", True), ("B-X", "E-Y", False), ("I-X", "B-X", False), ("E-X", "B-X", True),
    ]:  # fmt: skip
        assert may_follow(a, b, "BIOES") == wanted


@pytest.mark.parametrize("tag", ["X", "I", "B-", "", "Q-X", "b-X"])
def test_what_is_no_tag(tag):
    with pytest.raises(ValueError, match="is not a tag"):
        split_tag(tag)


def test_scheme_is_checked():
    with pytest.raises(ValueError, match="scheme must be one of IOB2, BIOES; got 'IOB1'"):
        write_tags([], 3, "IOB1")


def test_scores_by_hand():
    true = [["B-X", "I-X", "O", "B-Y"], ["B-X", "O"], ["B-X", "I-X"]]
    found = [["B-X", "I-X", "O", "B-X"], ["O", "B-Y"], ["B-X", "O"]]
    scores = entity_scores(true, found)
    assert scores.micro == (1 / 4, 1 / 4, 1 / 4, 4)
    assert scores.by_type["X"] == (1 / 3, 1 / 3, 1 / 3, 3)
    assert scores.by_type["Y"] == (0, 0, 0, 1)
    assert scores.accuracy == 4 / 8
    assert scores.confusion == {
        ("X", "X"): 1, ("Y", "X"): 1, ("X", ""): 2, ("", "Y"): 1, ("", "X"): 1
    }  # fmt: skip
    said = report(scores)
    assert "Y taken for X: 1" in said and "spans missed 2, spurious spans 2" in said
    assert entity_scores([], []).micro == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="predicted must have 3 sentences"):
        entity_scores(true, found[:2])
    with pytest.raises(ValueError, match=r"predicted\[1\] must have 2 tags, got 1"):
        entity_scores(true, [found[0], ["O"], found[2]])


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES"])
def test_scores_agree_with_seqeval(scheme):
    judge = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    import seqeval.scheme

    rng = np.random.default_rng(0)
    names = all_tags("XYZ", scheme)
    tags = [[[names[i] for i in rng.integers(len(names), size=n)] for n in rng.integers(1, 12, 60)]
            for _ in range(2)]  # fmt: skip
    tags[1] = [a[: len(b)] + b[len(a) :] for a, b in zip(*tags, strict=True)]
    true = tags[0]
    found = [[names[rng.integers(len(names))] if rng.random() < 0.3 else t for t in ts]
             for ts in true]  # fmt: skip
    ours = entity_scores(true, found, scheme=scheme).micro
    name = {"IOB2": "IOB2", "BIOES": "IOBES"}[scheme]
    options = {"mode": "strict", "scheme": getattr(seqeval.scheme, name)}
    assert ours.f1 > 0.2
    for value, theirs in ((ours.precision, "precision_score"), (ours.recall, "recall_score"),
                          (ours.f1, "f1_score")):  # fmt: skip
        assert value == pytest.approx(getattr(judge, theirs)(true, found, **options), abs=1e-12)


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES"])
def test_entities_end_with_their_sentence(scheme):
    """Sentences one after the other give what each gives alone, shifted."""
    rng = np.random.default_rng(0)
    tags = all_tags(["X", "Y"], scheme)
    codes, lengths = TagCodes.of(tags), rng.integers(0, 6, 300)
    ids = rng.integers(0, len(tags), lengths.sum())
    wanted, at = [], 0
    for n in lengths:
        alone = strict_entities([tags[i] for i in ids[at : at + n]], scheme)
        wanted += [Entity(kind, first + at, last + at) for kind, first, last in alone]
        at += n
    assert codes.strict_entities(ids, lengths, scheme) == wanted and len(wanted) > 100
    if scheme == "IOB2":
        pair = np.array([tags.index("B-X"), tags.index("I-X")])
        assert codes.strict_entities(pair, np.array([1, 1]), scheme) == [Entity("X", 0, 1)]
        assert codes.strict_entities(pair, np.array([2]), scheme) == [Entity("X", 0, 2)]
