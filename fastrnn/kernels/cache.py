"""The folder that keeps machine code compiled at run time.

A file is its contents behind their digest. One that cannot be read or written costs a compilation
and is never an error. What takes time is logged by the logger "fastrnn", once for a process.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger("fastrnn")
_said: set[str] = set()  # at the level of warnings, as Python shows nothing below by default


def say_once(message: str, *of: object) -> None:
    """Log a message unless this process has done so."""
    if message not in _said:
        _said.add(message)
        _log.warning(message, *of)


def cache_dir() -> Path:
    """``FASTRNN_CACHE_DIR``, else a folder of the user's cache."""
    chosen = os.environ.get("FASTRNN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "fastrnn"


def read(path: Path) -> bytes | None:
    """The contents of a file, None if it is missing or damaged."""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        digest, payload = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(payload).digest() == digest:
            return payload
    return None


def write(path: Path, payload: bytes) -> None:
    """Write a file atomically, if that is possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        say_once(
            "the cache of compiled kernels cannot be used, so they are compiled again at every "
            "start; FASTRNN_CACHE_DIR names another folder (%s)",
            error,
        )
