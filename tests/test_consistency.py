import jax
import numpy as np

from rsdiff.data.images import box_downscale
from rsdiff.diffusion.consistency import box_down, project, smooth_up

X0 = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1, maxval=1)
Y = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1, maxval=1)


def test_down_is_the_block_mean():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.rint(box_down(image.astype(np.float32), 4)), box_downscale(image, 4))


def test_projection_brings_the_means_to_the_condition():
    before = np.abs(box_down(X0, 4) - Y).mean()
    after = np.abs(box_down(project(X0, Y), 4) - Y).mean()
    assert after < 0.15 * before


def test_what_agrees_already_is_left_alone():
    np.testing.assert_allclose(project(X0, box_down(X0, 4)), X0, atol=1e-5)


def test_it_adds_no_detail_of_its_own():
    """The correction is an enlarged low-resolution image and nothing else: x_0's detail is untouched."""
    correction = project(X0, Y) - X0
    again = project(X0 + 0.1, Y) - (X0 + 0.1)
    np.testing.assert_allclose(correction - again, 0.1, atol=1e-4)
    assert smooth_up(Y, 4).shape == X0.shape


def test_a_constant_tint_is_removed_everywhere():
    tinted = X0 + np.array([0.3, -0.2, 0.1])
    np.testing.assert_allclose(project(tinted, box_down(X0, 4)), X0, atol=1e-5)
