"""Cuts images of any size into chips on a regular grid, at several resolutions, and drops useless chips.

Two passes, each with one image open and one window in memory: `look` reads every window and lists the good ones,
`choose` selects a subset of them, and `examples` reads these again.
"""

import collections
import dataclasses
import hashlib
import io
import logging
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import numpy as np
from PIL import Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.crops import FolderImages
from rsdiff.data.images import box_downscale


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a useful chip: shares of its pixels, grey levels, and the mean standard deviation of its channels."""

    max_nodata: float = 0.0
    max_black: float = 0.5
    black_level: int = 16
    max_white: float = 0.5
    white_level: int = 235
    min_std: float = 1.5


class Chip(NamedTuple):
    """A window of image `number`, reduced by the mean over blocks; `box` in pixels of that image."""

    number: int
    reduction: int
    box: Box


class Survey:
    """What `look` excluded: windows dropped by reason, images too small by reduction, names of unreadable images."""

    def __init__(self):
        self.dropped: collections.Counter[str] = collections.Counter()
        self.too_small: collections.Counter[int] = collections.Counter()
        self.unreadable: list[str] = []
        self.seen: set[bytes] = set()


def grid(height: int, width: int, side: int, stride: int) -> list[Box]:
    """Squares of `side` pixels every `stride` pixels, all inside; a remainder at the far edges is not covered."""
    return [
        Box(y, x, y + side, x + side)
        for y in range(0, height - side + 1, stride)
        for x in range(0, width - side + 1, stride)
    ]


def flaw(chip: np.ndarray, limits: Limits) -> str | None:
    """Why a uint8 (h, w, 3) chip is useless: 'black' (fill, shadow, deep water), 'white' (cloud, snow, saturation) or
    'constant'; None if it is useful."""
    if (chip.max(-1) <= limits.black_level).mean() > limits.max_black:
        return 'black'
    if (chip.min(-1) >= limits.white_level).mean() > limits.max_white:
        return 'white'
    if chip.std((0, 1)).mean() < limits.min_std:
        return 'constant'
    return None


def look(
    images: FolderImages,
    size_px: int,
    stride_px: int,
    reductions: tuple[int, ...],
    limits: Limits,
    survey: Survey,
    progress: Callable[[float], object],
) -> list[Chip]:
    """The good chips of `images`, in order of image, reduction and position; `survey` counts the others.

    Args:
      size_px, stride_px: of the chips; a window is `reduction` times as large.
      progress: is called with the fraction of an image done since the last call.
    """
    chips = []
    for number in range(len(images)):
        try:
            scene, _ = images.open(number)
            with scene:
                chips += _look_at(number, scene, size_px, stride_px, reductions, limits, survey, progress)
        except BadInput as error:
            logging.warning('left out: %s', error)
            survey.unreadable.append(images.name(number))
    return chips


def _look_at(number, scene, size_px, stride_px, reductions, limits, survey, progress) -> list[Chip]:
    windows = []
    for reduction in reductions:
        boxes = grid(scene.height, scene.width, reduction * size_px, reduction * stride_px)
        survey.too_small[reduction] += not boxes
        windows += [Chip(number, reduction, box) for box in boxes]
    good, digests, reasons = [], set(), collections.Counter()
    for window in windows:
        reason, digest = None, b''
        if scene.nodata(window.box) > limits.max_nodata:
            reason = 'nodata'
        else:
            pixels = box_downscale(scene.read(window.box), window.reduction)
            reason = flaw(pixels, limits)
            digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            if not reason and (digest in survey.seen or digest in digests):
                reason = 'duplicate'
        if reason:
            reasons[reason] += 1
        else:
            good.append(window)
            digests.add(digest)
        progress(1 / len(windows))
    # only now, so that nothing is kept of an image that can't be read to its end
    survey.seen |= digests
    survey.dropped += reasons
    if not windows:
        progress(1)
    return good


def choose(chips: list[Chip], most: int | None) -> list[Chip]:
    """At most `most` of `chips`: equal numbers per reduction if there are enough, evenly spread over the list."""
    if most is None or len(chips) <= most:
        return chips
    groups = collections.defaultdict(list)
    for chip in chips:
        groups[chip.reduction].append(chip)
    chosen, left = [], most
    # smallest group first, so that the larger ones share the rest
    for rank, group in enumerate(sorted(groups.values(), key=len)):
        count = min(len(group), left // (len(groups) - rank))
        chosen += [group[i * len(group) // count] for i in range(count)]
        left -= count
    return sorted(chosen)


def examples(
    images: FolderImages,
    source: str,
    key: str,
    chips: Iterable[Chip],
    encoding: str,
    progress: Callable[[float], object],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, example) of each of `chips`, in image order, for `rsdiff.data.records.write_chips`.

    Args:
      source: the name of the source, stored in each example.
      key: the prefix of every key, unique to the source.
      encoding: 'png', or 'jpeg' at quality 95.
    """
    by_image = collections.defaultdict(list)
    for chip in chips:
        by_image[chip.number].append(chip)
    for number, windows in by_image.items():
        entry = images.entries[number]
        scene, gsd_m = images.open(number)
        with scene:
            for _, reduction, box in windows:
                pixels = box_downscale(scene.read(box), reduction)
                yield (
                    f'{key}/{number}/{reduction}/{box.y0}/{box.x0}',
                    {
                        'image': encode(pixels, encoding),
                        'gsd_m': reduction * gsd_m,
                        'label': entry.label or '',
                        'captions': list(entry.captions),
                        'source': source,
                        'file_name': entry.file_name,
                        'box': tuple(box),
                    },
                )
                progress(1)


def encode(pixels: np.ndarray, encoding: str) -> bytes:
    """The bytes of a PNG, or of a JPEG at quality 95 with full colour resolution."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, encoding, quality=95, subsampling=0)
    return file.getvalue()
