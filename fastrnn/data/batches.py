"""Sentences as integer ids, and batches of sentences of similar length."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import chain
from typing import NamedTuple

import numpy as np

from fastrnn import checks
from fastrnn._gather import gather_rows
from fastrnn.packed import PackedBatch

from .sentences import Token
from .text import Vocabulary
from .vectors import WordVectors

CASES = 7


def case_of(token: str) -> int:
    """The casing class of a token, 0 to 6 (Reimers & Gurevych 2017): numeric, mainly numeric,
    lower, upper, initial upper, contains a digit, other."""
    digits = sum(c.isdigit() for c in token)
    if digits == len(token):
        return 0
    if digits > len(token) / 2:
        return 1
    if token.islower():
        return 2
    if token.isupper():
        return 3
    if token[0].isupper():
        return 4
    return 5 if digits else 6


def word_of(token: Token) -> str:
    """The word of a token that may have features beside it."""
    return token if isinstance(token, str) else token[0]


class Tokens(NamedTuple):
    """Concatenated sequences: sequence s is ``ids[starts[s] : starts[s] + lengths[s]]``."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, ids, lengths) -> "Tokens":
        """From the concatenated ids and the length of each sequence."""
        lengths = np.array(lengths, np.int64)
        return cls(np.array(ids, np.int64), np.cumsum(lengths) - lengths, lengths)


class Lexicon:
    """The features of each distinct token: its vector, its casing, its characters and those given.

    Only tokens seen so far have a row, so memory does not grow with the table of vectors; and the
    features of a token are computed once for all its occurrences.

    Parameters
    ----------
    vectors : WordVectors
    characters : Vocabulary, optional
        Vocabulary of the characters; by default characters are not stored.
    trained : mapping of str to int, optional
        The row of each word, as given by `WordVectors.key`, in the table of trained vectors.
    dtype : {"float32", "float64"}
    features : sequence of sequence of str
        The known values of each feature that follows the word in a token.
    """

    def __init__(
        self,
        vectors: WordVectors,
        characters: Vocabulary | None = None,
        trained: Mapping[str, int] | None = None,
        dtype="float32",
        features: Sequence[Sequence[str]] = (),
    ):
        self.vectors, self.characters = vectors, characters
        self._trained = trained or {}
        # The column of each value of each feature.
        values = [(n, value) for n, known in enumerate(features) for value in known]
        first = vectors.dimension + CASES
        self._columns = {value: first + k for k, value in enumerate(values)}
        self.table = np.zeros((1024, first + len(values)), dtype)
        self.words = np.zeros(1024, np.int64)  # rows of the trained table, or -1
        self._ids: dict[Token, int] = {}
        self._growing = threading.Lock()
        self._spellings: list[np.ndarray] = []

    def __len__(self) -> int:
        """Number of distinct tokens so far."""
        return len(self._ids)

    def encode(self, sentences: Sequence[Sequence[Token]]) -> Tokens:
        """An id for each token."""
        tokens = list(chain.from_iterable(sentences))
        ids = list(map(self._ids.get, tokens))
        if None in ids:
            with self._growing:
                new = [t for t in dict.fromkeys(tokens) if t not in self._ids]
                if new:  # no other thread was faster
                    self._add(new)
            ids = list(map(self._ids.get, tokens))
        return Tokens.of(ids, [len(s) for s in sentences])

    def _add(self, new: list[Token]) -> None:
        first, last = len(self._ids), len(self._ids) + len(new)
        if last > len(self.table):
            more = max(last, 2 * len(self.table)) - len(self.table)
            self.table = np.pad(self.table, ((0, more), (0, 0)))
            self.words = np.pad(self.words, (0, more))
        key, rows, dimension = self.vectors.key, self.table[first:last], self.vectors.dimension
        words = list(map(word_of, new))
        self.words[first:last] = [self._trained.get(key(word), -1) for word in words]
        rows[:] = 0
        rows[:, :dimension] = self.vectors(words)
        rows[np.arange(len(new)), [dimension + case_of(word) for word in words]] = 1
        for row, token in zip(rows, new, strict=True) if self._columns else ():
            for value in enumerate(token[1:]):
                if value in self._columns:  # else it is unknown
                    row[self._columns[value]] = 1
        if self.characters is not None:
            self._spellings[first:] = [self.characters.encode(word) for word in words]
        # Last, so that an interruption leaves no token half added.
        self._ids.update(zip(new, range(first, last), strict=True))

    def spellings(self, ids: np.ndarray) -> Tokens:
        """The character ids of the tokens with these ids."""
        parts = [self._spellings[i] for i in ids]
        return Tokens.of(np.concatenate(parts) if parts else [], [len(p) for p in parts])


class Spelling(NamedTuple):
    """The characters of a batch's distinct tokens, packed as well."""

    packed: PackedBatch
    ids: np.ndarray  # character of each row
    tokens: np.ndarray  # [N], the distinct token of each row of the batch


class Batch(NamedTuple):
    """Some sentences in the layout of `PackedBatch`: nothing is padded."""

    packed: PackedBatch
    positions: np.ndarray  # of each row's token in the sentences one after the other
    inputs: np.ndarray  # [N, F]
    words: np.ndarray  # [N], rows of the table of trained vectors, or -1
    tags: np.ndarray | None  # [N]
    spelling: Spelling | None

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.packed.size


def make_batch(lexicon: Lexicon, tokens: Tokens, chosen: np.ndarray, tags=None) -> Batch:
    """The batch of the sentences ``chosen`` from ``tokens``; ``tags`` are those of all tokens."""
    lengths = tokens.lengths[chosen]
    packed = PackedBatch(int(lengths.max(initial=0)), len(chosen), lengths)
    positions = packed.flat_indices(tokens.starts[chosen])
    ids = tokens.ids[positions].astype(np.int64, copy=False)  # on disk they are smaller
    spelling = None
    if lexicon.characters is not None:
        distinct, which = np.unique(ids, return_inverse=True)
        flat = lexicon.spellings(distinct)
        words = PackedBatch(int(flat.lengths.max(initial=0)), len(distinct), flat.lengths)
        spelling = Spelling(words, flat.ids[words.flat_indices(flat.starts)], which)
    inputs, trained = gather_rows(lexicon.table, ids), lexicon.words[ids]
    right = None if tags is None else tags[positions].astype(np.int64, copy=False)
    return Batch(packed, positions, inputs, trained, right, spelling)


def by_length(
    lengths: np.ndarray, *, batch_size: int = 32, max_tokens: int | None = None
) -> list[np.ndarray]:
    """Indices of sequences in batches of similar length, stably sorted from the shortest on.

    Parameters
    ----------
    lengths : int array
    batch_size : int, default 32
        Sequences in a batch.
    max_tokens : int, optional
        Instead: as many sequences as have at most this many tokens in total, at least one.
    """
    order = np.argsort(lengths, kind="stable")
    if max_tokens is None:
        return np.split(order, range(batch_size, len(order), batch_size)) if len(order) else []
    out, first, total = [], 0, 0
    for at, n in enumerate(lengths[order]):
        if total and total + n > max_tokens:
            out.append(order[first:at])
            first, total = at, 0
        total += int(n)
    return [*out, order[first:]] if len(order) else []


class SentenceBatches:
    """The batches of an epoch: sentences of similar length together, batches in random order.

    How sentences of equal length are grouped and how batches are ordered changes with each epoch
    and depends only on the seed and the epoch. A thread prepares batches two in advance.

    Parameters
    ----------
    lexicon : Lexicon
    tokens : Tokens
    tags : int array
        Tag ids of all tokens.
    batch_size, max_tokens
        As in `by_length`.
    seed : int
    """

    def __init__(self, lexicon, tokens: Tokens, tags, *, batch_size=32, max_tokens=None, seed=0):
        self._lexicon, self._tokens, self._tags, self._seed = lexicon, tokens, tags, seed
        self._size = checks.integer("batch_size", batch_size)
        self._budget = None
        if max_tokens is not None:
            self._budget = checks.integer("max_tokens", max_tokens)
        self._count = len(self._split(tokens.lengths))
        self._part = slice(None)

    def _split(self, lengths):
        return by_length(lengths, batch_size=self._size, max_tokens=self._budget)

    def __len__(self) -> int:
        return self._count

    def part(self, s: int, shards: int) -> "SentenceBatches":
        """Shard s of the sentences of each batch, see `fastrnn.steps.Data`.

        Raises
        ------
        ValueError
            There are more shards than sentences in a batch.
        """
        if self._budget is None and shards > self._size:
            raise ValueError(f"shards must be at most the batch_size of {self._size}, got {shards}")
        out = copy(self)
        out._part = slice(s, None, shards)
        return out

    def batches(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch without the first ``skip``; the same on every call."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._tokens.lengths))
        parts = self._split(self._tokens.lengths[order])
        chosen = [order[parts[i]][self._part] for i in rng.permutation(len(parts))[skip:]]
        return ahead(make_batch(self._lexicon, self._tokens, c, self._tags) for c in chosen)


def ahead(items, depth: int = 2) -> Iterator:
    """The items in order, computed by a thread up to ``depth`` items in advance."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    thread = threading.Thread(target=work, name="fastrnn-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join(1.0)  # with a timeout: at interpreter exit the thread no longer runs
