"""Atomic file writes, strict JSON parsing, and checks that a file is complete.

A file gets its name only when all of its bytes are on disk: it is written under a name that no other process uses,
flushed, and renamed; then the folder is flushed too, so that a power cut leaves the old file or the new one. A file
under its own name was therefore complete when it was written. Later damage, by an interrupted copy or an editor, shows
in its size and SHA-256: code that writes files keeps a `Stamp` of each and calls `is_whole` before it trusts one.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from etils import epath

from rsdiff.base.errors import BadInput, one_line

# a local path, or any path that epath can read
AnyPath = Path | epath.Path
# no JSON of this program is nested deeper; at some greater depth Python's own parser raises RecursionError
DEEPEST_JSON = 100


def is_local(path: epath.PathLike) -> bool:
    """Whether `path` is on this machine, not in a bucket (`gs://…`)."""
    return '://' not in str(path)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`, with the same suffix, to write a file to. If the context ends normally, the
    file is flushed and renamed to `path`; if it ends with an exception, the file is removed. No other process or thread
    gets the same temporary path.

    Raises:
      OSError: the file could not be written or renamed; the previous file at `path` is unchanged.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem[:100]}.{uuid.uuid4().hex}.partial{path.suffix}')
    try:
        yield partial
        if is_local(path):
            _flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if is_local(path):
        _flush(path.parent)


@contextlib.contextmanager
def replacing_folder(path: epath.PathLike) -> Iterator[Path]:
    """Like `replacing`, for a local folder of many files: yields an empty folder. An existing folder at `path` is
    replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name[:100]}.{uuid.uuid4().hex}.partial')
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))
        if path.exists():
            old = partial.with_suffix('.old')
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(path.parent)


def write_bytes_atomically(path: epath.PathLike, data: bytes) -> None:
    """Writes `data` so that no reader ever sees a partial file, even after a crash or a power cut."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text_atomically(path: epath.PathLike, text: str) -> None:
    """Like `write_bytes_atomically`, for text encoded as UTF-8."""
    write_bytes_atomically(path, text.encode('utf-8'))


def write_json(path: epath.PathLike, value: Any) -> None:
    """Like `write_bytes_atomically`, for a value encoded as indented JSON."""
    write_text_atomically(path, json.dumps(value, indent=2) + '\n')


class Stamp(NamedTuple):
    """Size and SHA-256 that identify a complete file. In JSON: [size, sha256]."""

    size: int
    sha256: str


def stamp(path: epath.PathLike) -> Stamp:
    """The size in bytes and the SHA-256 of the file at `path`. Raises OSError if it can't be read."""
    digest, size = hashlib.sha256(), 0
    with epath.Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Stamp(size, digest.hexdigest())


def is_whole(path: epath.PathLike, expected: Any) -> bool:
    """Whether the file at `path` exists and matches `expected`, a `Stamp` or one read back from JSON."""
    path = epath.Path(path)
    if not isinstance(expected, (tuple, list)) or len(expected) != 2 or not path.is_file():
        return False
    return path.stat().length == expected[0] and stamp(path) == tuple(expected)


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text, which may start with a byte order mark.

    Raises:
      BadInput: the text is not UTF-8 or not JSON, contains NaN, an infinity, an integer beyond 64 bits or an unpaired
        surrogate, or is nested deeper than `DEEPEST_JSON`. The message begins with `where`.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode('utf-8')
        value = json.loads(
            text.removeprefix('\ufeff'), parse_constant=_no_constant, parse_int=_int64, parse_float=_finite
        )
        _check_json(value, DEEPEST_JSON)
    except json.JSONDecodeError as error:
        raise BadInput(f'{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})') from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadInput(f'{where}: not UTF-8 text ({error.reason} at position {error.start})') from None
    except RecursionError:
        raise BadInput(f'{where}: not JSON of this program (too deeply nested)') from None
    except ValueError as error:
        raise BadInput(f'{where}: not JSON ({one_line(error)})') from None
    return value


def read_json(path: epath.PathLike, advice: str = '') -> dict[str, Any]:
    """The JSON object in the file at `path`. `advice`, such as 'remove it', is appended to error messages.

    Raises:
      BadInput: the file is missing, can't be parsed (`parse_json`) or is not a JSON object.
    """
    path, ending = epath.Path(path), f'; {advice}' if advice else ''
    try:
        value = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise BadInput(f'{path}: no such file{ending}') from None
    except IsADirectoryError:
        raise BadInput(f'{path}: a folder, not a file{ending}') from None
    except BadInput as error:
        raise BadInput(f'{error}{ending}') from None
    if not isinstance(value, dict):
        raise BadInput(f'{path}: not a JSON object, but {_kind(value)}{ending}')
    return value


def field(
    row: dict[str, Any], name: str, kind: type | tuple[type, ...], where: epath.PathLike, default: Any = ...
) -> Any:
    """`row[name]`, checked to be of type `kind` (a bool is not an int; an int is a float). A missing or null field gives
    `default`.

    Raises:
      BadInput: the field has another type, or is missing and has no default. The message begins with `where`.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    value = row.get(name)
    if value is None and default is not ...:
        return default
    kinds += (int,) if float in kinds else ()
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = ' or '.join(one.__name__ for one in kinds[: 1 if float in kinds else None])
        found = 'is missing' if name not in row else f'is {_kind(value)}'
        raise BadInput(f'{where}: {name!r} {found}; expected {expected}')
    return value


def _flush(path: epath.PathLike) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kind(value: Any) -> str:
    return 'null' if value is None else f'{type(value).__name__} {str(value)[:40]!r}'


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is not valid JSON')


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f'an integer of {len(digits)} digits')
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f'{digits[:20]} is too large')
    return number


def _check_json(value: Any, depth: int) -> None:
    """Raises RecursionError for too deep nesting, UnicodeEncodeError for strings with unpaired surrogates."""
    if depth == 0:
        raise RecursionError
    if isinstance(value, str):
        value.encode('utf-8')
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode('utf-8')
            _check_json(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth - 1)
