"""S2-NAIP (Wolters et al. 2023, arXiv 2311.18082; github.com/allenai/satlas-super-resolution).

    FOLDER/naip/{image}/{tile}/rgb.png       128×128, uint8 RGB; {image} has the date, {tile} is COLUMN_ROW
    FOLDER/sentinel2/{tile}/tci.png          T·32 × 32, uint8 RGB: T frames, one below the other
    FOLDER/sentinel2/{tile}/{band}.png       T·32 × 32, uint16, not read: the networks take RGB

A tile is one of the 2¹⁷ × 2¹⁷ of Web Mercator, 2πR / 2¹⁷ · cos(latitude) wide on the ground. Black is nodata. The frames are
in any order.
"""

import functools
import math
import re
from pathlib import Path
from typing import Iterator

from rsdiff.base.errors import BadInput
from rsdiff.data.layouts.places import Colours, Frame, Incomplete, Picture, Place, Sharp, read_picture, without_black

TILES = 2**17
EQUATOR_M = 2 * math.pi * 6_378_137
BANDS = 'tci.png'


def find(folder: Path, colours: Colours) -> Iterator[Place | Incomplete]:
    """The places of the dataset, in order of tile. All files are RGB, so `colours` has no use."""
    if not (folder / 'naip').is_dir() or not (folder / 'sentinel2').is_dir():
        raise BadInput(
            f'{folder}: no naip/ and sentinel2/; S2-NAIP has naip/IMAGE/TILE/rgb.png and sentinel2/TILE/{BANDS}'
        )
    chips: dict[str, list[Path]] = {}
    for path in sorted((folder / 'naip').glob('*/*/rgb.png')):
        chips.setdefault(path.parent.name, []).append(path)
    tiles = {path.name for path in (folder / 'sentinel2').iterdir() if path.is_dir()}
    for tile in sorted(tiles | {*chips}):
        stack = folder / 'sentinel2' / tile / BANDS
        if not re.fullmatch(r'\d{1,6}_\d{1,6}', tile):
            yield Incomplete(tile, 'the name of a tile is COLUMN_ROW, such as 12345_67890')
        elif tile not in chips:
            yield Incomplete(f'sentinel2/{tile}', f'no naip/IMAGE/{tile}/rgb.png')
        elif tile not in tiles:
            yield Incomplete(f'naip/{chips[tile][0].parent.parent.name}/{tile}', f'no sentinel2/{tile}/{BANDS}')
        elif not stack.is_file():
            yield Incomplete(f'sentinel2/{tile}', f'no {BANDS}, its bands red, green and blue')
        else:
            yield Place(
                tile,
                functools.partial(_read_frames, stack, _width_m(tile)),
                tuple(_image(path, tile) for path in chips[tile]),
                (stack, *chips[tile]),
            )


def _read_frames(path: Path, width_m: float) -> dict[str, Frame]:
    pixels, valid = without_black(read_picture(path))
    height, side = valid.shape
    if height % side:
        raise BadInput(f'{path}: {side}×{height} px; frames are square, so its height must be a multiple of its width')
    starts = range(0, height, side)
    return {
        str(number): Frame(Picture(pixels[y : y + side], valid[y : y + side]), gsd_m=width_m / side)
        for number, y in enumerate(starts)
    }


def _image(path: Path, tile: str) -> Sharp:
    image = path.parent.parent.name
    lon, lat = _place(tile)
    known = {'lon': round(lon, 6), 'lat': round(lat, 6), **_date(image)}
    return Sharp(f'{image}/{tile}', lambda: without_black(read_picture(path)), known=known)


def _place(tile: str) -> tuple[float, float]:
    """Longitude and latitude of the middle of a tile, in degrees."""
    column, row = (int(part) + 0.5 for part in tile.split('_'))
    return 360 * column / TILES - 180, math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / TILES))))


def _width_m(tile: str) -> float:
    return EQUATOR_M / TILES * math.cos(math.radians(_place(tile)[1]))


def _date(image: str) -> dict[str, int]:
    """The first date in the name of a NAIP image, such as m_3808245_nw_17_060_20190802."""
    found = re.search(r'(?<!\d)(20\d\d)(0[1-9]|1[0-2])([0-2]\d|3[01])(?!\d)', image)
    return dict(zip(('year', 'month', 'day'), map(int, found.groups()))) if found else {}
