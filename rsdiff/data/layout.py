"""What in a folder is data, and what the names of its folders say: splits and classes.

Hidden files and folders, what operating systems leave behind, and what a run of this program wrote are no data. Links are
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
# the file that every run begins with, and keys of which it has one: those of other programs have none
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
    """The one name of a split: 'val' for val, validation, valid and dev, 'train' for training, 'test' for testing, in
    capitals or not. Other names are their own."""
    return SPLIT_NAMES.get(name.lower(), name)


def is_run(folder: AnyPath) -> bool:
    """Whether `folder` is what a run of this program wrote: a settings.json or config.json of ours is in it."""
    for name, keys in RUN_FILES.items():
        if (folder / name).is_file():
            try:
                if keys & {*read_json(folder / name)}:
                    return True
            except BadInput:  # of another program
                continue
    return False


def data_files(folder: AnyPath) -> tuple[list[AnyPath], list[AnyPath]]:
    """The image files and the manifests below the local `folder`, each in the order of their names.

    Raises:
      BadInput: an image is a link to nothing; a manifest is of a kind that is not read; it is Hugging Face's whole cache.
    """
    if (folder / 'blobs').is_dir() and (folder / 'snapshots').is_dir():
        found = ', '.join(sorted(path.name for path in (folder / 'snapshots').iterdir()))
        raise BadInput(f"{folder}: Hugging Face's cache, not a folder of images; give one of its snapshots/ ({found})")
    images, manifests = [], []
    for path in _files(folder, (os.path.realpath(folder),), is_run(folder)):
        if path.name == UNREAD_MANIFEST:
            raise BadInput(f'{path}: not read; write it as {MANIFESTS[0]}, or train on hf:{folder}')
        if path.name in MANIFESTS:
            manifests.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            if not path.exists():
                raise BadInput(f'{path}: a link to nothing; restore the file or remove the link')
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
            logging.warning('%s: written by a run, and no data', path)
        elif (real := os.path.realpath(path)) not in above:  # a link to a folder above would never end
            yield from _files(path, (*above, real), False)


def manifests_beside(folder: AnyPath, names: Iterable[str]) -> list[AnyPath]:
    """Other manifests than that of `folder`, in its subfolders and where the files `names` lie."""
    subfolders = {Path(item.path) for item in os.scandir(folder) if item.is_dir() and not item.name.startswith('.')}
    named = {(folder / name).parent for name in names}
    places = sorted(place for place in (subfolders | named) - {folder} if not is_run(place))
    return [place / name for place in places for name in MANIFESTS if (place / name).is_file()]


def split_folders(folder: AnyPath, names: list[str]) -> list[str | None]:
    """The split of each of the files `names` by the folder that it lies in, as in train/forest/1.png; None if no folder is
    called like a split.

    Raises:
      BadInput: only some files lie in such folders, so that their names may as well be those of classes.
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
            f'{folder}: {split}/ may be a split, and {other} in none, or {split}/ may be a class or any other '
            f'folder; say it by "split" in a {MANIFESTS[0]}, or move away what is no data'
        )
    return [None] * len(names)


def class_folders(names: list[str]) -> list[str | None]:
    """The class of each of the files `names`: the folder that it lies in, the split's left out, if all lie in one alone and
    there are two classes at least; else None, as Hugging Face's ImageFolder has it."""
    parts = [name.split('/')[:-1] for name in names]
    for level in range(min(map(len, parts), default=0)):
        if all(own[level].lower() in SPLIT_NAMES for own in parts):
            parts = [own[:level] + own[level + 1 :] for own in parts]
            break
    classes = Counter(own[0] for own in parts if len(own) == 1)
    if len(classes) < 2 or sum(classes.values()) < len(parts):
        return [None] * len(names)
    return [own[0] for own in parts]
