"""Fields: inputs of a network besides an image and its resolution, read from the files and numbers of the image's row.

A crop covers the same ground in the image and in every file of its row. A file may be finer or coarser than the image by
an integer factor; a crop then begins where a pixel of the coarsest file begins. The crops are reduced to the scale that
the network takes, images by the mean, masks by taking one pixel of each block: the mean of class indices is another class.

A field that the network needs is uint8 in a batch. An optional field is float32 in [-1, 1], NaN in the rows that lack it,
and absent from the batch if every row lacks it. A number is float32, NaN where it is unknown. A field that can be made
from the image instead, `lr`, is read if the rows have files of it, uint8, else absent; then all rows have one, or none.

A stack is several images of one place, of which a row may have any number: one image with the channels of one after the
other, float32, NaN where there is none. Black images, and those with nodata in the crop, are left out. If a row has more
than the network takes, the first ones are used, so a manifest lists the best ones first.
"""

import contextlib
import dataclasses
import hashlib
import logging
import threading
from fractions import Fraction
from typing import Sequence

import numpy as np
from etils import epath

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath, stamp
from rsdiff.data.folder import Entry, as_number, file_key, stack_key
from rsdiff.data.images import box_downscale, to_float
from rsdiff.data.scenes import Scene, open_scene

OF_EVERY_CROP = 'image', 'gsd_m'
# height of the windows in which a file is searched for a pixel that is not black
ROWS = 512


@dataclasses.dataclass(frozen=True)
class Field:
    """A number, or with `channels` (1 or 3) an image of the crop's area whose side is 1/`scale` of the crop's. `needed`:
    the network requires it. `made`: where no row has one, it is made from the image; where rows do, it pairs two sensors,
    so its files must have exactly that scale. `frames` above 1: a stack of at most that many images."""

    name: str
    channels: int = 0
    scale: int = 1
    needed: bool = True
    made: bool = False
    frames: int = 1

    @property
    def is_stack(self) -> bool:
        """Whether it is a stack of images."""
        return self.frames > 1

    @property
    def is_mask(self) -> bool:
        """Whether its values are class indices, which must not be averaged."""
        return self.name == 'mask' or self.name.endswith('_mask')

    @property
    def key(self) -> str:
        """The key of the field in manifest rows."""
        if not self.channels:
            return self.name
        return stack_key(self.name) if self.is_stack else file_key(self.name)

    @property
    def dtype(self) -> type:
        """The dtype of its array in a batch."""
        return np.uint8 if self.channels and (self.needed or self.made) and not self.is_stack else np.float32

    def shape(self, size_px: int) -> tuple[int, ...]:
        """The shape of its array in a crop of `size_px`, a multiple of `scale`."""
        side = size_px // self.scale
        return (side, side, self.frames * self.channels) if self.channels else ()

    def files(self, entry: Entry) -> tuple[AnyPath, ...]:
        """The row's files of this field."""
        if self.is_stack:
            return entry.stacks.get(self.name, ())
        return (entry.files[self.name],) if self.channels and self.name in entry.files else ()

    def is_of(self, entry: Entry) -> bool:
        """Whether the row has this field, as files or a number."""
        return bool(self.files(entry)) if self.channels else self.name in entry.numbers

    def digest(self, files: Sequence[epath.PathLike]) -> str:
        """SHA-256 of the field's file; of a stack, the SHA-256 of those of its files, joined by '/'."""
        found = [stamp(path).sha256 for path in files]
        return hashlib.sha256('/'.join(found).encode()).hexdigest() if self.is_stack else found[0]

    def open(
        self, path: epath.PathLike, bands: tuple[int, ...] | None = None, value_range: tuple[float, float] | None = None
    ) -> Scene:
        """Opens a file of the field. `bands` and `value_range` are as in `open_scene`; they do not apply to masks, and the
        values of a mask with a palette are not turned into colours.

        Raises:
          BadInput: as `open_scene`.
        """
        options = (None, None) if self.is_mask else (bands, value_range)
        return open_scene(path, *options, palette=not self.is_mask)

    def of_channels(self, pixels: np.ndarray, name: epath.PathLike) -> np.ndarray:
        """The pixels (h, w, 3) that a scene reads, reduced to the field's channels: (h, w, channels).

        Raises:
          BadInput: the pixels are in colour where one channel is expected; the message begins with `name`.
        """
        if self.channels != 1:
            return pixels
        if (pixels != pixels[..., :1]).any():
            raise BadInput(f'{name}: it has colours, 3 channels; the field {self.name} has one channel')
        return pixels[..., :1]

    def to_float(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (h, w, ·) as float32 in [-1, 1]; a stack is filled up with NaN to all its images."""
        missing = max(self.frames * self.channels - pixels.shape[-1], 0)
        return np.pad(to_float(pixels), ((0, 0), (0, 0), (0, missing)), constant_values=np.nan)


IMAGE = Field('image', 3)


class Layer:
    """The opened file of a field, or the files of a stack, addressed in pixels of an image that covers the same ground.

    Args:
      scenes: the opened files by name; those of a stack are equal in size.
      size: height and width of that image.
    Raises:
      BadInput: neither of the sizes of file and image is an integer multiple of the other, or a pair has not the field's
        scale. A remainder at the far edges of the image, too small for one more pixel of the file, is ignored.
    """

    def __init__(self, field: Field, scenes: dict[str, Scene], size: tuple[int, int]):
        self.field, self.scenes = field, scenes
        (self.name, first), *others = scenes.items()
        own = first.height, first.width
        for name, scene in others:
            if (scene.height, scene.width) != own:
                raise BadInput(
                    f'{name}: {scene.width}×{scene.height} px; {self.name} of the same row has {own[1]}×{own[0]}, and all '
                    f'files of {field.key} must have one size'
                )
        larger, smaller = max(own, size), min(own, size)
        times = larger[0] // max(smaller[0], 1)
        # file pixels per image pixel
        self.ratio = Fraction(times) if own >= size else Fraction(1, max(times, 1))
        if own != tuple(int(side * self.ratio) for side in size):
            raise BadInput(
                f'{self.name}: {own[1]}×{own[0]} px; its image has {size[1]}×{size[0]}; one must be a multiple of the other'
            )
        if field.made and self.ratio * field.scale != 1:
            raise BadInput(
                f'{self.name}: {own[1]}×{own[0]} px; its image has {size[1]}×{size[0]}; the network takes {field.name} '
                f'{field.scale} times smaller'
            )
        self.height, self.width = (int(side / self.ratio) for side in own)

    def reduction(self, factor: int) -> Fraction:
        """The reduction of this file when the image is reduced by `factor`; below 1, the file is too coarse."""
        return factor * self.field.scale * self.ratio

    def nodata(self, box: Box) -> float:
        """The share of nodata in `box`, which is in pixels of the image; 0 for masks, where every value is valid. Of a stack,
        the least share of its images."""
        return min(self._nodata(scene, self._own(box)) for scene in self.scenes.values())

    def read(self, box: Box, factor: int) -> np.ndarray:
        """The reduced pixels of `box`, uint8 (h, w, channels); of a stack, those of its images without nodata there. `box`
        is in pixels of the image; its side is a multiple of `factor` and the scale.

        Raises:
          BadInput: as `pixels`.
        """
        return self._reduced(self.pixels(box), factor)

    def read_padded(self, size: tuple[int, int], factor: int) -> np.ndarray:
        """The complete file, mirrored at its far edges to cover an image of `size`, then reduced as by `read`.

        Raises:
          BadInput: as `pixels`; or the file is too coarse for the field.
        """
        if self.reduction(factor).denominator != 1:
            raise self.too_coarse()
        pixels = self.pixels(Box(0, 0, self.height, self.width))
        missing = [int(side * self.ratio) - own for side, own in zip(size, pixels.shape)]
        return self._reduced(np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), 'reflect'), factor)

    def pixels(self, box: Box) -> np.ndarray:
        """The file's own pixels in `box`, which is in pixels of the image: uint8 (h, w, channels); of a stack, those of its
        images without nodata there.

        Raises:
          BadInput: the file can't be read, or is in colour where one channel is expected.
        """
        own, scenes = self._own(box), self.scenes
        if self.field.is_stack:
            scenes = {name: scene for name, scene in scenes.items() if not self._nodata(scene, own)}
        read = [self.field.of_channels(scene.read(own), name) for name, scene in scenes.items()]
        return np.concatenate(read, axis=-1) if read else np.empty((own.y1 - own.y0, own.x1 - own.x0, 0), np.uint8)

    def too_coarse(self) -> BadInput:
        """The error for a file that is coarser than the network takes the field."""
        return BadInput(
            f'{self.name}: {1 / self.ratio} times coarser than its image, too coarse for the field {self.field.name} of '
            f'scale {self.field.scale}'
        )

    def _reduced(self, pixels: np.ndarray, factor: int) -> np.ndarray:
        block = int(self.reduction(factor))
        if block == 1:
            return pixels
        return pixels[block // 2 :: block, block // 2 :: block] if self.field.is_mask else box_downscale(pixels, block)

    def _nodata(self, scene: Scene, own: Box) -> float:
        return 0.0 if self.field.is_mask else scene.nodata(own)

    def _own(self, box: Box) -> Box:
        return Box(*(int(edge * self.ratio) for edge in box))


class Fields:
    """Those of the `wanted` fields that at least one of `entries` has. `bands` and `value_range` are as in `open_scene`,
    for all files except masks.

    Args:
      where: the folder of the entries, for messages.
    Raises:
      BadInput: a needed field is missing in a row, or one that can be made in some rows; a number is not numeric; or a
        field has neither 1 nor 3 channels.

    Attributes:
      skipped: the names of black images of stacks found so far.
    """

    def __init__(
        self,
        wanted: Sequence[Field] = (),
        entries: Sequence[Entry] = (),
        where: str = '',
        bands: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        self.entries, self.bands, self.value_range = entries, bands, value_range
        self.present = tuple(field for field in wanted if _is_present(field, entries, where))
        self.skipped: set[str] = set()
        self._usable: set[str] = set()
        self.lock = threading.Lock()

    def open(self, number: int, size: tuple[int, int], opened: contextlib.ExitStack) -> list[Layer]:
        """Opens the files of entry `number`, whose image has `size` (height, width); `opened` closes them.

        Raises:
          BadInput: a file can't be opened, or does not fit the image; or a needed stack has only black images.
        """
        layers = []
        for field in self.present:
            scenes, entry = {}, self.entries[number]
            for path in field.files(entry):
                if len(scenes) < field.frames and str(path) not in self.skipped:
                    scene = opened.enter_context(field.open(path, self.bands, self.value_range))
                    if not field.is_stack or field.is_mask or self._is_usable(str(path), scene):
                        scenes[str(path)] = scene
            if scenes:
                layers.append(Layer(field, scenes, size))
            elif field.is_stack and field.needed:
                raise BadInput(
                    f'{entry.path}: all {len(field.files(entry))} images of its {field.key} are black, but the network '
                    f'needs {field.name}; remove the row'
                )
        return layers

    def _is_usable(self, name: str, scene: Scene) -> bool:
        """Whether an image of a stack is not black. Each is searched once; black ones are logged."""
        if name not in self._usable and name not in self.skipped:
            black = is_black(scene)
            with self.lock:
                if black and name not in self.skipped:
                    logging.warning('skipped: %s: all black', name)
                (self.skipped if black else self._usable).add(name)
        return name in self._usable

    def read_padded(
        self, number: int, size: tuple[int, int], padded: tuple[int, int], factors: Sequence[int]
    ) -> list[dict[str, np.ndarray]]:
        """The fields of entry `number` for a complete image, when that is reduced by each of `factors`: by name float32
        images (h, w, channels) in [-1, 1] and numbers (), NaN for what the row lacks.

        Args:
          size, padded: height and width of the image, and after mirror padding: multiples of the factors and scales.
        Raises:
          BadInput: as `open`; or a file can't be read, is too coarse, or is in colour where one channel is expected.
        """
        entry, found = self.entries[number], [{} for _ in factors]
        with contextlib.ExitStack() as opened:
            layers = {layer.field.name: layer for layer in self.open(number, size, opened)}
            for field in self.present:
                for values, factor in zip(found, factors):
                    if field.name in layers:
                        values[field.name] = field.to_float(layers[field.name].read_padded(padded, factor))
                    elif field.channels:
                        shape = [side // factor // field.scale for side in padded]
                        values[field.name] = np.full((*shape, field.frames * field.channels), np.nan, np.float32)
                    else:
                        values[field.name] = np.float32(entry.numbers.get(field.name, np.nan))
        return found

    def complete(self, number: int, cut: dict[str, np.ndarray], size_px: int) -> dict[str, np.ndarray]:
        """The fields of entry `number` for a batch: the crops `cut` from its files, its numbers, and NaN for others."""
        found = {}
        for field in self.present:
            if field.name in cut:
                found[field.name] = cut[field.name] if field.dtype == np.uint8 else field.to_float(cut[field.name])
            elif not field.channels and field.is_of(self.entries[number]):
                found[field.name] = np.asarray(self.entries[number].numbers[field.name], np.float32)
            else:
                found[field.name] = np.full(field.shape(size_px), np.nan, np.float32)
        return found


def is_black(scene: Scene) -> bool:
    """Whether no pixel of the image is both valid and brighter than 0 in any channel. Raises BadInput if it can't be read."""
    boxes = (Box(y, 0, min(y + ROWS, scene.height), scene.width) for y in range(0, scene.height, ROWS))
    return not any((scene.read(box).any(-1) & scene.valid(box)).any() for box in boxes)


def check_none_needed(wanted: Sequence[Field], where: str) -> None:
    """Raises BadInput if a field is needed; for data that have only images and gsd_m."""
    if needed := [field for field in wanted if field.needed]:
        names = ', '.join(field.name for field in needed)
        raise BadInput(
            f'{where}: has only image and gsd_m, but the network needs {names}; train on a folder with '
            f'{", ".join(field.key for field in needed)} in its manifest'
        )


def check_all_or_none(field: Field, entries: Sequence[Entry], where: str) -> None:
    """Raises BadInput if some of the entries have the field and others lack it."""
    having = [entry.file_name for entry in entries if field.is_of(entry)]
    lacking = [entry.file_name for entry in entries if not field.is_of(entry)]
    if having and lacking:
        raise BadInput(
            f'{where}: {having[0]} has a {field.key}, but {len(lacking)} of {len(entries)} images have none '
            f'({lacking[0]}, …); give one to all that are trained or validated on, or to none'
        )


def check_reference(made: Field, wanted: Sequence[Field], entries: Sequence[Entry], where: str) -> None:
    """Raises BadInput if an entry has a stack, but no file of `made`: that is one of its images, and can't be made."""
    for field in wanted:
        for entry in entries:
            if field.is_stack and field.is_of(entry) and not made.is_of(entry):
                raise BadInput(
                    f'{where}: {entry.file_name} has {field.key}, but no {made.key}; name the one of them that shows the '
                    'image best'
                )


def _is_present(field: Field, entries: Sequence[Entry], where: str) -> bool:
    having = [entry for entry in entries if field.is_of(entry)]
    lacking = [entry for entry in entries if not field.is_of(entry)]
    if field.name in OF_EVERY_CROP:
        raise BadInput(f'{field.name} is part of every crop; give the field another name')
    if not field.channels:
        for entry in lacking:
            value = entry.extra.get(field.name)
            if value is not None and as_number(value) is None:
                raise BadInput(
                    f'{where}: {field.name} of {entry.file_name} is {str(value)[:40]!r}; it must be a number'
                )
    if having and field.channels not in (0, 1, 3):
        raise BadInput(f'{where}: the field {field.name} has {field.channels} channels; {field.key} is read as 1 or 3')
    if field.needed and lacking:
        example = f'{having[0].file_name} has one' if having else 'no row has one'
        raise BadInput(
            f'{where}: the manifest has no {field.key} for {len(lacking)} of {len(entries)} images '
            f'({lacking[0].file_name}, …), but the network needs {field.name}; {example}'
        )
    if field.made:
        check_all_or_none(field, entries, where)
    return bool(having)
