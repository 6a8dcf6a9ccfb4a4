"""Image folders: images plus `metadata.jsonl`, one JSON object a line (the Hugging Face ImageFolder convention).

Every room that hands images to another does it through such a folder. `file_name` is relative to the folder; the
other fields are optional: `split`, `label`, `captions`, `gsd_m`, and any more, which are kept in `Entry.extra`.
"""

import dataclasses
import json
from pathlib import Path, PurePosixPath
from typing import Any, Iterable

from etils import epath

from rsdiff.data.gsd import check_gsd_m
from rsdiff.errors import BadInput
from rsdiff.files import is_local, write_text_atomically

MANIFEST = 'metadata.jsonl'
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.jp2', '.webp', '.bmp')


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of a folder. `gsd_m` is the ground sampling distance in metres a pixel, or None."""

    path: Path
    file_name: str
    split: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    gsd_m: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest line of this entry; fields that are empty are left out."""
        row = {'file_name': self.file_name, 'split': self.split, 'label': self.label,
               'captions': list(self.captions) or None, 'gsd_m': self.gsd_m}
        return {k: v for k, v in row.items() if v is not None} | self.extra


def read_folder(folder: Path | str, split: str | None = None) -> list[Entry]:
    """The entries of `folder`, in manifest order; without a manifest, its image files in name order.
    An image is a folder of one.

    Args:
      folder: a directory; local, or of a bucket (`gs://…`; etils' epath says what that needs). What the manifest of a
        bucket names is not looked for, one request an image: what is missing shows when it is read.
      split: keep only entries of this split.
    Raises:
      BadInput: the folder is missing, empty or without such a split; a line is not a JSON object, names a file
        that is missing or outside the folder, or has a `gsd_m` that is not a positive number.
    """
    folder = Path(folder) if is_local(folder) else epath.Path(folder)
    if is_local(folder) and folder.suffix.lower() in IMAGE_SUFFIXES and folder.is_file() and split is None:
        return [Entry(folder, folder.name)]
    if not folder.is_dir():
        raise BadInput(f'{folder}: no such folder')
    manifest = folder / MANIFEST
    if manifest.exists():
        lines = manifest.read_bytes().decode('utf-8', errors='replace').split('\n')
        entries = [_parse(folder, f'{manifest}:{n}', line) for n, line in enumerate(lines, 1) if line.strip()]
    elif not is_local(folder):
        raise BadInput(f'{folder}: no {MANIFEST}; a folder in a bucket needs one')
    else:
        paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
        entries = [Entry(path, path.relative_to(folder).as_posix()) for path in paths]
    if not entries:
        raise BadInput(f'{folder}: no images and no {MANIFEST}')
    if split is not None:
        splits = {e.split for e in entries}
        entries = [e for e in entries if e.split == split]
        if not entries:
            raise BadInput(f'{folder}: no image has split {split!r}; there are {sorted(map(str, splits))}')
    return entries


def split_of(argument: str) -> tuple[str, str | None]:
    """'DIR' or 'DIR:SPLIT', as tools take it → (DIR, SPLIT or None). What exists is taken as it is, colons and all."""
    folder, colon, split = argument.rpartition(':')
    return (folder, split) if colon and split and not epath.Path(argument).exists() else (argument, None)


def write_manifest(folder: Path | str, entries: Iterable[Entry]) -> None:
    """Writes `metadata.jsonl` into `folder` for images that already lie there."""
    lines = [json.dumps(entry.to_json()) for entry in entries]
    write_text_atomically(Path(folder) / MANIFEST, '\n'.join(lines) + '\n')


def clean_name(file_name: str) -> str:
    """A manifest's `file_name` as the name of what is made of it in another folder: relative, without '.' and '..'.

    Raises:
      BadInput: nothing is left of it.
    """
    parts = [part for part in PurePosixPath(file_name).parts if part.strip('/') not in ('', '.', '..')]
    if not parts:
        raise BadInput(f'file_name {file_name!r} is no file name')
    return '/'.join(parts)


def file_inside(folder: epath.PathLike, name: str, where: str) -> epath.PathLike:
    """The path of the file that a manifest of `folder` names.

    Raises:
      BadInput: `name` is no file name, leaves the folder, links followed, or is not there; the line begins with `where`.
    """
    path = folder / name
    if '\0' in name or len(name) > 1000 or max(map(len, name.split('/'))) > 255:
        raise BadInput(f'{where}: {name[:40]!r}… is no file name')
    if is_local(folder):
        inside = Path(path).resolve().is_relative_to(Path(folder).resolve())
    else:
        inside = '..' not in path.parts and path.is_relative_to(folder)
    if not inside:
        raise BadInput(f'{where}: {name!r} leaves the folder')
    if is_local(folder) and not path.is_file():
        raise BadInput(f'{where}: {name!r} does not exist; remove the line or restore the file')
    return path


def _parse(folder: Path, where: str, line: str) -> Entry:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f'{where}: not JSON ({error.msg})') from None
    if not isinstance(row, dict) or not isinstance(row.get('file_name'), str):
        raise BadInput(f'{where}: not an object with a "file_name"')
    name = row.pop('file_name')
    path = file_inside(folder, name, where)
    gsd_m = row.pop('gsd_m', None)
    if gsd_m is not None:
        gsd_m = check_gsd_m(gsd_m, f'{where}: gsd_m')
    captions = row.pop('captions', None) or ()
    if isinstance(captions, str):
        captions = (captions,)
    if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
        raise BadInput(f'{where}: captions is {captions!r}; it must be a list of strings')
    split, label = row.pop('split', None), row.pop('label', None)
    if not isinstance(split, str | None):
        raise BadInput(f'{where}: split is {split!r}; it must be a string')
    return Entry(path, name, split, None if label is None else str(label), tuple(captions),
                 gsd_m, row)
