import numpy as np
import pytest

from rsdiff.data.boxes import Box
from rsdiff.errors import BadInput
from rsdiff.mosaic.windows import WindowGrid, reflected_read

SIZES = [(32, 32), (32, 100), (68, 52), (96, 40)]


@pytest.mark.parametrize('height, width', SIZES)
def test_tiles_cover_the_canvas_exactly_once(height, width):
    count = np.zeros((height, width), int)
    for tile in WindowGrid(height, width, 32).tiles():
        tile.crop(count)[:] += 1
    assert np.all(count == 1)


@pytest.mark.parametrize('height, width', SIZES)
def test_the_middle_of_a_window_is_its_tile(height, width):
    grid = WindowGrid(height, width, 32)
    positions = np.stack(np.meshgrid(np.arange(-64, 200), np.arange(-64, 200), indexing='ij'), -1)
    for tile in grid.tiles():
        window = grid.window(tile)
        pixels = positions[window.y0 + 64 : window.y1 + 64, window.x0 + 64 : window.x1 + 64]
        np.testing.assert_array_equal(grid.middle(pixels, tile), tile.crop(positions[64:, 64:]))
        assert all(4 * c == w for c, w in zip(grid.condition_box(tile), window))


def test_neighbouring_windows_overlap_by_half():
    grid = WindowGrid(96, 96, 32)
    first, second = (grid.window(tile) for tile in grid.tiles()[:2])
    assert first.x1 - second.x0 == 16 and first.overlaps(second)


@pytest.mark.parametrize('box', [Box(-3, -4, 5, 6), Box(5, 4, 14, 12), Box(-3, -4, 14, 12), Box(2, 2, 4, 4)])
def test_reading_beyond_the_edge_mirrors_like_numpy(box):
    image = np.random.default_rng(0).integers(0, 256, (10, 8, 3))
    padded = np.pad(image, ((6, 6), (6, 6), (0, 0)), mode='reflect')
    expected = padded[box.y0 + 6 : box.y1 + 6, box.x0 + 6 : box.x1 + 6]
    np.testing.assert_array_equal(reflected_read(image, box), expected)


def test_a_canvas_smaller_than_a_window_is_bad_input():
    with pytest.raises(BadInput, match='8×7 px, smaller than a window.*8×8'):
        WindowGrid(28, 32, 32)


def test_a_window_without_whole_quarters_is_refused():
    with pytest.raises(ValueError):
        WindowGrid(100, 100, 40)
