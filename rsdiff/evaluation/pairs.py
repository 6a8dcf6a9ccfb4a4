"""Pairs for the evaluation: truths with their conditions, and generated images with the truths they are compared with.

A truth is cropped at the bottom and right to whole condition pixels, so that all images of a pair match in size.
"""

import dataclasses
import logging
from pathlib import Path, PurePosixPath
from typing import Callable, Sequence

import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.folder import Entry, file_inside, read_folder
from rsdiff.data.images import bicubic, image_size, read_image


@dataclasses.dataclass(frozen=True)
class Pair:
    """A truth and its condition, the `UPSCALE` times coarser input of a generator. `bands` and `value_range` define how
    raster files are converted to RGB (`rsdiff.data.scenes.open_scene`)."""

    truth: Entry
    condition: AnyPath
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None

    def read_truth(self) -> np.ndarray:
        """uint8 (h, w, 3), where h and w are multiples of `UPSCALE`."""
        return cut(read_image(self.truth.path, self.bands, self.value_range))

    def size(self) -> tuple[int, int]:
        """Height and width of the cropped truth; no pixels are decoded.

        Raises:
          BadInput: the image can't be read, or nothing is left.
        """
        return cut_size(self.truth.path)

    def read_condition(self) -> np.ndarray:
        """uint8 (h / UPSCALE, w / UPSCALE, 3).

        Raises:
          BadInput: the condition has another size.
        """
        condition, size = read_image(self.condition), self.size()
        if tuple(UPSCALE * side for side in condition.shape[:2]) != size:
            raise BadInput(
                f'{self.condition}: {condition.shape[1]}×{condition.shape[0]} px; {self.truth.path} has '
                f'{size[1]}×{size[0]}, and the condition must be {UPSCALE} times smaller'
            )
        return condition


def cut(image: np.ndarray) -> np.ndarray:
    """`image`, cropped at the bottom and right to multiples of `UPSCALE`."""
    height, width = (side // UPSCALE * UPSCALE for side in image.shape[:2])
    return image[:height, :width]


def cut_size(path: AnyPath) -> tuple[int, int]:
    """Height and width of the image at `path` after `cut`; no pixels are decoded.

    Raises:
      BadInput: the image can't be read, or nothing is left.
    """
    whole = image_size(path)
    height, width = (side // UPSCALE * UPSCALE for side in whole)
    if not height or not width:
        raise BadInput(f'{path}: {whole[1]}×{whole[0]} px; at least {UPSCALE} px per side are needed')
    return height, width


def sensor_condition(folder: AnyPath, truth: Entry) -> AnyPath | None:
    """The real low-resolution image of `truth`, its `low_res_file_name` in the manifest; None if there is none.

    Raises:
      BadInput: it is not a file in the folder.
    """
    name = truth.extra.get('low_res_file_name')
    if name is None:
        return None
    if not isinstance(name, str):
        raise BadInput(f'{folder}: low_res_file_name of {truth.file_name} is {name!r}; it must be a file name')
    return file_inside(folder, name, f'{folder}: {truth.file_name}')


def match(folder: Path, truths: Sequence[Entry]) -> list[Entry]:
    """The generated image in `folder` for each truth.

    An image belongs to the truth that its manifest names as `source`, or else to the truth of the same name; suffixes
    are ignored. If there are several variants, the first is used.

    Raises:
      BadInput: a truth has no image; the message names the first few.
    """
    made = {}
    for entry in read_folder(folder):
        made.setdefault(_stem(str(entry.extra.get('source', entry.file_name))), entry)
    missing = [truth.file_name for truth in truths if _stem(truth.file_name) not in made]
    if missing:
        raise BadInput(
            f'{folder}: {len(missing)} of {len(truths)} reference images have no partner by name: '
            f'{", ".join(missing[:5])}{", …" if len(missing) > 5 else ""}; add the missing images, or '
            'compare the two as sets with --unpaired'
        )
    if len(made) > len(truths):
        logging.warning('%s: %d images without a reference are left out', folder, len(made) - len(truths))
    return [made[_stem(truth.file_name)] for truth in truths]


def read_made(entry: Entry, pair: Pair) -> np.ndarray:
    """The generated image, uint8, in the size of the pair's truth; an image of the uncropped truth's size is cropped.

    Raises:
      BadInput: the image has another size.
    """
    image, size = cut(read_image(entry.path, pair.bands, pair.value_range)), pair.size()
    if image.shape[:2] != size:
        raise BadInput(f'{entry.path}: {image.shape[1]}×{image.shape[0]} px; {pair.truth.path} has {size[1]}×{size[0]}')
    return image


def enlarged(pair: Pair) -> np.ndarray:
    """The condition enlarged by Pillow's bicubic interpolation, uint8 (h, w, 3)."""
    condition = pair.read_condition()
    return bicubic(condition, *(UPSCALE * side for side in condition.shape[:2]))


def repeated(pair: Pair) -> np.ndarray:
    """The condition enlarged by repeating pixels (nearest neighbour), uint8 (h, w, 3)."""
    return pair.read_condition().repeat(UPSCALE, 0).repeat(UPSCALE, 1)


# Reads the image of one row of the table for a pair.
Reader = Callable[[Pair], np.ndarray]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(''))
