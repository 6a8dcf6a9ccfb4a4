"""Images read by window, and the georeference of raster files."""

import builtins

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.images import read_image, write_image
from rsdiff.data.pipeline import DataConfig, batches, make_source
from rsdiff.data.scenes import open_scene

BOX = Box(3, 5, 20, 37)


def test_a_window_of_a_picture_is_the_crop_of_the_whole(tmp_path, smooth_image):
    for name in ('a.png', 'a.jpg'):
        write_image(tmp_path / name, smooth_image(32, 48))
        with open_scene(tmp_path / name) as scene:
            assert (scene.height, scene.width, scene.gsd_m) == (32, 48, None)
            np.testing.assert_array_equal(scene.read(BOX), BOX.crop(read_image(tmp_path / name)))
            assert scene.nodata(BOX) == 0


def test_a_picture_that_breaks_off_opens_and_does_not_read(tmp_path, smooth_image):
    write_image(tmp_path / 'a.png', smooth_image(64, 64))
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'a.png').read_bytes()[:900])
    with open_scene(tmp_path / 'cut.png') as scene, pytest.raises(BadInput, match='cut.png: not a readable image'):
        scene.read(BOX)


def test_mistakes_of_the_one_who_reads_are_not_called_a_broken_image(tmp_path, smooth_image):
    write_image(tmp_path / 'a.png', smooth_image(8, 8))
    with pytest.raises(ValueError, match='mine'), open_scene(tmp_path / 'a.png'):
        raise ValueError('mine')


def test_without_the_extra_a_geotiff_names_it_and_a_plain_tiff_is_a_picture(tmp_path, monkeypatch, smooth_image):
    Image.fromarray(smooth_image(8, 8)).save(tmp_path / 'plain.tif')
    Image.fromarray(smooth_image(8, 8)).save(tmp_path / 'geo.tif', tiffinfo={33550: (10.0, 10.0, 0.0)})
    importing = builtins.__import__

    def without_rasterio(name, *rest):
        if name.split('.')[0] == 'rasterio':
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, '__import__', without_rasterio)
    with open_scene(tmp_path / 'plain.tif') as scene:
        np.testing.assert_array_equal(scene.read(Box(0, 0, 8, 8)), smooth_image(8, 8))
    for path, options in ((tmp_path / 'geo.tif', {}), (tmp_path / 'plain.tif', {'bands': (1, 2, 3)})):
        with pytest.raises(BadInput, match=r"pip install 'rsdiff-jax\[geo\]'"):
            open_scene(path, **options)


@pytest.fixture
def rasterio():
    return pytest.importorskip('rasterio', reason='GeoTIFFs need the `geo` extra')


@pytest.fixture
def geotiff(rasterio, tmp_path, smooth_image):
    """Writes `values` (bands, h, w) to a tiled GeoTIFF; returns its path."""

    def write(values=None, crs='EPSG:32633', pixel=(10.0, 10.0), corner=(500_000, 5_000_000), name='scene.tif', **more):
        values = np.moveaxis(smooth_image(96, 128), -1, 0) if values is None else np.asarray(values)
        transform = rasterio.transform.from_origin(*corner, *pixel)
        with rasterio.open(
            tmp_path / name,
            'w',
            driver='GTiff',
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform,
            tiled=True,
            blockxsize=32,
            blockysize=32,
            **more,
        ) as file:
            file.write(values)
        return tmp_path / name

    return write


def test_a_window_of_a_geotiff_is_the_crop_of_the_whole(geotiff, smooth_image):
    with open_scene(geotiff()) as scene:
        assert (scene.height, scene.width) == (96, 128)
        np.testing.assert_array_equal(scene.read(BOX), BOX.crop(smooth_image(96, 128)))
        assert scene.nodata(BOX) == 0


@pytest.mark.parametrize(
    'place, expected',
    [
        ({}, 10.0),
        ({'pixel': (10.0, 40.0)}, 20.0),
        # at 60°, 1/1000 of a degree of latitude is 111.4 m and of longitude 55.8 m
        ({'crs': 'EPSG:4326', 'pixel': (0.001, 0.001), 'corner': (20, 60 + 0.048)}, np.sqrt(111.412 * 55.800)),
        # Web Mercator magnifies everything at 60° by about two
        ({'crs': 'EPSG:3857', 'corner': (2_000_000, 8_399_738 + 480)}, 5.004),
        # plate carrée doubles the width and keeps the height
        ({'crs': 'EPSG:4087', 'corner': (2_000_000, 6_679_169 + 480)}, np.sqrt(5.0126 * 10.008)),
        # US survey feet
        ({'crs': 'EPSG:2263', 'corner': (980_000, 200_000)}, 10 * 0.3048006),
        ({'crs': None}, None),
    ],
)
def test_the_resolution_is_in_metres_on_the_ground(geotiff, place, expected):
    with open_scene(geotiff(**place)) as scene:
        assert scene.gsd_m == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_sixteen_bits_become_eight_by_the_range_of_values(geotiff):
    values = np.arange(4 * 64 * 64, dtype=np.uint16).reshape(4, 64, 64)
    path = geotiff(values)
    with pytest.raises(BadInput, match='uint16 values, more than 8 bits, 0 to 12287 in its middle; value_range'):
        open_scene(path)
    with open_scene(path, bands=(4, 3, 2), value_range=(0, 3 * 64 * 64)) as scene:
        pixels = scene.read(BOX)
    reference = np.clip(np.moveaxis(values[[3, 2, 1]].astype(float), 0, -1) * 255 / (3 * 64 * 64), 0, 255)
    np.testing.assert_allclose(pixels, BOX.crop(reference), atol=0.5 + 1e-3)
    for bands in ((4, 5, 6), (1, 2), (0, 1, 2)):
        with pytest.raises(BadInput, match='has bands 1 to 4'):
            open_scene(path, bands=bands, value_range=(0, 3000))
    with pytest.raises(BadInput, match='first value must be the smaller'):
        open_scene(path, value_range=(3000, 0))


def test_one_band_is_grey(geotiff, smooth_image):
    with open_scene(geotiff(smooth_image(40, 40)[None, :, :, 0])) as scene:
        pixels = scene.read(BOX)
    assert (pixels == pixels[..., :1]).all() and pixels.std() > 0


@pytest.mark.parametrize('dtype, hole', [(np.uint16, 0), (np.float32, np.nan)])
def test_pixels_without_data_are_counted(geotiff, dtype, hole):
    values = np.full((3, 64, 64), 100, dtype)
    values[1 if dtype is np.float32 else slice(None), :8, :16] = hole
    with open_scene(geotiff(values, nodata=0 if dtype is np.uint16 else None), value_range=(0, 200)) as scene:
        assert scene.nodata(Box(0, 0, 16, 16)) == 0.5 and scene.nodata(Box(8, 0, 24, 16)) == 0
        assert scene.read(Box(8, 0, 24, 16)).mean() == pytest.approx(127.5, abs=0.51)


def test_foreign_and_broken_rasters_are_named(geotiff, tmp_path):
    (tmp_path / 'text.tif').write_text('not an image')
    # a GDAL virtual raster that would read another file
    (tmp_path / 'recipe.tif').write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" '
        f'band="1"><SimpleSource><SourceFilename>{geotiff()}</SourceFilename>'
        '</SimpleSource></VRTRasterBand></VRTDataset>'
    )
    for name in ('text.tif', 'recipe.tif', 'missing.tif'):
        with pytest.raises(BadInput, match=f'{name}: (not a readable|no such) image') as error:
            open_scene(tmp_path / name)
        assert '\n' not in str(error.value)
    path = geotiff(np.random.default_rng(0).integers(0, 255, (3, 96, 96), dtype=np.uint8), name='cut.tif')
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(BadInput, match='cut.tif'), open_scene(path) as scene:
        scene.read(Box(64, 64, 96, 96))


def test_a_folder_of_geotiffs_trains_and_goes_round_its_holes(geotiff, tmp_path):
    values = np.random.default_rng(0).integers(50, 250, (3, 64, 96), dtype=np.uint8)
    values[:, :, 64:] = 0
    geotiff(values, nodata=0)
    geotiff(np.zeros((3, 64, 64), np.uint8), nodata=0, name='empty.tif')
    config = DataConfig(source=str(tmp_path), size_px=16, reductions=(1, 2), validation_share=0)
    source = make_source(config)
    stream = batches(source, config, 0, 8)
    drawn = [next(stream) for _ in range(4)]
    assert all((batch['image'] > 0).all() for batch in drawn)
    # on the central meridian of UTM the ground is 1 / 0.9996 as large as the map
    assert {round(float(g), 3) for batch in drawn for g in batch['gsd_m']} == {10.004, 20.008}
    assert {name.rpartition('/')[2] for name in source.skipped} == {'empty.tif'}
    again = batches(make_source(config), config, 0, 8, start=2)
    np.testing.assert_array_equal(next(again)['image'], drawn[2]['image'])


def test_a_raster_of_unknown_resolution_says_what_to_give(geotiff, tmp_path):
    geotiff(crs=None)
    with pytest.raises(BadInput, match='none of 1 images.*give one for all'):
        make_source(DataConfig(source=str(tmp_path))).example(0, np.random.default_rng(0), 16)
    example = make_source(DataConfig(source=str(tmp_path), gsd_m=3.0)).example(0, np.random.default_rng(0), 16)
    assert example['gsd_m'] == 3
