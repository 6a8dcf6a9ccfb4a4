"""Records the files of each export, so that it counts as done only while all of them are intact."""

from pathlib import Path
from typing import Iterable

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_whole, read_json, stamp, write_json

FOLDER = 'exports'


def _record(out: Path, export: Path) -> Path:
    return out / FOLDER / f'{"_".join(export.relative_to(out).parts)}.json'


def note_export(out: Path, export: Path, files: Iterable[Path]) -> None:
    """Records size and SHA-256 of the `files` of `export`, an export of the mosaic in `out`. Names are relative to `out`, so
    `out` can be moved."""
    write_json(_record(out, export), {path.relative_to(out).as_posix(): stamp(path) for path in files})


def is_exported(out: Path, export: Path) -> bool:
    """Whether `export` was recorded and all of its files are unchanged. Files that have changed are removed."""
    try:
        noted = read_json(_record(out, export))
    except BadInput:  # missing or truncated
        return False
    broken = [out / name for name, expected in noted.items() if not is_whole(out / name, expected)]
    for path in broken:
        if path.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
    return not broken and export.relative_to(out).as_posix() in noted
