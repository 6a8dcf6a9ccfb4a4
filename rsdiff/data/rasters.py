"""Rasters that rasterio reads (the `geo` extra), window by window, as RGB."""

import contextlib
import functools
import logging
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput, one_line
from rsdiff.data import places

# side of the central window from which a message reports the range of values
GLANCE_PX = 512


def import_rasterio() -> ModuleType | None:
    """The rasterio module, or None if the `geo` extra is not installed."""
    try:
        import rasterio
        import rasterio.errors
        import rasterio.warp
    except ImportError:
        return None
    # a raster without a georeference is an ordinary image, not a mistake
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


class Raster:
    """A file that rasterio reads, as a `rsdiff.data.scenes.Scene`.

    Args:
      path: of the file; only its name in messages if `data` is given.
      driver: GDAL's name of the format. Without it, GDAL would also read formats that refer to other files.
      bands, value_range: see `rsdiff.data.scenes.open_scene`.
      data: the bytes of the file.
      palette: see `rsdiff.data.scenes.open_scene`.
    Raises:
      BadInput: as `open_scene`.
    """

    def __init__(
        self,
        rasterio: Any,
        path: epath.PathLike,
        driver: str,
        bands: tuple[int, ...] | None,
        value_range: tuple[float, float] | None,
        data: bytes | None = None,
        palette: bool = True,
    ):
        self.rasterio, self.path = rasterio, path
        self.errors = rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError
        self.memory = rasterio.MemoryFile(data) if data is not None else None
        try:
            self.dataset = self.memory.open(driver=driver) if self.memory else rasterio.open(str(path), driver=driver)
        except self.errors as error:
            raise BadInput(f'{path}: not a readable raster ({one_line(error)})') from None
        try:
            self.height, self.width = self.dataset.height, self.dataset.width
            self.bands = self._bands(bands)
            own = self._palette()
            self.palette = own if palette else None
            dtype = self.dataset.dtypes[self.bands[0] - 1]
            if own is not None and not palette and dtype != 'uint8':
                raise BadInput(f'{path}: {dtype} values of a palette; a mask must have 8 bits')
            self.floating = dtype.startswith('float')
            all_valid = rasterio.enums.MaskFlags.all_valid
            self.masked = not all(all_valid in flags for flags in self.dataset.mask_flag_enums)
            self.value_range = self._value_range(dtype, value_range) if own is None else None
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> 'Raster':
        return self

    def __exit__(self, *_) -> None:
        self.dataset.close()
        if self.memory:
            self.memory.close()

    @property
    def has_place(self) -> bool:
        """Whether the file has any georeference, even one that can't be kept."""
        return places.place_of(self.dataset) != (None, None)

    @functools.cached_property
    def gsd_m(self) -> float | None:
        """See `Scene`."""
        place, _ = places.place_of(self.dataset)
        return place and places.pixel_side_m(*place, self.height, self.width)

    @functools.cached_property
    def georeference(self) -> dict | None:
        """See `Scene`. A georeference that can't be kept is logged."""
        place, lost = places.place_of(self.dataset)
        if lost:
            logging.warning('%s: its georeference is not kept: %s', self.path, lost)
        return place and places.georeference(place)

    def read(self, box: Box) -> np.ndarray:
        """See `Scene`."""
        if self.palette is not None:
            return self.palette[self._values(box, self.bands[0]), :3]
        values = np.moveaxis(self._values(box, list(self.bands)), 0, -1)
        if self.value_range is None:
            return np.ascontiguousarray(values)
        low, high = self.value_range
        exact = values.astype(np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64)
        scaled = (exact - exact.dtype.type(low)) * (255 / (high - low))
        return np.rint(np.clip(np.nan_to_num(scaled, posinf=255), 0, 255)).astype(np.uint8)

    def valid(self, box: Box) -> np.ndarray:
        """See `Scene`: set in rasterio's dataset mask, and finite in every selected band."""
        valid = np.broadcast_to(np.True_, (box.y1 - box.y0, box.x1 - box.x0))
        if self.masked:
            with self._reading(box) as window:
                valid = self.dataset.dataset_mask(window=window) > 0
        if self.palette is not None and not self.palette[:, 3].all():
            valid = valid & (self.palette[self._values(box, self.bands[0]), 3] > 0)
        if self.floating:
            valid = valid & np.isfinite(self._values(box, list(self.bands))).all(0)
        return valid

    def nodata(self, box: Box) -> float:
        """See `Scene`."""
        return float(1 - self.valid(box).mean())

    def _values(self, box: Box, bands: int | list[int]) -> np.ndarray:
        with self._reading(box) as window:
            return self.dataset.read(bands, window=window)

    @contextlib.contextmanager
    def _reading(self, box: Box):
        try:
            yield self.rasterio.windows.Window(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0)
        except self.errors as error:
            raise BadInput(f'{self.path}: rows {box.y0} to {box.y1} can not be read ({one_line(error)})') from None

    def _bands(self, bands) -> tuple[int, ...]:
        count, meaning, names = self.dataset.count, list(self.dataset.colorinterp), self.rasterio.enums.ColorInterp
        if bands is not None:
            if len(bands) != 3 or not all(1 <= band <= count for band in bands):
                raise BadInput(f'{self.path}: has bands 1 to {count}; three of them are needed, not {tuple(bands)}')
            return tuple(bands)
        if names.cyan in meaning:
            raise BadInput(f'{self.path}: its colours are CMYK; convert it to RGB first')
        colours = names.red, names.green, names.blue
        if all(colour in meaning for colour in colours):
            return tuple(meaning.index(colour) + 1 for colour in colours)
        shown = [band for band, name in enumerate(meaning, 1) if name != names.alpha] or [1]
        return tuple(shown[:3]) if len(shown) >= 3 else (shown[0],) * 3

    def _palette(self) -> np.ndarray | None:
        """The palette, uint8 (n, RGBA), if the selected band holds palette entries; else None."""
        names = {self.dataset.colorinterp[band - 1] for band in self.bands}
        if self.rasterio.enums.ColorInterp.palette not in names:
            return None
        if len(set(self.bands)) > 1:
            raise BadInput(f'{self.path}: bands {self.bands} are entries of a palette; convert it to RGB first')
        bits = np.dtype(self.dataset.dtypes[self.bands[0] - 1]).itemsize * 8
        try:
            colours = self.dataset.colormap(self.bands[0])
        except ValueError:
            colours = {}
        if bits > 16 or not colours:
            raise BadInput(f'{self.path}: its values are entries of a palette that is missing; convert it to RGB first')
        # an entry without a colour counts as nodata
        palette = np.zeros((2**bits, 4), np.uint8)
        for entry, colour in colours.items():
            palette[entry] = colour
        return palette

    def _value_range(self, dtype: str, value_range) -> tuple[float, float] | None:
        """The values that become 0 and 255; None if the values already are 0 to 255, whatever `value_range` is."""
        structure, own = self.dataset.tags(ns='IMAGE_STRUCTURE'), self.dataset.tags(self.bands[0], ns='IMAGE_STRUCTURE')
        if dtype.startswith('complex'):
            raise BadInput(f'{self.path}: {dtype} values; an image needs real numbers, such as the amplitude')
        if dtype == 'uint8':
            brightest = 2 ** int(own.get('NBITS', 8)) - 1
            value_range = (0, brightest) if brightest < 255 else None
        elif value_range is None:
            raise BadInput(
                f'{self.path}: {dtype} values, more than 8 bits{self._glance()}; value_range must give those that '
                'become 0 and 255, such as 0,3000 for the reflectance of Sentinel-2'
            )
        if structure.get('MINISWHITE', own.get('MINISWHITE')) == 'YES':
            low, high = value_range or (0, 255)
            return high, low
        return value_range

    def _glance(self) -> str:
        """', 12 to 3456 in its middle'; empty if there are no valid values."""
        rows, columns = (
            (max(side // 2 - GLANCE_PX // 2, 0), min(side // 2 + GLANCE_PX // 2 + 1, side))
            for side in (self.height, self.width)
        )
        box = Box(rows[0], columns[0], rows[1], columns[1])
        values = self._values(box, list(self.bands))[:, self.valid(box)]
        return f', {values.min():g} to {values.max():g} in its middle' if values.size else ''
