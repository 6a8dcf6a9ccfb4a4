"""Exports show the mosaic's own pixels, are complete or absent, and are refused where the format can't hold them."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.images import read_image
from rsdiff.sampling.export import cog
from rsdiff.sampling.export.formats import check_formats, export
from rsdiff.sampling.export.viewer import count_tiles
from rsdiff.sampling.mosaic.cascade import MosaicSettings, claim
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.store import GROUP, StageArray

SETTINGS = MosaicSettings(gsd_m=160.0, stages=2, plan=make_plan('fast', 32), supertile_px=160)
SUPERTILES = 2 * 1 + 5 * 4
CONDITION_PX = 44, 37
TRANSFORM = [10, 0, 500_000, 0, -10, 4_000_000]


def fill(out, images, **place):
    """Writes a finished mosaic with these pixels."""
    claim(images[0], out, SETTINGS, {'checkpoint': 'abc'})
    for number, image in enumerate(images[1:], 1):
        array = StageArray(
            out / GROUP / f'stage_{number}',
            *image.shape[:2],
            SETTINGS.supertile_px,
            {'gsd_m': SETTINGS.stage_gsd_m(number), **place},
        )
        for tile in array.tiles():
            array.write(tile, array.box(tile).crop(image))
    return out


@pytest.fixture(scope='module')
def images():
    """The condition and two stages of random pixels, the last one of 704 × 592 px."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*(4**stage * side for side in CONDITION_PX), 3), np.uint8) for stage in range(3)]


@pytest.fixture
def mosaic(images, tmp_path):
    return fill(tmp_path / 'mosaic', images)


def names(folder):
    """Names in a mosaic's folder other than the mosaic's own files."""
    ours = {'settings.json', '.settings.json.lock', GROUP, 'claims', 'exports'}
    return {path.name for path in folder.iterdir()} - ours


class Stopped(BaseException):
    """Stands in for KeyboardInterrupt, which would end the test run."""


def stop_reading(monkeypatch, reads):
    """Makes reading the last stage of a mosaic fail after `reads` reads."""
    read, left = StageArray.__getitem__, [reads]

    def stopping(stage, key):
        left[0] -= stage.path.name == 'stage_2'
        if left[0] < 0:
            raise Stopped
        return read(stage, key)

    monkeypatch.setattr(StageArray, '__getitem__', stopping)


def test_pictures_are_made_where_nothing_is_said_and_left_out_where_others_are_named(mosaic, images):
    assert export(mosaic, ['zarr']) == [] and not names(mosaic)
    assert [path.rsplit('/', 1)[1] for path in export(mosaic)] == ['stage_1.png', 'stage_2.png']
    np.testing.assert_array_equal(read_image(mosaic / 'stage_2.png'), images[2])
    assert names(mosaic) == {'stage_1.png', 'stage_2.png'}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b'')


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('damage', [cut, empty, flip, lambda path: path.unlink()])
@pytest.mark.parametrize(
    'name, file',
    [
        ('png', 'stage_1.png'),
        ('tif', 'stage_1.tif'),
        ('viewer', 'viewer/index.html'),
        ('viewer', 'viewer/tiles/stage_1/2/0/0.png'),
        ('png', 'exports/stage_1.png.json'),
    ],
)
def test_a_damaged_export_is_made_again_and_a_whole_one_is_not(mosaic, name, file, damage):
    if name == 'tif':
        pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    files = lambda: {path: (path.stat().st_ino, path.read_bytes()) for path in mosaic.rglob('*') if path.is_file()}
    export(mosaic, [name], show=False)
    before = files()
    export(mosaic, [name], show=False)
    assert files() == before
    damage(mosaic / file)
    export(mosaic, [name], show=False)
    after = files()
    same = {path: content for path, (_, content) in after.items()} == {
        path: content for path, (_, content) in before.items()
    }
    assert same and (
        mosaic / 'stage_2.png' not in before or after[mosaic / 'stage_2.png'] == before[mosaic / 'stage_2.png']
    )


def test_broken_settings_and_metadata_are_named(mosaic):
    (mosaic / GROUP / 'stage_1' / 'zarr.json').write_text('{"attr')
    with pytest.raises(BadInput, match='stage_1/zarr.json'):
        export(mosaic)
    for text in (
        '{"mode": "tiles"',
        '{"mode": "tiles", "stages": "2"}',
        '[]',
        '{"mode": "tiles", "stages": 2, "supertile_px": 0, "condition_px": [4, 4]}',
    ):
        (mosaic / 'settings.json').write_text(text)
        with pytest.raises(BadInput, match='settings.json'):
            export(mosaic)


def test_a_geotiff_is_valid_lies_in_its_place_and_holds_the_pixels(images, tmp_path):
    rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    validate = pytest.importorskip('rio_cogeo', reason='the reference for valid files').cog_validate
    mosaic = fill(tmp_path / 'm', images, crs=rasterio.crs.CRS.from_epsg(32633).to_wkt(), transform=TRANSFORM)
    assert export(mosaic, ['tif'], show=False) == [str(mosaic / 'stage_1.tif'), str(mosaic / 'stage_2.tif')]
    valid, errors, warnings = validate(mosaic / 'stage_2.tif', strict=True)
    assert valid and not errors and not warnings
    with rasterio.open(mosaic / 'stage_2.tif') as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), images[2])
        assert file.crs.to_epsg() == 32633 and list(file.transform)[:6] == TRANSFORM
        assert file.overviews(1) == [2] and file.block_shapes == [(512, 512)] * 3
        assert file.compression.name == 'deflate' and [band.name for band in file.colorinterp] == [
            'red',
            'green',
            'blue',
        ]
        tags = file.tags()
        assert float(tags['gsd_m']) == 10 and json.loads(tags['rsdiff'])['checkpoint'] == 'abc'
        assert 'invented' in tags['TIFFTAG_IMAGEDESCRIPTION']
    with rasterio.open(mosaic / 'stage_2.tif', overview_level=0) as file:
        half = np.asarray(Image.fromarray(images[2]).reduce(2)).astype(int)
        assert np.abs(np.moveaxis(file.read(), 0, -1) - half).max() <= 1
    assert names(mosaic) == {'stage_1.tif', 'stage_2.tif'}


def test_a_mosaic_of_no_known_place_is_a_geotiff_too(mosaic, images):
    rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    export(mosaic, ['tif'], show=False)
    with rasterio.open(mosaic / 'stage_1.tif') as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), images[1])
        assert file.crs is None and file.transform.is_identity


@pytest.mark.parametrize('name', ['tif', 'viewer'])
def test_an_interrupted_export_leaves_nothing_half_and_ends_the_same(mosaic, images, tmp_path, monkeypatch, name):
    if name == 'tif':
        pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    monkeypatch.setattr(cog, 'WINDOW_PX', 256)
    last = mosaic / {'tif': 'stage_2.tif', 'viewer': 'viewer/index.html'}[name]
    with monkeypatch.context() as broken, pytest.raises(Stopped):
        stop_reading(broken, 3)
        export(mosaic, [name], images[0], show=False)
    assert not last.exists() and not list(mosaic.glob('.*partial*'))
    tiles = {path: (path.stat().st_ino, path.read_bytes()) for path in mosaic.glob('viewer/**/*.png')}
    export(mosaic, [name], images[0], show=False)
    whole = fill(tmp_path / 'whole' / 'mosaic', images)
    export(whole, [name], images[0], show=False)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in tiles} == tiles
    made = [
        {
            path.relative_to(out): path.read_bytes()
            for path in out.glob('**/*')
            if path.is_file() and GROUP not in path.parts
        }
        for out in (mosaic, whole)
    ]
    assert made[0] == made[1] and last.exists()


def pyramid(folder, zoom, height, width):
    """The tiles of a zoom level assembled and cropped to (height, width)."""
    rows, columns = -(-height // 256), -(-width // 256)
    tiles = [
        [np.asarray(Image.open(folder / str(zoom) / str(y) / f'{x}.png').convert('RGBA')) for x in range(columns)]
        for y in range(rows)
    ]
    assert len(list((folder / str(zoom)).glob('*/*'))) == rows * columns
    whole = np.concatenate([np.concatenate(row, 1) for row in tiles])
    assert (whole[:height, :width, 3] == 255).all() and not whole[height:, :, 3].any() and not whole[:, width:, 3].any()
    return whole[:height, :width, :3]


def test_the_tiles_of_a_viewer_are_the_mosaic_and_means_of_it(mosaic, images):
    export(mosaic, ['viewer'], images[0], show=False)
    for name, zoom, image in (('condition', 0, images[0]), ('stage_1', 2, images[1]), ('stage_2', 4, images[2])):
        tiles = mosaic / 'viewer' / 'tiles' / name
        np.testing.assert_array_equal(pyramid(tiles, zoom, *image.shape[:2]), image)
        assert len(list(tiles.rglob('*.png'))) == count_tiles(CONDITION_PX, zoom)
        for coarser in reversed(range(zoom)):
            image = np.asarray(Image.fromarray(image).reduce(2))
            shown = pyramid(tiles, coarser, *image.shape[:2])
            assert np.abs(shown.astype(int) - image).max() <= 1 and (shown != image).mean() < 0.3  # halves are rounded
            image = shown


def test_the_page_of_a_mosaic_is_no_place_for_a_script(images, tmp_path):
    mosaic = fill(tmp_path / '<script>alert(1)<', images)
    page = export(mosaic, ['viewer'], show=False)[0]
    known = re.search(r'const mosaic = (.*);\n', open(page, encoding='utf-8').read())[1]
    assert '<' not in known and json.loads(known)['title'] == '<script>alert(1)<'
    assert [layer['name'] for layer in json.loads(known)['layers']] == ['stage_1', 'stage_2']


@pytest.mark.parametrize(
    'formats, side, message',
    [
        (['jpg'], 8, "format 'jpg' is not one of zarr, png, tif, viewer"),
        (['zarr', 'png'], 2501, '10004×10004 px are too many for a PNG, .* 100,000,000 px at most'),
        (['viewer'], 40_000, 'a viewer of 160000×160000 px would be .* files, more than 200,000; use tif'),
    ],
)
def test_what_can_not_be_made_is_refused_before_anything_is_sampled(formats, side, message):
    with pytest.raises(BadInput, match=message):
        check_formats(formats, (side, side, 3), 1)
    check_formats(formats[:-1], (side, side, 3), 1)


def test_a_geotiff_needs_room(mosaic, monkeypatch):
    pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r'stage_1.tif: may take 208,384 bytes while it is made, and 1,000 are free'):
        export(mosaic, ['tif'], show=False)
    assert not names(mosaic)


def test_a_geotiff_needs_rasterio(mosaic, monkeypatch):
    monkeypatch.setattr(cog, 'import_rasterio', lambda: None)
    with pytest.raises(BadInput, match=r"written by rasterio; pip install 'rsdiff-jax\[geo\]'"):
        check_formats(['tif'], CONDITION_PX, 2)
    assert not names(mosaic)


def test_a_geotiff_that_can_not_be_written_leaves_nothing(mosaic, monkeypatch):
    pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    monkeypatch.setattr(cog, 'OPTIONS', ('BLOCKSIZE=7',))
    with pytest.raises(BadInput, match=r'stage_1.tif: could not be written \(.+\)'):
        export(mosaic, ['tif'], show=False)
    assert not names(mosaic)


def test_an_unfinished_mosaic_and_none_are_refused(mosaic, tmp_path):
    array = mosaic / GROUP / 'stage_2'
    (array / 'c' / '1' / '3' / '0').unlink()
    (array / 'c' / '0' / '0' / '0').write_bytes(b'')
    with pytest.raises(BadInput, match=f'2 of {SUPERTILES} supertiles are missing; run sample.py again'):
        export(mosaic)
    shutil.rmtree(array)
    with pytest.raises(BadInput, match=f'20 of {SUPERTILES} supertiles are missing'):
        export(mosaic)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'settings.json').write_text('{"mode": "folder"}')
    for path in (tmp_path / 'nowhere', tmp_path / 'other', tmp_path / 'images', mosaic / 'settings.json'):
        with pytest.raises(BadInput, match='holds no mosaic; give the output folder of sample.py --tiles'):
            export(path)
    assert not names(mosaic)
