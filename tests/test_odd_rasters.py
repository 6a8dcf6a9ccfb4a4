"""Unusual real rasters: each is read as rasterio reads it, or refused in a one-line error."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.images import read_image, read_masked
from rsdiff.data.scenes import open_scene

DATA = Path(__file__).parents[1].parent / 'shared/data'
# the bands for red, green and blue; for more than 8 bits, the values that become 0 and 255
ODD = {
    'gt__GeogToWGS84GeoKey5.tif': ((1, 1, 1), None),
    'rio__RGBA.uint16.tif': ((3, 2, 1), (0, 20000)),
    'rio__all-nodata.tif': ((3, 2, 1), (0, 3000)),
    'rio__float_raster_with_nodata.tif': ((1, 1, 1), (0, 2)),
    'rio__rotated.tif': ((1, 1, 1), None),
    'rt__201404_13SED190110_201404_0x1500m_CL_1_extmask.tif': ((1, 2, 3), None),
    'rt__clp.tif': ((1, 1, 1), None),
    'rt__cog_dateline.tif': ((1, 1, 1), (0, 65535)),
    'rt__cog_hirise_mars.tif': ((1, 2, 3), None),
    'rt__cog_rgb_mask.tif': ((1, 2, 3), None),
    'rt__inverted_lat.tif': ((1, 1, 1), (0, 300)),
    'rt__no_geo.jpg': ((1, 2, 3), None),
    'rt__rgb.tif': ((1, 2, 3), (0, 65535)),
    'rx__test_rpcs.tif': ((1, 1, 1), (0, 2047)),
}
# the warning about a georeference that can't be kept
LOST = {
    'rio__rotated.tif': 'a transform and no CRS',
    'rx__test_rpcs.tif': 'rational polynomials',
    'rt__no_geo.jpg': None,
}


@pytest.fixture
def rasterio():
    return pytest.importorskip('rasterio', reason='GeoTIFFs need the `geo` extra')


def shared(folder):
    if not (DATA / folder).is_dir():
        pytest.skip(f'no {DATA / folder}')
    return DATA / folder


def as_rasterio_reads(rasterio, path, bands, value_range):
    """The image, float (h, w, 3), and the mask of the dataset."""
    with rasterio.open(path) as file:
        values = file.read(list(bands)).astype(float)
        valid = file.dataset_mask() > 0
        if file.colorinterp[0] == rasterio.enums.ColorInterp.palette:
            colours = file.colormap(1)
            values = np.array([[colours[int(value)][:3] for value in row] for row in values[0]], float).transpose(
                2, 0, 1
            )
    if value_range:
        values = np.clip((values - value_range[0]) * 255 / (value_range[1] - value_range[0]), 0, 255)
    return values.transpose(1, 2, 0), valid


def test_every_odd_raster_of_the_manifest_is_in_the_table():
    rows = [json.loads(line) for line in (shared('odd_rasters') / 'metadata.jsonl').read_text().splitlines()]
    assert {row['file_name'] for row in rows} == set(ODD)


@pytest.mark.parametrize('name', sorted(ODD))
def test_an_odd_raster_is_read_as_rasterio_reads_it(rasterio, name, caplog):
    path, (bands, value_range) = shared('odd_rasters') / name, ODD[name]
    if value_range:
        with pytest.raises(BadInput, match='more than 8 bits.*value_range') as error:
            read_image(path)
        assert '\n' not in str(error.value)
    image, valid = read_masked(path, value_range=value_range)
    expected, mask = as_rasterio_reads(rasterio, path, bands, value_range)
    np.testing.assert_array_equal(valid, mask)
    difference = np.abs(image[mask] - expected[mask])
    # JPEG decoders upsample chroma differently
    assert difference.mean() < 0.5 if name.endswith('.jpg') else difference.max(initial=0) < 0.501
    with (
        caplog.at_level(logging.WARNING),
        open_scene(path, value_range=value_range) as scene,
        rasterio.open(path) as file,
    ):
        if name not in LOST:
            assert scene.georeference == {'crs': file.crs.to_wkt(), 'transform': list(file.transform)[:6]}
            assert scene.gsd_m > 0 and not caplog.records
        else:
            assert scene.georeference is None and scene.gsd_m is None
            assert (LOST[name] or '') in caplog.text and bool(caplog.records) == bool(LOST[name])


@pytest.mark.parametrize('name', sorted(ODD))
def test_a_pixel_of_an_odd_raster_is_as_large_as_pyproj_measures_it(rasterio, name):
    pyproj = pytest.importorskip('pyproj')
    with rasterio.open(shared('odd_rasters') / name) as file:
        if file.crs is None or file.transform.is_identity:
            pytest.skip('no place')
        crs, middle = pyproj.CRS.from_wkt(file.crs.to_wkt()), (file.width / 2, file.height / 2)
        a, b, c, d, e, f = file.transform[:6]
    to_ground = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    ends = [
        (a * x + b * y + c, d * x + e * y + f)
        for x, y in ((middle[0] + i, middle[1] + j) for i, j in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)))
    ]
    (left, right, top, bottom) = (to_ground.transform(*end) for end in ends)
    east, _, across = crs.get_geod().inv(*left, *right)
    south, _, along = crs.get_geod().inv(*top, *bottom)
    side = np.sqrt(across * along * abs(np.sin(np.radians(east - south))))
    with open_scene(shared('odd_rasters') / name, value_range=(0, 1)) as scene:
        assert scene.gsd_m == pytest.approx(side, rel=1e-4)


@pytest.mark.parametrize(
    'folder, options, gsd_m, tolerance',
    [
        # the chips were cut on a grid in degrees, so their pixels are not square on the ground
        ('sentinel2', {'bands': (4, 3, 2), 'value_range': (0, 3000)}, 10, 0.35),
        ('naip', {'bands': (1, 2, 3), 'value_range': None}, 5, 1e-3),
    ],
)
def test_real_scenes_are_read_as_rasterio_reads_them(rasterio, folder, options, gsd_m, tolerance):
    for path in sorted(shared(folder).glob('*.tif')):
        image, valid = read_masked(path, **options)
        expected, mask = as_rasterio_reads(rasterio, path, **options)
        np.testing.assert_array_equal(valid, mask)
        np.testing.assert_allclose(image, expected, atol=0.501)
        with open_scene(path, **options) as scene:
            assert scene.gsd_m == pytest.approx(gsd_m, rel=tolerance)
