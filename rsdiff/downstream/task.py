"""A classification task from two image folders: real images with splits, and synthetic ones made from them.

What is checked here is what would make a table a lie: a test image, or anything made from one, among the training
images.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging

from rsdiff.data.folder import Entry, read_folder
from rsdiff.data.images import read_image
from rsdiff.downstream.encoder import Encoder
from rsdiff.errors import BadInput

REAL, SYNTHETIC, BOTH = ARMS = ('real', 'synthetic', 'real+synthetic')


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images at the encoder's input size.

    Attributes:
      pixels: uint8 (n, size, size, 3).
      labels: int32 (n,), indices into the task's classes.
      names: file names relative to their folder.
      sources: for each synthetic image the name of the real image it was made from, or None.
      hashes: SHA-256 of the decoded pixels before resizing, with their shape.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    sources: tuple[str | None, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> 'Images':
        def pick(values):
            return tuple(values[i] for i in indices)

        return Images(self.pixels[indices], self.labels[indices], pick(self.names), pick(self.sources),
                      pick(self.hashes))

    def digest(self) -> str:
        """Changes with any pixel, name, label or source."""
        rows = [self.names, self.labels.tolist(), self.sources, self.hashes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Task:
    """What the arms of a comparison share.

    Attributes:
      classes: the labels, sorted.
      train: real training images without those that are copies of held-out images.
      synthetic: images made from training images.
      evaluation: the images that scores are computed on.
      dropped: names of training images left out because they are pixel for pixel a held-out image, and of synthetic
        images made from such.
    """

    classes: tuple[str, ...]
    train: Images
    synthetic: Images
    evaluation: Images
    dropped: tuple[str, ...]


def load_task(real: Path | str, synthetic: Path | str, encoder: Encoder, evaluate_on: str = 'test') -> Task:
    """Reads both folders and refuses what would not be a fair comparison.

    Args:
      real: a folder whose manifest gives every image a `label` and a `split` (train, test, perhaps val).
      synthetic: a folder whose manifest gives every image a `label` and, to be checked, a `source`: the `file_name`
        of the real training image it was made from.
      encoder: decides the size the images are read at.
      evaluate_on: the split to score on; choose settings on 'val', and report 'test'.
    Raises:
      BadInput: a label or a split is missing; the folders' classes differ; a class has no image to train on or to
        score on; a synthetic image has a source that is unknown, held out or of another class, or is itself a copy
        of a held-out image.
    """
    entries = read_folder(real)
    for entry in entries:
        if entry.label is None or entry.split is None:
            missing = 'label' if entry.label is None else 'split'
            raise BadInput(f'{real}: {entry.file_name} has no {missing}; every real image needs a label and a split')
    splits = {split: [e for e in entries if e.split == split] for split in {e.split for e in entries}}
    for split in ('train', evaluate_on):
        if split not in splits:
            raise BadInput(f'{real}: no image has split {split!r}; there are {sorted(splits)}')
    made = read_folder(synthetic)
    for entry in made:
        if entry.label is None:
            raise BadInput(f'{synthetic}: {entry.file_name} has no label')
        if entry.split not in (None, 'train'):
            raise BadInput(f'{synthetic}: {entry.file_name} has split {entry.split!r}; synthetic images only train')

    classes = tuple(sorted({e.label for e in splits['train']}))
    _check_classes(classes, splits[evaluate_on], f'{real}: {evaluate_on} split')
    _check_classes(classes, made, str(synthetic))
    _check_sources(entries, made, synthetic)

    train = _read(splits['train'], classes, encoder)
    evaluation = _read(splits[evaluate_on], classes, encoder)
    held_out = dict(zip(evaluation.hashes, evaluation.names))
    for split in sorted(set(splits) - {'train', evaluate_on}):
        held_out |= {_pixel_hash(read_image(e.path)): e.file_name for e in splits[split]}

    copies = {name: held_out[h] for name, h in zip(train.names, train.hashes) if h in held_out}
    for copy, original in copies.items():
        logging.warning('%s: training image %s is the same picture as held-out %s; left out', real, copy, original)
    kept = np.flatnonzero([name not in copies for name in train.names])
    train = train.take(kept)
    _check_classes(classes, [e for e in splits['train'] if e.file_name not in copies], f'{real}: train split')

    images = _read(made, classes, encoder)
    for name, pixel_hash in zip(images.names, images.hashes):
        if pixel_hash in held_out:
            raise BadInput(f'{synthetic}: {name} is pixel for pixel the held-out image {held_out[pixel_hash]} of '
                           f'{real}')
    from_copies = [name for name, source in zip(images.names, images.sources) if source in copies]
    images = images.take(np.flatnonzero([source not in copies for source in images.sources]))
    return Task(classes, train, images, evaluation, tuple(copies) + tuple(from_copies))


def training_images(task: Task, arm: str, real_per_class: int | None, seed: int) -> tuple[Images, Images]:
    """The real and the synthetic images one arm trains on with one seed.

    With `real_per_class` K, the seed draws K real images of each class, and the synthetic ones are those made from
    them; so all arms of a seed stand on the same K·classes pictures.

    Returns:
      (real, synthetic); the one that the arm does not use is empty.
    Raises:
      BadInput: a class has fewer than K real images, or K is given and a synthetic image does not name its source.
    """
    real, synthetic = task.train, task.synthetic
    if real_per_class is not None:
        unnamed = [name for name, source in zip(synthetic.names, synthetic.sources) if source is None]
        if unnamed:
            raise BadInput(f'real_per_class needs to know what each synthetic image was made from; {unnamed[0]} '
                           'has no "source"')
        real = real.take(_draw_per_class(real.labels, real_per_class, task.classes, seed))
        synthetic = synthetic.take(np.flatnonzero([source in set(real.names) for source in synthetic.sources]))
    nothing = np.arange(0)
    used = {REAL: (real, synthetic.take(nothing)), SYNTHETIC: (real.take(nothing), synthetic), BOTH: (real, synthetic)}
    for label, name in enumerate(task.classes):
        if not any((images.labels == label).any() for images in used[arm]):
            raise BadInput(f'arm {arm!r}, seed {seed}: class {name!r} has no training image')
    return used[arm]


def _draw_per_class(labels: np.ndarray, count: int, classes: tuple[str, ...], seed: int) -> np.ndarray:
    drawn = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise BadInput(f'real_per_class is {count}; class {name!r} has only {len(members)} real training images')
        drawn.append(np.random.default_rng([2, seed, label]).choice(members, count, replace=False))
    return np.sort(np.concatenate(drawn))


def _check_classes(classes: tuple[str, ...], entries: list[Entry], where: str) -> None:
    counts = Counter(e.label for e in entries)
    problems = [f'no image of class {name!r}' for name in classes if not counts[name]]
    problems += [f'class {name!r} is not in the real training images' for name in sorted(set(counts) - set(classes))]
    if problems:
        raise BadInput(f'{where}: {"; ".join(problems)}')


def _check_sources(real: list[Entry], made: list[Entry], synthetic: Path | str) -> None:
    by_name = {e.file_name: e for e in real}
    for entry in made:
        name = _source(entry)
        if name is None:
            continue
        if not isinstance(name, str):
            raise BadInput(f'{synthetic}: {entry.file_name} has source {name!r}; it must be a file name')
        if name not in by_name:
            raise BadInput(f'{synthetic}: {entry.file_name} was made from {name}, which the real folder does not have')
        source = by_name[name]
        if source.split != 'train':
            raise BadInput(f'{synthetic}: {entry.file_name} was made from {name}, a {source.split} image; '
                           'only training images may be expanded')
        stated = entry.extra.get('source_sha256')
        if stated is not None and stated != hashlib.sha256(source.path.read_bytes()).hexdigest():
            raise BadInput(f'{synthetic}: {entry.file_name} was made from another file than the {name} that is there now')
        if source.label != entry.label:
            raise BadInput(f'{synthetic}: {entry.file_name} is labelled {entry.label!r} but was made from {name}, '
                           f'a {source.label!r}')


def _source(entry: Entry) -> str | None:
    return entry.extra['source'] if 'source' in entry.extra else None


def _read(entries: list[Entry], classes: tuple[str, ...], encoder: Encoder) -> Images:
    pixels = np.empty((len(entries), encoder.image_size_px, encoder.image_size_px, 3), np.uint8)
    hashes = []
    for row, entry in zip(pixels, entries):
        image = read_image(entry.path)
        hashes.append(_pixel_hash(image))
        row[:] = encoder.resize(image)
    labels = np.asarray([classes.index(e.label) for e in entries], np.int32)
    return Images(pixels, labels, tuple(e.file_name for e in entries), tuple(map(_source, entries)), tuple(hashes))


def _pixel_hash(image: np.ndarray) -> str:
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
