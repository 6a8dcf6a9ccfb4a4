"""How `read_image` handles bit depth, orientation, transparency, palettes and georeferences."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.chips import Limits, Survey, look
from rsdiff.data.crops import FolderImages
from rsdiff.data.images import image_size, read_image, read_masked, write_image
from rsdiff.data.scenes import open_scene

HOLE = np.s_[:, 20:]


@pytest.fixture
def rasterio():
    return pytest.importorskip('rasterio', reason='GeoTIFFs need the `geo` extra')


def write_raster(rasterio, path, values, **options):
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        **options,
    ) as file:
        file.write(values)
        return path


def write_deep_png(path, values):
    """Writes uint16 (h, w, channels) as PNG; Pillow can not write 16-bit colour."""
    height, width, channels = values.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    head = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (b'IHDR', head), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + b''.join(
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    return path


@pytest.fixture
def deep():
    return np.random.default_rng(0).integers(0, 3000, (16, 24, 3)).astype(np.uint16)


@pytest.mark.parametrize('kind', ['grey.png', 'colour.png', 'alpha.png', 'colour.tif'])
def test_more_than_eight_bits_are_scaled_by_the_range_and_refused_without(rasterio, tmp_path, deep, kind):
    path = tmp_path / kind
    if kind == 'colour.tif':
        write_raster(rasterio, path, deep.transpose(2, 0, 1), photometric='RGB')
    elif kind == 'alpha.png':
        write_deep_png(path, np.dstack([deep, np.where(np.arange(24) < 20, 65535, 0) * np.ones((16, 1), int)]))
    else:
        write_deep_png(path, deep[..., :1] if kind == 'grey.png' else deep)
    with pytest.raises(BadInput, match=r'uint16 values, more than 8 bits, \d+ to \d+ in its middle; value_range'):
        read_image(path)
    image, valid = read_masked(path, value_range=(0, 3000))
    np.testing.assert_allclose(
        image, (deep[..., :1] if kind == 'grey.png' else deep) * (255 / 3000) + 0 * image, atol=0.501
    )
    assert (valid == (np.arange(24) < 20)).all() if kind == 'alpha.png' else valid.all()
    assert image_size(path) == (16, 24)


def test_without_the_extra_sixteen_bit_colours_are_refused(tmp_path, deep, monkeypatch):
    monkeypatch.setattr('rsdiff.data.scenes.import_rasterio', lambda: None)
    with pytest.raises(BadInput, match='more than 8 bits'):
        read_image(write_deep_png(tmp_path / 'a.png', deep), value_range=(0, 3000))


def test_a_value_range_leaves_eight_bits_as_they_are(rasterio, tmp_path, smooth_image):
    image = smooth_image(16, 24)
    write_image(tmp_path / 'a.png', image)
    write_raster(rasterio, tmp_path / 'a.tif', image.transpose(2, 0, 1), photometric='MINISBLACK')
    for name in ('a.png', 'a.tif'):
        np.testing.assert_array_equal(read_image(tmp_path / name, value_range=(0, 3000)), image)


@pytest.mark.parametrize('value_range', [(3000, 0), (0, float('nan')), (0, float('inf'))])
def test_a_range_is_two_numbers_in_order(tmp_path, smooth_image, value_range):
    write_image(tmp_path / 'a.png', smooth_image(8, 8))
    with pytest.raises(BadInput, match='value_range is'):
        read_image(tmp_path / 'a.png', value_range=value_range)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif'])
def test_an_image_is_turned_upright_as_pillow_turns_it(tmp_path, smooth_image, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f'a{suffix}'
    Image.fromarray(smooth_image(16, 24)).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == upright.shape[:2]
    box = Box(2, 3, 9, 15)
    with open_scene(path) as scene:
        np.testing.assert_array_equal(scene.read(box), box.crop(upright))
        assert scene.valid(box).shape == (7, 12)


def transparent(smooth_image, tmp_path, kind):
    image = np.dstack([smooth_image(24, 32), np.full((24, 32), 255, np.uint8)])
    image[HOLE] = 0
    path, picture = tmp_path / f'a.{kind.partition(" ")[0]}', Image.fromarray(image)
    if kind == 'png LA':
        picture.convert('LA').save(path)
    elif kind == 'png P':
        indices = np.tile(np.arange(32, dtype=np.uint8), (24, 1))
        indices[HOLE] = 99
        picture = Image.fromarray(indices)
        picture.putpalette([value for i in range(256) for value in (i, 2 * i % 256, 9)])
        picture.save(path, transparency=99)
    else:
        picture.save(path, **({'lossless': True, 'exact': True} if kind == 'webp' else {}))
    return path


@pytest.mark.parametrize('kind', ['png', 'webp', 'png LA', 'png P', 'tif'])
def test_what_is_transparent_is_no_measurement(tmp_path, smooth_image, kind):
    path = transparent(smooth_image, tmp_path, kind)
    _, valid = read_masked(path)
    np.testing.assert_array_equal(valid, np.tile(np.arange(32) < 20, (24, 1)))
    with open_scene(path) as scene:
        assert scene.nodata(Box(0, 12, 8, 28)) == 0.5 and scene.nodata(Box(0, 0, 8, 20)) == 0


def test_chips_with_transparent_pixels_are_dropped_and_counted(tmp_path, smooth_image):
    transparent(smooth_image, tmp_path, 'png')
    survey = Survey()
    chips = look(FolderImages(str(tmp_path), gsd_m=1.0), 8, 8, (1,), Limits(), survey, lambda _: None)
    assert survey.dropped['nodata'] == 6 and all(chip.box.x1 <= 16 for chip in chips)


def test_no_data_in_one_band_alone_is_a_measurement(rasterio, tmp_path, smooth_image):
    values = np.maximum(smooth_image(16, 24), 1).transpose(2, 0, 1).copy()
    values[0, :8] = 0
    values[:, :, 20:] = 0
    path = write_raster(rasterio, tmp_path / 'a.tif', values, nodata=0)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(read_masked(path)[1], file.dataset_mask() > 0)
    assert read_masked(path)[1].mean() == pytest.approx(20 / 24)


@pytest.mark.parametrize('internal', [True, False])
def test_masks_in_and_beside_a_raster_are_heeded(rasterio, tmp_path, smooth_image, internal):
    mask = np.tile(np.arange(24) < 20, (16, 1))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', count=3, height=16, width=24, dtype='uint8') as file,
    ):
        file.write(smooth_image(16, 24).transpose(2, 0, 1))
        file.write_mask(mask)
    assert (tmp_path / 'a.tif.msk').exists() == (not internal)
    np.testing.assert_array_equal(read_masked(tmp_path / 'a.tif')[1], mask)


def test_only_selected_bands_have_to_be_finite(rasterio, tmp_path):
    values = np.ones((4, 8, 8), np.float32)
    values[3, :4], values[1, :, :2], values[2, 7, 7] = np.nan, np.nan, np.inf
    path = write_raster(rasterio, tmp_path / 'a.tif', values)
    np.testing.assert_array_equal(read_masked(path, (1, 2, 3), (0, 1))[1], np.isfinite(values[:3]).all(0))


def test_a_palette_is_looked_up(rasterio, tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', count=1, height=8, width=8, dtype='uint8') as file:
        file.write(values)
        file.write_colormap(1, {i: (i, 200 - i, 7, 255) for i in range(64)})
    image = read_image(tmp_path / 'a.tif', value_range=(0, 3000))
    np.testing.assert_array_equal(image, np.stack([values[0], 200 - values[0], np.full((8, 8), 7)], -1))


@pytest.mark.parametrize('mode', ['1', 'L'])
@pytest.mark.parametrize('photometric', [0, 1])
def test_black_is_black_at_any_number_of_bits(tmp_path, smooth_image, mode, photometric):
    picture = Image.fromarray(smooth_image(16, 24)).convert(mode)
    picture.save(tmp_path / 'a.tif', tiffinfo={262: photometric})
    with Image.open(tmp_path / 'a.tif') as image:
        np.testing.assert_array_equal(read_image(tmp_path / 'a.tif')[..., 0], np.asarray(image.convert('L')))


def test_print_colours_become_rgb(rasterio, tmp_path):
    Image.new('CMYK', (8, 8), (10, 20, 30, 40)).save(tmp_path / 'print.tif')
    # the white that the ink leaves
    expected = [(255 - ink) * (255 - 40) / 255 for ink in (10, 20, 30)]
    np.testing.assert_allclose(read_image(tmp_path / 'print.tif')[0, 0], expected, atol=1)


def test_complex_values_are_refused(rasterio, tmp_path):
    write_raster(rasterio, tmp_path / 'complex.tif', np.ones((1, 8, 8), np.complex64))
    with pytest.raises(BadInput, match='complex64 values'):
        read_image(tmp_path / 'complex.tif', value_range=(0, 1))


@pytest.mark.parametrize(
    'kind, words',
    [
        ('crs', 'a CRS and no transform'),
        ('transform', 'a transform and no CRS'),
        ('bent', 'off any affine transform'),
        ('world', 'a transform and no CRS'),
    ],
)
def test_a_place_that_is_lost_is_told(rasterio, tmp_path, smooth_image, caplog, kind, words):
    path, values = tmp_path / 'a.tif', smooth_image(20, 24).transpose(2, 0, 1)
    if kind == 'crs':
        write_raster(rasterio, path, values, crs='EPSG:32632')
    elif kind == 'transform':
        write_raster(rasterio, path, values, transform=rasterio.transform.from_origin(5e5, 54e5, 10, 10))
    elif kind == 'bent':
        write_raster(rasterio, path, values, gcps=points(rasterio, 10.02), crs='EPSG:4326')
    else:
        path = tmp_path / 'a.png'
        write_image(path, smooth_image(20, 24))
        (tmp_path / 'a.pgw').write_text('10\n0\n0\n-10\n500005\n5399995\n')
    with caplog.at_level(logging.WARNING), open_scene(path) as scene:
        assert scene.georeference is None and scene.gsd_m is None
    assert words in caplog.text


def points(rasterio, last):
    point = rasterio.control.GroundControlPoint
    return [point(0, 0, 10, 50), point(0, 24, 10.01, 50), point(20, 0, 10, 49.99), point(20, 24, last, 49.99)]


def test_ground_control_points_on_a_plane_are_a_transform(rasterio, tmp_path, smooth_image):
    path = write_raster(
        rasterio,
        tmp_path / 'a.tif',
        smooth_image(20, 24).transpose(2, 0, 1),
        gcps=points(rasterio, 10.01),
        crs='EPSG:4326',
    )
    with open_scene(path) as scene:
        assert scene.georeference['transform'] == pytest.approx([0.01 / 24, 0, 10, 0, -0.01 / 20, 50])
        # 0.01° are 716.9 m and 1112.3 m
        assert scene.gsd_m == pytest.approx(np.sqrt(716.9 / 24 * 1112.3 / 20), rel=1e-3)


@pytest.mark.parametrize(
    'code, corner, pixel',
    [
        (4087, (2_000_000, 6_679_169), 10),
        (3857, (2_000_000, 8_399_738), 10),
        (32633, (300_000, 7_000_000), 10),
        (2263, (980_000, 200_000), 10),
        (27572, (600_000, 2_200_000), 5),
        (3413, (-500_000, -500_000), 100),
        (4326, (179.9995, 60), 0.001),
        (4807, (2.5, 52), 0.001),
        (7415, (155_000, 463_000), 1),
        (3035, (4_321_000, 3_210_000), 10),
    ],
)
@pytest.mark.parametrize('degrees', [0, 30])
def test_a_pixel_is_as_large_as_pyproj_measures_it(rasterio, tmp_path, smooth_image, code, corner, pixel, degrees):
    pyproj = pytest.importorskip('pyproj')
    place = (
        rasterio.Affine.translation(*corner) @ rasterio.Affine.rotation(degrees) @ rasterio.Affine.scale(pixel, -pixel)
    )
    path = write_raster(
        rasterio, tmp_path / 'a.tif', smooth_image(20, 24).transpose(2, 0, 1), crs=f'EPSG:{code}', transform=place
    )
    crs = pyproj.CRS.from_epsg(code)
    # the geodesic area of 20 × 20 pixels
    ring = [(2, 0), (22, 0), (22, 20), (2, 20)]
    grades = crs.geodetic_crs.axis_info[0].unit_conversion_factor
    to_ground = pyproj.Transformer.from_crs(crs.to_2d(), crs.geodetic_crs.to_2d(), always_xy=True)
    ground = [np.degrees(np.array(to_ground.transform(*(place @ corner))) * grades) for corner in ring]
    area, _ = crs.get_geod().polygon_area_perimeter(*zip(*ground))
    with open_scene(path) as scene:
        assert scene.gsd_m == pytest.approx(np.sqrt(abs(area)) / 20, rel=1e-4)
