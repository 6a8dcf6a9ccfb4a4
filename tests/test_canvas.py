"""Blur and resize of an image in a larger canvas, against SciPy, Pillow and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from rsdiff.data.canvas import Canvas, blur, resize

AREA, BILINEAR, BICUBIC = range(3)
PILLOW = {AREA: Image.BOX, BILINEAR: Image.BILINEAR, BICUBIC: Image.BICUBIC}


def canvas_of(image, shape=None, seed=0):
    """(h, w, 3) in the top left of a canvas of `shape` full of something else, its size traced if `shape` is given."""
    height, width = image.shape[:2]
    if shape is None:
        return Canvas(jnp.asarray(image, jnp.float32).transpose(2, 0, 1), (height, width))
    pixels = np.random.default_rng(seed).uniform(-1e4, 1e4, (3, *shape)).astype(np.float32)
    pixels[:, :height, :width] = image.transpose(2, 0, 1)
    return Canvas(jnp.asarray(pixels), (jnp.int32(height), jnp.int32(width)))


def image_of(canvas):
    height, width = map(int, canvas.size)
    return np.asarray(canvas.pixels)[:, :height, :width].transpose(1, 2, 0)


def pillow(image, size, filter):
    planes = [np.asarray(Image.fromarray(plane).resize(size[::-1], filter)) for plane in image.astype(np.float32).transpose(2, 0, 1)]
    return np.stack(planes, -1)


@pytest.mark.parametrize('shape', [None, (41, 50)])
@pytest.mark.parametrize('size, kernel_px', [((40, 33), 7), ((40, 33), 21), ((12, 16), 21), ((3, 9), 11)])
def test_blur_is_scipys(smooth_image, size, kernel_px, shape):
    image = smooth_image(*size).astype(np.float32)
    kernel = np.random.default_rng(0).uniform(-0.1, 1, (kernel_px, kernel_px)).astype(np.float32)
    kernel /= kernel.sum()
    blurred = image_of(jax.jit(blur)(canvas_of(image, shape), kernel))
    reference = np.stack([scipy.ndimage.convolve(image[..., c], kernel, mode='mirror') for c in range(3)], -1)
    np.testing.assert_allclose(blurred, reference, atol=2e-3)


@pytest.mark.parametrize('shape', [None, (45, 60)])
@pytest.mark.parametrize('size', [(20, 24), (10, 12), (27, 31), (13, 50), (40, 48), (59, 77)])
@pytest.mark.parametrize('choice', [BILINEAR, BICUBIC])
def test_antialiased_resizing_is_pillows(smooth_image, choice, size, shape):
    image = smooth_image(40, 48)
    resized = image_of(resize(canvas_of(image, shape), size, size, choice, antialias=True))
    np.testing.assert_allclose(resized, pillow(image, size, PILLOW[choice]), atol=2e-2)


@pytest.mark.parametrize('size', [(20, 24), (13, 31), (7, 5), (59, 77)])
@pytest.mark.parametrize('choice, order', [(BILINEAR, 1), (BICUBIC, 3)])
def test_resizing_without_antialiasing_samples_at_pixel_centres(smooth_image, choice, order, size):
    torch = pytest.importorskip('torch')
    image = smooth_image(40, 48)
    resized = image_of(resize(canvas_of(image, (50, 50)), size, size, choice, antialias=False))
    if choice == BILINEAR:
        planes = torch.tensor(image.transpose(2, 0, 1)[None].astype(np.float32))
        reference = torch.nn.functional.interpolate(planes, size=size, mode='bilinear')[0].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(resized, reference, atol=1e-3)
    else:  # torch's bicubic has another parameter; Keys' with a = -1/2 reproduces quadratics, so a parabola comes back exactly
        at = lambda n, count: (np.arange(count) + 0.5) * n / count - 0.5
        parabola = lambda h, w: (0.3 * at(40, h)[:, None] ** 2 + at(40, h)[:, None] * at(48, w) - at(48, w) ** 2)[..., None].repeat(3, -1)
        resized = image_of(resize(canvas_of(parabola(40, 48), (50, 50)), size, size, choice, antialias=False))
        inside = np.ix_((at(40, size[0]) > 1) & (at(40, size[0]) < 38), (at(48, size[1]) > 1) & (at(48, size[1]) < 46))
        np.testing.assert_allclose(resized[inside], parabola(*size)[inside], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('size', [(20, 12), (13, 31), (50, 48), (60, 7)])
def test_area_is_the_mean_over_a_pixels_footprint(smooth_image, size, antialias):
    image = smooth_image(40, 48)
    resized = image_of(resize(canvas_of(image, (41, 64)), size, size, AREA, antialias))
    fine = np.kron(image, np.ones((size[0], size[1], 1)))  # whole numbers of fine pixels on both sides
    reference = fine.reshape(size[0], 40, size[1], 48, 3).mean((1, 3))
    np.testing.assert_allclose(resized, reference, atol=1e-2)


@pytest.mark.parametrize('choice', [AREA, BILINEAR, BICUBIC])
def test_a_traced_choice_and_size_do_what_known_ones_do(smooth_image, choice):
    image = smooth_image(24, 20)
    traced = jax.jit(lambda canvas, size, choice: resize(canvas, size, (40, 40), choice, False))
    one = traced(canvas_of(image), (jnp.int32(17), jnp.int32(33)), choice)
    np.testing.assert_allclose(image_of(one), image_of(resize(canvas_of(image), (17, 33), (17, 33), choice, False)), atol=1e-2)
    beyond = np.asarray(one.pixels)
    np.testing.assert_array_equal(beyond[:, 17:], np.broadcast_to(beyond[:, 16:17], beyond[:, 17:].shape))


@pytest.mark.parametrize('choice', [AREA, BILINEAR, BICUBIC])
@pytest.mark.parametrize('antialias', [True, False])
def test_the_same_size_again_changes_nothing(smooth_image, choice, antialias):
    image = smooth_image(24, 20)
    canvas = canvas_of(image, (30, 30))
    np.testing.assert_allclose(image_of(resize(canvas, (24, 20), (24, 20), choice, antialias)), image, atol=1e-3)
