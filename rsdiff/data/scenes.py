"""Images of any size, read by window: GeoTIFF and JPEG 2000 by rasterio (the `geo` extra), the rest by Pillow.

A raster file is never read whole: a window costs the blocks it touches. JPEG, PNG and their kind can't be entered in
the middle, so a picture is decoded whole, once for as long as its scene is open. A scene belongs to one thread; several
threads read the same file by each opening it.
"""

import math
import warnings
from pathlib import PurePath
from typing import IO, Protocol

import numpy as np

from rsdiff.data.boxes import Box
from rsdiff.data.images import Picture
from rsdiff.errors import BadInput, one_line

# GDAL's names of the formats. Left to guess from the content, it would also read recipes that name further files.
RASTER_SUFFIXES = {'.tif': 'GTiff', '.tiff': 'GTiff', '.jp2': 'JP2OpenJPEG'}
EARTH_RADIUS_M = 6_371_008.8


class Scene(Protocol):
    """An open image: `with open_scene(path) as scene`."""

    height: int
    width: int
    gsd_m: float | None  # metres a pixel, if the file says so
    georeference: dict | None  # {'crs': WKT, 'transform': [a, b, c, d, e, f]}: x = a column + b row + c, y = d … + f

    def read(self, box: Box) -> np.ndarray:
        """The pixels of `box`, uint8 (height, width, 3). Raises BadInput where they can't be read."""

    def valid(self, box: Box) -> np.ndarray:
        """Which pixels of `box` hold a measurement, bool (height, width)."""

    def nodata(self, box: Box) -> float:
        """The share of pixels in `box` that hold no measurement."""

    def __enter__(self) -> 'Scene': ...

    def __exit__(self, *_) -> None: ...


def open_scene(path, bands: tuple[int, ...] | None = None, value_range: tuple[float, float] | None = None,
               file: IO[bytes] | None = None) -> Scene:
    """The image at `path`, read as RGB.

    Args:
      path: a local path, or for pictures one of a bucket (`gs://…`) that etils' epath can open.
      bands: of a raster file, which become red, green and blue, counted from 1; by default those it calls so, else the
        first three, or the only one three times. Sentinel-2 in its own order: (4, 3, 2).
      value_range: of a raster file, the values that become 0 and 255. Needed where there are more than 8 bits.
      file: the opened file, where there is no path to open; `path` is then only its name.
    Raises:
      BadInput: it can't be read, has other bands, more than 8 bits and no `value_range`, or needs the `geo` extra.
    """
    if file is None and PurePath(path).suffix.lower() in RASTER_SUFFIXES:
        rasterio = import_rasterio()
        if rasterio:
            return Raster(rasterio, path, bands, value_range)
        picture = Picture(path)
        if bands or value_range or picture.is_georeferenced:
            picture.__exit__()
            raise BadInput(f"{path}: a GeoTIFF is read by rasterio; pip install 'rsdiff-jax[geo]' brings it")
        return picture
    return Picture(path, file)


def import_rasterio():
    """The module, or None where the `geo` extra is not installed."""
    try:
        import rasterio
        import rasterio.warp
    except ImportError:
        return None
    # a raster without a place on Earth is a picture, not a mistake
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


class Raster:
    """A file that rasterio reads; see `open_scene`."""

    def __init__(self, rasterio, path, bands, value_range):
        self.rasterio, self.path = rasterio, path
        try:
            self.dataset = rasterio.open(str(path), driver=RASTER_SUFFIXES[PurePath(path).suffix.lower()])
        except rasterio.errors.RasterioError as error:
            raise BadInput(f'{path}: not a readable raster ({one_line(error)})') from None
        try:
            self.height, self.width = self.dataset.height, self.dataset.width
            self.bands = self._bands(bands)
            self.value_range = self._value_range(value_range)
            self.gsd_m = self._gsd_m()
            crs, transform = self.dataset.crs, self.dataset.transform
            self.georeference = {'crs': crs.to_wkt(), 'transform': list(transform)[:6]} if crs else None
            flags = [self.dataset.mask_flag_enums[band - 1] for band in self.bands]
            self.floating = self.dataset.dtypes[self.bands[0] - 1].startswith('float')
            self.whole = not self.floating and all(rasterio.enums.MaskFlags.all_valid in flag for flag in flags)
        except BaseException:
            self.dataset.close()
            raise

    def __enter__(self) -> 'Raster':
        return self

    def __exit__(self, *_) -> None:
        self.dataset.close()

    def read(self, box: Box) -> np.ndarray:
        """See `Scene`."""
        values = self._call(self.dataset.read, box)
        if self.value_range is not None:
            low, high = self.value_range
            scaled = (values.astype(np.float32) - low) * (255 / (high - low))
            values = np.rint(np.clip(np.nan_to_num(scaled, posinf=255), 0, 255)).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(values, 0, -1))

    def valid(self, box: Box) -> np.ndarray:
        """See `Scene`: rasterio's dataset mask over all bands of the file, and finite in the bands that are read."""
        window = self.rasterio.windows.Window(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0)
        try:
            valid = self.dataset.dataset_mask(window=window) > 0
        except self.rasterio.errors.RasterioError as error:
            raise BadInput(f'{self.path}: rows {box.y0} to {box.y1} can not be read ({one_line(error)})') from None
        return valid & np.isfinite(self._call(self.dataset.read, box)).all(0) if self.floating else valid

    def nodata(self, box: Box) -> float:
        """See `Scene`."""
        return float(1 - self.valid(box).mean())

    def _call(self, method, box: Box) -> np.ndarray:
        window = self.rasterio.windows.Window(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0)
        try:
            return method(list(self.bands), window=window)
        except self.rasterio.errors.RasterioError as error:
            raise BadInput(f'{self.path}: rows {box.y0} to {box.y1} can not be read ({one_line(error)})') from None

    def _bands(self, bands) -> tuple[int, ...]:
        count, interpretation = self.dataset.count, self.rasterio.enums.ColorInterp
        if bands is None:
            meaning = list(self.dataset.colorinterp)
            if interpretation.palette in meaning:
                raise BadInput(f'{self.path}: its values are entries of a palette; convert it to RGB first')
            colours = (interpretation.red, interpretation.green, interpretation.blue)
            if all(colour in meaning for colour in colours):
                return tuple(meaning.index(colour) + 1 for colour in colours)
            return (1, 2, 3) if count >= 3 else (1, 1, 1)
        if len(bands) != 3 or not all(1 <= band <= count for band in bands):
            raise BadInput(f'{self.path}: has bands 1 to {count}; three of them are needed, not {tuple(bands)}')
        return tuple(bands)

    def _value_range(self, value_range):
        kinds = {self.dataset.dtypes[band - 1] for band in self.bands}
        if value_range is None and kinds != {'uint8'}:
            raise BadInput(f'{self.path}: {" and ".join(sorted(kinds))} values; value_range has to tell which of them '
                           'become 0 and 255, such as (0, 3000) for the reflectance of Sentinel-2')
        if value_range is not None and not value_range[0] < value_range[1]:
            raise BadInput(f'value_range is {tuple(value_range)}; the first value must be the smaller one')
        return value_range

    def _gsd_m(self) -> float | None:
        """The side of a square as large as a pixel in the middle of the scene, on the ground."""
        crs, transform = self.dataset.crs, self.dataset.transform
        if crs is None or transform.is_identity or not (crs.is_geographic or crs.is_projected):
            return None
        x, y = math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)
        unit = crs.units_factor[1]  # radians or metres
        left, bottom, right, top = self.dataset.bounds
        middle = (left + right) / 2, (bottom + top) / 2
        if crs.is_geographic:
            return EARTH_RADIUS_M * unit * math.sqrt(x * y * math.cos(middle[1] * unit))
        gsd_m = unit * math.sqrt(x * y)
        if crs.to_dict().get('proj') == 'merc':  # Web Mercator's metres are metres on the equator only
            _, (latitude,) = self.rasterio.warp.transform(crs, 'EPSG:4326', [middle[0]], [middle[1]])
            gsd_m *= math.cos(math.radians(latitude))
        return gsd_m
