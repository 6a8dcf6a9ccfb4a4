"""A classification task from two image folders: real images with splits, and synthetic ones made from them.

The checks here find leakage that would invalidate the results: a held-out image, or anything made from one, among the
images that the classifier or the generator was trained on, or a test image among those that settings are chosen on.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import fingerprint
from rsdiff.data.folder import TRAIN, VALIDATION, Entry, canonical_split, read_folder
from rsdiff.data.images import read_image
from rsdiff.downstream.leaks import HeldOut, known_to_the_generator, pixel_hash, recognisable

NO_SOURCE = ''


class Sized(Protocol):
    """What determines the size at which images are read: an encoder, for example."""

    @property
    def image_size_px(self) -> int: ...

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → uint8 (image_size_px, image_size_px, 3)."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images at one size.

    Attributes:
      pixels: uint8 (n, size, size, 3).
      labels: int32 (n,), indices into the task's classes.
      folder: the folder of their files.
      names: file names relative to `folder`.
      sources: for each synthetic image, the name of the real image it was made from; `NO_SOURCE` if its manifest says
        that there is none (`"source": null`), and None if its manifest has no `source`.
      captions: of each image; empty if its manifest has none.
      hashes: of the decoded pixels before resizing.
      fingerprints: of the same pixels, uint8 (n, 160).
    """

    pixels: np.ndarray
    labels: np.ndarray
    folder: Path
    names: tuple[str, ...]
    sources: tuple[str | None, ...]
    captions: tuple[tuple[str, ...], ...]
    hashes: tuple[str, ...]
    fingerprints: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> 'Images':
        def pick(values):
            return tuple(values[i] for i in indices)

        indices = np.asarray(indices, np.int64)
        return Images(
            self.pixels[indices],
            self.labels[indices],
            self.folder,
            pick(self.names),
            pick(self.sources),
            pick(self.captions),
            pick(self.hashes),
            self.fingerprints[indices],
        )

    def without(self, names: set[str]) -> 'Images':
        return self.take(np.flatnonzero([name not in names for name in self.names])) if names else self

    def digest(self) -> str:
        """A hash that changes with any pixel, name, label, source or caption."""
        rows = [self.names, self.labels.tolist(), self.sources, self.captions, self.hashes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Task:
    """The classes and images that all arms of a comparison share.

    Attributes:
      classes: the labels, sorted.
      train: real training images.
      synthetic: images made from training images, the first one of every source before the second of any, and so on.
      validation: the images that settings are chosen on, or None.
      evaluation: the images that scores are computed on, after settings are chosen.
      dropped: names of images that were left out to prevent leakage: training and synthetic images that are copies of
        held-out ones, synthetic images made from such copies, held-out images that the generator was trained on, and
        validation images that are copies of evaluated ones.
    """

    classes: tuple[str, ...]
    train: Images
    synthetic: Images
    validation: Images | None
    evaluation: Images
    dropped: tuple[str, ...]


def load_task(
    real: Path | str, synthetic: Path | str, encoder: Sized, evaluate_on: str = 'test', drop_duplicates: bool = False
) -> Task:
    """Reads both folders, and raises if they do not allow a fair comparison.

    Args:
      real: a folder whose manifest gives every image a `label` and a `split` (train, test, optionally val).
      synthetic: a folder whose manifest gives every image a `label` and, for the leakage checks, a `source`: the
        `file_name` of the real training image it was made from, or null if there is none. An optional file
        `training_fingerprints.npz` lists the images that the generator was trained on.
      encoder: determines the size at which images are read.
      evaluate_on: the split to score; use 'val' for experiments, and report 'test'.
      drop_duplicates: leave out the images that would leak instead of raising.
    Raises:
      BadInput: a label or a split is missing; the folders' classes differ; a class has no image to train on or to
        score; a synthetic image has a source that is unknown, held out or of another class; a held-out picture is
        among the training images, the synthetic images, or those that the generator was trained on, or an evaluated
        picture is in the validation split.
    """
    evaluate_on = canonical_split(evaluate_on)
    splits, made = _real_splits(real, evaluate_on), _made(synthetic)
    classes = tuple(sorted({*_labels(splits[TRAIN])}))
    if len(classes) < 2:
        raise BadInput(
            f'{real}: the train split has one class, {", ".join(map(repr, classes))}; at least two are needed'
        )
    scored = {split for split in (VALIDATION, evaluate_on) if split in splits}
    for split in sorted(scored):
        _check_classes(classes, _labels(splits[split]), f'{real}: {split} split')
    _check_classes(classes, _labels(made), str(synthetic))
    _warn_of_single_images(real, {split: splits[split] for split in {TRAIN, evaluate_on}})
    _check_sources([e for split in splits.values() for e in split], made, synthetic)

    of_split = {split: _read(real, splits[split], classes, encoder) for split in {TRAIN} | scored}
    task = Task(
        classes,
        of_split[TRAIN],
        _read(synthetic, made, classes, encoder),
        of_split.get(VALIDATION),
        of_split[evaluate_on],
        (),
    )
    held_out = {split: recognisable(entries) for split, entries in splits.items() if split != TRAIN}
    task = _without_leaks(task, held_out, evaluate_on, drop_duplicates)
    for images, where in (
        (task.train, f'{real}: train split'),
        (task.synthetic, str(synthetic)),
        (task.validation, f'{real}: {VALIDATION} split'),
        (task.evaluation, f'{real}: {evaluate_on} split'),
    ):
        if task.dropped and images is not None:
            _check_classes(classes, [classes[label] for label in images.labels], f'{where}, without duplicates')
    return task


def _without_leaks(task: Task, held_out: dict[str, HeldOut], evaluate_on: str, drop: bool) -> Task:
    """The task without the images that would leak; raises BadInput if there are any and `drop` is false."""
    real, synthetic = task.train.folder, task.synthetic.folder
    copies, made_copies, known, chosen_by = {}, {}, {}, {}
    for pictures in held_out.values():
        copies |= _named(task.train, pictures)
        made_copies |= _named(task.synthetic, pictures)
        known |= known_to_the_generator(synthetic, pictures)
    if evaluate_on != VALIDATION and task.validation is not None:
        chosen_by = _named(task.validation, held_out[evaluate_on])
    lines = [
        *(f'{real}: training image {name} is the same picture as held-out {other}' for name, other in copies.items()),
        *(
            f'{synthetic}: {name} is the same picture as held-out {other} of {real}'
            for name, other in made_copies.items()
        ),
        *(
            f'{synthetic}: its generator was trained on held-out {name} of {real}, as {other}'
            for name, other in known.items()
        ),
        *(
            f'{real}: validation image {name} is the same picture as evaluated {other}'
            for name, other in chosen_by.items()
        ),
    ]
    if lines and not drop:
        more = f' (and {len(lines) - 1} more like it)' if len(lines) > 1 else ''
        raise BadInput(f'{lines[0]}{more}; fix the folders, or leave such images out with --drop_duplicates')
    for line in lines:
        logging.warning('%s; left out', line)
    from_copies = {name for name, source in zip(task.synthetic.names, task.synthetic.sources) if source in copies}
    made_out, held_back = {*made_copies} | from_copies, {*known} | {*chosen_by}
    scored = [images for images in (task.validation, task.evaluation) if images is not None]
    dropped = [*copies, *sorted(made_out), *sorted(held_back & {name for images in scored for name in images.names})]
    return dataclasses.replace(
        task,
        train=task.train.without({*copies}),
        synthetic=task.synthetic.without(made_out),
        dropped=tuple(dropped),
        validation=task.validation and task.validation.without(held_back),
        evaluation=task.evaluation.without({*known}),
    )


def _named(images: Images, pictures: HeldOut) -> dict[str, str]:
    """The images that are held-out pictures: image name → name of the held-out picture."""
    return {images.names[i]: name for i, name in pictures.among(images.fingerprints, images.hashes).items()}


def _real_splits(real: Path | str, evaluate_on: str) -> dict[str, list[Entry]]:
    entries = read_folder(real)
    for entry in entries:
        if entry.label is None or entry.split is None:
            missing = 'label' if entry.label is None else 'split'
            raise BadInput(f'{real}: {entry.file_name} has no {missing}; every real image needs a label and a split')
    splits = {
        split: [e for e in entries if e.split == split]
        for split in sorted({e.split for e in entries if e.split is not None})
    }
    for split in (TRAIN, evaluate_on):
        if split not in splits:
            raise BadInput(f'{real}: no image has split {split!r}; there are {sorted(splits)}')
    return splits


def _made(synthetic: Path | str) -> list[Entry]:
    """The folder's entries, the first variant of each source before the second."""
    entries = read_folder(synthetic)
    for entry in entries:
        if entry.label is None:
            raise BadInput(f'{synthetic}: {entry.file_name} has no label')
        if entry.split not in (None, TRAIN):
            raise BadInput(
                f'{synthetic}: {entry.file_name} has split {entry.split!r}; synthetic images are for training only'
            )
    seen, turns = Counter(), []
    for entry in entries:
        source = str(_source(entry))
        turns.append(seen[source])
        seen[source] += 1
    return [entries[i] for i in np.argsort(turns, kind='stable')]


def _labels(entries: list[Entry]) -> list[str]:
    """The label of each entry; every entry has one."""
    return [entry.label for entry in entries if entry.label is not None]


def _check_classes(classes: tuple[str, ...], labels: list[str], where: str) -> None:
    counts = Counter(labels)
    problems = [f'no image of class {name!r}' for name in classes if not counts[name]]
    problems += [f'class {name!r} is not in the real training images' for name in sorted(set(counts) - set(classes))]
    if problems:
        raise BadInput(f'{where}: {"; ".join(problems)}')


def _warn_of_single_images(real: Path | str, splits: dict[str, list[Entry]]) -> None:
    for split, entries in sorted(splits.items()):
        if single := [name for name, count in sorted(Counter(e.label for e in entries).items()) if count == 1]:
            logging.warning(
                '%s: %s split has one image of class %r%s; figures of such a class rest on that image alone',
                real,
                split,
                single[0],
                f' and of {len(single) - 1} more classes' if len(single) > 1 else '',
            )


def _check_sources(real: list[Entry], made: list[Entry], synthetic: Path | str) -> None:
    by_name = {e.file_name: e for e in real}
    digests = {}
    for entry in made:
        name = _source(entry)
        if name in (None, NO_SOURCE):
            continue
        if not isinstance(name, str):
            raise BadInput(f'{synthetic}: {entry.file_name} has source {name!r}; it must be a file name')
        if name not in by_name:
            raise BadInput(f'{synthetic}: {entry.file_name} was made from {name}, which the real folder does not have')
        source = by_name[name]
        if source.split != TRAIN:
            raise BadInput(
                f'{synthetic}: {entry.file_name} was made from {name}, a {source.split} image; '
                'only training images may be sources'
            )
        stated = entry.extra.get('source_sha256')
        if stated is not None and name not in digests:
            digests[name] = hashlib.sha256(source.path.read_bytes()).hexdigest()
        if stated is not None and stated != digests[name]:
            raise BadInput(
                f'{synthetic}: {entry.file_name} was made from another version of {name}; source_sha256 does not match'
            )
        if source.label != entry.label:
            raise BadInput(
                f'{synthetic}: {entry.file_name} is labelled {entry.label!r} but was made from {name}, '
                f'a {source.label!r}'
            )


def _source(entry: Entry) -> str | None:
    """The source given in the manifest: a name, `NO_SOURCE` for null, None if the field is missing."""
    if 'source' not in entry.extra:
        return None
    return NO_SOURCE if entry.extra['source'] is None else entry.extra['source']


def _read(folder: Path | str, entries: list[Entry], classes: tuple[str, ...], encoder: Sized) -> Images:
    pixels = np.empty((len(entries), encoder.image_size_px, encoder.image_size_px, 3), np.uint8)

    def look(row, entry):
        image = read_image(entry.path)
        row[:] = encoder.resize(image)
        return pixel_hash(image), fingerprint(image)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        hashes, fingerprints = zip(*pool.map(look, pixels, entries))
    labels = np.asarray([classes.index(e.label) for e in entries], np.int32)
    return Images(
        pixels,
        labels,
        Path(folder),
        tuple(e.file_name for e in entries),
        tuple(map(_source, entries)),
        tuple(tuple(e.captions) for e in entries),
        hashes,
        np.stack(fingerprints),
    )
