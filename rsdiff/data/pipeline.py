"""Batches for training: batch n is a pure function of (seed, n), whatever the number of hosts or threads.

A *source* has a length and `example(index, rng, size_px) -> {'image', 'gsd_m', …}`. grain's `MapDataset` turns it into a
random-access sequence of rows, where row n · batch_size + i is the i-th of batch n. So a run can resume at any step with
nothing to restore but the step itself, and hosts may share the rows of a batch in any way.
"""

import dataclasses
import logging
import sys
from typing import Iterator, Protocol, Sequence, cast

import grain
import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.base.seeds import short_seed
from rsdiff.data.blue_marble import BlueMarble
from rsdiff.data.crops import Crops, FolderImages
from rsdiff.data.fields import Field, Fields, check_all_or_none, check_none_needed, check_reference
from rsdiff.data.folder import TRAIN, VALIDATION, Entry, read_folder, training_entries, validation_share
from rsdiff.data.gsd import LARGEST_GSD_M, SMALLEST_GSD_M
from rsdiff.data.hugging_face import HubImages, hub_splits
from rsdiff.data.layout import canonical_split
from rsdiff.data.records import RecordImages, named_dataset, prepared_dataset, prepared_folder

TFDS_PREFIX, HUB_PREFIX = 'tfds:', 'hf:'


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training images come from, and how they are cropped.

    `source` is 'blue_marble', the path of an image folder, that of a dataset written by `tools/prepare_data.py`,
    'tfds:NAME', any dataset of TFDS with a feature `image`, prepared as array_record in `tfds_data_dir` (by default
    TFDS's own folder), or 'hf:NAME', a dataset of Hugging Face's hub or a local one, whose images are `image_column`.

    `split` defaults to the split train, or to all images of a folder without splits. `validation_split` defaults to val,
    validation, valid or dev, whichever exists. Without any of them, validation uses the share `validation_share` of `split`,
    which is then not trained on: images selected by their content (`rsdiff.data.folder.validation_share`), or the last
    records of a TFDS dataset. With a share of 0, validation uses the training images. The log says in one line which images
    are used. `gsd_m` is the default for images whose resolution is in no manifest, record or GeoTIFF. Crops are reduced by
    one of `reductions`, so that the network learns the resolutions that a cascade passes through: (1, 4, 16). `bands` and
    `value_range` define how GeoTIFFs with other bands or more than 8 bits become RGB (`rsdiff.data.scenes.open_scene`).

    Data may be on any path that the operating system can open, such as a mounted bucket. Folders with a manifest may also
    be in a bucket that etils' epath can open (`gs://…`, with fsspec's driver for it), but not their GeoTIFFs.
    """

    source: str = 'blue_marble'
    split: str | None = None
    validation_split: str | None = None
    validation_share: float = 0.1
    tfds_data_dir: str | None = None
    image_column: str = 'image'
    size_px: int = 64
    gsd_m: float | None = None
    reductions: tuple[int, ...] = (1,)
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    threads: int = 4

    def __post_init__(self):
        check_range(self, 1, 4096, 'size_px', 'reductions')
        check_range(self, SMALLEST_GSD_M, LARGEST_GSD_M, 'gsd_m')
        check_range(self, 1, 65_535, 'bands')
        check_range(self, -1e300, 1e300, 'value_range')
        check_range(self, 1, 1024, 'threads')
        if not 0 <= self.validation_share < 1:
            raise BadInput(f'validation_share is {self.validation_share}; it must be from 0 to below 1')
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise BadInput(f'value_range is {self.value_range}; the first value must be the smaller one')


class Source(Protocol):
    """A source of examples. `skipped` holds the names of images that could not be used so far."""

    skipped: set[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file of image `index`, or a description."""
        ...

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray | np.float32]:
        """image: uint8 (size_px, size_px, 3); gsd_m: float32 metres per pixel; and fields (`rsdiff.data.fields`)."""
        ...


def make_source(config: DataConfig, validation: bool = False, fields: Sequence[Field] = ()) -> Source:
    """The training source that `config` names, or its validation source. `fields`: the network's inputs besides image and
    gsd_m; folders with a manifest may have them. Those that can be made from the image are in the examples if rows have them.

    Validation images are those of `config.validation_split`, or its default (see `DataConfig`). For Blue Marble they are
    chips of its held-out box, which is never trained on. For a single image they are new crops of that image.

    Raises:
      BadInput: there is no such folder, dataset or split, it can't be used, or it lacks a needed field; or some images to
        train or validate on have a file of a field that can be made from the image, and others do not, or have a stack
        without such a file.
    """
    if config.source == 'blue_marble':
        check_none_needed(fields, config.source)
        return BlueMarble(validation)
    if config.source.startswith(TFDS_PREFIX):
        images = _record_images(
            named_dataset(config.source.removeprefix(TFDS_PREFIX), config.tfds_data_dir), config, validation
        )
    elif config.source.startswith(HUB_PREFIX):
        images = _hub_images(config, validation)
    elif folder := prepared_folder(config.source):
        images = _record_images(prepared_dataset(folder), config, validation)
    else:
        images, used = _folder_images(config, validation)
        for field in (field for field in fields if field.made):
            check_all_or_none(field, used, config.source)
            if field.is_of(used[0]):
                _say(validation, f'{config.source}: {field.name} is read from {field.key}, not made from the images')
            check_reference(field, fields, used, config.source)
        found = Fields(fields, images.entries, config.source, config.bands, config.value_range)
        return Crops(images, config.reductions, found)
    check_none_needed(fields, config.source)
    return Crops(images, config.reductions)


def _folder_images(config: DataConfig, validation: bool) -> tuple[FolderImages, list[Entry]]:
    """The images to train or to validate on, and the entries of both."""
    open_images = lambda entries: FolderImages(
        config.source, None, config.gsd_m, config.bands, config.value_range, entries
    )
    trained = training_entries(config.source, config.split)
    split = config.validation_split or _validation_of(
        [entry.split for entry in read_folder(config.source)], config.split
    )
    if split:
        _say(validation, f'{config.source}: validates on its split {split}')
        validated = read_folder(config.source, split)
        return open_images(validated if validation else trained), trained + validated
    unseen = validation_share(trained, config.validation_share)
    _say_share(validation, config, sum(unseen), len(trained))
    entries = [entry for entry, kept in zip(trained, unseen) if kept == validation or not any(unseen)]
    return open_images(entries), trained


def _record_images(builder, config: DataConfig, validation: bool) -> RecordImages:
    known = [*builder.info.splits]
    train = config.split or _named_as(TRAIN, known) or TRAIN
    split = config.validation_split or _validation_of(known, train)
    whole = RecordImages(builder, (split if validation and split else train), config.gsd_m)
    if split:
        _say(validation, f'{config.source}: validates on its split {split}')
        return whole
    unseen = min(max(round(config.validation_share * len(whole)), config.validation_share > 0), len(whole) - 1)
    _say_share(validation, config, unseen, len(whole))
    if unseen:
        first = len(whole) - unseen
        whole.keep(*((first, len(whole)) if validation else (0, first)))
    return whole


def _hub_images(config: DataConfig, validation: bool) -> HubImages:
    splits = hub_splits(config.source.removeprefix(HUB_PREFIX))
    train = config.split or _named_as(TRAIN, splits) or TRAIN
    split = config.validation_split or _validation_of(splits, train)
    if split:
        _say(validation, f'{config.source}: validates on its split {split}')
        return HubImages(config.source, splits, split if validation else train, config.gsd_m, config.image_column)
    images = HubImages(config.source, splits, train, config.gsd_m, config.image_column)
    unseen = images.validation_share(config.validation_share)
    _say_share(validation, config, sum(unseen), len(images))
    if any(unseen):
        images.keep([number for number, kept in enumerate(unseen) if kept == validation])
    return images


def _named_as(split: str, known) -> str | None:
    """The split in `known` that is `split` by any of its names; None if there is none."""
    return next((name for name in known if name is not None and canonical_split(name) == split), None)


def _validation_of(known, train: str | None) -> str | None:
    """The split to validate on; None if there is none, or it is the one trained on."""
    return None if canonical_split(train or TRAIN) == VALIDATION else _named_as(VALIDATION, known)


def _say_share(validation: bool, config: DataConfig, unseen: int, count: int) -> None:
    if unseen:
        _say(
            validation,
            f'{config.source}: no validation split; validates on {unseen} of {count} images (data.validation_share '
            f'{config.validation_share:g}), which are not trained on',
        )
    else:
        _say(validation, f'{config.source}: no validation split; validates on the {count} images that it trains on')


def _say(validation: bool, line: str) -> None:
    """Logs `line`, but only once for the two sources of a run."""
    if not validation:
        logging.warning(line)


def batches(
    source: Source, config: DataConfig, seed: int, batch_size: int, start: int = 0, mine: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches `start`, start + 1, … endlessly, decoded ahead in threads.

    Args:
      batch_size: over all hosts.
      mine: the rows of each batch that this host reads, of 0 … batch_size - 1; by default all of them.
    Yields:
      image: uint8 (rows, size_px, size_px, 3); gsd_m: float32 (rows,); and the fields of `source` by name, as described
      in `rsdiff.data.fields`.
    """
    mine = range(batch_size) if mine is None else mine
    rows = _indices(source, seed).random_map(lambda index, rng: source.example(int(index), rng, config.size_px))
    local = grain.MapDataset.range(sys.maxsize // batch_size * len(mine)).map(
        lambda k: rows[k // len(mine) * batch_size + mine[k % len(mine)]]
    )
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=4 * config.threads)
    return iter(local.batch(len(mine))[start:].to_iter_dataset(options))


def batch_indices(source: Source, seed: int, batch_size: int, n: int) -> list[int]:
    """The indices of `source` that global batch `n` requests, in its order; nothing is read.

    An unusable image is replaced by a later one, but the index here is that of the requested image.
    """
    indices = _indices(source, seed)
    return [int(cast(int, indices[row])) for row in range(n * batch_size, (n + 1) * batch_size)]


def _indices(source: Source, seed: int) -> grain.MapDataset:
    """Row → index of the source, endlessly: every epoch is shuffled in its own order."""
    return grain.MapDataset.range(len(source)).seed(short_seed(seed)).shuffle().repeat(None)
