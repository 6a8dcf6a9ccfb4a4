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
    """Puts (h, w, 3) in the top left of a canvas of `shape` full of noise; its size is traced if `shape` is given."""
    height, width = image.shape[:2]
    if shape is None:
        return Canvas(jnp.asarray(image, jnp.float32).transpose(2, 0, 1), (height, width))
    pixels = np.random.default_rng(seed).uniform(-1e4, 1e4, (3, *shape)).astype(np.float32)
    pixels[:, :height, :width] = image.transpose(2, 0, 1)
    return Canvas(jnp.asarray(pixels), (jnp.int32(height), jnp.int32(width)))


def image_of(canvas):
    height, width = map(int, canvas.size)
    return np.asarray(canvas.pixels)[:, :height, :width].transpose(1, 2, 0)


def resized(image, shape, size, choice, antialias):
    """`image` in a canvas of `shape`, resized to `size` in one compiled function."""
    run = lambda pixels, known: resize(Canvas(pixels, known), size, size, choice, antialias).pixels
    canvas = canvas_of(image, shape)
    pixels = jax.jit(run)(*canvas) if shape else jax.jit(lambda pixels: run(pixels, canvas.size))(canvas.pixels)
    return image_of(Canvas(pixels, size))


def pillow(image, size, filter):
    planes = map(Image.fromarray, image.astype(np.float32).transpose(2, 0, 1))
    return np.stack([plane.resize(size[::-1], filter) for plane in planes], -1)


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
    ours = resized(image, shape, size, choice, antialias=True)
    np.testing.assert_allclose(ours, pillow(image, size, PILLOW[choice]), atol=2e-2)


@pytest.mark.parametrize('size', [(20, 24), (13, 31), (7, 5), (59, 77)])
def test_bilinear_without_antialiasing_is_torchs(smooth_image, size):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    image = smooth_image(40, 48).astype(np.float32)
    ours = resized(image, (50, 50), size, BILINEAR, antialias=False)
    planes = torch.tensor(image.transpose(2, 0, 1)[None])
    reference = torch.nn.functional.interpolate(planes, size=size, mode='bilinear')[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(ours, reference, atol=1e-3)


@pytest.mark.parametrize('size', [(20, 24), (13, 31), (7, 5), (59, 77)])
def test_bicubic_without_antialiasing_reproduces_a_parabola(size):
    """Of Keys' cubic kernels, only a = -1/2 does; torch uses another a."""

    def parabola(height, width):
        y, x = ((np.arange(count) + 0.5) * n / count - 0.5 for n, count in ((40, height), (48, width)))
        inside = np.ix_((y > 1) & (y < 38), (x > 1) & (x < 46))
        return (0.3 * y[:, None] ** 2 + y[:, None] * x - x**2)[..., None].repeat(3, -1), inside

    ours = resized(parabola(40, 48)[0], (50, 50), size, BICUBIC, antialias=False)
    expected, inside = parabola(*size)
    np.testing.assert_allclose(ours[inside], expected[inside], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('size', [(20, 12), (13, 31), (50, 48), (60, 7)])
def test_area_is_the_mean_over_a_pixels_footprint(smooth_image, size, antialias):
    image = smooth_image(40, 48)
    ours = resized(image, (41, 64), size, AREA, antialias)
    fine = np.kron(image, np.ones((size[0], size[1], 1)))  # both pixel sizes are integer multiples of the fine pixel
    reference = fine.reshape(size[0], 40, size[1], 48, 3).mean((1, 3))
    np.testing.assert_allclose(ours, reference, atol=1e-2)


@pytest.mark.parametrize('choice', [AREA, BILINEAR, BICUBIC])
def test_a_traced_choice_and_size_do_what_known_ones_do(smooth_image, choice):
    image = smooth_image(24, 20)
    traced = jax.jit(lambda canvas, size, choice: resize(canvas, size, (40, 40), choice, False))
    one = traced(canvas_of(image), (jnp.int32(17), jnp.int32(33)), choice)
    np.testing.assert_allclose(image_of(one), resized(image, None, (17, 33), choice, False), atol=1e-2)
    beyond = np.asarray(one.pixels)
    np.testing.assert_array_equal(beyond[:, 17:], np.broadcast_to(beyond[:, 16:17], beyond[:, 17:].shape))


@pytest.mark.parametrize('choice', [AREA, BILINEAR, BICUBIC])
@pytest.mark.parametrize('antialias', [True, False])
def test_the_same_size_again_changes_nothing(smooth_image, choice, antialias):
    image = smooth_image(24, 20)
    for shape in (None, (30, 30)):
        np.testing.assert_allclose(resized(image, shape, (24, 20), choice, antialias), image, atol=1e-3)
