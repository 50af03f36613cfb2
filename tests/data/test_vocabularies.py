"""Words and byte pairs."""

import contextlib
import json
import pickle

import numpy as np
import pytest

from fastrnn.data.text import Vocabulary
from fastrnn.data.vocabularies import BytePairs, WordVocabulary, vocabulary_of

TEXT = "The cat's hat (a red one), and the CAT.\nThe end: 3.5 % = naïve?\n\nThe cat's"


def test_words():
    words = WordVocabulary.of(TEXT, size=6)
    assert words.symbols == ["<unk>", "The", "\n", "cat's", "hat", "("]
    assert len(words) == 6 and words.unit == "word" and words.unknown == 0
    ids = words.encode("The dog (\nThe cat's hat")
    assert ids.tolist() == [1, 0, 5, 2, 1, 3, 4] and ids.dtype == np.int64
    assert words.decode(ids) == "The <unk> (\nThe cat's hat"
    assert words.encode("").tolist() == [] and words.decode([]) == ""


def test_punctuation_comes_back_without_blanks():
    words = WordVocabulary.of(TEXT, size=100)
    assert words.decode(words.encode("The hat (a red one), and\nthe end?")) == (
        "The hat (a red one), and\nthe end?"
    )
    lower = WordVocabulary.of(TEXT, size=100, lower=True)
    assert "The" not in lower.symbols and lower.decode(lower.encode("THE Cat's")) == "the cat's"


def test_tokenised_text_is_split_at_blanks():
    text = "mr. <unk> is N years old , \n the <unk> said \n"
    words = WordVocabulary.of(text, size=100, tokenised=True)
    assert words.symbols[:2] == ["<unk>", "\n"] and "mr." in words.symbols
    assert words.symbols.count("<unk>") == 1
    assert words.encode("mr. <unk> , what").tolist()[1::2] == [0, 0]
    assert words.decode(words.encode("mr. N , \n the")) == "mr. N ,\nthe"


def test_byte_pairs_know_every_text():
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pairs = BytePairs.of(TEXT * 20, size=300)
    assert 256 < len(pairs) <= 300 and pairs.unit == "token" and pairs.unknown is None
    for text in (TEXT, "日本語 \n\n  x\ty", "", "\n", "naïve 😀"):
        assert pairs.decode(pairs.encode(text)) == text
    assert len(pairs.encode(TEXT)) < len(TEXT) / 2
    whole = pairs.encode("a\nb\n\nc")  # a line's encoding depends on no other line
    parts = [pairs.encode(part) for part in ("a\n", "b\n", "\n", "c")]
    assert whole.tolist() == np.concatenate(parts).tolist()
    twin = pickle.loads(pickle.dumps(pairs))
    assert twin.encode(TEXT).tolist() == pairs.encode(TEXT).tolist()


def test_configs():
    made = [Vocabulary.of(TEXT), WordVocabulary.of(TEXT, lower=True)]
    with contextlib.suppress(ImportError):
        made.append(BytePairs.of(TEXT, size=260))
    for vocabulary in made:
        config = json.loads(json.dumps(vocabulary.config() | {"other": 1}))
        again = vocabulary_of(config)
        assert config == {"other": 1} and type(again) is type(vocabulary)
        assert again.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()


def test_refused():
    with pytest.raises(ValueError, match="symbols must be words, the first <unk>"):
        WordVocabulary(["a"])
    with pytest.raises(ValueError, match="symbols must differ"):
        WordVocabulary(["<unk>", "a", "a"])
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        WordVocabulary.of("a", size=1)
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        WordVocabulary.of(b"a")
    with pytest.raises(IndexError, match="id 9"):
        WordVocabulary(["<unk>", "a"]).decode([9])
    with pytest.raises(TypeError, match="tokenizer"):
        BytePairs("gpt2")
    with pytest.raises(ValueError, match="unit must be character, word or bpe, got 'x'"):
        vocabulary_of({"unit": "x", "symbols": ["a"]})
