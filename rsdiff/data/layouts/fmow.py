"""fMoW-Sentinel (Cong et al. 2022, arXiv 2207.08051; purl.stanford.edu/vg497cb6002) with fMoW-RGB (Christie et al. 2018, arXiv
1711.07846; github.com/fMoW/dataset), paired by location.

    FOLDER/fmow-sentinel/{split}/{category}/{category}_{location}/{category}_{location}_{image}.tif
    FOLDER/fmow-sentinel/{split}.csv
    FOLDER/fmow-rgb/{split}/{category}/{category}_{location}/{category}_{location}_{image}_rgb.jpg, …_rgb.json

The .tif have the 13 bands of Sentinel-2, reflectance × 10000, about 10 m; one that could not be downloaded has a single band.
The .csv, optional, has the columns category, location_id, image_id and timestamp. An {image} below 100 is that of fMoW, taken
around the same time. The .jpg are sharper than 1 m; a .json has timestamp, cloud_cover (percent) and raw_location, a polygon of
longitudes and latitudes. Splits are train, val and test_gt; the images of fMoW-RGB's test split must be renamed by its mapping
first.
"""

import csv
import datetime
import functools
import io
import math
import re
from pathlib import Path
from typing import Any, Iterator

from rsdiff.base.errors import BadInput
from rsdiff.base.files import parse_json
from rsdiff.data.layouts.places import Colours, Frame, Incomplete, Place, Sharp, read_picture
from rsdiff.data.scenes import open_scene

COARSE, SHARP = 'fmow-sentinel', 'fmow-rgb'
SPLITS = {'train': 'train', 'val': 'val', 'test_gt': 'test', 'test': 'test'}
# red, green and blue are B4, B3 and B2; reflectances of land are mostly below 0.3
COLOURS = Colours((4, 3, 2), (0.0, 3000.0))
LOW_RES_GSD_M = 10.0


def find(folder: Path, colours: Colours) -> Iterator[Place | Incomplete]:
    """The locations of the dataset, in order of split and name."""
    if not (folder / COARSE).is_dir() or not (folder / SHARP).is_dir():
        raise BadInput(
            f'{folder}: no {COARSE}/ and {SHARP}/; each has SPLIT/CATEGORY/CATEGORY_LOCATION/, with .tif in one and '
            '_rgb.jpg in the other'
        )
    for split in SPLITS:
        times = _times(folder / COARSE / f'{split}.csv')
        places = {
            path.relative_to(folder / half).as_posix()
            for half in (COARSE, SHARP)
            for path in (folder / half / split).glob('*/*')
            if path.is_dir()
        }
        for place in sorted(places):
            location = place.rpartition('/')[2]
            frames = _numbered(folder / COARSE / place, location, '.tif')
            images = _numbered(folder / SHARP / place, location, '_rgb.jpg')
            if not images:
                yield Incomplete(place, f'no {SHARP}/{place}/{location}_0_rgb.jpg')
            elif not frames:
                yield Incomplete(place, f'no {COARSE}/{place}/{location}_0.tif')
            else:
                own = {number: times.get(f'{location}_{number}') for number in frames}
                yield Place(
                    place,
                    functools.partial(_read_frames, frames, colours.else_of(COLOURS)),
                    tuple(
                        _image(path, f'{place}_{number}', SPLITS[split], number, own) for number, path in images.items()
                    ),
                    (*frames.values(), *images.values(), *(path.with_suffix('.json') for path in images.values())),
                )


def _numbered(folder: Path, location: str, suffix: str) -> dict[str, Path]:
    """The files {location}_{image}{suffix} by image, in its order."""
    found = {}
    for path in folder.glob(f'*{suffix}'):
        number = path.name.removeprefix(f'{location}_').removesuffix(suffix)
        if number.isdecimal():
            found[int(number)] = path
    return {str(number): found[number] for number in sorted(found)}


def _read_frames(files: dict[str, Path], colours: Colours) -> dict[str, Frame]:
    found = {}
    for number, path in files.items():
        with open_scene(path, *colours) as scene:
            gsd_m = scene.gsd_m
        found[number] = Frame(read_picture(path, colours), gsd_m=gsd_m or LOW_RES_GSD_M)
    return found


def _image(path: Path, name: str, split: str, number: str, times: dict[str, datetime.datetime | None]) -> Sharp:
    """The image, with the frame of its own number as the best reference, and then those nearest in time."""
    described = path.with_suffix('.json')
    row = parse_json(described.read_bytes(), str(described)) if described.is_file() else {}
    row = row if isinstance(row, dict) else {}
    time = _time(row.get('timestamp'))
    cost = {frame: abs((other - time).days) if other and time else math.inf for frame, other in times.items()}
    if number in times:
        cost[number] = -1
    known: dict[str, Any] = {'year': time.year, 'month': time.month, 'day': time.day} if time else {}
    if isinstance(row.get('cloud_cover'), int | float):
        known['cloud'] = row['cloud_cover'] / 100
    return Sharp(
        name,
        functools.partial(read_picture, path),
        cost,
        split=split,
        label=path.parent.parent.name,
        known=known | _middle(row.get('raw_location')),
    )


def _middle(polygon: Any) -> dict[str, float]:
    """Longitude and latitude of the middle of a polygon's bounds: 'POLYGON ((8.5 47.4, 8.6 47.4, …))'."""
    corners = re.findall(r'(-?\d+\.?\d*) (-?\d+\.?\d*)', polygon) if isinstance(polygon, str) else []
    if not corners:
        return {}
    sides = {name: [float(corner[axis]) for corner in corners] for axis, name in enumerate(('lon', 'lat'))}
    return {name: round((min(values) + max(values)) / 2, 6) for name, values in sides.items()}


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=None) if isinstance(text, str) else None
    except ValueError:
        return None


def _times(path: Path) -> dict[str, datetime.datetime]:
    """The times of frames by {category}_{location}_{image}; none if there is no such file."""
    if not path.is_file():
        return {}
    found = {}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding='utf-8-sig'), newline='')):
            if time := _time(row.get('timestamp')):
                found[f'{row.get("category")}_{row.get("location_id")}_{row.get("image_id")}'] = time
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f'{path}: not a table of comma-separated values ({error})') from None
    return found
