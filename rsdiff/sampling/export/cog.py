"""Writes a stage as a Cloud-Optimised GeoTIFF: one tiled file with overviews, each half the size, by 2×2 averaging.

GDAL's driver can only create one as a copy: https://gdal.org/en/stable/drivers/raster/cog.html. So a plain GeoTIFF is
written first, window by window, and then copied; neither holds more of the canvas in memory than GDAL's cache. On disk,
the plain file and the copy take up to eight bytes per pixel.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import replacing
from rsdiff.data.scenes import import_rasterio
from rsdiff.sampling.mosaic.store import StageArray

# side of the windows that are copied one at a time: a multiple of the TIFF's blocks and of the array's chunks
WINDOW_PX = 1024
BYTES_A_PIXEL = 8
BLOCK_PX = 512
OPTIONS = (
    'COMPRESS=DEFLATE',
    'PREDICTOR=YES',
    f'BLOCKSIZE={BLOCK_PX}',
    'OVERVIEWS=IGNORE_EXISTING',
    'OVERVIEW_RESAMPLING=AVERAGE',
    'BIGTIFF=IF_SAFER',
    'NUM_THREADS=ALL_CPUS',
)
# in a separate process, since GDAL cannot be interrupted while it copies
COPY = """
import sys
from rasterio.shutil import copy
copy(sys.argv[1], sys.argv[2], driver='COG', **dict(option.split('=') for option in sys.argv[3:]))
"""
STALE_SECONDS = 86_400  # the process that wrote such a file has ended
DESCRIPTION = 'Generated imagery: detail finer than its condition is invented.'


def need_rasterio():
    """Returns the rasterio module. Raises BadInput if it is not installed."""
    rasterio = import_rasterio()
    if rasterio is None:
        raise BadInput("GeoTIFFs are written by rasterio; pip install 'rsdiff-jax[geo]' to get it")
    return rasterio


def write_cog(path: Path, stage: StageArray, tags: dict[str, str], show: bool = True) -> list[Path]:
    """Writes `stage` to `path` atomically: DEFLATE-compressed, georeferenced if the stage is, with an internal mask if the
    stage has one.

    Returns a list with `path` only.

    Args:
      tags: metadata tags of the file, in addition to the stage's metres per pixel (`gsd_m`).
    Raises:
      BadInput: rasterio is missing, there may not be enough disk space, or the file cannot be written.
    """
    rasterio = need_rasterio()
    need, free = BYTES_A_PIXEL * stage.height * stage.width, shutil.disk_usage(path.parent).free
    if need > free:
        raise BadInput(
            f'{path}: may take {need:,} bytes while it is made, and {free:,} are free; free some space and run the '
            'same command again'
        )
    _remove_stale(path)
    # a folder, since GDAL creates further files beside its output
    partial = Path(tempfile.mkdtemp('.partial', f'.{path.name}.', path.parent))
    try:
        _write_plain(
            rasterio,
            partial / 'plain.tif',
            stage,
            tags,
            tqdm(
                total=stage.height * stage.width,
                unit='px',
                unit_scale=True,
                dynamic_ncols=True,
                disable=not show,
                desc=path.name,
            ),
        )
        copying = subprocess.run(
            [sys.executable, '-c', COPY, partial / 'plain.tif', partial / 'cog.tif', *OPTIONS],
            capture_output=True,
            text=True,
        )
        if copying.returncode:
            raise BadInput(f'{path}: could not be written ({(copying.stderr.splitlines() or ["GDAL was killed"])[-1]})')
        with replacing(path) as whole:
            (partial / 'cog.tif').replace(whole)
    except rasterio.errors.RasterioError as error:
        raise BadInput(f'{path}: could not be written ({one_line(error.__cause__ or error)})') from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [path]


def _remove_stale(path: Path) -> None:
    """Removes partial files of `path` left by processes that were killed at least a day ago."""
    for folder in path.parent.glob(f'.{path.name}.*.partial'):
        newest = max(file.stat().st_mtime for file in [folder, *folder.iterdir()])
        if newest < time.time() - STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _write_plain(rasterio, path: Path, stage: StageArray, tags: dict[str, str], bar: tqdm) -> None:
    where = {'crs': stage.attributes.get('crs')}
    if 'transform' in stage.attributes:
        where['transform'] = rasterio.Affine(*stage.attributes['transform'])
    with (
        bar,
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            'w',
            driver='GTiff',
            height=stage.height,
            width=stage.width,
            count=3,
            dtype='uint8',
            photometric='RGB',
            interleave='pixel',
            tiled=True,
            blockxsize=BLOCK_PX,
            blockysize=BLOCK_PX,
            BIGTIFF='IF_SAFER',
            **where,
        ) as file,
    ):
        file.update_tags(**tags | {'gsd_m': stage.attributes['gsd_m'], 'TIFFTAG_IMAGEDESCRIPTION': DESCRIPTION})
        for y in range(0, stage.height, WINDOW_PX):
            for x in range(0, stage.width, WINDOW_PX):
                pixels = stage[y : min(y + WINDOW_PX, stage.height), x : min(x + WINDOW_PX, stage.width)]
                height, width, _ = pixels.shape
                window = rasterio.windows.Window(x, y, width, height)
                if stage.mask:
                    mask = stage.mask[y : y + height, x : x + width]
                    pixels = np.where(mask[..., None] > 0, pixels, 0)
                    file.write_mask(mask, window=window)
                file.write(np.moveaxis(pixels, -1, 0), window=window)
                bar.update(height * width)
        bar.set_postfix_str('… then its overviews')
