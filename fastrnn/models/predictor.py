"""What a tagger and an ensemble of taggers do once they are fitted."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastrnn import checks
from fastrnn.data.sentences import checked_sentences, checked_tags, named_tags
from fastrnn.data.tokens import TextEntity, Tokenizer, entities_in, token_spans
from fastrnn.distributed import Group
from fastrnn.metrics import EntityScores, entity_scores

if TYPE_CHECKING:
    from .fitted import Labeller

# Columns of pandas and pyarrow, too.
Sentences: TypeAlias = Sequence[Sequence[str | tuple[str, ...]]] | Any
Tags: TypeAlias = Sequence[Sequence[str]] | Sequence[Sequence[int]] | Any


class Predictor(ABC):
    """Tags sentences and texts."""

    tag_names: Sequence[str] | None

    @property
    @abstractmethod
    def fitted_(self) -> "Labeller":
        """What was fitted or loaded."""

    def _sentences(self, X: Sentences):
        return checked_sentences("X", X, len(self.fitted_.features))

    @property
    def classes_(self) -> list[str]:
        """The tags in the order of the columns of `predict_proba`, "O" first."""
        return self.fitted_.tags

    def predict(self, X: Sentences) -> list[list[str]]:
        """The tags of sentences. Those of a sentence never depend on the other sentences.

        Tags of the network that form no entity in its scheme, such as an end without a beginning,
        become O.
        """
        return self.fitted_.tag(self._sentences(X))

    def predict_proba(self, X: Sentences) -> list[np.ndarray]:
        """The probability of each of `classes_` for each token, ``[n, K]`` for each sentence."""
        return self.fitted_.probabilities(self._sentences(X))

    def entities(
        self, texts: Sequence[str], *, tokenize: Tokenizer | None = None
    ) -> list[list[TextEntity]]:
        """The entities of texts, with their place in the text and a confidence.

        Parameters
        ----------
        texts : sequence of str
            Each is read as one sentence: split longer texts first.
        tokenize : callable, optional
            Returns the tokens of a text, such as ``nltk.wordpunct_tokenize``; it should split a
            text as the training data was split. By default words, numbers and single other symbols
            are tokens.

        Returns
        -------
        list of list of TextEntity
            ``(type, start, end, text, confidence)`` each.

        Raises
        ------
        TypeError
            A text is not a str.
        ValueError
            A token is not in its text, or the tagger needs features beside the words.
        """
        texts = checks.as_list(texts)
        texts = texts.tolist() if isinstance(texts, np.ndarray) and texts.ndim == 1 else texts
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"texts must be a sequence of str, got {type(texts).__name__}")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{i}] must be a str, got {type(text).__name__}")
        if tokenize is not None and not callable(tokenize):
            raise TypeError(f"tokenize must be callable, got {type(tokenize).__name__}")
        spans = [token_spans(text, tokenize) for text in texts]
        X = [[text[a:b] for a, b in of] for text, of in zip(texts, spans, strict=True)]
        found = self.fitted_.entities(self._sentences(X))
        return [entities_in(*each) for each in zip(texts, spans, found, strict=True)]

    def evaluate(self, X: Sentences, y: Tags, *, group: Group | None = None) -> EntityScores:
        """Entity scores of `predict` against the correct tags, in any scheme.

        The processes of a `fastrnn.distributed.Group` divide the sentences; each must call this.
        """
        group = Group.given(group)
        writes, X = self.fitted_.writes, self._sentences(X)
        y = checked_tags("y", X, named_tags("y", y, self.tag_names), writes)
        return entity_scores(y, group.map(self.fitted_.tag, X), scheme=writes)

    def score(self, X: Sentences, y: Tags) -> float:
        """Micro-averaged entity F1, from 0 to 1."""
        return self.evaluate(X, y).micro.f1
