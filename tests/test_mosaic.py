"""A canvas by windows equals the canvas in one piece, whatever the order, the batch and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.console import claim_folder
from rsdiff.data.boxes import Box
from rsdiff.data.images import read_image, to_float, to_uint8
from rsdiff.diffusion import noise
from rsdiff.diffusion.consistency import smooth_up
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import sample
from rsdiff.errors import BadInput
from rsdiff.mosaic.cascade import MosaicSettings, sample_mosaic
from rsdiff.mosaic.sampler import sample_canvas, window_noise
from rsdiff.mosaic.store import Canvas
from rsdiff.mosaic.windows import WindowGrid
from rsdiff.training.mesh import batch_sharding, make_mesh

SCHEDULE = make_schedule(ScheduleConfig())
KEY = noise.name_key(0, 1)
WINDOW = 32


def sample_pointwise(lr, eps):
    """Each pixel's denoised value depends on that pixel, and on the pixel of the condition above it, alone."""
    above = jnp.repeat(jnp.repeat(lr, 4, 1), 4, 2)
    return sample(lambda x, t: 0.5 * above + 0.3 * jnp.tanh(x), SCHEDULE, 'x0', eps, 6)


def mosaic(tmp_path, condition, sample_windows=jax.jit(sample_pointwise), name='canvas', **options):
    grid = WindowGrid(4 * condition.shape[0], 4 * condition.shape[1], WINDOW)
    canvas = Canvas(tmp_path / name, grid.height, grid.width, grid.stride)
    count = sample_canvas(sample_windows, condition, canvas, grid, KEY, show=False, **options)
    return canvas.read(), count


@pytest.fixture
def condition(smooth_image):
    return smooth_image(19, 26)


def untiled(condition):
    eps = noise.crop(KEY, 0, 0, 4 * condition.shape[0], 4 * condition.shape[1])
    return to_uint8(jax.jit(sample_pointwise)(to_float(condition)[None], eps[None])[0])


@pytest.mark.parametrize('batch_size', [1, 3, 16])
@pytest.mark.parametrize('order', ['rows', 'reversed', 'shuffled'])
def test_pointwise_windows_make_the_untiled_image(tmp_path, condition, batch_size, order):
    tiles = WindowGrid(76, 104, WINDOW).tiles()
    tiles = {'rows': tiles, 'reversed': tiles[::-1],
             'shuffled': [tiles[i] for i in np.random.default_rng(0).permutation(len(tiles))]}[order]
    made, count = mosaic(tmp_path, condition, noise_kind='anchored', batch_size=batch_size, order=tiles)
    np.testing.assert_array_equal(made, untiled(condition))
    assert count == len(tiles)


def test_eight_devices_make_the_same_canvas(tmp_path, condition):
    split = batch_sharding(make_mesh())
    on_eight = jax.jit(sample_pointwise, in_shardings=(split, split), out_shardings=split)
    made, _ = mosaic(tmp_path, condition, on_eight, noise_kind='anchored', batch_size=8)
    np.testing.assert_array_equal(made, untiled(condition))


def test_a_local_denoiser_sees_enough_around_each_tile(tmp_path, condition):
    """One that looks eight pixels around itself, as bicubic enlargement does, meets no window's edge in its tile."""
    enlarge = jax.jit(lambda lr, eps: smooth_up(lr, 4))
    made, _ = mosaic(tmp_path, condition, enlarge)
    whole = to_uint8(smooth_up(to_float(condition), 4))
    inside = slice(8, -8)
    assert np.abs(made.astype(int) - whole)[inside, inside].max() <= 1


def test_an_interrupted_canvas_continues_to_the_same_bytes(tmp_path, condition):
    tiles = WindowGrid(76, 104, WINDOW).tiles()
    whole, _ = mosaic(tmp_path, condition, name='whole')
    mosaic(tmp_path, condition, name='parts', order=tiles[3:9], batch_size=2)
    parts, count = mosaic(tmp_path, condition, name='parts')
    np.testing.assert_array_equal(whole, parts)
    assert count == len(tiles) - 6


def test_a_black_tile_is_a_finished_tile(tmp_path):
    canvas = Canvas(tmp_path / 'c', 32, 32, 16)
    canvas.write(Box(0, 16, 16, 32), np.zeros((16, 16, 3), np.uint8))
    again = Canvas(tmp_path / 'c', 32, 32, 16)
    assert [again.is_done(tile) for tile in WindowGrid(32, 32, 32).tiles()] == [False, True, False, False]


def test_shared_noise_is_one_tile_and_anchored_noise_one_field():
    corners = np.array([[-8, -8], [-8, 8], [8, 8]], np.int32)
    shared = window_noise('shared', KEY, corners, WINDOW)
    np.testing.assert_array_equal(shared[0], shared[2])
    anchored = window_noise('anchored', KEY, corners, WINDOW)
    np.testing.assert_array_equal(anchored[0][:, 16:], anchored[1][:, :16])
    np.testing.assert_array_equal(anchored[0][16:, 16:], anchored[2][:16, :16])
    assert not np.array_equal(anchored[0], anchored[1])


SETTINGS = MosaicSettings(gsd_m=160.0, stages=2, window_px=WINDOW, steps=6, noise='anchored', batch_size=4)


def at(gsd_m):
    return jax.jit(sample_pointwise)


def test_stages_stand_on_each_other(tmp_path, condition):
    seen = []
    result = sample_mosaic(lambda gsd_m: seen.append(gsd_m) or at(gsd_m), condition, tmp_path / 'out', SETTINGS, {},
                           show=False)
    assert seen == [40.0, 10.0] and result['gsd_m'] == 10.0
    assert (result['height'], result['width'], result['pixels']) == (304, 416, 304 * 416)
    first, second = (read_image(tmp_path / 'out' / f'stage_{n}.png') for n in (1, 2))
    eps = noise.crop(noise.name_key(0, 2), 0, 0, 304, 416)
    expected = to_uint8(jax.jit(sample_pointwise)(to_float(first)[None], eps[None])[0])
    np.testing.assert_array_equal(second, expected)


def test_evaluations_are_counted(tmp_path, smooth_image):
    result = sample_mosaic(at, smooth_image(32, 32), tmp_path / 'out', SETTINGS, {}, show=False)
    # half overlap: every window of W² pixels keeps a quarter of them
    assert result['network_evaluations_per_pixel'] == {'last_stage': 24.0, 'all_stages': 25.5}
    assert result['windows'] == 64 + 1024


def test_running_again_samples_nothing_and_other_settings_are_refused(tmp_path, smooth_image):
    image, out = smooth_image(8, 8), tmp_path / 'out'
    sample_mosaic(at, image, out, SETTINGS, {'checkpoint': 'abc'}, show=False)
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    assert sample_mosaic(at, image, out, SETTINGS, {'checkpoint': 'abc'}, show=False)['sampled_now'] == 0
    with pytest.raises(BadInput, match="checkpoint 'abc' → 'abd'"):
        sample_mosaic(at, image, out, SETTINGS, {'checkpoint': 'abd'}, show=False)
    assert before == {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}


def test_someone_elses_folder_is_not_touched(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(BadInput, match='is not output of this program'):
        claim_folder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_small_condition_is_refused_before_anything_is_written(tmp_path, smooth_image):
    with pytest.raises(BadInput, match='smaller than a window'):
        sample_mosaic(at, smooth_image(7, 20), tmp_path / 'out', SETTINGS, {}, show=False)
    assert not (tmp_path / 'out').exists()
