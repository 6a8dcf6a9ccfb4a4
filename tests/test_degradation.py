"""The complete degradation, its kernels, noise and presets. JPEG, blur and resize have their own tests."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data import kernels
from rsdiff.data.degradation import (
    BICUBIC,
    CLEAN,
    KEEP,
    LIGHT,
    MILD,
    NO_BLUR,
    NO_JPEG,
    NO_NOISE,
    PRESETS,
    REAL_ESRGAN,
    BlurConfig,
    DegradationConfig,
    FilterConfig,
    JPEGConfig,
    NoiseConfig,
    PassConfig,
    ResizeConfig,
    choose,
    degrade,
    poisson_quantile,
    random_kernel,
    random_size,
)
from rsdiff.data.images import box_downscale, to_float
from rsdiff.training.config import from_dict, to_dict

EVERY = pytest.mark.parametrize('name', PRESETS)
compiled = jax.jit(degrade, static_argnums=2)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def draws(function, n, seed=0):
    """function(dice) for n independent rows of uniform random numbers."""
    dice = jax.random.uniform(jax.random.key(seed), (n, 20))
    return jax.jit(jax.vmap(lambda row: function(iter(row))))(dice)


# --- kernels: each formula of the paper, rewritten in NumPy pixel by pixel


def reference_kernel(canvas_px, size_px, shape):
    kernel, half = np.zeros((canvas_px, canvas_px)), size_px // 2
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            kernel[canvas_px // 2 + y, canvas_px // 2 + x] = shape(np.array([x, y]))
    return kernel / kernel.sum()


def mahalanobis(p, sigma_x, sigma_y, angle):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return p @ np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T) @ p


@pytest.mark.parametrize('size_px', [7, 21])
@pytest.mark.parametrize('sigma_x, sigma_y, angle', [(1.3, 1.3, 0.0), (2.5, 0.6, 0.7), (0.2, 0.2, 0.0)])
@pytest.mark.parametrize('plateau, power', [(False, 1.0), (False, 0.5), (False, 3.2), (True, 1.0), (True, 1.8)])
def test_gaussian_generalised_and_plateau_kernels_are_the_papers(size_px, sigma_x, sigma_y, angle, plateau, power):
    def shape(p):
        q = mahalanobis(p, sigma_x, sigma_y, angle) ** power
        return 1 / (1 + q) if plateau else math.exp(-0.5 * q)

    ours = kernels.gaussian_or_plateau(21, size_px, sigma_x, sigma_y, angle, power, plateau)
    np.testing.assert_allclose(ours, reference_kernel(21, size_px, shape), atol=2e-6)


@pytest.mark.parametrize('size_px', [7, 13, 21])
@pytest.mark.parametrize('cutoff', [math.pi / 5, 1.7, math.pi])
def test_sinc_kernels_are_the_papers(size_px, cutoff):
    def shape(p):
        r = math.hypot(*p)
        return cutoff * scipy.special.j1(cutoff * r) / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)

    np.testing.assert_allclose(kernels.sinc(21, size_px, cutoff), reference_kernel(21, size_px, shape), atol=2e-6)


def test_the_bessel_function_is_scipys():
    x = np.linspace(0, 50, 2001, dtype=np.float32)
    np.testing.assert_allclose(kernels.bessel_j1(x), scipy.special.j1(x.astype(float)), atol=5e-6)


def test_kernels_are_drawn_with_the_odds_sizes_and_widths_of_the_config():
    config = dataclasses.replace(REAL_ESRGAN.first.blur, sinc=0.0)
    drawn = np.asarray(draws(lambda dice: random_kernel(dice, config), 2000))
    np.testing.assert_allclose(drawn.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(drawn, drawn[:, ::-1, ::-1], atol=1e-7)  # symmetric kernels shift nothing
    widths = 21 - 2 * np.argmax(drawn.max(1) > 0, axis=1)
    assert set(widths) <= set(range(1, 22, 2)) and widths.max() == 21
    # isotropic kinds have a share of .45 + .12 + .12; an isotropic kernel equals its transpose and mirror image
    isotropic = (np.abs(drawn - drawn.transpose(0, 2, 1)) + np.abs(drawn - drawn[:, ::-1]) < 1e-6).all((1, 2))
    assert 0.65 < isotropic.mean() < 0.76  # a small σ reduces some others to a single pixel
    flat = draws(lambda dice: random_kernel(dice, dataclasses.replace(config, kinds=(0, 0, 0, 0, 1, 0))), 2000)
    sizes = (np.asarray(flat) > 0).any(1).sum(1)
    assert np.bincount(sizes, minlength=22)[7::2].min() > 2000 / 8 * 0.75
    assert np.bincount(sizes)[:7].sum() == 0


@pytest.mark.parametrize(
    'change, share_negative, share_delta',
    [({'sinc': 0.0}, 0.0, 0.0), ({'sinc': 1.0, 'probability': 0.8}, 0.8, 0.2), ({'sinc': 0.25}, 0.25, 0.0)],
)
def test_sinc_and_no_blur_at_all_have_their_probabilities(change, share_negative, share_delta):
    config = dataclasses.replace(REAL_ESRGAN.final_blur, **{'sigma_px': (1.0, 3.0), 'probability': 1.0, **change})
    drawn = np.asarray(draws(lambda dice: random_kernel(dice, config), 1000))
    assert (drawn.min((1, 2)) < -1e-5).mean() == pytest.approx(share_negative, abs=0.05)  # only sinc goes below 0
    assert (drawn.max((1, 2)) == 1).mean() == pytest.approx(share_delta, abs=0.05)


def test_choices_have_their_odds():
    picked = np.asarray(draws(lambda dice: choose(next(dice), (0.0, 3.0, 0.0, 1.0, 0.0)), 4000))
    assert set(picked) == {1, 3} and (picked == 1).mean() == pytest.approx(0.75, abs=0.03)
    assert choose(None, (0.0, 0.2, 0.0)) == 1


def test_sizes_are_drawn_with_the_odds_and_in_the_range_of_the_config():
    config = REAL_ESRGAN.first.resize
    largest = random_size(iter([0.5, 0.5]), config, (64, 100))[1]
    assert largest == (96, 150)
    height, width = map(np.asarray, draws(lambda dice: random_size(dice, config, (64, 100))[0], 4000))
    assert (height > 64).mean() == pytest.approx(0.2, abs=0.03) and (height < 64).mean() == pytest.approx(0.7, abs=0.03)
    assert height.min() == 9 and 94 <= height.max() <= 96
    assert np.abs(width / 100 - height / 64).max() < 1 / 64
    assert random_size(None, LIGHT.first.resize, (64, 100)) == ((32, 50), (32, 50))


# --- noise


def noisy(level, count=64, **noise):
    """Flat images of one grey level with only noise added, in grey levels, float (count, 16, 16, 3)."""
    second = PassConfig(NO_BLUR, ResizeConfig(KEEP), NoiseConfig(**noise), NO_JPEG)
    config = DegradationConfig(PassConfig(NO_BLUR, ResizeConfig(KEEP), NO_NOISE, NO_JPEG), second, final_blur=NO_BLUR)
    flat = jnp.full((count, 64, 64, 3), level / 127.5 - 1, jnp.float32)
    return (np.asarray(compiled(flat, keys(count), config)) + 1) * 127.5


def test_gaussian_noise_is_as_strong_as_stated():
    noise = noisy(128, 16, gaussian=1.0, poisson=0.0, grey=0.0, gaussian_levels=(10.0, 10.0)) - 128
    assert noise.std() == pytest.approx(10, rel=0.03) and abs(noise.mean()) < 0.3
    correlation = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.abs(correlation - np.eye(3)).max() < 0.06
    levels = (noisy(128, 400, gaussian=1.0, poisson=0.0, gaussian_levels=(1.0, 30.0)) - 128).std((1, 2, 3))
    assert scipy.stats.kstest(levels, scipy.stats.uniform(1, 29).cdf).statistic < 0.1


@pytest.mark.parametrize('level', [4, 60, 200])
@pytest.mark.parametrize('grey', [0.0, 1.0])
def test_poisson_noise_has_the_mean_and_variance_of_counted_photons(level, grey):
    scale = 0.5
    noise = noisy(level, poisson=1.0, gaussian=0.0, grey=grey, poisson_scale=(scale, scale)) - level
    photons = level * 256 / 255
    assert noise.std() == pytest.approx(scale * math.sqrt(photons) * 255 / 256, rel=0.04)
    assert abs(noise.mean()) < 0.05 * noise.std()
    steps = noise[..., 0] / (scale * 255 / 256) + photons
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)  # integer photon counts
    assert (np.ptp(noise, axis=-1).max() < 1e-3) == bool(grey)


@pytest.mark.parametrize('mean', [0.0, 0.5, 2.0, 7.0, 40.0, 250.0])
def test_counts_are_poisson_distributed(mean):
    normal = jax.random.normal(jax.random.key(0), (200_000,))
    counts = np.asarray(poisson_quantile(jnp.float32(mean), normal)).astype(int)
    assert counts.mean() == pytest.approx(mean, rel=0.02) and counts.var() == pytest.approx(mean, rel=0.06)
    found = np.bincount(counts, minlength=400) / len(counts)
    assert 0.5 * np.abs(found - scipy.stats.poisson.pmf(np.arange(len(found)), mean)).sum() < 0.02


def test_noise_is_gaussian_poisson_or_none_and_grey_or_coloured_as_often_as_stated():
    noise = noisy(128, 600, gaussian=0.3, poisson=0.5, grey=0.4, gaussian_levels=(9, 9), poisson_scale=(3, 3)) - 128
    spread = noise.std((1, 2, 3))
    # Gaussian σ is 9 levels, Poisson σ is 3 √128.5 = 34
    for low, high, share in ((0, 1e-3, 0.2), (5, 15, 0.3), (20, 50, 0.5)):
        assert ((spread >= low) & (spread < high)).mean() == pytest.approx(share, abs=0.06)
    coloured = np.ptp(noise[spread > 1], axis=-1).max((1, 2)) > 1e-3
    assert coloured.mean() == pytest.approx(0.6, abs=0.07)


# --- JPEG and order


def test_jpeg_has_its_probability_and_is_not_compiled_without_one():
    def config(probability):
        plain = PassConfig(NO_BLUR, ResizeConfig(KEEP), NO_NOISE, NO_JPEG)
        second = dataclasses.replace(plain, jpeg=JPEGConfig(probability, (20, 20)))
        return DegradationConfig(plain, second, final_blur=NO_BLUR)

    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32).repeat(200, 0)
    lr = {p: np.asarray(compiled(image, keys(200), config(p))) for p in (0.0, 0.4, 1.0)}
    changed = np.abs(lr[0.4] - lr[0.0]).max((1, 2, 3)) > 1e-3
    assert changed.mean() == pytest.approx(0.4, abs=0.11)
    assert (np.abs(lr[1.0] - lr[0.0]).max((1, 2, 3)) > 1e-3).all()
    traced = lambda config: str(jax.make_jaxpr(degrade, static_argnums=2)(image[:1], keys(1), config))
    assert 'round' in traced(config(1.0)) and 'round' not in traced(config(0.0))
    assert 'fft' not in traced(config(1.0)) and 'fft' in traced(LIGHT)
    assert 'erf_inv' not in traced(config(1.0)) and 'erf_inv' in traced(LIGHT)


def test_sinc_and_jpeg_come_in_both_orders():
    plain = PassConfig(NO_BLUR, ResizeConfig(KEEP, filter=FilterConfig((1, 0, 0))), NO_NOISE, NO_JPEG)
    ringing = BlurConfig(sinc=1.0, kernel_px=(21, 21), sinc_cutoff=(math.pi / 3, math.pi / 3))
    config = DegradationConfig(plain, dataclasses.replace(plain, jpeg=JPEGConfig(quality=(95, 95))), final_blur=ringing)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32).repeat(100, 0)
    levels = (np.asarray(compiled(image, keys(100), config)) + 1) * 127.5
    jpeg_last = np.abs(levels - np.round(levels)).max((1, 2, 3)) < 1e-3  # a file stores integer levels
    assert jpeg_last.mean() == pytest.approx(0.5, abs=0.16)


# --- the complete degradation


def test_clean_is_the_mean_over_four_by_four(smooth_image):
    image = to_float(smooth_image(64, 32))
    lr = compiled(image[None], keys(1), CLEAN)[0]
    np.testing.assert_allclose(lr, image.reshape(16, 4, 8, 4, 3).mean((1, 3)), atol=1e-5)


def test_bicubic_is_pillows(smooth_image):
    image = to_float(smooth_image(64, 96))
    planes = [np.asarray(Image.fromarray(plane).resize((24, 16), Image.BICUBIC)) for plane in image.transpose(2, 0, 1)]
    ours = compiled(image[None], keys(1), BICUBIC)[0]
    np.testing.assert_allclose(ours, np.clip(np.stack(planes, -1), -1, 1), atol=1e-4)


@EVERY
def test_each_image_has_a_degradation_of_its_own_key_and_nothing_else(smooth_image, name):
    images = np.stack([to_float(smooth_image(32, 32, n)) for n in range(8)])
    run = lambda images, keys: np.asarray(compiled(images, keys, PRESETS[name]))
    first = run(images, keys(8))
    assert first.shape == (8, 8, 8, 3) and first.dtype == np.float32
    elsewhere = np.array([5, 2, 2, 0, 7, 1, 1, 1])
    np.testing.assert_allclose(run(images[elsewhere], keys(8)[elsewhere]), first[elsewhere], atol=1e-4)
    random = name not in ('bicubic', 'clean')
    assert ((np.abs(run(images, keys(8, 1)) - first).max((1, 2, 3)) > 1e-3) == random).all()
    same = run(images[:1].repeat(8, 0), keys(8))
    assert ((np.abs(same[1:] - same[0]).max((1, 2, 3)) > 1e-3) == random).all()


@EVERY
@pytest.mark.parametrize('level', [-1.0, 0.0, 1.0])
def test_flat_images_come_out_finite_in_range_and_of_their_brightness(name, level):
    lr = np.asarray(compiled(np.full((8, 32, 32, 3), level, np.float32), keys(8), PRESETS[name]))
    assert np.isfinite(lr).all() and np.abs(lr).max() <= 1
    # strong noise, clipped at the ends of the range, pulls the mean inwards
    assert np.abs(lr.mean((1, 2, 3)) - level).max() < (0.1 if level == 0 else 0.3)


def test_any_multiple_of_four_is_a_size():
    images = np.random.default_rng(0).uniform(-1, 1, (16, 4, 20, 3)).astype(np.float32)
    lr = np.asarray(compiled(images, keys(16), REAL_ESRGAN))
    assert lr.shape == (16, 1, 5, 3) and np.isfinite(lr).all() and np.abs(lr).max() <= 1
    with pytest.raises(BadInput, match='30×32'):
        degrade(np.zeros((1, 32, 30, 3), np.float32), keys(1), REAL_ESRGAN)


@EVERY
def test_nothing_shifts_or_scales(name):
    """A bright blob near each corner and in the middle keeps its position in the median over many degradations."""
    size, sigma = 128, 9
    y, x = np.mgrid[:size, :size] + 0.5
    for at_y, at_x in ((32, 32), (32, 96), (96, 32), (64, 64), (92, 95)):
        blob = np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * sigma**2))
        images = np.broadcast_to((1.6 * blob - 0.8)[None, ..., None], (48, size, size, 3)).astype(np.float32)
        lr = np.asarray(compiled(images, keys(48), PRESETS[name])).mean(-1)
        weight = np.maximum(lr + 0.5, 0)  # noise in the dark background must not bias the centre
        axis = (np.arange(size // 4) + 0.5) * 4
        centre_y = (weight.sum(2) * axis).sum(1) / weight.sum((1, 2))
        centre_x = (weight.sum(1) * axis).sum(1) / weight.sum((1, 2))
        for centre, at in ((centre_y, at_y), (centre_x, at_x)):
            assert abs(np.median(centre) - at) < 0.15  # in image pixels; a condition pixel is 4 of them


# --- presets


def test_real_esrgan_has_the_published_numbers():
    first, second = REAL_ESRGAN.first, REAL_ESRGAN.second
    for blur in (first.blur, second.blur):
        assert blur.kernel_px == (7, 21) and blur.kinds == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03) and blur.sinc == 0.1
        assert blur.generalised_power == (0.5, 4) and blur.plateau_power == (1, 2)
    assert (first.blur.probability, first.blur.sigma_px) == (1.0, (0.2, 3))
    assert (second.blur.probability, second.blur.sigma_px) == (0.8, (0.2, 1.5))
    assert (first.resize.odds, first.resize.factors) == ((0.2, 0.7, 0.1), (0.15, 1.5))
    assert (second.resize.odds, second.resize.factors) == ((0.3, 0.4, 0.3), (0.3, 1.2))
    assert (first.noise.gaussian_levels, first.noise.poisson_scale) == ((1, 30), (0.05, 3))
    assert (second.noise.gaussian_levels, second.noise.poisson_scale) == ((1, 25), (0.05, 2.5))
    assert all((n.gaussian, n.poisson, n.grey) == (0.5, 0.5, 0.4) for n in (first.noise, second.noise))
    assert first.jpeg == second.jpeg == JPEGConfig(1.0, (30, 95))
    assert REAL_ESRGAN.final_blur.probability == 0.8 and REAL_ESRGAN.final_blur.sinc == 1


def test_mild_has_the_published_numbers_and_is_the_default():
    first, second = MILD.first, MILD.second
    assert DegradationConfig() == MILD
    assert (first.resize.factors, second.resize.factors) == ((0.3, 1.5), (0.6, 1.2))
    assert (first.noise.gaussian_levels, second.noise.gaussian_levels) == ((1, 15), (1, 12))
    assert (first.noise.poisson_scale, second.noise.poisson_scale) == ((0.05, 2), (0.05, 1))
    assert (first.jpeg.quality, second.jpeg.quality) == ((60, 95), (60, 100))
    assert (first.blur.sigma_px, second.blur.sigma_px, second.blur.probability) == ((0.2, 1.5), (0.2, 1.0), 0.5)


def test_presets_harm_in_their_order(smooth_image):
    images = np.stack([to_float(smooth_image(128, 128, n)) for n in range(48)])
    truth = np.stack([to_float(box_downscale(smooth_image(128, 128, n), 4)) for n in range(48)])
    errors = [
        np.sqrt(np.mean((np.asarray(compiled(images, keys(48), PRESETS[name])) - truth) ** 2))
        for name in ('clean', 'bicubic', 'light', 'mild', 'real_esrgan')
    ]
    assert errors == sorted(errors) and errors[3] > 2 * errors[2]


@EVERY
def test_presets_survive_json(name):
    config = PRESETS[name]
    assert from_dict(DegradationConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: BlurConfig(kernel_px=(8, 21)), 'not odd'),
        (lambda: BlurConfig(sigma_px=(3.0, 1.0)), 'sigma_px'),
        (lambda: BlurConfig(sigma_px=(0.0, 1.0)), 'begins at 0'),
        (lambda: BlurConfig(probability=1.5), 'probability'),
        (lambda: BlurConfig(kinds=(0, 0, 0, 0, 0, 0)), 'all zero'),
        (lambda: ResizeConfig(odds=(1, 0, 0), factors=(0.2, 0.8)), 'not possible'),
        (lambda: ResizeConfig(factors=(0.0, 1.0)), 'not possible'),
        (lambda: NoiseConfig(gaussian=0.6, poisson=0.6), 'over 1'),
        (lambda: JPEGConfig(quality=(0, 50)), '1 to 100'),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()
