"""Models in the workers of Dask, Ray or Spark."""

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from fastrnn import checks
from fastrnn.checkpoint import load_json
from fastrnn.runtime.threads import set_num_threads
from fastrnn.types import Path as FilePath

from .language_model import LanguageModel
from .tagger import Tagger

_KINDS: dict[str, type[Tagger] | type[LanguageModel]] = {
    "Tagger": Tagger, "LanguageModel": LanguageModel,
}  # fmt: skip


def load_once(folder: FilePath, *, threads: int = 1) -> Any:
    """The model in a folder, loaded by the first call in a process.

    A pipeline sends functions, not models, to its worker processes; there, each task can ask for
    the model anew.

    Parameters
    ----------
    folder : path
        Written by ``save`` or by a run.
    threads : int, default 1
        Of this process, see `set_num_threads`: pipelines have a worker for each core.

    Raises
    ------
    FileNotFoundError, ValueError
        See `Tagger.load` and `LanguageModel.load`.
    """
    path = checks.path("folder", folder).resolve()
    set_num_threads(checks.integer("threads", threads))
    with _loading:
        return _loaded(path)


_loading = Lock()  # of threads that ask at the same time


@cache
def _loaded(folder: Path) -> Tagger | LanguageModel:
    config = load_json(folder / "config.json")
    kind = config.get("model") if isinstance(config, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"{folder}/config.json does not belong to a model, but to {kind!r}")
    return _KINDS[kind].load(folder)
