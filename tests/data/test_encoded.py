"""Texts on disk as indices."""

import numpy as np
import pytest

from fastrnn.data import encoded as module
from fastrnn.data.encoded import EncodedText, encode_text, read_blocks
from fastrnn.data.text import TextStream, Vocabulary
from fastrnn.data.vocabularies import BytePairs, WordVocabulary

TEXT = "The cat saw the dog.\nThe dog ran \u2013 it barked!\n\n\u03bb\u03cc\u03bf\n" * 30


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("block", [1, 50, 1 << 24])
@pytest.mark.parametrize("kind", [Vocabulary, WordVocabulary, BytePairs])
def test_parts_give_what_the_whole_text_gives(path, tmp_path, monkeypatch, kind, block):
    options = {}
    if kind is BytePairs:
        pytest.importorskip("tokenizers", reason="the extra [tokens] is not installed")
        options = {"size": 280}
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(module, "_PER_FILE", 100)
    whole = kind.of(TEXT, **options)
    vocabulary = kind.of(read_blocks([path]), **options)
    assert vocabulary.config() == whole.config()
    encode_text(read_blocks([path]), vocabulary, tmp_path / "out")
    text, ids = EncodedText(tmp_path / "out"), whole.encode(TEXT)
    assert text.vocabulary.config() == whole.config()
    assert (len(text), text.characters) == (len(ids), len(TEXT))
    assert block > 50 or len(list((tmp_path / "out").glob("*.npy"))) > 1
    for part in (slice(None), slice(90, 310), slice(99, 100), slice(200, 200), slice(5)):
        np.testing.assert_array_equal(text[part], ids[part])
        assert text[part].dtype == np.int64


def test_streams_of_a_text_on_disk(path, tmp_path):
    vocabulary = Vocabulary.of(TEXT)
    encode_text([TEXT], vocabulary, tmp_path / "out")
    options = {"batch": 7, "bptt": 16, "variable": True}
    here = TextStream(vocabulary.encode(TEXT), **options)
    there = TextStream(EncodedText(tmp_path / "out"), **options)
    assert len(here) == len(there)
    for a, b in zip(here.batches(1), there.batches(1), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.targets, b.targets)
    # The shards of a batch, side by side, are the batch.
    for shards in (1, 3, 7):
        parts = [there.part(s, shards).batches() for s in range(shards)]
        for whole, *some in zip(here.batches(), *parts, strict=True):
            np.testing.assert_array_equal(whole.ids, np.hstack([chunk.ids for chunk in some]))


def test_damaged_folders_are_refused_by_name(path, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"no such file: .*config\.json"):
        EncodedText(out)
    with pytest.raises(ValueError, match="parts must hold a text"):
        encode_text([], Vocabulary.of(TEXT), out)
    encode_text([TEXT], Vocabulary.of(TEXT), out)
    with pytest.raises(ValueError, match="holds something already"):
        encode_text([TEXT], Vocabulary.of(TEXT), out)
    ids = out / "ids-00000.npy"
    data = ids.read_bytes()
    for damaged in (data[:-9], data[:20], b""):
        ids.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ids-00000\.npy"):
            EncodedText(out)
    np.save(ids, np.full(len(TEXT), 200, np.uint8))
    with pytest.raises(ValueError, match="out is damaged: ids: id 200 at position 0"):
        EncodedText(out)[:3]
    np.save(ids, np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match=r"ids-00000\.npy must hold \d+ indices"):
        EncodedText(out)
    ids.unlink()
    with pytest.raises(FileNotFoundError, match="ids-00000"):
        EncodedText(out)
    (out / "config.json").write_text('{"format": "a fastrnn encoded text"}')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        EncodedText(out)
    (out / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not belong to a fastrnn encoded text"):
        EncodedText(out)


def test_a_block_that_is_not_utf_8_is_refused_with_its_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 4)
    path = tmp_path / "text.txt"
    path.write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8: byte 9"):
        list(read_blocks([path]))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.txt is empty"):
        list(read_blocks([path]))
