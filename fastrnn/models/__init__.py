"""Models: networks of layers, with their loss and its gradient."""

from .ensemble import TaggerEnsemble
from .language_model import LanguageModel
from .tagger import Tagger
from .workers import load_once

__all__ = ["LanguageModel", "Tagger", "TaggerEnsemble", "load_once"]
