"""Each kind of seam is found by its own measure, on its own grid; images without seams show none."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rsdiff.evaluation import seams
from rsdiff.evaluation.interval import Interval
from rsdiff.evaluation.seams import Grid, regular_grid, seam_ratio, seam_report

SIZE, PERIOD = 768, 64


def ground(size=SIZE, seed=0):
    """Float (size, size, 3): structure at every scale, smooth on the left and rough on the right."""
    rng = np.random.default_rng(seed)
    octaves = [2.0**k * gaussian_filter(rng.normal(size=(size, size)), 2.0**k, mode='wrap') for k in range(6)]
    rough = np.linspace(0.2, 1.8, size)
    image = sum(octaves[2:]) + rough * sum(octaves[:2])
    return 128 + 12 * image[..., None] * np.array([1.0, 0.9, 0.8])


def report(image, **grid):
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return seam_report(image, regular_grid('windows', *image.shape[:2], PERIOD, **grid), supertile_px=192)


def windows(values):
    """Repeats each of (n, n, …) over a window of PERIOD × PERIOD pixels."""
    return np.repeat(np.repeat(values, PERIOD, 0), PERIOD, 1)


def ramp():
    """From -0.5 to 0.5 over each window, in x."""
    return (np.arange(SIZE) % PERIOD / (PERIOD - 1) - 0.5)[None, :, None]


CLEAN = report(ground())


def test_an_image_without_seams_has_ratios_of_one_in_every_stratum():
    for name, interval in CLEAN.items():
        if name.startswith(('step', 'slope')):
            assert interval.low - 0.01 < 1 < interval.high + 0.01 and abs(interval.value - 1) < 0.03, name
    assert CLEAN['band all'].low < 1.05 and CLEAN['band all'].high > 0.95
    assert CLEAN['comb'].value < 2 and abs(CLEAN['repetition'].value) < 0.02 and 'overlap' not in CLEAN


def test_the_strata_prefer_no_place():
    """If strata were chosen without the pixels at the line, smooth ground would seem to have seams there, by chance."""
    noise = 128 + 20 * np.random.default_rng(0).normal(size=(SIZE, SIZE, 3))
    found = report(noise)
    assert found['step smooth'].value == pytest.approx(1, abs=0.01) and found['step textured'].value == pytest.approx(
        1, abs=0.01
    )


def test_a_tint_of_each_window_is_a_step_and_a_band_on_smooth_ground_most_of_all():
    tint = windows(np.random.default_rng(1).normal(0, 4, (SIZE // PERIOD, SIZE // PERIOD, 3)))
    found = report(ground() + tint)
    assert found['band all'].low > 1.3 > 1.1 > CLEAN['band all'].high
    assert found['step smooth'].low > 1.3 and found['step smooth'].value > found['step textured'].value > 1.03
    assert found['comb'].low > 3


def test_a_crease_is_a_slope_and_hardly_a_step():
    roof = 24 * np.abs(ramp())  # continuous, with a kink at each line
    found = report(gaussian_filter(ground(), (1.5, 1.5, 0)) + roof)
    assert found['slope smooth'].low > 1.1 > 1.05 > found['step smooth'].value


def test_an_overlap_that_is_blurred_and_a_sharpened_one_are_found():
    image = ground()
    beyond = np.arange(SIZE) % PERIOD < 8
    there = (beyond[:, None] | beyond)[..., None]
    blurred, sharp = gaussian_filter(image, (1, 1, 0)), image + (image - gaussian_filter(image, (1, 1, 0)))
    assert report(np.where(there, blurred, image), overlap_px=8)['overlap'].high < 0.8
    assert report(np.where(there, sharp, image), overlap_px=8)['overlap'].low > 1.2
    clean = report(image, overlap_px=8)['overlap']
    assert clean.low < 1 < clean.high and abs(clean.value - 1) < 0.05


def test_one_texture_printed_in_every_window_is_repetition():
    tile = np.random.default_rng(2).normal(0, 6, (PERIOD, PERIOD, 3))
    smooth = gaussian_filter(ground(), (4, 4, 0))
    repeated = report(smooth + np.tile(tile, (SIZE // PERIOD, SIZE // PERIOD, 1)))
    fresh = report(smooth + np.random.default_rng(3).normal(0, 6, (SIZE, SIZE, 3)))
    assert repeated['repetition'].low > 0.3 > 0.05 > abs(fresh['repetition'].value)


def test_a_grid_is_judged_at_its_own_lines_alone():
    tint = windows(np.random.default_rng(1).normal(0, 8, (SIZE // PERIOD, SIZE // PERIOD, 3)))
    beside = report(ground() + tint, offset_px=PERIOD // 4)
    assert beside['step smooth'].high < 1.02 < report(ground() + tint)['step smooth'].low


def test_small_grids_of_the_image_itself_are_no_seams():
    """Edges of JPEG blocks and network patches coincide with every line at a multiple of 8."""
    blocks = np.kron(np.random.default_rng(4).normal(0, 3, (SIZE // 8, SIZE // 8)), np.ones((8, 8)))[..., None]
    found = report(gaussian_filter(ground(), (1, 1, 0)) + blocks, overlap_px=4)
    beside = seams.steps((ground() + blocks).astype(np.float32)).mean(0)
    assert beside[8::8].mean() > 1.1 * beside[4::8].mean()
    for name in ('step all', 'step smooth', 'slope all', 'overlap'):
        assert found[name].value == pytest.approx(1, abs=0.05), name


def test_over_a_control_of_the_same_texture_a_seam_stands_out_sharply():
    image, grid = 128 + 20 * np.random.default_rng(5).normal(size=(SIZE, SIZE, 3)), regular_grid('', SIZE, SIZE, PERIOD)
    tint = windows(np.random.default_rng(1).normal(0, 3, (SIZE // PERIOD, SIZE // PERIOD, 3)))
    as_sums = lambda image: seams.seam_sums([(np.clip(np.rint(image), 0, 255).astype(np.uint8), grid)], 192)['step all']
    alone, over = seams.ratio_interval(as_sums(image + tint)), seams.against(as_sums(image + tint), as_sums(image))
    assert over.low > 1 and over.high - over.low < 0.6 * (alone.high - alone.low)
    assert seams.against(as_sums(image), as_sums(image)) == Interval(1.0, 1.0, 1.0)


def test_several_images_are_taken_as_if_they_were_one():
    image, grid = np.clip(ground(), 0, 255).astype(np.uint8), regular_grid('', SIZE, SIZE, PERIOD)
    once, twice = (seams.seam_sums([(image, grid)] * count, 192) for count in (1, 2))
    for name in once:
        np.testing.assert_allclose(twice[name], np.concatenate([once[name]] * 2))


def test_supertiles_share_out_the_lines_and_lose_none():
    image = np.clip(ground(), 0, 255).astype(np.uint8)
    grid = Grid('irregular', [50, 130, 200, 311, 400, 500], [64, 190, 260, 390, 511, 640])
    whole, shared = (seam_report(image, grid, size) for size in (768, 128))
    assert whole['step all'].value == pytest.approx(shared['step all'].value, rel=0.02)
    assert np.isnan(whole['comb'].value)  # irregular lines have no comb
    assert whole['step all'].low == whole['step all'].high  # one supertile, nothing to resample


def test_measures_are_what_they_say():
    x = np.random.default_rng(0).normal(size=(40, 70, 3)).astype(np.float32)
    c, y = 31, 24
    assert seams.steps(x)[y, c] == pytest.approx(np.abs(x[y, c] - x[y, c - 1]).mean(), rel=1e-5)
    assert seams.slopes(x)[y, c] == pytest.approx(
        np.abs(x[y, c + 1] - x[y, c] - x[y, c - 1] + x[y, c - 2]).mean(), rel=1e-5
    )
    rows = slice(y - 8, y + 8)
    expected = np.abs(x[rows, c : c + 16].mean((0, 1)) - x[rows, c - 16 : c].mean((0, 1))).mean()
    assert seams.bands(x)[y, c] == pytest.approx(expected, rel=1e-4)


def test_too_small_an_image_has_no_figures_and_raises_nothing():
    found = seam_report(np.zeros((20, 20, 3), np.uint8), regular_grid('', 20, 20, 8))
    assert all(np.isnan(interval.value) for interval in found.values())


def test_one_number_for_a_regular_grid():
    tint = windows(np.random.default_rng(1).normal(0, 20, (SIZE // PERIOD, SIZE // PERIOD, 3)))
    clean, tiled = (np.clip(image, 0, 255).astype(np.uint8) for image in (ground(), ground() + tint))
    assert seam_ratio(clean, PERIOD) == pytest.approx(1, abs=0.03) and seam_ratio(tiled, PERIOD) > 1.3
