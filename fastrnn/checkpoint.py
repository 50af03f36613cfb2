"""Saving and loading: safetensors and JSON files, written atomically.

A file is first written under a temporary name in its folder and then renamed, so a reader sees
either the old file or the new one. Files of arrays carry a checksum.
"""

import errno
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file whose contents replace those of ``path`` atomically at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let only one process at a time into this block for a folder.

    The system drops the lock when the process ends, however it ends (with the last of the children
    that were forked inside).

    Raises
    ------
    ValueError
        Another process is inside.
    """
    with open(Path(folder) / ".lock", "ab") as file:
        if not _lock(file):
            raise ValueError(
                f"{folder} is in use by another process: wait for its end, or choose another folder"
            )
        try:
            yield
        finally:
            _unlock(file)


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; False if it is locked already."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # others: the file system has no locks
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True


def _unlock(file: IO[bytes]) -> None:
    """Drop the lock; closing the file is not enough where a forked child has it open."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the contents of ``path`` atomically."""
    with writing(path) as file:
        file.write(data)


def _checksum(arrays: Mapping[str, np.ndarray], notes: str) -> str:
    total = zlib.crc32(notes.encode())
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).data, total)
    return str(total)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping | None = None) -> None:
    """Write named arrays and ``notes`` (a mapping that JSON can represent) into one file."""
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    text = json.dumps(notes or {})
    write_bytes(path, save(arrays, {"notes": text, "crc32": _checksum(arrays, text)}))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Load the arrays and notes written by `save_arrays`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        whole = metadata["crc32"] == _checksum(arrays, metadata["notes"])
        notes = json.loads(metadata["notes"])
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a fastrnn file: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its checksum does not match")
    return arrays, notes


def load_tensors(path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of any origin; bfloat16 becomes float32.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is damaged, or has a type that NumPy lacks; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        entries = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        hint = "; read a file of torch.save with torch.load" * (path.suffix in (".pt", ".pth"))
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}{hint}") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in _TYPES:
            values = np.frombuffer(entry["data"], _TYPES[entry["dtype"]])
        else:
            raise ValueError(f"{path} has {name} of the type {entry['dtype']}")
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def save_json(path: Path, value) -> None:
    """Write ``value`` as JSON."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def load_json(path: Path):
    """Read JSON; the error for a damaged file names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not JSON: {error}") from error
