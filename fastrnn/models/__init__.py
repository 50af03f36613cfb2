"""Models: layers put together, with their loss and its gradient."""

from .language_model import LanguageModel

__all__ = ["LanguageModel"]
