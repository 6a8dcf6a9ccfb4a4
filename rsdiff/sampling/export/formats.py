"""Exports a finished mosaic: PNGs, Cloud-Optimised GeoTIFFs, a web page to pan and zoom.

The Zarr array is the mosaic; exports are derived from it window by window and can be deleted. Each file is written under a
temporary name and renamed, and recorded with its digest (`exports`): intact files are kept, all others are written again.
Where the condition had void, PNGs and tiles are transparent and GeoTIFFs masked.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.base.files import field, read_json
from rsdiff.base.folders import SETTINGS
from rsdiff.base.work import Claims, share_out
from rsdiff.data.degradation import UPSCALE
from rsdiff.data.images import write_image
from rsdiff.sampling.export.cog import need_rasterio, write_cog
from rsdiff.sampling.export.record import is_exported, note_export
from rsdiff.sampling.export.viewer import LARGEST_VIEWER, Layer, count_tiles, write_viewer
from rsdiff.sampling.mosaic.store import GROUP, METADATA, StageArray, open_stage
from rsdiff.sampling.mosaic.void import with_alpha

FORMATS = 'zarr', 'png', 'tif', 'viewer'
# Larger PNGs, in pixels, are of no practical use.
LARGEST_PNG = 100_000_000


def _zoom(upscale: int) -> int:
    """The number of viewer zoom levels, each twice as fine, between one stage and the next."""
    return upscale.bit_length() - 1


def check_formats(
    formats: Sequence[str] | None, condition_shape: Sequence[int], stages: int, upscale: int = UPSCALE
) -> None:
    """Raises BadInput if `export` cannot write `formats` for a mosaic of this size, or on this machine."""
    height, width = (upscale**stages * side for side in condition_shape[:2])
    for name in formats or ():
        if name not in FORMATS:
            raise BadInput(f'format {name!r} is not one of {", ".join(FORMATS)}')
    if 'png' in (formats or ()) and height * width > LARGEST_PNG:
        raise BadInput(
            f'{width}×{height} px are too many for a PNG, which is read as a whole; use tif, or --region for '
            f'{LARGEST_PNG:,} px at most'
        )
    if 'tif' in (formats or ()):
        need_rasterio()
    if 'viewer' in (formats or ()):
        tiles = sum(count_tiles(condition_shape, _zoom(upscale) * stage) for stage in range(stages + 1))
        if tiles > LARGEST_VIEWER:
            raise BadInput(
                f'a viewer of {width}×{height} px would be {tiles:,} files, more than {LARGEST_VIEWER:,}; use '
                'tif, a single file with overviews, or a part with --region'
            )


def export(out: Path, formats: Sequence[str] | None = None, condition: Any = None, show: bool = True) -> list[str]:
    """Exports the stages of the finished mosaic in `out`. Existing exports are kept; any number of processes may do this
    concurrently.

    Args:
      formats: 'png' → stage_<n>.png; 'tif' → stage_<n>.tif; 'viewer' → viewer/index.html; 'zarr' exists already. None:
        png if the mosaic is small enough.
      condition: the image that the mosaic was made from, uint8, with a (height, width, 3) `shape` and slices, shown in the
        viewer beneath the stages.
    Returns:
      The paths of all requested exports.
    Raises:
      BadInput: `out` holds no mosaic or an unfinished one; or as `check_formats`.
    """
    out = Path(out)
    settings, stages = open_finished(out)
    check_formats(formats, settings['condition_px'], settings['stages'], settings.get('upscale', UPSCALE))
    if formats is None:
        formats = ['png'] if stages[-1].height * stages[-1].width <= LARGEST_PNG else []
    jobs: dict[Path, Callable[[], list[Path]]] = {}
    for number, stage in enumerate(stages, 1):
        png, tif = out / f'stage_{number}.png', out / f'stage_{number}.tif'
        if 'png' in formats:
            jobs[png] = partial(_write_png, png, stage)
        if 'tif' in formats:
            jobs[tif] = partial(write_cog, tif, stage, {'rsdiff': json.dumps(settings)}, show)
    if 'viewer' in formats:
        valid = getattr(condition, 'valid', None) if 'void' in settings else None
        layers = [] if condition is None else [Layer('condition', condition, settings['gsd_m'], 0, valid)]
        layers += [
            Layer(
                f'stage_{number}',
                stage,
                stage.attributes['gsd_m'],
                _zoom(settings.get('upscale', UPSCALE)) * number,
                valid_of(stage),
            )
            for number, stage in enumerate(stages, 1)
        ]
        jobs[out / 'viewer' / 'index.html'] = partial(
            write_viewer,
            out / 'viewer',
            out.resolve().name,
            layers,
            settings['condition_px'],
            settings['gsd_m'],
            stages[-1].attributes,
            show,
        )
    claims = Claims(out / 'claims')

    def make(path: Path) -> None:
        note_export(out, path, jobs[path]())

    done = share_out(jobs, partial(is_exported, out), make, lambda path: claims.claim(path.name))
    return sorted(str(path) for path, _ in done)


def valid_of(stage: StageArray) -> Callable[[Box], np.ndarray] | None:
    """box → whether each of its pixels is on a valid pixel of the condition, bool (height, width); None if all are."""
    if (mask := stage.mask) is None:
        return None
    return lambda box: mask[box.y0 : box.y1, box.x0 : box.x1] > 0


def open_finished(out: Path) -> tuple[dict[str, Any], list[StageArray]]:
    """The settings of the mosaic in `out` (`cascade.claim`) and its stages, each with its `mask` if the condition had void.

    Raises:
      BadInput: `out` holds no mosaic or an unfinished one, or its settings or metadata are damaged.
    """
    path = Path(out) / SETTINGS
    if not path.is_file():
        raise BadInput(f'{out} holds no mosaic; give the output folder of sample.py --tiles')
    settings = read_json(path)
    if settings.get('mode') != 'tiles':
        raise BadInput(f'{out} holds no mosaic; give the output folder of sample.py --tiles')
    stages, tile_px = (field(settings, key, int, path) for key in ('stages', 'supertile_px'))
    upscale = field(settings, 'upscale', int, path, UPSCALE)
    sides = field(settings, 'condition_px', list, path)
    if (
        not 1 <= stages <= 15
        or not 1 <= upscale <= 64
        or tile_px < 16
        or tile_px % 16
        or len(sides) != 2
        or not all(type(side) is int and 1 <= side <= 2**30 for side in sides)
    ):
        raise BadInput(
            f'{path}: {stages} stages of {sides} px in supertiles of {tile_px} px are invalid; the file is damaged'
        )
    (height, width), opened, missing, total = sides, [], 0, 0
    for number in range(1, stages + 1):
        path = out / GROUP / f'stage_{number}'
        height_px, width_px = upscale**number * height, upscale**number * width
        tiles = -(-height_px // tile_px) * -(-width_px // tile_px)
        total += tiles
        if (path / METADATA).exists():
            metadata = read_json(path / METADATA, 'run sample.py again with the same flags to rewrite it')
            attributes = field(metadata, 'attributes', dict, path / METADATA)
            field(attributes, 'gsd_m', float, path / METADATA)
            attributes.pop('mask', None)
            array = open_stage(out, number, height_px, width_px, tile_px, attributes, 'void' in settings)
            opened.append(array)
            missing += sum(not array.is_all_done(tile) for tile in array.tiles())
        else:
            missing += tiles
    if missing:
        raise BadInput(
            f'{out}: {missing:,} of {total:,} supertiles are missing; run sample.py again with the same flags'
        )
    return settings, opened


def _write_png(path: Path, stage: StageArray) -> list[Path]:
    pixels = stage.read()
    write_image(path, with_alpha(pixels, stage.mask.read() > 0) if stage.mask else pixels)
    return [path]
