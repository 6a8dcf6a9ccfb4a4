"""Copies a labelled folder with n training images per class and all images of the other splits.

    python tools/few_shot.py --images UCM --per_class 20 --out UCM_20

Synthetic images of a few training images are quick to make, and a few-shot study needs no others: its seeds then draw from
these. The choice depends only on --seed and the names of the images. All other fields of the manifest are kept.
OUT/few_shot.json is also the last line of output.
"""

import dataclasses
import shutil
import zlib
from collections import Counter
from pathlib import Path

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.base.files import replacing
from rsdiff.data.folder import MANIFEST, Entry, clean_name, read_folder, write_manifest
from rsdiff.programs import console

TRAIN = 'train'
IMAGES = flags.DEFINE_string('images', None, 'A folder with labels and splits.', required=True)
PER_CLASS = flags.DEFINE_integer('per_class', None, 'Training images of each class.', required=True, lower_bound=1)
OUT = flags.DEFINE_string('out', None, 'A new folder.', required=True)
SEED = flags.DEFINE_integer('seed', 0, 'Random seed of the choice.')


def chosen(entries: list[Entry], per_class: int, seed: int) -> list[Entry]:
    """The entries to keep, in their order.

    Raises:
      BadInput: a training image has no label, or a class has too few.
    """
    training = [entry for entry in entries if entry.split == TRAIN]
    if unlabelled := next((entry for entry in training if entry.label is None), None):
        raise BadInput(f'{unlabelled.path}: no label in the manifest')
    drawn, taken = sorted(training, key=lambda entry: zlib.crc32(f'{seed}/{entry.file_name}'.encode())), Counter()
    kept = set()
    for entry in drawn:
        if taken[entry.label] < per_class:
            taken[entry.label] += 1
            kept.add(entry.file_name)
    if short := [label for label, count in sorted(taken.items()) if count < per_class]:
        raise BadInput(
            f'--per_class is {per_class}; class {short[0]!r} of {IMAGES.value} has {taken[short[0]]} training images'
        )
    return [entry for entry in entries if entry.split != TRAIN or entry.file_name in kept]


def main() -> None:
    out = Path(OUT.value)
    if (out / MANIFEST).exists():
        raise BadInput(f'{out} holds a {MANIFEST}; use another --out')
    entries = chosen(read_folder(IMAGES.value), PER_CLASS.value, SEED.value)
    names = {}
    for entry in entries:
        other = names.setdefault(clean_name(entry.file_name), entry)
        if other is not entry:
            raise BadInput(f'{other.file_name!r} and {entry.file_name!r} would be the same file; rename one of them')
    for name, entry in names.items():
        with replacing(out / name) as partial:
            shutil.copyfile(entry.path, partial)
        for path in entry.files.values():
            with replacing(out / path.relative_to(entry.folder)) as partial:
                shutil.copyfile(path, partial)
    write_manifest(out, [dataclasses.replace(entry, path=out / name, file_name=name) for name, entry in names.items()])
    console.finish(
        {
            'out': str(out),
            'per_class': PER_CLASS.value,
            'seed': SEED.value,
            'images': dict(Counter(str(entry.split) for entry in entries)),
        },
        out / 'few_shot.json',
    )


if __name__ == '__main__':
    console.run(main)
