"""Several taggers as one: the mean of their probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.data.batches import Tokens
from fastrnn.layers import CRF
from fastrnn.packed import PackedBatch
from fastrnn.types import BackendName, Precision
from fastrnn.types import Path as FilePath

from .fitted import FittedTagger, Labeller, allowed_pairs, read_config
from .predictor import Predictor
from .tagger import Tagger


class FittedEnsemble(Labeller):
    """The best sequence of tags, of those that the scheme allows, by the mean probabilities.

    Parameters
    ----------
    members : list of FittedTagger
        With the same tags.
    """

    def __init__(self, members: list[FittedTagger]):
        self.members, first = members, members[0]
        super().__init__(first.tags, first.scheme, first.writes, first.features)
        allowed = allowed_pairs(first.tags, first.scheme)
        self._crf = CRF(len(first.tags), allowed=allowed, dtype="float64")
        self._crf.load_state_dict({k: np.zeros_like(v) for k, v in self._crf.state_dict().items()})

    def probabilities(self, X):
        """The mean over the members."""
        parts = [member.probabilities(X) for member in self.members]
        return [np.mean(of_sentence, axis=0) for of_sentence in zip(*parts, strict=True)]

    def _best(self, X):
        tokens = Tokens.of([], [len(x) for x in X])
        if not tokens.lengths.sum():
            return np.empty(0, np.int64), np.empty(0), tokens
        p = np.concatenate([rows for rows in self.probabilities(X) if len(rows)])
        packed = PackedBatch(int(tokens.lengths.max()), len(X), tokens.lengths)
        at = packed.flat_indices(tokens.starts)
        scores = np.log(np.maximum(p[at].astype(np.float64), 1e-30))
        ids = np.empty(len(p), np.int64)
        ids[at] = self._crf.rows_decode(scores, packed)
        return ids, p[np.arange(len(p)), ids], tokens


class TaggerEnsemble(Predictor):
    """Fitted taggers, usually of different seeds, as one: their probabilities are averaged.

    Parameters
    ----------
    taggers : sequence of Tagger
        At least one, fitted, with the same tags and features.

    Raises
    ------
    ValueError, TypeError
        There is none, one is not fitted, or their tags differ.

    Examples
    --------
    ``TaggerEnsemble([Tagger(seed=s).fit(X, y) for s in range(3)]).predict(X_new)``
    """

    def __init__(self, taggers: Sequence[Tagger]):
        if isinstance(taggers, str) or not isinstance(taggers, Sequence):
            raise TypeError(f"taggers must be a sequence of Tagger, got {type(taggers).__name__}")
        self.taggers = list(taggers)
        if not self.taggers:
            raise ValueError("taggers must be at least one, got none")
        for number, tagger in enumerate(self.taggers):
            if not isinstance(tagger, Tagger):
                raise TypeError(f"taggers[{number}] must be a Tagger, got {type(tagger).__name__}")
        members = [tagger.fitted_ for tagger in self.taggers]
        for number, member in enumerate(members):
            for what in ("tags", "writes", "features"):
                if getattr(member, what) != getattr(members[0], what):
                    raise ValueError(f"taggers[{number}] must have the {what} of the first one")
        self.tag_names = self.taggers[0].tag_names
        self._fitted = FittedEnsemble(members)

    @property
    def fitted_(self) -> FittedEnsemble:
        """The networks."""
        return self._fitted

    @classmethod
    def load(
        cls,
        folders: Sequence[FilePath],
        *,
        vectors: Any = None,
        precision: Precision | None = None,
        backend: BackendName = "cpu",
    ) -> "TaggerEnsemble":
        """The taggers in several folders, see `Tagger.load`."""
        taggers: list[Tagger] = []
        for folder in folders:
            facts = read_config(Path(folder) / "config.json")["vectors"]
            known = [t.fitted_.vectors for t in taggers if t.fitted_.vectors.facts() == facts]
            which = known[0] if known else vectors  # a table is read only once
            taggers.append(Tagger.load(folder, vectors=which, precision=precision, backend=backend))
        return cls(taggers)

    def __repr__(self) -> str:
        return f"TaggerEnsemble({self.taggers!r})"
