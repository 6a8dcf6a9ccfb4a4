"""The georeference of a raster, and the ground size of its pixels on the ellipsoid of its own CRS."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

# the largest allowed residual of a ground control point from the affine transform fitted to all of them
GCP_TOLERANCE_PX = 0.5
# rasterio's CRS and affine transform
Place = tuple[Any, Any]


def place_of(dataset) -> tuple[Place | None, str | None]:
    """The georeference of the rasterio `dataset`: ((CRS, affine transform), None); (None, reason) if it can't be kept; or
    (None, None) if there is none. Ground control points are used if an affine transform fits them."""
    crs, transform = dataset.crs, dataset.transform
    if transform.is_identity and dataset.gcps[0]:
        return _place_by_points(*dataset.gcps)
    if transform.is_identity:
        if dataset.rpcs:
            return None, 'it has rational polynomials (RPC) and no transform'
        return None, 'it has a CRS and no transform' if crs else None
    if crs is None:
        return None, 'it has a transform and no CRS'
    if not _is_sound(transform):
        return None, f'its transform {list(transform)[:6]} is singular'
    return (crs, transform), None


def _place_by_points(points, crs) -> tuple[Place | None, str | None]:
    from rasterio.transform import from_gcps

    if crs is None:
        return None, 'its ground control points have no CRS'
    if len(points) < 3:
        return None, f'its {len(points)} ground control points are too few'
    transform = from_gcps(points)
    if not _is_sound(transform):
        return None, 'its ground control points lie on a line'
    error = max(math.dist(_map(~transform, point.x, point.y), (point.col, point.row)) for point in points)
    if error > GCP_TOLERANCE_PX:
        return None, f'its ground control points are up to {error:.3g} px off any affine transform'
    return (crs, transform), None


def pixel_side_m(crs, transform, height: int, width: int) -> float | None:
    """The side in metres of a square with the ground area of the centre pixel of a `height` × `width` raster.

    Args:
      crs, transform: rasterio's CRS, of any unit and any celestial body, and affine transform.
    Returns:
      None if the CRS is not tied to an ellipsoid, or the centre lies outside its domain.
    """
    import rasterio.crs
    import rasterio.errors
    import rasterio.warp
    from rasterio._err import CPLE_BaseError

    try:
        base = _geographic(crs.to_dict(projjson=True))
        geographic = rasterio.crs.CRS.from_string(json.dumps(base))
        edges = [(width / 2 + x, height / 2 + y) for x, y in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
        longitudes, latitudes = rasterio.warp.transform(
            crs, geographic, *zip(*(_map(transform, *edge) for edge in edges))
        )[:2]
        radians = geographic.units_factor[1]
        axis, flattening = _ellipsoid(base)
    except (rasterio.errors.RasterioError, CPLE_BaseError, LookupError, TypeError, ValueError):
        return None
    if not np.isfinite([longitudes, latitudes]).all():
        return None
    latitude = np.mean(latitudes) * radians
    # radii of curvature along the meridian and across it
    e2 = flattening * (2 - flattening)
    bend = 1 - e2 * math.sin(latitude) ** 2
    along, across = axis * (1 - e2) / bend**1.5, axis / math.sqrt(bend) * math.cos(latitude)
    # the remainder handles a pixel on the antimeridian
    east = [across * math.remainder((b - a) * radians, 2 * math.pi) for a, b in (longitudes[:2], longitudes[2:])]
    north = [along * (b - a) * radians for a, b in (latitudes[:2], latitudes[2:])]
    side = math.sqrt(abs(east[0] * north[1] - east[1] * north[0]))
    return side if 0 < side < math.inf else None


def files_beside(path) -> list[str]:
    """The names of world files and of GDAL's `.aux.xml` beside the image at the local `path`."""
    path = Path(path)
    suffix = path.suffix[1:]
    names = [
        f'{path.stem}.{suffix[:1]}{suffix[-1:]}w',
        f'{path.stem}.{suffix}w',
        f'{path.stem}.wld',
        f'{path.name}.aux.xml',
    ]
    return [name for name in names if suffix and path.with_name(name).is_file()]


def georeference(place: Place) -> dict:
    """The CRS and transform from `place_of` as in `Scene`: {'crs': WKT, 'transform': [a, b, c, d, e, f]}."""
    crs, transform = place
    return {'crs': crs.to_wkt(), 'transform': list(transform)[:6]}


def _map(transform, column: float, row: float) -> tuple[float, float]:
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def _is_sound(transform) -> bool:
    return all(map(math.isfinite, transform)) and math.isfinite(transform.determinant) and transform.determinant != 0


def _geographic(crs: dict) -> dict:
    """The geographic CRS that a CRS is based on, both as PROJJSON. Raises LookupError if there is none."""
    while crs['type'] not in ('GeographicCRS', 'GeodeticCRS'):
        crs = crs.get('base_crs') or crs.get('source_crs') or crs['components'][0]
    return crs


def _ellipsoid(geographic: dict) -> tuple[float, float]:
    """The semi-major axis in metres and the flattening of its ellipsoid. Raises LookupError or TypeError if missing."""
    shape = (geographic.get('datum') or geographic['datum_ensemble'])['ellipsoid']
    if 'radius' in shape:
        return _metres(shape['radius']), 0.0
    axis = _metres(shape['semi_major_axis'])
    if 'semi_minor_axis' in shape:
        return axis, 1 - _metres(shape['semi_minor_axis']) / axis
    return axis, 1 / shape['inverse_flattening'] if shape['inverse_flattening'] else 0.0


def _metres(length: float | dict) -> float:
    return length['value'] * length['unit']['conversion_factor'] if isinstance(length, dict) else length
