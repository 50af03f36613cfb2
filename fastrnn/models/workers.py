"""Models in the workers of Dask, Ray or Spark."""

from functools import cache
from pathlib import Path

from fastrnn.checkpoint import load_json
from fastrnn.runtime.threads import set_num_threads

from .language_model import LanguageModel
from .tagger import Tagger

_KINDS: dict[str, type[Tagger] | type[LanguageModel]] = {
    "Tagger": Tagger, "LanguageModel": LanguageModel,
}  # fmt: skip


@cache
def load_once(folder: str, *, threads: int = 1) -> Tagger | LanguageModel:
    """The model in a folder, loaded by the first call in a process.

    A pipeline sends functions, not models, to its worker processes; there, each task can ask for
    the model anew.

    Parameters
    ----------
    folder : str
        Written by ``save`` or by a run.
    threads : int, default 1
        Of this process, see `set_num_threads`: pipelines have a worker for each core.

    Raises
    ------
    FileNotFoundError, ValueError
        See `Tagger.load` and `LanguageModel.load`.
    """
    set_num_threads(threads)
    config = load_json(Path(folder) / "config.json")
    kind = config.get("model") if isinstance(config, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"{folder}/config.json does not belong to a model, but to {kind!r}")
    return _KINDS[kind].load(folder)
