"""Our array JPEG against Pillow's encoder and decoder."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rsdiff.data.canvas import Canvas
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image
from rsdiff.data.jpeg import CHROMINANCE, LUMINANCE, jpeg, table

DATA = next((p / 'shared/data' for p in Path(__file__).parents if (p / 'shared/data').is_dir()), None)
QUALITIES = 30, 60, 75, 95


def compressed(image, quality, size=None):
    """uint8 (h, w, 3) → the same shape; only the top left `size` is used."""
    run = jax.jit(lambda pixels, size, quality: jpeg(Canvas(pixels, size), quality).pixels)
    size = tuple(jnp.int32(n) for n in size or image.shape[:2])
    return np.asarray(run(jnp.asarray(image, jnp.float32).transpose(2, 0, 1), size, quality)).transpose(1, 2, 0)


def pillow(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file)).astype(float)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - b) ** 2))


def assert_like_pillows(image, quality):
    ours, theirs = compressed(image, quality), pillow(image, quality)
    assert psnr(theirs, image) < 60  # the loss is large enough to compare
    assert abs(psnr(ours, image) - psnr(theirs, image)) < 1.2
    assert np.abs(ours - theirs).mean() < 1


@pytest.mark.parametrize('quality', [1, 10, 30, 49, 50, 51, 75, 95, 100])
def test_tables_are_those_in_a_file_of_pillows(quality):
    file = io.BytesIO()
    Image.new('RGB', (16, 16)).save(file, 'JPEG', quality=quality)
    written = Image.open(file).quantization
    for base, number in ((LUMINANCE, 0), (CHROMINANCE, 1)):
        np.testing.assert_array_equal(np.asarray(table(base, jnp.int32(quality))).ravel(), written[number])


@pytest.mark.parametrize('quality', QUALITIES)
def test_a_textured_image_comes_back_as_from_pillow(smooth_image, quality):
    image = smooth_image(64, 96)
    assert_like_pillows(image, quality)
    coarse = np.asarray(Image.fromarray(image).resize((384, 256), Image.BICUBIC))
    assert_like_pillows(coarse, quality)


@pytest.mark.parametrize('quality', QUALITIES)
@pytest.mark.parametrize('size', [(64, 64), (45, 50), (33, 17), (7, 5), (1, 1)])
def test_an_image_within_a_canvas_does_not_see_what_lies_beyond(smooth_image, size, quality):
    canvas = smooth_image(64, 64)
    image = canvas[: size[0], : size[1]]
    ours = compressed(canvas, quality, size)[: size[0], : size[1]]
    assert np.abs(ours - pillow(image, quality)).mean() < 1
    garbled = canvas.copy()
    garbled[size[0] :], garbled[:, size[1] :] = 0, 255
    np.testing.assert_array_equal(compressed(garbled, quality, size)[: size[0], : size[1]], ours)


@pytest.mark.parametrize('quality', QUALITIES)
@pytest.mark.parametrize('folder', ['ucm', 'eurosat'])
def test_real_imagery_comes_back_as_from_pillow(folder, quality):
    if DATA is None:
        pytest.skip('no shared/data beside the project')
    entries = read_folder(DATA / folder)
    for entry in entries[:: len(entries) // 3]:
        assert_like_pillows(read_image(entry.path), quality)


@pytest.mark.parametrize('level', [0, 128, 255])
def test_a_flat_image_stays_as_it_is(level):
    image = np.full((24, 40, 3), level, np.uint8)
    np.testing.assert_allclose(compressed(image, 60), image, atol=1)


def test_values_beyond_the_range_are_clipped_and_results_are_whole_levels():
    pixels = jnp.linspace(-300, 600, 3 * 32 * 32).reshape(3, 32, 32)
    values = np.asarray(jpeg(Canvas(pixels, (32, 32)), 50).pixels)
    clipped = np.asarray(jpeg(Canvas(jnp.clip(pixels, 0, 255), (32, 32)), 50).pixels)
    np.testing.assert_array_equal(values, clipped)
    assert values.min() >= 0 and values.max() <= 255 and (values == np.round(values)).all()
