"""Finished cells of a study on disk: JSON files that are whole, unaltered, and of this study, or are made again."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Callable

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json, write_text_atomically

CHECKSUM = 'content_sha256'


def read_cell(
    path: Path, digest: str, without_checksum: Callable[[dict[str, Any]], bool] = lambda row: False
) -> dict[str, Any] | None:
    """A finished cell, or None if it is missing, damaged or altered.

    Args:
      digest: of the settings that it depends on, its `digest`.
      without_checksum: whether a cell that has no checksum is accepted.
    Raises:
      BadInput: it belongs to a study with other settings.
    """
    if not path.exists():
        return None
    try:
        row = read_json(path)
    except BadInput as error:
        logging.warning('%s; running this cell again', error)
        return None
    if isinstance(row.get('digest'), str) and row['digest'] != digest:
        raise BadInput(f'{path}: belongs to a comparison with other settings; remove it, or use another --out')
    content = row.pop(CHECKSUM, None)
    if not (without_checksum(row) if content is None else content == _checksum(row)):
        logging.warning('%s: damaged or altered; running this cell again', path)
        return None
    return row


def write_cell(path: Path, row: dict[str, Any]) -> None:
    """Writes a finished cell, with its checksum."""
    write_text_atomically(path, json.dumps(row | {CHECKSUM: _checksum(row)}) + '\n')


def _checksum(row: dict[str, Any]) -> str:
    """Changes with any figure of a cell."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
