"""Batches for training: batch n is a pure function of (seed, n), whatever the number of hosts or threads.

A *source* has a length and `example(index, rng, size_px) -> {'image', 'gsd_m'}`. grain's `MapDataset` turns it into a
random-access sequence of rows, row n · batch_size + i being the i-th of batch n, so that a run continues at any step
with nothing to restore but the step itself, and hosts may share a batch's rows in any way.
"""

import dataclasses
import sys
from typing import Iterator, Protocol, Sequence

import grain
import numpy as np

from rsdiff.data.blue_marble import BlueMarble
from rsdiff.data.crops import Crops, FolderImages
from rsdiff.data.records import RecordImages, named_dataset, prepared_dataset, prepared_folder
from rsdiff.errors import BadInput
from rsdiff.seeds import short_seed

TFDS_PREFIX = 'tfds:'


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training images come from, and how they are cropped.

    `source` is 'blue_marble', the path of an image folder, that of a dataset written by `tools/prepare_data.py`, or
    'tfds:NAME', any dataset of TFDS with a feature `image`, prepared as array_record in `tfds_data_dir` (by default
    TFDS's own place). Without `split`, datasets give 'train' and folders everything; `validation_split` is what to
    validate on. `gsd_m` serves images whose resolution no manifest, record or GeoTIFF tells. Crops are reduced by one
    of `reductions`, which teaches the resolutions that a cascade passes through: (1, 4, 16). `bands` and `value_range`
    say how GeoTIFFs of other bands or more than 8 bits become RGB (`rsdiff.data.scenes.open_scene`).

    Everything may lie on any path that the operating system can open, a mounted bucket for one. Folders with a manifest
    may also lie in a bucket that etils' epath can open (`gs://…`, with fsspec's driver for it), but not their GeoTIFFs.
    """

    source: str = 'blue_marble'
    split: str | None = None
    validation_split: str | None = None
    tfds_data_dir: str | None = None
    size_px: int = 64
    gsd_m: float | None = None
    reductions: tuple[int, ...] = (1,)
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    threads: int = 4


class Source(Protocol):
    """Where examples come from. `skipped` holds the names of images that could not be used so far."""

    skipped: set[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file of image `index`, or a description."""

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray]:
        """image: uint8 (size_px, size_px, 3); gsd_m: float32 metres a pixel."""


def make_source(config: DataConfig, validation: bool = False) -> Source:
    """The source that `config` names, or its companion for validation.

    Validation images are those of `config.validation_split`. Without one they are the training images again: fresh
    crops for another seed, but not unseen images. Blue Marble's are chips of its held-out box, land that training never
    sees.

    Raises:
      BadInput: there is no such folder, dataset or split, or it can't be used.
    """
    if config.gsd_m is not None and not config.gsd_m > 0:
        raise BadInput(f'data.gsd_m is {config.gsd_m}; it must be a positive number of metres')
    if config.source == 'blue_marble':
        return BlueMarble(validation)
    split = (config.validation_split if validation else None) or config.split
    if config.source.startswith(TFDS_PREFIX):
        name = config.source.removeprefix(TFDS_PREFIX)
        images = RecordImages(named_dataset(name, config.tfds_data_dir), split or 'train', config.gsd_m)
    elif folder := prepared_folder(config.source):
        images = RecordImages(prepared_dataset(folder), split or 'train', config.gsd_m)
    else:
        images = FolderImages(config.source, split, config.gsd_m, config.bands, config.value_range)
    return Crops(images, config.reductions)


def batches(source: Source, config: DataConfig, seed: int, batch_size: int, start: int = 0,
            mine: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Batches `start`, start + 1, … without end, decoded ahead in threads.

    Args:
      batch_size: over all hosts.
      mine: the rows of each batch that this host reads, of 0 … batch_size - 1; by default all of them.
    Yields:
      image: uint8 (rows, size_px, size_px, 3); gsd_m: float32 (rows,).
    """
    mine = range(batch_size) if mine is None else mine
    rows = _indices(source, seed).random_map(lambda index, rng: source.example(int(index), rng, config.size_px))
    local = grain.MapDataset.range(sys.maxsize // batch_size * len(mine)).map(
        lambda k: rows[k // len(mine) * batch_size + mine[k % len(mine)]])
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=4 * config.threads)
    return iter(local.batch(len(mine))[start:].to_iter_dataset(options))


def batch_indices(source: Source, seed: int, batch_size: int, n: int) -> list[int]:
    """The indices of `source` that global batch `n` asks for, in its order; nothing is read.

    An image that can't be used is replaced by a later one, and this tells the one that was asked for.
    """
    indices = _indices(source, seed)
    return [int(indices[row]) for row in range(n * batch_size, (n + 1) * batch_size)]


def _indices(source: Source, seed: int) -> grain.MapDataset:
    """Row → index of the source: every epoch in an order of its own, without end."""
    return grain.MapDataset.range(len(source)).seed(short_seed(seed)).shuffle().repeat(None)
