"""What a language model does once it is trained: scores texts and writes them."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from fastrnn import checks
from fastrnn.data.text import TextStream
from fastrnn.data.vocabularies import AnyVocabulary
from fastrnn.distributed import Group
from fastrnn.layers import AdaptiveSoftmax
from fastrnn.layers.recurrent import Recurrent
from fastrnn.layers.softmax import Softmax
from fastrnn.packed import PackedBatch

from .sampling import check_sampling, draw


class TextPredictor(ABC):
    """Predicts units of a text one after the other."""

    vocabulary: AnyVocabulary
    recurrent: Recurrent
    softmax: Softmax | AdaptiveSoftmax

    @abstractmethod
    def _input(self, ids: np.ndarray) -> Any:
        """What the recurrent layers take for these units, checked."""

    def cross_entropy(
        self,
        text: str | np.ndarray,
        *,
        batch: int = 64,
        bptt: int = 100,
        group: Group | None = None,
    ) -> float:
        """Mean of ``-log p(unit | preceding units)`` over a text, in nats.

        Parameters
        ----------
        text : str or int array
            At least two units.
        batch : int, default 64
            The text is read as this many streams of equal length, each from a zero state that is
            then carried along; fewer for a short text. The remainder at the end, less than one
            unit per stream, is not read.
        bptt : int, default 100
            Units at a time. It changes the result only by rounding, except for a text of
            less than ``2 * batch * bptt`` units, where it limits the number of streams.
        group : fastrnn.distributed.Group, optional
            Processes that divide the streams among themselves; each must call this.
        """
        group = Group.given(group)
        ids = self._ids(text)
        batch, bptt = checks.integer("batch", batch), checks.integer("bptt", bptt)
        stream = TextStream(ids, min(batch, max(1, len(ids) // (2 * bptt))), bptt)
        shards = min(group.shards, stream.batch)
        sums = np.zeros((shards, 2))
        for s in group.divided(shards):
            sums[s] = self._nats(stream.part(s, shards))
        nats, seen = map(math.fsum, group.total(sums).T)
        return nats / seen

    def _nats(self, stream: TextStream) -> tuple[float, int]:
        """The total cross-entropy of streams, and their units."""
        state, total, seen = None, 0.0, 0
        for chunk in stream.batches():
            packed = PackedBatch(*chunk.ids.shape)
            x = self._input(chunk.ids.reshape(-1))
            h, state, _ = self.recurrent.rows_forward(x, packed, state)
            loss = self.softmax.rows_loss(h, chunk.targets.reshape(-1), training=False)[0]
            total, seen = total + loss * len(h), seen + len(h)
        return total, seen

    def _ids(self, text: str | np.ndarray) -> np.ndarray:
        ids = self.vocabulary.encode(text) if isinstance(text, str) else text
        ids = checks.integer_array("text", ids, dimensions=1)
        checks.below("text", "id", ids, len(self.vocabulary))
        if len(ids) < 2:
            raise ValueError(f"text must have at least 2 {self.vocabulary.unit}s, got {len(ids)}")
        return ids

    def perplexity(self, text: str | np.ndarray, *, batch: int = 64, bptt: int = 100) -> float:
        """The exponential of `cross_entropy`; it depends on what a unit is."""
        return perplexity_of(self.cross_entropy(text, batch=batch, bptt=bptt))

    def bits_per_character(
        self, text: str | np.ndarray, *, batch: int = 64, bptt: int = 100
    ) -> float:
        """`cross_entropy` in bits for each character of the text, whatever the units are.

        It compares models of different units as long as no unit of the text is unknown. Of a text
        given as indices, each unit counts as a character.
        """
        ids = self._ids(text)
        nats = self.cross_entropy(ids, batch=batch, bptt=bptt)
        return nats * len(ids) / len(text) / math.log(2)

    def score(self, text: str, *, prime: str = "\n") -> list[tuple[str, float]]:
        """The log-probability of each unit of a text in nats, given all units before it.

        Parameters
        ----------
        text : str
        prime : str, default a line break
            Read before the text; at least one unit.

        Returns
        -------
        list of (unit, log-probability)
            Units as `decode` of the vocabulary shows them: an unknown one as the unknown symbol.
        """
        before = self._prime(prime)
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        targets = self.vocabulary.encode(text)
        ids = np.concatenate([before, targets])[:-1]
        state, out = None, list[float]()
        rows = max(1, 2**22 // len(self.vocabulary))  # at a time, as each has V numbers
        for first in range(0, len(ids), rows):
            part = ids[first : first + rows]
            h, state, _ = self.recurrent.rows_forward(
                self._input(part), PackedBatch(len(part), 1), state
            )
            log_p = self.softmax.rows_log_prob(h)
            # Row r predicts unit number first + r + 1 of both texts together.
            skipped = max(0, len(before) - 1 - first)
            wanted = targets[first + skipped - len(before) + 1 :][: len(part) - skipped]
            out += log_p[np.arange(skipped, len(part)), wanted].tolist()
        return [(self.vocabulary.decode([i]), p) for i, p in zip(targets, out, strict=True)]

    def _prime(self, prime: str) -> np.ndarray:
        if not isinstance(prime, str):
            raise TypeError(f"prime must be a str, got {type(prime).__name__}")
        ids = self.vocabulary.encode(prime)
        if not len(ids):
            raise ValueError(f"prime must have at least one {self.vocabulary.unit}")
        return ids

    def sample(
        self,
        length: int,
        *,
        prime: str = "\n",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Generate ``length`` units that continue ``prime``.

        Parameters
        ----------
        length : int
        prime : str, default a line break
            Read first and not part of the result; at least one unit.
        temperature : float, default 1.0
            Logits are divided by it; 0 takes the most likely unit each time.
        top_k : int, optional
            Choose only among the ``top_k`` most likely units (Fan et al. 2018).
        top_p : float, optional
            Choose only among the most likely units that together have at least this probability
            (Holtzman et al. 2020); above 0, at most 1. It follows ``top_k``.
        seed : int, optional

        Raises
        ------
        ValueError
            ``prime`` is empty, or another argument is out of its range.
        """
        checks.integer("length", length, 0)
        check_sampling(temperature, top_k, top_p)
        rng = checks.generator("seed", seed)
        ids = self._prime(prime)
        h, state, _ = self.recurrent.rows_forward(self._input(ids), PackedBatch(len(ids), 1))
        one, out = PackedBatch(1, 1), []
        for _ in range(length):
            log_p = self.softmax.rows_log_prob(h[-1:])[0]
            if self.vocabulary.unknown is not None:
                log_p[self.vocabulary.unknown] = -np.inf
            out.append(draw(rng, log_p, temperature, top_k, top_p))
            x = self._input(np.array(out[-1:]))
            h, state, _ = self.recurrent.rows_forward(x, one, state)
        return self.vocabulary.decode(out)


def perplexity_of(nats: float) -> float:
    """The exponential of a cross-entropy; not above 1e304, so that it is finite."""
    return math.exp(min(nats, 700.0))
