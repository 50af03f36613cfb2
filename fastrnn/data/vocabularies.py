"""Vocabularies of words and of byte pairs; `text.Vocabulary` is that of characters.

A vocabulary has ``encode``, ``decode``, a length, and

``unit``
    What it counts, in the singular, for messages.
``unknown``
    The index that stands for every unit that it does not know, or None if there is none.
``config()``
    What `vocabulary_of` makes it from again, as JSON has it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice, repeat
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.extras import needs

from .text import Vocabulary, check_text, parts_of
from .tokens import TOKEN

UNKNOWN_WORD = "<unk>"
_WORD = re.compile(rf"{TOKEN.pattern}|\n")
_BETWEEN_BLANKS = re.compile(r"\S+|\n")
_NO_SPACE = re.compile(r" (?=[.,;:!?)\]}\u2019%])|(?<=[(\[{]) | ?\n ?")


class WordVocabulary:
    """Words and their indices, the most frequent first; index 0 stands for every unknown word.

    Parameters
    ----------
    symbols : list of str
        ``"<unk>"``, then the known words.
    lower : bool, default False
        Whether texts are read in lower case.
    tokenised : bool, default False
        Whether the tokens of a text are what blanks separate, as in the Penn Treebank. Otherwise
        words, punctuation marks and other symbols are. A line break is a token in any case.

    Examples
    --------
    >>> from fastrnn.data.vocabularies import WordVocabulary
    >>> words = WordVocabulary.of("The cat saw the dog, and the dog saw the cat.", size=5)
    >>> words.symbols
    ['<unk>', 'the', 'cat', 'saw', 'dog']
    >>> words.decode(words.encode("the dog saw me"))
    'the dog saw <unk>'
    """

    unit = "word"
    unknown = 0

    def __init__(self, symbols: list[str], *, lower: bool = False, tokenised: bool = False):
        if (
            not symbols
            or symbols[0] != UNKNOWN_WORD
            or not all(isinstance(s, str) for s in symbols)
        ):
            raise ValueError(f"symbols must be words, the first {UNKNOWN_WORD}")
        self.symbols = list(symbols)
        self.lower = checks.flag("lower", lower)
        self.tokenised = checks.flag("tokenised", tokenised)
        self._ids = {word: i for i, word in enumerate(symbols)}
        if len(self._ids) != len(symbols):
            raise ValueError("symbols must differ")

    @classmethod
    def of(
        cls,
        text: str | Iterable[str],
        *,
        size: int = 10_000,
        lower: bool = False,
        tokenised: bool = False,
    ) -> "WordVocabulary":
        """The ``size - 1`` most frequent words of a text, which may be given in parts; equally
        frequent ones in their order."""
        checks.integer("size", size, 2)
        words_of = cls([UNKNOWN_WORD], lower=lower, tokenised=tokenised)._words
        counts: Counter[str] = Counter()
        for part in parts_of(text):
            counts.update(words_of(part))
        counts.pop(UNKNOWN_WORD, None)
        kept = [word for word, _ in counts.most_common(size - 1)]
        return cls([UNKNOWN_WORD, *kept], lower=lower, tokenised=tokenised)

    def _words(self, text: str):
        pattern = _BETWEEN_BLANKS if self.tokenised else _WORD
        return map(re.Match.group, pattern.finditer(text.lower() if self.lower else text))

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """The index of each word, int64."""
        check_text(text)
        return np.fromiter(map(self._ids.get, self._words(text), repeat(0)), np.int64)

    def decode(self, ids) -> str:
        """The words with blanks between them, without those before punctuation marks."""
        ids = checks.integer_array("ids", ids).reshape(-1)
        checks.below("ids", "id", ids, len(self))
        joined = " ".join([self.symbols[i] for i in ids])
        return re.sub(r" ?\n ?", "\n", joined) if self.tokenised else _NO_SPACE.sub(_closed, joined)

    def config(self) -> dict[str, Any]:
        """See the module."""
        return {
            "unit": "word", "symbols": self.symbols, "lower": self.lower,
            "tokenised": self.tokenised,
        }  # fmt: skip


def _closed(match: re.Match) -> str:
    return "\n" if "\n" in match.group() else ""


class BytePairs:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, Radford et al. 2019), in which no text
    has an unknown part. Needs the extra ``[tokens]``.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Any tokenizer of the package ``tokenizers``, such as `of` trains. Each line of a text is
        encoded on its own.
    """

    unit = "token"

    def __init__(self, tokenizer: Any):
        checks.has("tokenizer", tokenizer, "encode_batch", "decode", "get_vocab_size", "to_str")
        if tokenizer.truncation is not None or tokenizer.padding is not None:
            raise ValueError(
                "tokenizer must neither truncate nor pad: call no_truncation and no_padding"
            )
        self.tokenizer = tokenizer

    @property
    def unknown(self) -> int | None:
        """The index of unknown parts; None for an encoding of bytes, such as `of` makes."""
        token = getattr(self.tokenizer.model, "unk_token", None)
        return None if token is None else self.tokenizer.token_to_id(token)

    @classmethod
    def of(cls, text: str | Iterable[str], *, size: int = 10_000) -> "BytePairs":
        """Train an encoding with at most ``size`` tokens, at least the 256 bytes, on a text, which
        may be given in parts."""
        parts = parts_of(text)
        checks.integer("size", size, 256)
        try:
            from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        except ImportError:
            raise ImportError(needs("byte pairs need tokenizers", "tokens")) from None
        tokenizer = Tokenizer(models.BPE())
        lines = pre_tokenizers.Split(Regex("\n"), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(chain.from_iterable(map(_lines, parts)), trainer)
        return cls(tokenizer)

    def __getstate__(self):
        return self.tokenizer.to_str()

    def __setstate__(self, state):
        self.tokenizer = _tokenizer(state)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """The index of each token, int64."""
        check_text(text)
        ids: list[int] = []
        lines = _lines(text)
        while part := list(islice(lines, 4096)):
            for encoding in self.tokenizer.encode_batch(part, add_special_tokens=False):
                ids += encoding.ids
        return np.array(ids, np.int64)

    def decode(self, ids) -> str:
        """The text of these tokens."""
        ids = checks.integer_array("ids", ids).reshape(-1)
        checks.below("ids", "id", ids, len(self))
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def config(self) -> dict[str, Any]:
        """See the module."""
        return {"unit": "bpe", "tokenizer": json.loads(self.tokenizer.to_str())}


def _lines(text: str):
    """The lines with their line breaks."""
    return map(re.Match.group, re.finditer(r"[^\n]*\n|[^\n]+", text))


def _tokenizer(state: str):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(needs("byte pairs need tokenizers", "tokens")) from None
    try:
        return Tokenizer.from_str(state)
    except Exception as error:  # the package raises no narrower one
        raise ValueError(f"tokenizer: {error}") from None


AnyVocabulary = Vocabulary | WordVocabulary | BytePairs


def vocabulary_of(config: dict[str, Any]) -> AnyVocabulary:
    """The vocabulary with this ``config()``, whose entries are taken out of the dict.

    Raises
    ------
    KeyError, TypeError, ValueError
        An entry is missing or damaged.
    """
    unit = config.pop("unit", "character")
    if unit == "bpe":
        return BytePairs(_tokenizer(json.dumps(config.pop("tokenizer"))))
    symbols = config.pop("symbols")
    if unit == "word":
        lower, tokenised = config.pop("lower"), config.pop("tokenised")
        return WordVocabulary(list(symbols), lower=lower, tokenised=tokenised)
    if unit != "character":
        raise ValueError(f"unit must be character, word or bpe, got {unit!r}")
    return Vocabulary(list(symbols))
