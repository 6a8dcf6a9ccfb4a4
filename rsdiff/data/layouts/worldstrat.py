"""WorldStrat (Cornebise et al. 2022, arXiv 2207.06418; zenodo.org/records/6810792).

    FOLDER/hr_dataset/{tile}/{tile}_rgb.png                8-bit RGBA, SPOT 6/7 sharpened to 1.5 m; on Kaggle in hr_dataset/12bit/
    FOLDER/lr_dataset/{tile}/L2A/{tile}-{k}-L2A_data.tiff  12 bands, reflectance, Sentinel-2 at 10 m; k = 1, 2, …
    FOLDER/lr_dataset/{tile}/L2A/{tile}-{k}-CLM.tiff       cloud mask, above 0 for cloud; optional
    FOLDER/stratified_train_val_test_split.csv             columns tile, split; optional
    FOLDER/metadata.csv                                    columns tile, n (k), lon, lat, lowres_date, highres_date; optional

Without L2A, the folder L1C is read: {tile}-{k}-L1C_data.tiff, 13 bands.
"""

import csv
import datetime
import functools
import io
import re
from pathlib import Path
from typing import Any, Iterator

from rsdiff.base.errors import BadInput
from rsdiff.data.layouts.places import Colours, Frame, Incomplete, Place, Sharp, read_picture
from rsdiff.data.scenes import open_scene

# red, green and blue are B4, B3 and B2; reflectances of land are mostly below 0.3
COLOURS = Colours((4, 3, 2), (0.0, 0.3))
GSD_M = 1.5
LOW_RES_GSD_M = 10.0
LEVELS = 'L2A', 'L1C'


def find(folder: Path, colours: Colours) -> Iterator[Place | Incomplete]:
    """The places of the dataset, in order of their names."""
    if not (folder / 'hr_dataset').is_dir() or not (folder / 'lr_dataset').is_dir():
        raise BadInput(
            f'{folder}: no hr_dataset/ and lr_dataset/; WorldStrat has hr_dataset/TILE/TILE_rgb.png and '
            'lr_dataset/TILE/L2A/TILE-1-L2A_data.tiff'
        )
    sharp = folder / 'hr_dataset'
    sharp = sharp / '12bit' if (sharp / '12bit').is_dir() else sharp
    coarse = folder / 'lr_dataset'
    splits = {row['tile']: row.get('split') for row in _table(folder / 'stratified_train_val_test_split.csv')}
    known: dict[str, list[dict[str, str]]] = {}
    for row in _table(folder / 'metadata.csv'):
        known.setdefault(row['tile'], []).append(row)
    for tile in sorted({path.name for parent in (sharp, coarse) for path in parent.iterdir() if path.is_dir()}):
        image = sharp / tile / f'{tile}_rgb.png'
        frames = _frames_of(coarse / tile, tile)
        if not image.is_file():
            yield Incomplete(tile, f'no {image.relative_to(folder)}')
        elif not frames:
            yield Incomplete(tile, f'no lr_dataset/{tile}/{LEVELS[0]}/{tile}-1-{LEVELS[0]}_data.tiff')
        else:
            rows = known.get(tile, [])
            yield Place(
                tile,
                functools.partial(_read_frames, frames, colours.else_of(COLOURS)),
                (
                    Sharp(
                        tile,
                        functools.partial(read_picture, image),
                        {row['n']: days for row in rows if 'n' in row and (days := _days_apart(row)) is not None},
                        GSD_M,
                        splits.get(tile) or None,
                        known=_known(rows[0]) if rows else {},
                    ),
                ),
                (image, *frames.values()),
            )


def _frames_of(folder: Path, tile: str) -> dict[str, Path]:
    """The files of the frames by their number, in its order."""
    for level in LEVELS:
        found = {}
        for path in (folder / level).glob(f'*-{level}_data.tiff'):
            number = path.name.removeprefix(f'{tile}-').removesuffix(f'-{level}_data.tiff')
            if number.isdecimal():
                found[int(number)] = path
        if found:
            return {str(number): found[number] for number in sorted(found)}
    return {}


def _read_frames(files: dict[str, Path], colours: Colours) -> dict[str, Frame]:
    return {number: _read_frame(path, colours) for number, path in files.items()}


def _read_frame(path: Path, colours: Colours) -> Frame:
    with open_scene(path, *colours) as scene:
        gsd_m = scene.gsd_m
    mask, cloud = path.with_name(path.name.replace(f'{path.parent.name}_data', 'CLM')), 0.0
    if mask.is_file():
        cloud = float((read_picture(mask, Colours(value_range=(0, 255))).pixels[..., 0] > 0).mean())
    return Frame(read_picture(path, colours), cloud, gsd_m or LOW_RES_GSD_M)


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file. The column of tiles may have no name, but must be the first."""
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding='utf-8-sig'), newline='')))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f'{path}: not a table of comma-separated values ({error})') from None
    return [row if 'tile' in row else row | {'tile': row.get('', '')} for row in rows]


def _date(text: str | None) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat((text or '')[:10])
    except ValueError:
        return None


def _days_apart(row: dict[str, str]) -> float | None:
    """Days between the frame and the image."""
    dates = _date(row.get('lowres_date')), _date(row.get('highres_date'))
    return abs((dates[0] - dates[1]).days) if dates[0] and dates[1] else None


def _known(row: dict[str, str]) -> dict[str, Any]:
    date = _date(row.get('highres_date'))
    numbers = {name: float(row[name]) for name in ('lon', 'lat') if re.fullmatch(r'-?\d+(\.\d+)?', row.get(name) or '')}
    return numbers | ({'year': date.year, 'month': date.month, 'day': date.day} if date else {})
