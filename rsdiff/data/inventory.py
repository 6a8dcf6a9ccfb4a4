"""The contents of a training set: a digest of each of its files, and a fingerprint of each of its images.

Digests show whether a resumed run has the data it started with; a copy of a folder has the same digests. Fingerprints
(`rsdiff.data.fingerprints`) show later what a generator was trained on. Both require reading every byte once. The results
are kept in the user's cache by path, size and modification time, so that the next start reads no unchanged file again.
"""

import concurrent.futures
import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Callable, NamedTuple, Protocol, Sequence, cast

import numpy as np
from etils import epath
from tqdm import tqdm

from rsdiff.base import folders
from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath, is_local, stamp
from rsdiff.data.blue_marble import BlueMarble, image_path
from rsdiff.data.crops import Crops, FolderImages
from rsdiff.data.fields import Field, Fields
from rsdiff.data.fingerprints import BYTES, LARGEST_PX, TrainedOn, fingerprint, known_of
from rsdiff.data.folder import Entry
from rsdiff.data.records import RecordImages

DIGEST_BYTES = 16
BLOCK = 500  # number of files after which results are written to the cache
# in place of a fingerprint: image too large for one, not an image, and file that could not be read this time
SCENE, NO_IMAGE, UNREACHABLE = b'scene', b'', b'unreachable'


class Inventory(NamedTuple):
    """`digests`: hexadecimal, of each file by its name in the data set. `trained_on`: the images of the data set."""

    digests: dict[str, str]
    trained_on: TrainedOn


class Source(Protocol):
    """See `rsdiff.data.pipeline.Source`."""

    def __len__(self) -> int: ...


def take_inventory(source: Source, name: str, show: bool = False) -> Inventory:
    """The inventory of `source`, which comes from `rsdiff.data.pipeline.make_source`.

    Args:
      name: of the source in a config; its last part is the prefix of the image names.
      show: whether to draw a progress bar.
    Raises:
      OSError: a file can't be read, in a data set that is not a folder of images.
    """
    short = name.rstrip('/').rpartition('/')[2]
    if isinstance(source, BlueMarble):
        return Inventory(_digests([('bmng.jpg', image_path())], show), TrainedOn(unknown=(f'parts of {short}',)))
    images = source.images if isinstance(source, Crops) else source
    if isinstance(images, FolderImages):
        looks = look_at_entries(images, range(len(images)), show)
        digests = {
            entry.file_name: _hex(look.sha256, repr(entry.gsd_m).encode())
            for entry, look in zip(images.entries, looks)
            if look.sha256
        }
        seen = images_seen(images, range(len(images)), looks, short)
        if isinstance(source, Crops):
            of_fields, seen_in_fields = _of_fields(images, source.fields, short, show)
            digests, seen = digests | of_fields, seen + seen_in_fields
        return Inventory(digests, seen + _inherited([name]))
    if isinstance(images, RecordImages):
        digests = _digests([(shard.name, shard) for shard in images.shards], show)
        folders = [images.where, os.path.dirname(os.path.dirname(images.where))]
        if images.are_chips:
            return Inventory(digests, _of_chips(images, folders, short))
        return Inventory(digests, _of_records(images, short, show) + _inherited(folders))
    return _of_others(images, short, show)


class Look(NamedTuple):
    """The result for one file: its SHA-256, empty if it can't be read, and a fingerprint, `SCENE`, `NO_IMAGE` or
    `UNREACHABLE`."""

    sha256: bytes
    found: bytes


def look_at_entries(images: FolderImages, numbers: Sequence[int], show: bool = False) -> list[Look]:
    """A `Look` at each of the images `numbers` of a folder; unchanged images are not read again."""

    def look(number: int) -> Look:
        try:
            sha256 = bytes.fromhex(stamp(images.entries[number].path).sha256)
        except OSError as error:
            return Look(b'', NO_IMAGE if isinstance(error, FileNotFoundError) else UNREACHABLE)
        return Look(sha256, _fingerprint_of(images, number))

    how = repr((images.bands, images.value_range))
    keys = [_key(images.entries[number].path, how) for number in numbers]
    return _cached(keys, list(numbers), look, show)


def images_seen(images: FolderImages, numbers: Sequence[int], looks: Sequence[Look], name: str) -> TrainedOn:
    """The `TrainedOn` of the images `numbers` of the folder called `name`, from their `looks`."""
    names = [f'{name}/{images.entries[number].file_name}' for number in numbers]
    return _trained_on(names, [look.found for look in looks])


def _of_fields(images: FolderImages, fields: Fields, name: str, show: bool) -> Inventory:
    """The inventory of the fields that are read beside the images. A network that gets an earlier image as input has seen
    it, so images in fields have fingerprints too. Masks are not images and have only digests."""
    digests, seen = {}, TrainedOn()
    for field in fields.present:
        having = [entry for entry in fields.entries if field.is_of(entry)]
        if not field.channels:
            digests |= {
                f'{entry.file_name}:{field.name}': _hex(repr(entry.numbers[field.name]).encode()) for entry in having
            }
            continue
        named = [(key, path, entry.folder) for entry in having for key, path in _named_files(field, entry)]
        if field.is_mask:
            digests |= _digests([(key, path) for key, path, _ in named], show)
        else:
            files = [Entry(path, path.relative_to(folder).as_posix()) for _, path, folder in named]
            others = FolderImages(name, None, 1.0, images.bands, images.value_range, files)
            looks = look_at_entries(others, range(len(others)), show)
            digests |= {key: _hex(look.sha256) for (key, _, _), look in zip(named, looks) if look.sha256}
            seen += images_seen(others, range(len(others)), looks, name)
    return Inventory(digests, seen)


def _named_files(field: Field, entry: Entry) -> list[tuple[str, AnyPath]]:
    """The entry's files of the field, each with its name in the digests."""
    name, files = f'{entry.file_name}:{field.name}', field.files(entry)
    return [(f'{name}[{number}]' if field.is_stack else name, path) for number, path in enumerate(files)]


def _of_chips(images: RecordImages, folders: Sequence[str], name: str) -> TrainedOn:
    """The images that chips were cut from, as recorded by `tools/prepare_data.py` for the split train."""
    known = [some for some in map(known_of, folders) if some is not None]
    if not known or images.split != 'train':
        return TrainedOn(unknown=(f'what the chips of {name} ({images.split}) were cut from',))
    return sum(known, TrainedOn())


def _of_records(images: RecordImages, name: str, show: bool) -> TrainedOn:
    version = _hex(*(repr(_key(shard, '')).encode() for shard in images.shards))
    keys = [_Key(images.where, f'{images.split}[{number}]', version) for number in range(len(images))]
    looks = _cached(keys, range(len(images)), lambda number: Look(b'record', _fingerprint_of(images, number)), show)
    return _trained_on(
        [f'{name}/{images.split}[{number}]' for number in range(len(images))], [look.found for look in looks]
    )


def _of_others(images, name: str, show: bool) -> Inventory:
    """The inventory of images without files to cache results by; they are read at every start."""

    def look(number: int) -> Look:
        try:
            scene, gsd_m = images.open(number)
            with scene:
                pixels = scene.read(Box(0, 0, scene.height, scene.width))
        except BadInput:
            return Look(b'', NO_IMAGE)
        is_scene = max(pixels.shape) > LARGEST_PX
        return Look(
            hashlib.sha256(repr((pixels.shape, gsd_m)).encode() + pixels.tobytes()).digest(),
            SCENE if is_scene else fingerprint(pixels).tobytes(),
        )

    looks = _cached([None] * len(images), range(len(images)), look, show)
    digests = {f'[{number}]': _hex(look.sha256) for number, look in enumerate(looks) if look.sha256}
    return Inventory(
        digests, _trained_on([f'{name}[{number}]' for number in range(len(images))], [look.found for look in looks])
    )


def _inherited(folders: Sequence[str]) -> TrainedOn:
    """The training images behind the synthetic images in these folders."""
    return sum((some for some in map(known_of, folders) if some is not None), TrainedOn())


def _trained_on(names: Sequence[str], found: Sequence[bytes]) -> TrainedOn:
    """The images with these names. Scenes and unreadable files count as unknown; what is not an image is omitted."""
    usual = [number for number, bits in enumerate(found) if len(bits) == BYTES]
    fingerprints = np.frombuffer(b''.join(found[number] for number in usual), np.uint8).reshape(-1, BYTES)
    unknown = []
    for kind, what in ((SCENE, f'scenes larger than {LARGEST_PX} px'), (UNREACHABLE, 'images that could not be read')):
        if those := [name for name, bits in zip(names, found) if bits == kind]:
            unknown.append(f'{len(those)} {what}: {those[0]}{", …" if len(those) > 1 else ""}')
    return TrainedOn() + TrainedOn(tuple(names[number] for number in usual), fingerprints, tuple(unknown))


def _fingerprint_of(images, number: int) -> bytes:
    try:
        scene, _ = images.open(number)
        with scene:
            if max(scene.height, scene.width) > LARGEST_PX:
                return SCENE
            return fingerprint(scene.read(Box(0, 0, scene.height, scene.width))).tobytes()
    except BadInput:
        return NO_IMAGE


def _digests(files: Sequence[tuple[str, epath.PathLike]], show: bool) -> dict[str, str]:
    paths = [path for _, path in files]
    looks = _cached(
        [_key(path, 'file') for path in paths], paths, lambda path: Look(bytes.fromhex(stamp(path).sha256), SCENE), show
    )
    return {name: _hex(look.sha256) for (name, _), look in zip(files, looks)}


def _hex(*parts: bytes) -> str:
    return hashlib.sha256(b'/'.join(parts)).hexdigest()[: 2 * DIGEST_BYTES]


class _Key(NamedTuple):
    """The path of what was read, the reading options, and its state (size and modification time)."""

    path: str
    how: str
    state: str


def _key(path: epath.PathLike, how: str) -> _Key | None:
    """The key of a file; None if its modification time is not known, so that nothing can be cached."""
    try:
        if is_local(path):
            found = os.stat(path)
            return _Key(os.path.abspath(path), how, f'{found.st_size} {found.st_mtime_ns}')
        found = epath.Path(path).stat()
    except OSError:
        return None
    return _Key(str(path), how, f'{found.length} {found.mtime}') if found.mtime else None


def _cached(keys: Sequence[_Key | None], items: Sequence, look: Callable[..., Look], show: bool) -> list[Look]:
    """The result of `look` at each of `items`, cached by `keys`; those not in the cache are computed in threads."""
    with (
        _Cache(folders.cache_folder() / 'inventory.sqlite') as cache,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        looks = [key and cache.get(key) for key in keys]
        missing = [number for number, known in enumerate(looks) if known is None]
        with tqdm(
            total=len(missing),
            desc='reading the training data',
            unit='file',
            dynamic_ncols=True,
            disable=not (show and missing),
        ) as bar:
            for first in range(0, len(missing), BLOCK):
                block, kept = missing[first : first + BLOCK], []
                for number, found in zip(block, pool.map(look, [items[number] for number in block])):
                    looks[number], key = found, keys[number]
                    # unreadable files are not cached: they may be repaired or become reachable
                    if key and found.sha256 and found.found != NO_IMAGE:
                        kept.append((*key, *found))
                    bar.update()
                cache.put(kept)
    return cast(list[Look], looks)


class _Cache:
    """A table of looks by key in an SQLite file. It only saves time: if it can't be used, nothing is cached."""

    def __init__(self, path: Path):
        self.path, self.database = path, None

    def __enter__(self) -> '_Cache':
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.database = self._open()
            except sqlite3.OperationalError:  # locked or not writable
                pass
            except sqlite3.DatabaseError:  # damaged
                self.path.unlink()
                self.database = self._open()
        except (OSError, sqlite3.Error):
            self.database = None
        return self

    def __exit__(self, *_) -> None:
        if self.database:
            self.database.close()

    def get(self, key: _Key) -> Look | None:
        """The cached look, if there is one."""
        try:
            row = (
                self.database
                and self.database.execute(
                    'SELECT sha256, found FROM looks WHERE path = ? AND how = ? AND state = ?', key
                ).fetchone()
            )
        except sqlite3.Error:
            return None
        if row and all(isinstance(value, bytes) for value in row) and (row[1] == SCENE or len(row[1]) == BYTES):
            return Look(*row)
        return None

    def put(self, rows: list[tuple]) -> None:
        """Stores rows: each a key followed by its look."""
        try:
            if self.database:
                with self.database:
                    self.database.executemany('INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)', rows)
        except sqlite3.Error:
            return

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=20)
        try:
            database.execute(
                'CREATE TABLE IF NOT EXISTS looks (path TEXT, how TEXT, state TEXT, sha256 BLOB, found BLOB, '
                'PRIMARY KEY (path, how)) WITHOUT ROWID'
            )
        except sqlite3.Error:
            database.close()
            raise
        return database
