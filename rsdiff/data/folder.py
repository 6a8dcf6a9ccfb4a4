"""Image folders: images plus `metadata.jsonl`, one JSON object per line (the Hugging Face ImageFolder convention).

All parts of the program exchange images through such folders. `file_name` is relative to the manifest; the other keys are
optional: `split`, `label`, `captions` (or `caption`, `text`), `gsd_m`, and any further keys, which are kept in
`Entry.extra`. Also read: `metadata.csv` with the same columns, one manifest in each of several subfolders, and folders
without a manifest, where folders called train, val or test are splits and the folders that contain images are classes
(`rsdiff.data.layout`). An ambiguous folder is rejected.

A key `<field>_file_name` names a further file of the row: `mask_file_name` is the file of the field `mask`,
`low_res_file_name` that of the field `lr`. A key `<field>_file_names` has a list of files: a stack of several images of the
same place, such as `frames_file_names`. Such names are checked like `file_name`, and kept in `extra` like every other key.
`files`, `stacks` and `numbers` are views of `extra`, so that a manifest is written as it was read.

A row without `file_name` is a *request* for an image that does not exist yet, if it has captions, a number (such as
`gsd_m`) or a file. `read_requests` reads those rows, `read_folder` the others.

Where DIR:SPLIT is accepted, DIR alone means: the split `train`, if there are splits, for programs that train or record
training data (train.py, tools/prepare_data.py, tools/fingerprint.py); all images for every other program. The log says
which. `val`, `validation`, `valid` and `dev` are one name. Validation uses the validation split; without one, it uses the
images of `train` that `validation_share` selects by their content, which are then not trained on.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterable, Iterator

from etils import epath

from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import AnyPath, is_local, parse_json, write_text_atomically
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.layout import (
    IMAGE_SUFFIXES,
    MANIFESTS,
    canonical_split,
    class_folders,
    data_files,
    manifests_beside,
    split_folders,
)

MANIFEST = MANIFESTS[0]
TRAIN, VALIDATION = 'train', 'val'
CAPTION_FIELDS = 'captions', 'caption', 'text'
DIGESTED = 1 << 16
FILE_NAME = 'file_name'
# fields whose keys use another name
KEYS = {'lr': 'low_res'}


def file_key(field: str) -> str:
    """The key of a row for the file of a field: 'mask' → 'mask_file_name', 'lr' → 'low_res_file_name'."""
    return f'{KEYS.get(field, field)}_{FILE_NAME}'


def stack_key(field: str) -> str:
    """The key of a row for the files of a stack: 'frames' → 'frames_file_names'."""
    return f'{file_key(field)}s'


def field_of(key: str) -> str | None:
    """The field whose file or files the key names; None if it names no file."""
    name, found, rest = key.rpartition(f'_{FILE_NAME}')
    if not found or rest not in ('', 's'):
        return None
    return next((field for field, short in KEYS.items() if short == name), name)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of a folder. `gsd_m` is the ground sampling distance in metres per pixel, or None. `extra` holds the row's
    other keys unchanged, file names relative to `folder`."""

    path: AnyPath
    file_name: str
    split: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    gsd_m: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> AnyPath:
        """The folder that file names are relative to."""
        return self.path.parents[self.file_name.count('/')]

    @property
    def files(self) -> dict[str, AnyPath]:
        """The row's other files by field. They are inside the folder, and existed when it was read (except in buckets)."""
        return {field: self.folder / name for field, name in _names(self.extra).items()}

    @property
    def stacks(self) -> dict[str, tuple[AnyPath, ...]]:
        """The row's lists of files by field, none of them empty. As `files`."""
        return {field: tuple(self.folder / name for name in names) for field, names in _stacks(self.extra).items()}

    @property
    def numbers(self) -> dict[str, float]:
        """The finite numbers in `extra` by key. Numeric text counts, since the cells of a table are text."""
        return _numbers(self.extra)

    def to_json(self) -> dict[str, Any]:
        """The manifest line of this entry; empty fields are omitted."""
        return {FILE_NAME: self.file_name} | _to_json(self)


@dataclasses.dataclass(frozen=True)
class Request:
    """A row whose image does not exist yet. File names in `extra` are relative to `folder`; `where` is the row's position
    in its manifest, for messages. Everything else is as in `Entry`."""

    folder: AnyPath
    split: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    gsd_m: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: str = dataclasses.field(default='', compare=False)

    @property
    def files(self) -> dict[str, AnyPath]:
        """See `Entry`."""
        return {field: self.folder / name for field, name in _names(self.extra).items()}

    @property
    def numbers(self) -> dict[str, float]:
        """See `Entry`."""
        return _numbers(self.extra)

    def to_json(self) -> dict[str, Any]:
        """See `Entry`."""
        return _to_json(self)


def as_number(value: Any) -> float | None:
    """A finite number, or text that represents one, as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _names(extra: dict[str, Any]) -> dict[str, str]:
    fields = {field_of(key): name for key, name in extra.items() if name is not None and key.endswith(FILE_NAME)}
    return {field: name for field, name in fields.items() if field is not None}


def _stacks(extra: dict[str, Any]) -> dict[str, list[str]]:
    fields = {field_of(key): names for key, names in extra.items() if names and not key.endswith(FILE_NAME)}
    return {field: names for field, names in fields.items() if field is not None}


def _numbers(extra: dict[str, Any]) -> dict[str, float]:
    numbers = {key: as_number(value) for key, value in extra.items() if field_of(key) is None}
    return {key: number for key, number in numbers.items() if number is not None}


def _to_json(row: Entry | Request) -> dict[str, Any]:
    said = {
        'split': row.split,
        'label': row.label,
        'captions': list(row.captions) or None,
        'gsd_m': row.gsd_m,
    }
    return {key: value for key, value in said.items() if value is not None} | row.extra


def read_folder(folder: AnyPath | str, split: str | None = None) -> list[Entry]:
    """The entries of `folder`, in manifest order; without a manifest, its image files in name order.
    A path to an image counts as a folder with one image.

    Args:
      folder: a directory, local or in a bucket (`gs://…`; see etils' epath for the requirements). Files that a manifest in
        a bucket names are not checked, which would take one request per image: a missing file shows when it is read.
      split: keep only entries of this split, by any of its names.
    Raises:
      BadInput: the folder is missing, empty, without such a split, contains only requests, or is ambiguous; a line is not a
        JSON object, names a file that is missing or outside the folder, or has a field of a wrong type or a `gsd_m` out of
        range.
    """
    rows = _read_rows(folder, split)
    entries = [row for row in rows if isinstance(row, Entry)]
    if not entries:
        raise BadInput(f'{folder}: its {len(rows)} rows are requests, without "file_name"; images are needed')
    if len(entries) < len(rows):
        _warn_once(f'{folder}: {len(rows) - len(entries)} rows are requests, without "file_name", and are ignored')
    return entries


def read_requests(folder: AnyPath | str, split: str | None = None) -> list[Request]:
    """The requests in the manifests of `folder`, in their order. Otherwise as `read_folder`.

    Raises:
      BadInput: as `read_folder`; or there are no requests.
    """
    requests = [row for row in _read_rows(folder, split) if isinstance(row, Request)]
    if not requests:
        raise BadInput(f'{folder}: every row has a "file_name"; a request, for an image to be generated, has none')
    return requests


def _read_rows(folder: AnyPath | str, split: str | None) -> list[Entry | Request]:
    folder = _path_of(folder)
    if is_local(folder) and folder.suffix.lower() in IMAGE_SUFFIXES and folder.is_file() and split is None:
        return [Entry(folder, folder.name)]
    if not folder.is_dir():
        raise BadInput(f'{folder}: no such folder')
    if manifest := _manifest_of(folder):
        rows = _listed(folder, manifest)
        names = [row.file_name for row in rows if isinstance(row, Entry)]
        if is_local(folder) and (others := manifests_beside(folder, names)):
            raise BadInput(f'{manifest} and {others[0]}: two manifests of the same images; keep one of them')
    elif not is_local(folder):
        raise BadInput(f'{folder}: no {MANIFEST}; a folder in a bucket needs one')
    else:
        rows = _found(folder)
    if not rows:
        raise BadInput(f'{folder}: no images and no {MANIFEST}')
    rows = _with_splits_of_folders(folder, rows)
    if split is not None:
        splits = {row.split for row in rows}
        rows = [row for row in rows if row.split == canonical_split(split)]
        if not rows:
            raise BadInput(f'{folder}: no image has split {split!r}; there are {sorted(map(str, splits))}')
    return rows


@functools.cache
def _warn_once(line: str) -> None:
    """Logs `line` once: a run reads a folder several times."""
    logging.warning(line)


def training_entries(folder: AnyPath | str, split: str | None = None) -> list[Entry]:
    """The entries of DIR or DIR:SPLIT to train on: in a folder with splits those of `train`, unless another split is named;
    in a folder without splits all. Logs how many entries are excluded.

    Raises:
      BadInput: as `read_folder`; or there are splits, but none is `train`.
    """
    entries = read_folder(folder, split)
    splits = sorted({entry.split for entry in entries if entry.split is not None})
    if split is not None or not splits:
        return entries
    chosen = [entry for entry in entries if entry.split == TRAIN]
    if not chosen:
        raise BadInput(f'{folder}: its splits are {", ".join(splits)}, and none is {TRAIN}; name the one to train on')
    if len(chosen) < len(entries):
        logging.warning(
            '%s: the %d images of its split %s are training data; its %d other images are not',
            folder,
            len(chosen),
            TRAIN,
            len(entries) - len(chosen),
        )
    return chosen


def validation_entries(folder: AnyPath | str, split: str | None = None) -> list[Entry]:
    """The entries of DIR or DIR:SPLIT to validate on: in a folder with splits, those of val, validation, valid or dev.

    Raises:
      BadInput: as `read_folder`; or there are splits, but none for validation.
    """
    entries = read_folder(folder, split)
    return (
        entries
        if split is not None or all(entry.split is None for entry in entries)
        else read_folder(folder, VALIDATION)
    )


def opened_entries(folder: AnyPath | str, split: str | None = None) -> list[Entry]:
    """The entries of DIR or DIR:SPLIT for other uses: all of DIR; logs a warning if that includes several splits."""
    entries = read_folder(folder, split)
    splits = sorted({str(entry.split) for entry in entries})
    if split is None and len(splits) > 1:
        logging.warning(
            '%s: all %d images of its splits %s; name one to use only that', folder, len(entries), ', '.join(splits)
        )
    return entries


def validation_share(entries: list[Entry], share: float) -> list[bool]:
    """For each of `entries`, whether it is in the share to validate on. This depends only on the image's own bytes (the size
    of the file, its first and last 64 KiB), so that copies are on the same side, and other images, names and order have no
    influence. Of two or more images whose bytes differ, at least one is on either side; a single image is not in the share.
    """
    with ThreadPoolExecutor(16) as pool:
        digests = list(pool.map(_digest, entries))
    return drawn(digests, share)


def drawn(digests: list[str], share: float) -> list[bool]:
    """Like `validation_share`, from hexadecimal digests of the images."""
    if not share or len({*digests}) < 2:
        return [False] * len(digests)
    lowest, highest = min(digests), max(digests)
    limit = share * 16**8
    return [digest == lowest or (digest != highest and int(digest[:8], 16) < limit) for digest in digests]


def split_of(argument: str) -> tuple[str, str | None]:
    """'DIR' or 'DIR:SPLIT', as in flags → (DIR, SPLIT or None). An existing path is a DIR, even if it has colons."""
    folder, colon, split = argument.rpartition(':')
    return (folder, split) if colon and split and not epath.Path(argument).exists() else (argument, None)


def clean_name(file_name: str) -> str:
    """Turns any `file_name` into a relative POSIX name that stays inside its folder; one that already does is unchanged.
    Two names may become the same."""
    parts = [
        part for part in re.split(r'[/\\]', re.sub(r'^[A-Za-z]:[/\\]', '', file_name)) if part not in ('', '.', '..')
    ]
    parts = [''.join('_' if ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 else c for c in part) for part in parts]
    return '/'.join(part if len(part.encode()) <= 200 else _shortened(part) for part in parts) or 'unnamed'


def write_manifest(folder: Path | str, entries: Iterable[Entry | Request]) -> None:
    """Writes `metadata.jsonl` into `folder` for images and files that already exist there, and for requests."""
    lines = [json.dumps(entry.to_json()) for entry in entries]
    write_text_atomically(Path(folder) / MANIFEST, '\n'.join(lines) + '\n')


def file_inside(folder: AnyPath, name: str, where: str, key: str | None = None) -> AnyPath:
    """The path of the file that a manifest of `folder` names, without '.' and '..'. It may be a link to anywhere.

    Raises:
      BadInput: `name` is not a valid file name, leads out of the folder, or does not exist. The message begins with `where`,
        and names the `key` of the row, if it is given.
    """
    said = lambda text: f'{where}: {text}' if key is None else f'{where}: {key} is {text}, which'
    if not name or '\0' in name or len(name) > 1000 or max(len(part.encode()) for part in name.split('/')) > 255:
        raise BadInput(f'{said(repr(name[:40]) + "…")} is not a valid file name')
    inside = os.path.relpath(name, folder) if name.startswith('/') and is_local(folder) else os.path.normpath(name)
    if inside.startswith('/') or '://' in name or inside.split('/')[0] in ('..', '.'):
        raise BadInput(f'{said(repr(name))} leaves the folder')
    path = folder / inside
    if is_local(folder) and not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise BadInput(f'{said(repr(name))} {problem}; remove the line or restore the file')
    return path


def _shortened(part: str) -> str:
    digest = hashlib.sha256(part.encode()).hexdigest()[:12]
    return f'{part.encode()[:160].decode(errors="ignore")}-{digest}{Path(part).suffix[:8]}'


def _path_of(folder: AnyPath | str) -> AnyPath:
    return Path(folder) if is_local(folder) else epath.Path(folder)


def _manifest_of(folder: AnyPath) -> AnyPath | None:
    there = [folder / name for name in MANIFESTS if (folder / name).exists()]
    if len(there) > 1:
        raise BadInput(f'{folder}: {" and ".join(path.name for path in there)} may be its manifest; keep one of them')
    return there[0] if there else None


def _found(folder: AnyPath) -> list[Entry | Request]:
    """The rows of manifests in subfolders, and of images that are below none of these manifests."""
    images, manifests = data_files(folder)
    places = {manifest.parent: _manifest_of(manifest.parent) for manifest in manifests}
    said_by, rows = {}, []
    for manifest in filter(None, places.values()):
        for row in _listed(folder, manifest):
            if isinstance(row, Entry):
                other = said_by.setdefault(row.path, manifest)
                if other != manifest:
                    raise BadInput(f'{other} and {manifest}: both list {row.file_name}; keep one of them')
            rows.append(row)
    names = [path.relative_to(folder).as_posix() for path in images if not {*path.parents} & {*places}]
    rows = _with_splits_of_folders(folder, rows + [Entry(folder / name, name) for name in names])
    if places:
        return rows
    return [dataclasses.replace(row, label=label) for row, label in zip(rows, class_folders(names))]


def _with_splits_of_folders(folder: AnyPath, rows: list[Entry | Request]) -> list[Entry | Request]:
    """The rows, with splits from the names of the images' folders where the manifest has none."""
    entries = [row for row in rows if isinstance(row, Entry)]
    if all(entry.split is not None for entry in entries):
        return rows
    names = [entry.file_name for entry in entries]
    if any(entry.split is not None for entry in entries) or any(
        entry.label is not None and entry.label == Path(entry.file_name).parent.name for entry in entries
    ):
        try:
            splits = split_folders(folder, names)
        except BadInput:  # the manifest already names the splits, or has such a folder as a class
            return rows
    else:
        splits = split_folders(folder, names)
    with_splits = (dataclasses.replace(entry, split=entry.split or split) for entry, split in zip(entries, splits))
    return [next(with_splits) if isinstance(row, Entry) else row for row in rows]


def _listed(folder: AnyPath, manifest: AnyPath) -> list[Entry | Request]:
    """The rows of a manifest in or below `folder`, their file names relative to `folder`."""
    said = _csv_rows(manifest) if manifest.suffix == '.csv' else _json_rows(manifest)
    below = '' if manifest.parent == folder else f'{manifest.parent.relative_to(folder).as_posix()}/'
    rows = [_row(folder, manifest.parent, below, where, row) for where, row in said]
    if not below:
        return rows
    inside = split_folders(folder, [below + 'image'])[0]
    if wrong := next((row for row in rows if inside and row.split not in (None, inside)), None):
        name = wrong.file_name if isinstance(wrong, Entry) else wrong.where
        raise BadInput(
            f'{manifest}: {name} has split {wrong.split!r} by its line and {inside!r} by its folder; fix one of them'
        )
    some_say = any(row.split is not None for row in rows)
    # if no line has a split, the folder names of all images decide; a request has no image
    return [
        dataclasses.replace(row, split=row.split or inside) if some_say or isinstance(row, Request) else row
        for row in rows
    ]


def _json_rows(manifest: AnyPath) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(manifest.read_bytes().split(b'\n'), 1):
        where = f'{manifest}:{number}'
        if line.strip().removeprefix(b'\xef\xbb\xbf').strip():
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise BadInput(f'{where}: not an object with a "file_name"')
            yield where, row


def _csv_rows(manifest: AnyPath) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV manifest; an empty cell is a missing field."""
    try:
        text = manifest.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise BadInput(f'{manifest}: not UTF-8 text ({error.reason} at position {error.start})') from None
    rows = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        header = next(rows, [])
        if len({*header}) < len(header):
            raise BadInput(f'{manifest}:1: its columns are {", ".join(header)[:100]!r}; no column may occur twice')
        for cells in rows:
            where = f'{manifest}:{rows.line_num}'
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise BadInput(f'{where}: {len(cells)} cells; the first line has {len(header)}')
            row: dict[str, Any] = {name: cell for name, cell in zip(header, cells) if cell != ''}
            if 'gsd_m' in row:
                row['gsd_m'] = _number(row['gsd_m'])
            yield where, row
    except csv.Error as error:
        raise BadInput(f'{manifest}:{rows.line_num}: not CSV ({one_line(error)})') from None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _row(folder: AnyPath, place: AnyPath, below: str, where: str, row: dict[str, Any]) -> Entry | Request:
    keys, name = ascii(', '.join(row))[:100], row.pop(FILE_NAME, None)
    if name is not None and not isinstance(name, str):
        raise BadInput(f'{where}: file_name is {str(name)[:40]!r}; it must be a string')
    gsd_m = row.pop('gsd_m', None)
    if gsd_m is not None:
        gsd_m = check_gsd_m(gsd_m, f'{where}: gsd_m')
    captions = ()
    for field in CAPTION_FIELDS:
        if not captions and row.get(field) is not None:
            captions = row.pop(field)
            captions = (captions,) if isinstance(captions, str) else captions
            if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
                raise BadInput(f'{where}: {field} is {str(captions)[:40]}; it must be a list of strings')
    row.pop('captions', None)
    split, label = row.pop('split', None), row.pop('label', None)
    if not isinstance(split, str | None):
        raise BadInput(f'{where}: split is {str(split)[:40]!r}; it must be a string')
    if not isinstance(label, str | int | None) or isinstance(label, bool):
        raise BadInput(f'{where}: label is {str(label)[:40]!r}; it must be a string')
    for key, names in _checked_names(place, where, row).items():
        row[key] = [below + name for name in names] if isinstance(names, list) else below + names
    split, label = None if split is None else canonical_split(split), None if label is None else str(label)
    if name is not None:
        name = below + file_inside(place, name, where).relative_to(place).as_posix()
        return Entry(folder / name, name, split, label, tuple(captions), gsd_m, row)
    if not captions and gsd_m is None and not _names(row) and not _stacks(row) and not _numbers(row):
        raise BadInput(f'{where}: no "file_name", nor captions, numbers or files, which make a request; it has {keys}')
    return Request(folder, split, label, tuple(captions), gsd_m, row, where)


def _checked_names(place: AnyPath, where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The names of a row's other files, or lists of names, by key, relative to its manifest's folder `place`; null means no
    file."""
    found, keys = {}, {}
    for key, value in row.items():
        field = field_of(key)
        if field is None or value is None:
            continue
        if not field.isidentifier():
            raise BadInput(f'{where}: {ascii(key)[:60]} names no field; use letters, digits and _')
        other = keys.setdefault(field, key)
        if other != key:
            raise BadInput(f'{where}: {other[:60]} and {key[:60]} are one field; keep one of them')
        is_stack = key == stack_key(field)
        names = value if is_stack else [value]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            kind = f'a list of strings, as only {MANIFEST} can hold' if is_stack else 'a string'
            raise BadInput(f'{where}: {key[:60]} is {str(value)[:40]!r}; it must be {kind}')
        inside = [file_inside(place, name, where, key[:60]).relative_to(place).as_posix() for name in names]
        found[key] = inside if is_stack else inside[0]
    return found


def _digest(entry: Entry) -> str:
    try:
        with epath.Path(entry.path).open('rb') as file:
            size = file.seek(0, 2)
            file.seek(0)
            first = file.read(DIGESTED)
            file.seek(max(0, size - DIGESTED))
            return hashlib.sha256(f'{size}/'.encode() + first + file.read(DIGESTED)).hexdigest()
    except OSError as error:
        raise BadInput(f'{entry.path}: can not be read ({one_line(error)})') from None
