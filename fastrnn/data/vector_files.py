"""Files of word vectors: GloVe and word2vec text, word2vec's binary format, packed or not."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

_Read = tuple[list[str], np.ndarray]
_FASTTEXT = (793712314).to_bytes(4, "little")
_MOST = 1 << 16  # bytes of a word, or of a header


def is_fasttext(path: Path) -> bool:
    """Whether a file is a model of fastText, which begins with a number of its own."""
    if path.suffix != ".bin" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == _FASTTEXT


def read_packed(path: Path) -> _Read:
    """The words and the table [V, E] of a text or binary file, which may be in a .gz or .zip.

    Raises
    ------
    FileNotFoundError, ValueError
        See `load_vectors`.
    """
    name = path.name.removesuffix(".gz")
    try:
        with _opened(path) as (file, inside):
            read = _read_binary if (inside or name).endswith(".bin") else _read_text
            return read(path, file)
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except RuntimeError as error:  # a password, or a method of compression that is not known
        raise ValueError(f"{path} cannot be unpacked: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """The unpacked bytes, and the name inside an archive."""
    archives = [p for p in path.parents if p.suffix == ".zip" and p.is_file()]
    archive = archives[0] if archives else path
    inside = path.relative_to(archive).as_posix() if archives else ""
    if not archive.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            names = [name for name in packed.namelist() if not name.endswith("/")]
            if not inside and len(names) != 1:
                shown = ", ".join(names[:8])
                raise ValueError(
                    f"{path} has {len(names)} files: add a name of {shown} to the path"
                )
            if inside and inside not in names:
                raise FileNotFoundError(f"no such file: {inside} in {archive}")
            with packed.open(inside or names[0]) as file:
                yield file, inside or names[0]
    elif path.suffix == ".gz":
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked), ""
    else:
        with open(path, "rb") as plain:
            yield plain, ""


def _read_text(path: Path, file: IO[bytes]) -> _Read:
    words: list[str] = []
    numbers = bytearray()  # grows in place; a list of rows would need twice the memory
    size = promised = 0
    for number, line in enumerate(file, start=1):
        try:
            parts = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip().split(" ")
            if number == 1 and len(parts) == 2:  # word2vec
                promised, size = map(int, parts)
                continue
            size = size or len(parts) - 1
            # From the right, as words may contain spaces.
            row = np.array(parts[-size:], np.float32)
            if size < 1 or len(parts) <= size or not np.isfinite(row).all():
                raise ValueError(f"expected a word and {size} finite numbers")
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
        words.append(" ".join(parts[:-size]))
        numbers += row.tobytes()
    if not words:
        raise ValueError(f"{path} has no vectors")
    if promised and promised != len(words):
        raise ValueError(f"{path} is damaged: it says {promised:,} words and has {len(words):,}")
    return words, np.frombuffer(numbers, np.float32).reshape(-1, size)


def _read_binary(path: Path, file: IO[bytes]) -> _Read:
    """word2vec's format: "V E", then for each word its bytes, a space and E little-endian float32.

    Some writers end each row with a line break.
    """
    line = file.readline(_MOST)
    if line.startswith(_FASTTEXT):
        raise ValueError(f"{path} has a model of fastText: unpack it first")
    header = line.split()
    try:
        count, size = map(int, header)
    except ValueError:
        count = size = 0
    if count < 1 or size < 1:
        raise ValueError(f"{path} is damaged: it must begin with two numbers, V and E")
    words: list[str] = []
    numbers, data, at = bytearray(), b"", 0
    while len(words) < count:
        space = data.find(b" ", at)
        if space < 0 or len(data) < space + 1 + 4 * size:  # read on
            more = file.read(1 << 22)
            if not more or (space < 0 and len(data) - at > _MOST):
                raise ValueError(f"{path} is damaged: word {len(words) + 1:,} of {count:,} is cut")
            data, at = data[at:] + more, 0
            continue
        word, end = data[at:space].lstrip(b"\n"), space + 1 + 4 * size
        try:
            words.append(word.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, word {len(words) + 1:,} is damaged: {error}") from None
        numbers += data[space + 1 : end]
        at = end
    table = np.frombuffer(numbers, "<f4").reshape(count, size)
    if not np.isfinite(table).all():
        raise ValueError(f"{path} is damaged: it has numbers that are not finite")
    return words, table
