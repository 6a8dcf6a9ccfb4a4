"""A stage as a Cloud-Optimised GeoTIFF: one file, in tiles, with overviews of half the size each, by means of 2×2 pixels.

GDAL's driver makes one only by copying: https://gdal.org/en/stable/drivers/raster/cog.html. So a plain GeoTIFF is written
first, window by window, and copied; neither the one nor the other has more of the canvas in memory than GDAL's cache. On
disk, the copy and what it is made from take up to eight bytes a pixel.
"""

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rsdiff.data.boxes import Box
from rsdiff.data.scenes import import_rasterio
from rsdiff.errors import BadInput
from rsdiff.mosaic.store import StageArray

# of the window copied at once: a multiple of the blocks of the TIFF and of the chunks of the array
WINDOW_PX = 1024
BYTES_A_PIXEL = 8
BLOCK_PX = 512
DESCRIPTION = 'Generated imagery: detail finer than its condition is invented.'


def need_rasterio():
    """The module. Raises BadInput where it is not installed."""
    rasterio = import_rasterio()
    if rasterio is None:
        raise BadInput("a GeoTIFF is written by rasterio; pip install 'rsdiff-jax[geo]' brings it")
    return rasterio


def write_cog(path: Path, stage: StageArray, tags: dict[str, str], show: bool = True) -> None:
    """Writes `stage` to `path`, whole or not at all: deflated without loss, where it is on Earth if the stage says so.

    Args:
      tags: kept in the file, beside the stage's metres a pixel (`gsd_m`).
    Raises:
      BadInput: rasterio is missing, or the disk has less room than it may take.
    """
    rasterio = need_rasterio()
    from rasterio.shutil import copy
    height, width = stage.height, stage.width
    partial = path.with_name(f'.{path.name}.partial')  # a folder, since GDAL puts files of its own beside what it writes
    shutil.rmtree(partial, ignore_errors=True)
    need, free = BYTES_A_PIXEL * height * width, shutil.disk_usage(path.parent).free
    if need > free:
        raise BadInput(f'{path}: may take {need:,} bytes while it is made, and {free:,} are free; make room and run the same '
                       'command again')
    boxes = [Box(y, x, min(y + WINDOW_PX, height), min(x + WINDOW_PX, width))
             for y in range(0, height, WINDOW_PX) for x in range(0, width, WINDOW_PX)]
    where = {'crs': stage.attributes.get('crs')}
    if 'transform' in stage.attributes:
        where['transform'] = rasterio.Affine(*stage.attributes['transform'])
    partial.mkdir()
    try:
        with rasterio.open(partial / 'plain.tif', 'w', driver='GTiff', height=height, width=width, count=3, dtype='uint8',
                           photometric='RGB', interleave='pixel', tiled=True, blockxsize=BLOCK_PX, blockysize=BLOCK_PX,
                           BIGTIFF='IF_SAFER', **where) as plain, \
                tqdm(total=height * width, unit='px', unit_scale=True, dynamic_ncols=True, disable=not show,
                     desc=path.name) as bar:
            plain.update_tags(**tags | {'gsd_m': stage.attributes['gsd_m'], 'TIFFTAG_IMAGEDESCRIPTION': DESCRIPTION})
            for box in boxes:
                size = box.y1 - box.y0, box.x1 - box.x0
                pixels = np.asarray(stage.array[box.y0 : box.y1, box.x0 : box.x1])
                plain.write(np.moveaxis(pixels, -1, 0), window=rasterio.windows.Window(box.x0, box.y0, size[1], size[0]))
                bar.update(size[0] * size[1])
            bar.set_postfix_str('… and its overviews')
        copy(partial / 'plain.tif', partial / 'cog.tif', driver='COG', COMPRESS='DEFLATE', PREDICTOR='YES', BLOCKSIZE=BLOCK_PX,
             OVERVIEW_RESAMPLING='AVERAGE', OVERVIEWS='IGNORE_EXISTING', BIGTIFF='IF_SAFER', NUM_THREADS='ALL_CPUS')
        (partial / 'cog.tif').replace(path)
    finally:
        shutil.rmtree(partial)
