"""The data files in a folder, and the splits and classes that its folder names give.

Hidden files and folders, leftovers of operating systems, and the output of runs of this program are not data. Links are
followed wherever they lead: the files of Hugging Face's cache are links to its blobs.
"""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Iterable, Iterator

from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath, read_json

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.jp2', '.webp', '.bmp')
MANIFESTS = 'metadata.jsonl', 'metadata.csv'
UNREAD_MANIFEST = 'metadata.parquet'
LEFT_BY_SYSTEMS = '$RECYCLE.BIN', '__MACOSX', '@eaDir'
# the file that every run writes first, and keys of which it has at least one; files of other programs have none of them
RUN_FILES = {
    'config.json': {'method', 'generator'},
    'settings.json': {
        'sources_sha256',
        'condition_px',
        'evaluation_images',
        'degradation',
        'checkpoint',
        'prepare_data',
        'demo',
        'config',
    },
}
SPLIT_NAMES = {
    'train': 'train',
    'training': 'train',
    'test': 'test',
    'testing': 'test',
    'val': 'val',
    'validation': 'val',
    'valid': 'val',
    'dev': 'val',
}


def canonical_split(name: str) -> str:
    """The canonical name of a split: 'val' for val, validation, valid and dev, 'train' for training, 'test' for testing,
    ignoring case. Other names are unchanged."""
    return SPLIT_NAMES.get(name.lower(), name)


def is_run(folder: AnyPath) -> bool:
    """Whether a run of this program wrote `folder`, as shown by our settings.json or config.json in it."""
    for name, keys in RUN_FILES.items():
        if (folder / name).is_file():
            try:
                if keys & {*read_json(folder / name)}:
                    return True
            except BadInput:  # of another program
                continue
    return False


def data_files(folder: AnyPath) -> tuple[list[AnyPath], list[AnyPath]]:
    """The image files and the manifests below the local `folder`, each sorted by name.

    Raises:
      BadInput: an image is a broken link; a manifest has an unsupported format; the folder is Hugging Face's entire cache.
    """
    if (folder / 'blobs').is_dir() and (folder / 'snapshots').is_dir():
        found = ', '.join(sorted(path.name for path in (folder / 'snapshots').iterdir()))
        raise BadInput(f"{folder}: Hugging Face's cache, not a folder of images; give one of its snapshots/ ({found})")
    images, manifests = [], []
    for path in _files(folder, (os.path.realpath(folder),), is_run(folder)):
        if path.name == UNREAD_MANIFEST:
            raise BadInput(f'{path}: not supported; convert it to {MANIFESTS[0]}, or train on hf:{folder}')
        if path.name in MANIFESTS:
            manifests.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            if not path.exists():
                raise BadInput(f'{path}: a broken link; restore the file or remove the link')
            images.append(path)
    return sorted(images), sorted(manifests)


def _files(folder: AnyPath, above: tuple[str, ...], in_run: bool) -> Iterator[AnyPath]:
    for item in os.scandir(folder):
        path = folder / item.name
        if item.name.startswith('.') or item.name in LEFT_BY_SYSTEMS:
            continue
        if not item.is_dir():
            yield path
        elif (in_run and item.name == 'samples') or is_run(path):
            logging.warning('%s: ignored, since a run of this program wrote it', path)
        elif (real := os.path.realpath(path)) not in above:  # a link to a parent folder would recurse forever
            yield from _files(path, (*above, real), False)


def manifests_beside(folder: AnyPath, names: Iterable[str]) -> list[AnyPath]:
    """Manifests other than that of `folder`: in its subfolders, and in the folders of the files `names`."""
    subfolders = {Path(item.path) for item in os.scandir(folder) if item.is_dir() and not item.name.startswith('.')}
    named = {(folder / name).parent for name in names}
    places = sorted(place for place in (subfolders | named) - {folder} if not is_run(place))
    return [place / name for place in places for name in MANIFESTS if (place / name).is_file()]


def split_folders(folder: AnyPath, names: list[str]) -> list[str | None]:
    """The split of each of the files `names` from the names of its folders, as in train/forest/1.png; None if no folder is
    named like a split.

    Raises:
      BadInput: not all files lie in such folders at the same level, so that these may as well be classes.
    """
    parts = [name.split('/')[:-1] for name in names]
    for level in range(min(map(len, parts), default=0)):
        if all(own[level].lower() in SPLIT_NAMES for own in parts):
            return [canonical_split(own[level]) for own in parts]
    inside = [own for own in parts if any(part.lower() in SPLIT_NAMES for part in own)]
    if inside:
        split = next(part for part in inside[0] if part.lower() in SPLIT_NAMES)
        other = (
            next(name for name, own in zip(names, parts) if not any(part.lower() in SPLIT_NAMES for part in own))
            if len(inside) < len(parts)
            else names[0]
        )
        raise BadInput(
            f'{folder}: {split}/ may be a split, with {other} in none, or {split}/ may be a class or any other '
            f'folder; set "split" in a {MANIFESTS[0]}, or move away files that are not data'
        )
    return [None] * len(names)


def class_folders(names: list[str]) -> list[str | None]:
    """The class of each of the files `names`: the folder that it lies in, ignoring that of the split, if every file lies in
    exactly one and there are at least two classes; else None. This is the rule of Hugging Face's ImageFolder."""
    parts = [name.split('/')[:-1] for name in names]
    for level in range(min(map(len, parts), default=0)):
        if all(own[level].lower() in SPLIT_NAMES for own in parts):
            parts = [own[:level] + own[level + 1 :] for own in parts]
            break
    classes = Counter(own[0] for own in parts if len(own) == 1)
    if len(classes) < 2 or sum(classes.values()) < len(parts):
        return [None] * len(names)
    return [own[0] for own in parts]
