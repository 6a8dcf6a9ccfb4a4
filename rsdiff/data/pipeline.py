"""Batches for training: batch n is a pure function of (seed, n), whatever the number of hosts or threads.

A *source* has a length and `example(index, rng, size_px) -> {'image', 'gsd_m'}`. grain's `MapDataset` turns it into a
random-access sequence of rows, row n · batch_size + i being the i-th of batch n, so that a run continues at any step
with nothing to restore but the step itself. Host h of H reads the h-th of H equal runs of a batch's rows, which is where
`jax.make_array_from_process_local_data` puts them: the hosts' rows one after another are the batch of one host.
"""

import dataclasses
import logging
import sys
from typing import Iterator, Protocol

import grain
import numpy as np

from rsdiff.data.blue_marble import BlueMarble
from rsdiff.data.folder import read_folder
from rsdiff.data.images import box_downscale, read_image
from rsdiff.errors import BadInput


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """`source` is 'blue_marble' or the path of an image folder. `gsd_m` serves images whose manifest has none. Crops of a
    folder are reduced by one of `reductions`, which teaches the resolutions that a cascade passes through: (1, 4, 16)."""

    source: str = 'blue_marble'
    split: str | None = None
    validation_split: str | None = None
    size_px: int = 64
    gsd_m: float | None = None
    reductions: tuple[int, ...] = (1,)
    threads: int = 4


class Source(Protocol):
    """Where examples come from. `skipped` holds the names of images that could not be used so far."""

    skipped: set[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file of image `index`, or a description."""

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray]:
        """image: uint8 (size_px, size_px, 3); gsd_m: float32 metres a pixel."""


class FolderSource:
    """Random crops of a folder's images, reduced by one of `reductions`, of those that the image is large enough for.

    An image that can't be read, or is smaller than a crop, is named once in the log, counted in `skipped`, and replaced
    by the next that can be used, so the sequence stays a function of the seed.
    """

    def __init__(self, folder: str, split: str | None, gsd_m: float | None, reductions: tuple[int, ...]):
        self.entries = read_folder(folder, split)
        self.default_gsd_m = gsd_m
        self.reductions = reductions
        self.skipped: set[str] = set()
        if gsd_m is None and (missing := [e.file_name for e in self.entries if e.gsd_m is None]):
            raise BadInput(f'{folder}: {len(missing)} images have no gsd_m ({missing[0]}, …); give --config.data.gsd_m')

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The path of image `index`."""
        return str(self.entries[index].path)

    def example(self, index: int, rng: np.random.Generator, size_px: int) -> dict[str, np.ndarray]:
        """A crop of image `index`, or of the next one that can be used.

        Raises:
          BadInput: no image of the folder can be used.
        """
        for offset in range(len(self)):
            entry = self.entries[(index + offset) % len(self)]
            if str(entry.path) in self.skipped:
                continue
            try:
                return self._crop(entry, rng, size_px)
            except BadInput as error:
                self.skipped.add(str(entry.path))
                logging.warning('skipped: %s', error)
        raise BadInput(f'{self.entries[0].path.parent}: none of {len(self)} images can be read at {size_px} px')

    def _crop(self, entry, rng, size_px):
        image = read_image(entry.path)
        fitting = [factor for factor in self.reductions if factor * size_px <= min(image.shape[:2])]
        if not fitting:
            raise BadInput(f'{entry.path}: {image.shape[1]}×{image.shape[0]} is smaller than the {size_px} px crop')
        factor = int(rng.choice(fitting))
        y, x = (int(rng.integers(n - factor * size_px + 1)) for n in image.shape[:2])
        crop = box_downscale(image[y : y + factor * size_px, x : x + factor * size_px], factor)
        # The eight symmetries of the square: nadir imagery has no preferred direction.
        crop = np.rot90(crop, rng.integers(4))
        crop = crop[:, ::-1] if rng.integers(2) else crop
        return {'image': np.ascontiguousarray(crop), 'gsd_m': np.float32(factor * (entry.gsd_m or self.default_gsd_m))}


def make_source(config: DataConfig, validation: bool = False) -> Source:
    """The source that `config` names, or its companion for validation.

    Validation images are those of `config.validation_split`. Without one they are the training images again: crops that no
    batch has shown, but not unseen images. Blue Marble's are chips of its held-out box, land that training never sees.

    Raises:
      BadInput: it is neither 'blue_marble' nor a usable folder.
    """
    if config.gsd_m is not None and not config.gsd_m > 0:
        raise BadInput(f'data.gsd_m is {config.gsd_m}; it must be a positive number of metres')
    if config.source == 'blue_marble':
        return BlueMarble(validation)
    split = (config.validation_split if validation else None) or config.split
    return FolderSource(config.source, split, config.gsd_m, config.reductions)


def batches(source: Source, config: DataConfig, seed: int, batch_size: int, start: int = 0, host: int = 0,
            hosts: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """This host's rows of batches `start`, start + 1, … without end, decoded ahead in threads.

    Args:
      batch_size: over all hosts; a multiple of `hosts`.
    Yields:
      image: uint8 (batch_size / hosts, size_px, size_px, 3); gsd_m: float32 (batch_size / hosts,): the global batch's
      rows from host · batch_size / hosts on.
    """
    if batch_size % hosts:
        raise BadInput(f'config.batch_size {batch_size} is not a multiple of {hosts} hosts')
    share = batch_size // hosts
    rows = _indices(source, seed).random_map(lambda index, rng: source.example(int(index), rng, config.size_px))
    mine = grain.MapDataset.range(sys.maxsize // batch_size * share).map(
        lambda k: rows[k // share * batch_size + host * share + k % share])
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=4 * config.threads)
    return iter(mine.batch(share)[start:].to_iter_dataset(options))


def batch_indices(source: Source, seed: int, batch_size: int, n: int) -> list[int]:
    """The indices of `source` that global batch `n` asks for, in its order; nothing is read.

    An image that can't be used is replaced by a later one, and this tells the one that was asked for.
    """
    indices = _indices(source, seed)
    return [int(indices[row]) for row in range(n * batch_size, (n + 1) * batch_size)]


def _indices(source: Source, seed: int) -> grain.MapDataset:
    """Row → index of the source: every epoch in an order of its own, without end."""
    return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
