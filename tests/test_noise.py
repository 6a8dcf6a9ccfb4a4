import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rsdiff.diffusion.noise import crop, name_key

KEY = jax.random.key(7)
CROP = jax.jit(crop, static_argnums=(3, 4, 5))


@pytest.mark.parametrize('y, x', [(0, 0), (-20, -13), (-5, 1_000_000), (2**20, -(2**20))])
def test_crops_agree_exactly_wherever_they_overlap(y, x):
    whole = CROP(KEY, y, x, 24, 24)
    part = CROP(KEY, y + 5, x + 7, 12, 10)
    np.testing.assert_array_equal(whole[5:17, 7:17], part)


def test_a_batch_of_crops_equals_single_crops():
    corners = jnp.array([[0, 0], [-8, 3], [100, -100]])
    together = jax.jit(jax.vmap(lambda c: crop(KEY, c[0], c[1], 8, 8)))(corners)
    for corner, one in zip(corners, together):
        np.testing.assert_array_equal(CROP(KEY, corner[0], corner[1], 8, 8), one)


def test_it_is_standard_normal_and_white():
    field = np.asarray(CROP(KEY, -64, -64, 128, 128))
    assert scipy.stats.kstest(field.ravel(), 'norm').pvalue > 1e-3
    for shifted in (field[1:], field[:, 1:]):
        still = field[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.mean(still * shifted)) < 0.02
    assert abs(np.mean(field[..., 0] * field[..., 1])) < 0.02


def test_y_and_x_are_not_interchangeable_and_keys_name_fields():
    assert not np.array_equal(CROP(KEY, 0, 8, 8, 8), CROP(KEY, 8, 0, 8, 8))
    assert not np.array_equal(CROP(name_key(0, 1), 0, 0, 8, 8), CROP(name_key(0, 2), 0, 0, 8, 8))
    np.testing.assert_array_equal(CROP(name_key(0, 1), 0, 0, 8, 8), CROP(name_key(0, 1), 0, 0, 8, 8))


def test_a_tiled_field_repeats_and_a_cylinder_closes():
    crop_of = jax.jit(crop, static_argnums=(3, 4), static_argnames=('around', 'tile'))
    tiled = crop_of(KEY, -8, -8, 24, 24, tile=8)
    np.testing.assert_array_equal(tiled, np.tile(tiled[:8, :8], (3, 3, 1)))
    np.testing.assert_array_equal(tiled[8:16, 8:16], CROP(KEY, 0, 0, 8, 8))
    around = crop_of(KEY, 3, -10, 4, 40, around=20)
    np.testing.assert_array_equal(around[:, :20], around[:, 20:])
    np.testing.assert_array_equal(around[:, 10:30], CROP(KEY, 3, 0, 4, 20))
