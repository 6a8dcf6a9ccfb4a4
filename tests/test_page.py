"""A mosaic's page in a browser, opened from disk: it shows the mosaic's own pixels and makes no network request."""

import io

import numpy as np
import pytest
from PIL import Image

from rsdiff.sampling.export.viewer import Layer, write_viewer

WIDTH, HEIGHT = 900, 700
UTM = 'PROJCS["WGS 84 / UTM zone 33N",GEOGCS["WGS 84"]]'


@pytest.fixture(scope='module')
def images():
    """A condition that is a gradient, and two stages; stage 2, of 1328 × 1424 px, is larger than the browser window."""
    rng = np.random.default_rng(0)
    slope = np.broadcast_to(np.linspace(0, 255, 89)[None, :, None], (83, 89, 3)).astype(np.uint8)
    return [slope, *(rng.integers(0, 256, (n * 83, n * 89, 3), np.uint8) for n in (4, 16))]


@pytest.fixture
def page(browser, images, tmp_path):
    """The opened page; at the end, checks that it raised no error and made no network request."""
    layers = [
        Layer(name, image, 160 / 4**n, 2 * n)
        for n, (name, image) in enumerate(zip(('condition', 'stage_1', 'stage_2'), images))
    ]
    write_viewer(
        tmp_path / 'viewer',
        'Río & <b>sea</b>',
        layers,
        images[0].shape,
        160.0,
        {'crs': UTM, 'transform': [10, 0, 500_000, 0, -10, 4_000_000]},
        show=False,
    )
    page = browser.new_page(viewport={'width': WIDTH, 'height': HEIGHT})
    wrong, asked = [], []
    page.set_default_timeout(10_000)
    page.on('console', lambda message: wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('requestfailed', lambda request: wrong.append(request.url))
    page.on('request', lambda request: asked.append(request.url))
    page.goto((tmp_path / 'viewer' / 'index.html').as_uri())
    settle(page)
    yield page
    assert not wrong
    assert asked and all(url.startswith(tmp_path.as_uri()) for url in asked)
    page.close()


def settle(page):
    """Waits for the last animation and the last tile."""
    page.wait_for_function("""() => !document.querySelector('.leaflet-zoom-anim') &&
        [...document.querySelectorAll('img.leaflet-tile')].every(tile => tile.complete && tile.style.opacity == 1)
        && document.querySelectorAll('img.leaflet-tile-loaded').length""")
    page.wait_for_timeout(400)  # the duration of an animation


def screenshot(page):
    """uint8 (HEIGHT, WIDTH, 3), without the controls on top of the map."""
    return np.asarray(
        Image.open(io.BytesIO(page.screenshot(style='.leaflet-control { visibility: hidden; }'))).convert('RGB')
    )


def corner(page, name, zoom):
    """(y, x) on screen of the upper left corner of a layer at this zoom, and screen pixels per image pixel."""
    tile = page.locator(f'img.leaflet-tile[src*="tiles/{name}/{zoom}/"]').first
    _, _, _, y, x = tile.get_attribute('src').removesuffix('.png').rsplit('/', 4)
    box = tile.bounding_box()
    return round(box['y'] - int(y) * box['height']), round(box['x'] - int(x) * box['width']), box['width'] / 256


def visible(image, y, x, times):
    """The visible part of `image`, its corner at (y, x) and magnified `times`; and its indices on the screen."""
    rows, columns = (
        np.arange(max(at, 0), min(at + int(times * side), most))
        for at, side, most in ((y, image.shape[0], HEIGHT), (x, image.shape[1], WIDTH))
    )
    return image[((rows - y) // times).astype(int)][:, ((columns - x) // times).astype(int)], np.ix_(rows, columns)


def test_all_of_it_is_seen_at_first_by_its_means(page, images):
    """The entire canvas, 1328 × 1424 px, fits the browser window at half size."""
    y, x, times = corner(page, 'stage_2', 3)
    shown, place = visible(np.asarray(Image.fromarray(images[2]).reduce(2)), y, x, times)
    assert times == 1 and shown.shape == (664, 712, 3)
    assert np.abs(screenshot(page)[place].astype(int) - shown).max() <= 2
    assert page.title() == 'Río & <b>sea</b>' == page.locator('h1').text_content()
    bar = page.locator('.leaflet-control-scale-line')
    assert bar.text_content() == '3 km' and bar.evaluate('bar => bar.style.width') == '150px'  # at 20 m per pixel


def test_full_resolution_is_the_very_pixels_here_and_elsewhere(page, images):
    page.locator('.leaflet-control-zoom-in').click()
    settle(page)
    seen = []
    for _ in range(2):
        y, x, times = corner(page, 'stage_2', 4)
        shown, place = visible(images[2], y, x, times)
        assert times == 1 and shown.shape[0] > 600 and shown.shape[1] > 800
        np.testing.assert_array_equal(screenshot(page)[place], shown)
        seen.append((y, x))
        page.mouse.move(400, 350)
        page.mouse.down()
        page.mouse.move(300, 300, steps=5)
        page.wait_for_timeout(300)  # pause before release, so that the map does not keep gliding
        page.mouse.up()
        settle(page)
    assert seen[1] == (seen[0][0] - 50, seen[0][1] - 100)


def test_beyond_it_pixels_are_squares_and_the_wheel_goes_there(page, images):
    page.mouse.move(450, 350)
    for _ in range(4):
        page.mouse.wheel(0, -120)
        settle(page)
    y, x, times = corner(page, 'stage_2', 4)
    assert times == 8 and page.locator('.leaflet-control-zoom-in.leaflet-disabled').count() == 1
    shown, place = visible(images[2], y, x, times)
    np.testing.assert_array_equal(screenshot(page)[place], shown)


def test_layers_are_chosen_and_faded_over_the_condition(page, images):
    for name, zoom, label in (('stage_1', 2, 'stage 1, 40 m a pixel'), ('condition', 0, 'condition, 160 m a pixel')):
        page.get_by_label(label).click()
        settle(page)
        shown, place = visible(images[zoom // 2], *corner(page, name, zoom))
        np.testing.assert_array_equal(screenshot(page)[place], shown)
    page.get_by_label('stage 2, 10 m a pixel').click()
    slider = page.get_by_label('opacity')
    for opacity in ('0.5', '0'):
        slider.fill(opacity)
        settle(page)
        above, place = visible(np.asarray(Image.fromarray(images[2]).reduce(2)), *corner(page, 'stage_2', 3))
        below, _ = visible(images[0], *corner(page, 'condition', 0))
        mixed = float(opacity) * above + (1 - float(opacity)) * below
        assert np.abs(screenshot(page)[place] - mixed).max() <= 3


def test_a_place_has_its_row_column_and_coordinates(page):
    y, x, _ = corner(page, 'stage_2', 3)
    page.mouse.move(x + 200, y + 100)
    text = page.locator('.leaflet-bottom .panel').inner_text().replace('\n', ' ')
    assert text == 'row 200, column 400 x 504000.000, y 3998000.00 (WGS 84 / UTM zone 33N)'
    page.mouse.move(x - 20, y + 50)
    assert page.locator('.leaflet-bottom .panel').inner_text() == ''
