"""Void pixels of a condition are filled, the same in every region, and kept as a mask up to the exports."""

import json

import numpy as np
import pytest
from PIL import Image

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.images import to_uint8, write_image
from rsdiff.diffusion import noise
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import solver_steps
from rsdiff.sampling.export.cog import write_cog
from rsdiff.sampling.export.formats import export
from rsdiff.sampling.mosaic.cascade import MosaicSettings, estimate, extent, sample_mosaic, sample_region, save_region
from rsdiff.sampling.mosaic.condition import Condition
from rsdiff.sampling.mosaic.field import Field, WindowSampler
from rsdiff.sampling.mosaic.plan import cut, make_plan
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.sampling.mosaic.store import GROUP, open_stage
from rsdiff.sampling.mosaic.void import GREY, REACH_PX, FineMask, fill

PLAN = make_plan('fast', 32, steps=2)
SETTINGS = MosaicSettings(160.0, 2, PLAN, 48)
STEPS = solver_steps(PLAN.solver, make_schedule(ScheduleConfig()), PLAN.steps)


def enlarged(condition, x):
    return np.repeat(np.repeat(condition['lr'], 4, 1), 4, 2)


def at(gsd_m):
    """A sampler that repeats each pixel of the condition 4 × 4 times."""
    return WindowSampler(lambda condition, x, x0, steps, *_: (x, x0), enlarged, STEPS, batch=4)


def make(condition, out, **changes):
    formats = changes.pop('formats', None)
    return sample_mosaic(
        at, condition, out, MosaicSettings(**vars(SETTINGS) | changes), {}, show=False, formats=formats
    )


@pytest.fixture
def rgba(smooth_image):
    """An image of 20 × 26 px, a corner and a hole of which are transparent, with arbitrary colours beneath."""
    y, x = np.mgrid[:20, :26]
    valid = (x + y > 12) & ~((y > 12) & (y < 17) & (x > 14) & (x < 20))
    pixels = np.where(valid[..., None], smooth_image(20, 26), np.random.default_rng(1).integers(0, 256, (20, 26, 3)))
    return np.dstack([pixels, np.where(valid, 255, 0)]).astype(np.uint8)


@pytest.fixture
def condition(rgba, tmp_path):
    write_image(tmp_path / 'lr.png', rgba)
    return Condition(tmp_path / 'lr.png')


def test_void_is_filled_by_equation_1_and_nothing_else_changes(rgba):
    pixels, valid = rgba[..., :3], rgba[..., 3] > 0
    made = fill(pixels, valid)
    np.testing.assert_array_equal(made[valid], pixels[valid])
    ys, xs = np.nonzero(valid)
    for y, x in ((0, 0), (3, 4), (14, 16)):
        distance = np.maximum(abs(ys - y), abs(xs - x))
        weights = sum(16.0 ** (6 - k) * (distance <= 2**k) for k in range(7))
        mean = (weights @ pixels[ys, xs].astype(float) + 1024 * GREY) / (weights.sum() + 1024)
        assert np.abs(made[y, x] - mean).max() <= 0.5 + 1e-6


def test_what_lies_beneath_void_counts_for_nothing_and_far_from_all_it_is_grey(rgba):
    pixels, valid = rgba[..., :3], rgba[..., 3] > 0
    np.testing.assert_array_equal(
        fill(pixels, valid), fill(np.where(valid[..., None], pixels, 7).astype(np.uint8), valid)
    )
    wide = np.zeros((3, 200, 3), np.uint8)
    one = np.zeros((3, 200), bool)
    one[1, 0] = True
    made = fill(wide, one)
    assert (made[:, REACH_PX + 1 :] == GREY).all() and (made[:, 1] < 2).all()


def test_any_rectangle_of_a_filled_condition_is_that_of_the_whole(condition, tmp_path):
    rng = np.random.default_rng(0)
    large = np.dstack([rng.integers(0, 256, (150, 170, 3)), np.where(rng.random((150, 170)) < 0.004, 255, 0)]).astype(
        np.uint8
    )
    write_image(tmp_path / 'large.png', large)
    for made in (condition, Condition(tmp_path / 'large.png')):
        height, width, _ = made.shape
        whole = made[0:height, 0:width]
        for _ in range(20):
            y0, x0 = rng.integers(height), rng.integers(width)
            y1, x1 = rng.integers(y0, height) + 1, rng.integers(x0, width) + 1
            np.testing.assert_array_equal(made[y0:y1, x0:x1], whole[y0:y1, x0:x1])


def test_the_mask_goes_into_the_array_the_pictures_and_the_regions(condition, rgba, tmp_path):
    result = make(condition, tmp_path / 'out', formats=['png', 'viewer'])
    valid = rgba[..., 3] > 0
    assert result['void_share'] == pytest.approx(1 - valid.mean(), abs=1e-6)
    fine = np.kron(valid, np.ones((16, 16), bool))
    metadata = json.loads((tmp_path / 'out' / GROUP / 'stage_2' / 'zarr.json').read_text())
    assert metadata['attributes']['mask'] == 'stage_2_mask'
    shown = np.asarray(Image.open(tmp_path / 'out' / 'stage_2.png'))
    np.testing.assert_array_equal(shown[..., 3] > 0, fine)
    np.testing.assert_array_equal(shown[fine][:, :3], np.kron(rgba[..., :3], np.ones((16, 16, 1), np.uint8))[fine])
    tile = np.asarray(
        Image.open(tmp_path / 'out' / 'viewer' / 'tiles' / 'stage_2' / '4' / '0' / '0.png').convert('RGBA')
    )
    np.testing.assert_array_equal(tile[..., 3] > 0, fine[:256, :256])
    lowest = np.asarray(Image.open(tmp_path / 'out' / 'viewer' / 'tiles' / 'condition' / '0' / '0' / '0.png'))
    np.testing.assert_array_equal(lowest[:20, :26, 3] > 0, valid)
    saved = save_region(at, condition, tmp_path / 'out', SETTINGS, {}, 100, 20, 150, 333)
    np.testing.assert_array_equal(np.asarray(Image.open(saved['picture'])), shown[100:250, 20:353])
    around = FineMask(condition, 16, wrap_x=True).region(Box(5, 400, 90, 500))
    np.testing.assert_array_equal(around, np.concatenate([fine, fine], 1)[5:90, 400:500])


def test_the_mask_is_zarr_that_others_read(condition, rgba, tmp_path):
    zarr = pytest.importorskip('zarr', reason='an independent reader of Zarr v3')
    make(condition, tmp_path / 'out', formats=['zarr'])
    mask = zarr.open_group(tmp_path / 'out' / GROUP, mode='r')['stage_1_mask']
    np.testing.assert_array_equal(mask[:], np.kron(rgba[..., 3], np.ones((4, 4), np.uint8)))


def test_a_geotiff_of_a_masked_mosaic_is_masked_with_its_overviews(condition, rgba, tmp_path):
    rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    make(condition, tmp_path / 'out', formats=['tif'])
    with rasterio.open(tmp_path / 'out' / 'stage_2.tif') as file:
        np.testing.assert_array_equal(file.dataset_mask(), np.kron(rgba[..., 3], np.ones((16, 16), np.uint8)))
    shape = 20 * 64, 26 * 64
    stage = open_stage(tmp_path / 'large', 3, *shape, 2048, {'gsd_m': 1.0}, masked=True)
    stage.write((0, 0), np.full((*shape, 3), 200, np.uint8))
    stage.mask.write((0, 0), np.kron(rgba[..., 3], np.ones((64, 64), np.uint8)))
    write_cog(tmp_path / 'large.tif', stage, {}, show=False)
    with rasterio.open(tmp_path / 'large.tif') as file:
        np.testing.assert_array_equal(file.dataset_mask(), np.kron(rgba[..., 3], np.ones((64, 64), np.uint8)))
        assert not file.read()[:, file.dataset_mask() == 0].any() and file.overviews(1)
    with rasterio.open(tmp_path / 'large.tif', overview_level=0) as file:
        assert (file.read()[:, file.dataset_mask() > 0] == 200).all()
        np.testing.assert_array_equal(file.dataset_mask() > 0, np.kron(rgba[..., 3] > 0, np.ones((32, 32), bool)))


def test_float_scenes_with_a_border_of_nan_are_enlarged(tmp_path, smooth_image):
    rasterio = pytest.importorskip('rasterio', reason='GeoTIFF needs the `geo` extra')
    values = smooth_image(20, 24).astype(np.float32) / 255
    values[:, :8] = np.nan
    with rasterio.open(tmp_path / 'lr.tif', 'w', driver='GTiff', width=24, height=20, count=3, dtype='float32') as file:
        file.write(np.moveaxis(values, -1, 0))
    condition = Condition(tmp_path / 'lr.tif', value_range=(0, 1))
    assert make(condition, tmp_path / 'out')['void_share'] == pytest.approx(1 / 3, abs=1e-6)
    alpha = np.asarray(Image.open(tmp_path / 'out' / 'stage_2.png'))[..., 3]
    assert not alpha[:, : 8 * 16].any() and alpha[:, 8 * 16 :].all()


def test_without_void_no_byte_changes_and_no_mask_is_written(rgba, tmp_path):
    write_image(tmp_path / 'rgb.png', rgba[..., :3])
    write_image(tmp_path / 'opaque.png', np.dstack([rgba[..., :3], np.full((20, 26), 255, np.uint8)]))
    contents = []
    for number, condition in enumerate(
        (rgba[..., :3], Condition(tmp_path / 'rgb.png'), Condition(tmp_path / 'opaque.png'))
    ):
        out = tmp_path / str(number)
        assert 'void_share' not in make(condition, out, formats=['png', 'viewer'])
        contents.append(
            {
                path.relative_to(out): path.read_bytes()
                for path in out.rglob('*')
                if path.is_file() and path.parts[len(out.parts)] in (GROUP, 'stage_2.png', 'settings.json')
            }
        )
    assert contents[0] == contents[1] == contents[2] and not any('mask' in str(path) for path in contents[0])


def test_a_mosaic_from_before_masks_goes_on_without_void_and_is_refused_with(rgba, condition, tmp_path):
    make(rgba[..., :3], tmp_path / 'old', formats=['zarr'])
    write_image(tmp_path / 'rgb.png', rgba[..., :3])
    assert make(Condition(tmp_path / 'rgb.png'), tmp_path / 'old', formats=['zarr'])['sampled_now'] == 0
    with pytest.raises(BadInput, match='void None'):
        make(condition, tmp_path / 'old')
    make(condition, tmp_path / 'new', formats=['zarr'])
    write_image(tmp_path / 'other.png', np.dstack([rgba[..., :3], np.roll(rgba[..., 3], 1, 0)]))
    with pytest.raises(BadInput, match='void'):
        make(Condition(tmp_path / 'other.png'), tmp_path / 'new')


def test_a_lost_part_of_a_mask_is_made_again(condition, tmp_path):
    make(condition, tmp_path / 'out', formats=['zarr'])
    shard = tmp_path / 'out' / GROUP / 'stage_2_mask' / 'c' / '1' / '2'
    before = shard.read_bytes()
    shard.write_bytes(before[:-3])
    with pytest.raises(BadInput, match='1 of .* missing'):
        export(tmp_path / 'out')
    make(condition, tmp_path / 'out', formats=['zarr'])
    assert shard.read_bytes() == before


def test_broken_metadata_are_written_anew_and_others_named(condition, tmp_path):
    make(condition, tmp_path / 'out', formats=['zarr'])
    for name in ('zarr.json', 'stage_1/zarr.json', 'stage_2_mask/zarr.json'):
        path = tmp_path / 'out' / GROUP / name
        before = path.read_bytes()
        for broken in (b'', before[:60], b'\xff\xfe'):
            path.write_bytes(broken)
            assert make(condition, tmp_path / 'out', formats=['zarr'])['sampled_now'] == 0
            assert json.loads(path.read_bytes()) == json.loads(before)
    path = tmp_path / 'out' / GROUP / 'stage_1' / 'zarr.json'
    path.write_text(path.read_text().replace('48', '64'))
    with pytest.raises(BadInput, match='stage_1: not the array'):
        make(condition, tmp_path / 'out')


def test_a_condition_of_nothing_and_one_in_a_bucket_are_refused(tmp_path):
    write_image(tmp_path / 'none.png', np.zeros((5, 6, 4), np.uint8))
    with pytest.raises(BadInput, match='none.png: none of its pixels is valid'):
        make(Condition(tmp_path / 'none.png'), tmp_path / 'out')
    with pytest.raises(BadInput, match='gs://bucket/lr.tif'):
        Condition('gs://bucket/lr.tif')


@pytest.mark.parametrize('value', [1e300, 0, -1.0, float('nan'), float('inf'), 1e-4, 2e7, 'ten', True, None])
def test_a_resolution_beyond_the_earth_is_refused(value):
    with pytest.raises(BadInput, match='^here is .*0.001 to 1e'):
        check_gsd_m(value, 'here')
    assert check_gsd_m(10, 'here') == 10.0


def test_what_is_not_finite_is_no_picture():
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(FloatingPointError, match='1 of 4'):
            to_uint8(np.array([0, 0.5, value, -1]))


@pytest.mark.parametrize(
    'stages, shape, supertile_px, message',
    [
        (15, (2, 2, 3), 2**20, '15 stages'),
        (2, (2**26, 2**27, 3), 4096, 'px high|px wide'),
        (1, (2**26, 20, 3), 16, '--supertile'),
    ],
)
def test_canvases_beyond_the_limits_are_refused_at_once(stages, shape, supertile_px, message):
    settings = MosaicSettings(160.0, stages, PLAN, supertile_px)
    with pytest.raises(BadInput, match=message):
        extent(shape, settings)


def test_stages_beyond_the_limit_are_refused():
    for stages in (0, 16, 30, 10**9):
        with pytest.raises(BadInput, match='stages is'):
            MosaicSettings(160.0, stages, PLAN, 1024)
    with pytest.raises(BadInput, match='steps is'):
        make_plan('spot', 32, 10**9)


def test_the_largest_canvas_is_estimated_and_read_at_its_end():
    class Endless:
        shape = (2**24, 2**24, 3)

        def __getitem__(self, key):
            return np.full([part.stop - part.start for part in key] + [3], 100, np.uint8)

    for wrap_x in (False, True):
        settings = MosaicSettings(160.0, 3, PLAN, 1024, wrap_x=wrap_x)
        told = estimate(at, Endless(), settings)
        assert told['pixels'] == 2**60 and told['supertiles'] == sum(4**n for n in (16, 18, 20))
        end = 2 * 2**30 if wrap_x else 2**30
        box = Box(2**30 - 4, end - 5 if not wrap_x else end - 2**30 - 5, 2**30, end if not wrap_x else end - 2**30 + 5)
        assert (sample_region(at, Endless(), settings, box) == 100).all()


def test_noise_beyond_32_bits_is_refused_or_goes_round():
    image = np.full((8, 8, 3), 100, np.uint8)
    flat = Field(at(1.0), PLAN, {'lr': Plane(image)}, noise.name_key(0, 1))
    for box in (Box(2**31, 0, 2**31 + 4, 4), Box(0, 2**31 - 20, 4, 2**31), Box(0, -(2**31) - 9, 4, -(2**31))):
        with pytest.raises(BadInput, match='beyond 2,147,483,647 px'):
            flat.region(box)
    seen = WindowSampler(
        lambda condition, x, x0, steps, *_: (x, x0), lambda condition, x: np.clip(x / 4, -1, 1), STEPS, batch=4
    )
    around = Field(seen, PLAN, {'lr': Plane(image, wrap_x=True)}, noise.name_key(0, 1))
    far = 32 * (2**31 // 32 + 5)
    np.testing.assert_array_equal(around.region(Box(0, far + 3, 8, far + 30)), around.region(Box(0, 3, 8, 30)))


@pytest.mark.parametrize('around_px', [None, 1000])
def test_counts_are_the_lengths_of_places(around_px):
    for plan in (PLAN, make_plan('spot', 64, 5), make_plan('infinite', 64, 6)):
        tiles = cut(1000, 112)
        counted = plan.counts(1, *tiles.T, around_px)
        listed = [[len(phase) for phase in plan.places(1, int(a), int(b), around_px)] for a, b in tiles]
        np.testing.assert_array_equal(np.stack(counted, 1), listed)
