"""The code blocks of docs/mosaics.md that read a mosaic with other libraries, run verbatim."""

import re
from pathlib import Path

import numpy as np
import pytest

from rsdiff.sampling.export.formats import export
from rsdiff.sampling.mosaic.cascade import MosaicSettings, claim
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.store import GROUP, make_group, open_stage

DOCS = Path(__file__).parents[1] / 'docs' / 'mosaics.md'
SETTINGS = MosaicSettings(160.0, 2, make_plan('fast', 32), 160)


@pytest.fixture
def stages(tmp_path):
    """Two stages of a mosaic in the folder OUT."""
    out, rng = tmp_path / 'OUT', np.random.default_rng(0)
    condition = rng.integers(0, 256, (20, 24, 3), np.uint8)
    images = [rng.integers(0, 256, (4**n * 20, 4**n * 24, 3), np.uint8) for n in (1, 2)]
    claim(condition, out, SETTINGS, {})
    make_group(out / GROUP, SETTINGS.manifest())
    for number, image in enumerate(images, 1):
        stage = open_stage(out, number, *image.shape[:2], 160, {'gsd_m': SETTINGS.stage_gsd_m(number)}, masked=False)
        for tile in stage.tiles():
            stage.write(tile, stage.box(tile).crop(image))
    return images


def lines(start):
    """The Python block of the docs that begins with `start`."""
    blocks = re.findall(r'```python\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(start)]
    return found


def run_as_documented(start, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(lines(start), names)
    return names


@pytest.mark.parametrize('reader', ['zarr', 'xarray'])
def test_the_array_is_read_as_documented(stages, tmp_path, monkeypatch, reader):
    pytest.importorskip('zarr', reason='an independent reader of Zarr v3')
    pytest.importorskip(reader, reason='an independent reader of Zarr v3')
    window = run_as_documented(f'import {reader}\n', tmp_path, monkeypatch)['window']
    np.testing.assert_array_equal(window, stages[1][:256, :256])


def test_the_geotiff_is_read_as_documented(stages, tmp_path, monkeypatch):
    pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    export(tmp_path / 'OUT', ['tif'], show=False)
    window = run_as_documented('import rasterio\n', tmp_path, monkeypatch)['window']
    np.testing.assert_array_equal(window, stages[1][:256, :256])


def test_qgis_opens_the_geotiff_as_documented(stages, tmp_path, monkeypatch):
    pytest.importorskip('qgis.core', reason='QGIS brings its own Python')
    export(tmp_path / 'OUT', ['tif'], show=False)
    layer = run_as_documented('from qgis.core', tmp_path, monkeypatch)['layer']
    assert layer.isValid() and (layer.width(), layer.height()) == (384, 320)


def test_gdal_reads_the_array_from_3_13_on(stages, tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio', reason='brings GDAL')
    if tuple(map(int, rasterio.__gdal_version__.split('.')[:2])) < (3, 13):
        pytest.skip(f'GDAL {rasterio.__gdal_version__} reads no sharded Zarr v3')
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(r"'(ZARR:[^']*)'", DOCS.read_text(encoding='utf-8'))
    with rasterio.open(name, DIM_Y=0, DIM_X=1) as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), stages[1])
