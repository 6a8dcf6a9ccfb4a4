"""Degradation of high-resolution images to low-resolution training conditions, on the device inside `jit`.

Real-ESRGAN's chain (Wang et al. 2021, arXiv 2107.10833, §3): blur, resize, noise and JPEG, all applied twice, then a
sinc filter and a resize to exactly a quarter; the sinc filter and the last JPEG come in random order. Shapes are
static, and every random choice is made per image. Steps that a config switches off are not compiled.

Three differences from the published code: A resize uses the exact ratio of the integer sizes, and area resizing the
exact footprint, so that the image does not shift. Poisson noise assumes 256 photons at white, where the published code
takes the image's number of distinct grey levels, rounded up to a power of two. The input is not sharpened first.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.data import kernels
from rsdiff.data.canvas import PRECISION, Canvas, blur, resize
from rsdiff.data.jpeg import LUMA, jpeg

PHOTONS = 256.0  # of a white pixel, at scale 1

# the downscaling factor of a degradation, and the upscaling factor of every stage of a cascade
UPSCALE = 4


def _check_ranges(config, highest: float, *names: str) -> None:
    for name in names:
        least, most = getattr(config, name)
        if not 0 <= least <= most <= highest:
            raise BadInput(f'{name} ({least}, {most}) is not a valid range; give (least, most), from 0 to {highest:g}')


def _check_probabilities(config, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise BadInput(f'{name} {getattr(config, name)} is not a probability; give 0 to 1')


def _check_odds(config, name: str) -> None:
    odds = getattr(config, name)
    if not all(0 <= each <= 1e6 for each in odds) or sum(odds) < 1e-6:
        raise BadInput(f'the odds {name} {odds} must not be negative or huge, nor all zero')


@dataclasses.dataclass(frozen=True)
class BlurConfig:
    """A random blur kernel. Each parameter is uniform in its range (least, most)."""

    probability: float = 1.0
    kernel_px: tuple[int, int] = (7, 21)  # odd sizes
    # odds of Gaussian, generalised Gaussian and plateau, each isotropic, then anisotropic
    kinds: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma_px: tuple[float, float] = (0.2, 3.0)
    # exponents; below and above 1 are equally probable
    generalised_power: tuple[float, float] = (0.5, 4.0)
    plateau_power: tuple[float, float] = (1.0, 2.0)
    sinc: float = 0.1  # probability of a sinc kernel instead
    # minimum cutoff in radians per pixel, for kernels below 13 px and for larger ones; the maximum is π
    sinc_cutoff: tuple[float, float] = (math.pi / 3, math.pi / 5)

    def __post_init__(self):
        _check_ranges(self, 100, 'sigma_px', 'generalised_power', 'plateau_power')
        _check_ranges(self, 255, 'kernel_px')
        check_range(self, 0, math.pi, 'sinc_cutoff')
        _check_probabilities(self, 'probability', 'sinc')
        _check_odds(self, 'kinds')
        if self.sigma_px[0] == 0:
            raise BadInput(f'sigma_px {self.sigma_px} begins at 0; for no blur, set probability to 0')
        if any(size % 2 == 0 for size in self.kernel_px):
            raise BadInput(f'kernel_px {self.kernel_px} are not odd')


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """The filter of a resize: odds of area, bilinear and bicubic, and whether the latter two are antialiased (in torch,
    and so in the published code, they are not)."""

    odds: tuple[float, float, float] = (1.0, 1.0, 1.0)
    antialias: bool = False

    def __post_init__(self):
        _check_odds(self, 'odds')


@dataclasses.dataclass(frozen=True)
class ResizeConfig:
    """A random size: up, by a factor of at least 1; down, by a factor of at most 1; or unchanged."""

    odds: tuple[float, float, float] = (0.2, 0.7, 0.1)  # of up, down, keep
    factors: tuple[float, float] = (0.15, 1.5)
    filter: FilterConfig = FilterConfig()

    def __post_init__(self):
        _check_ranges(self, 16, 'factors')
        _check_odds(self, 'odds')
        (up, down, _), (least, most) = self.odds, self.factors
        if least < 1 / 64 or (up and most < 1) or (down and least > 1):
            raise BadInput(f'resizing by {self.factors} at odds {self.odds} of up, down, keep is not possible')


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Probabilities of Gaussian and Poisson noise (else none), and of grey noise, which all channels share."""

    gaussian: float = 0.5
    poisson: float = 0.5
    grey: float = 0.4
    gaussian_levels: tuple[float, float] = (1.0, 30.0)  # σ in grey levels, of 255
    poisson_scale: tuple[float, float] = (0.05, 3.0)  # multiplies the noise, not the photons

    def __post_init__(self):
        _check_ranges(self, 255, 'gaussian_levels', 'poisson_scale')
        _check_probabilities(self, 'gaussian', 'poisson', 'grey')
        if self.gaussian + self.poisson > 1 + 1e-6:
            raise BadInput(f'noise is gaussian {self.gaussian} and poisson {self.poisson}; the two sum to over 1')


@dataclasses.dataclass(frozen=True)
class JPEGConfig:
    """JPEG of a random integer quality in a range; see `rsdiff.data.jpeg`."""

    probability: float = 1.0
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self):
        _check_probabilities(self, 'probability')
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise BadInput(f'JPEG quality {self.quality} is not a range within 1 to 100')


@dataclasses.dataclass(frozen=True)
class PassConfig:
    """One pass, its steps in this order. Resize factors are relative to the image in the first pass, to a quarter of it
    in the second."""

    blur: BlurConfig = BlurConfig()
    resize: ResizeConfig = ResizeConfig()
    noise: NoiseConfig = NoiseConfig()
    jpeg: JPEGConfig = JPEGConfig()


NO_BLUR = BlurConfig(probability=0.0)
NO_NOISE = NoiseConfig(gaussian=0.0, poisson=0.0)
NO_JPEG = JPEGConfig(probability=0.0)
RINGING = BlurConfig(probability=0.8, sinc=1.0, sinc_cutoff=(math.pi / 3, math.pi / 3))
KEEP = (0.0, 0.0, 1.0)
DOWN = (0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
    """Two passes, and a resize to a quarter by `final_filter` and `final_blur`, before or after the second pass's JPEG.

    The default is mild: the published settings of StableSR (Wang et al. 2023, arXiv 2305.07015), which are
    Real-ESRGAN's chain with about half its noise and blur.
    """

    first: PassConfig = PassConfig(
        blur=BlurConfig(sigma_px=(0.2, 1.5), generalised_power=(0.5, 2.0), plateau_power=(1.0, 1.5)),
        resize=ResizeConfig(factors=(0.3, 1.5)),
        noise=NoiseConfig(gaussian_levels=(1.0, 15.0), poisson_scale=(0.05, 2.0)),
        jpeg=JPEGConfig(quality=(60, 95)),
    )
    second: PassConfig = PassConfig(
        blur=BlurConfig(probability=0.5, sigma_px=(0.2, 1.0), generalised_power=(0.5, 2.0), plateau_power=(1.0, 1.5)),
        resize=ResizeConfig(odds=(0.3, 0.4, 0.3), factors=(0.6, 1.2)),
        noise=NoiseConfig(gaussian_levels=(1.0, 12.0), poisson_scale=(0.05, 1.0)),
        jpeg=JPEGConfig(quality=(60, 100)),
    )
    final_filter: FilterConfig = FilterConfig()
    final_blur: BlurConfig = RINGING


def _one_reduction(filter_odds: tuple[float, float, float]) -> DegradationConfig:
    """A downscale to a quarter of the size by an antialiased filter, and nothing else."""
    filter = FilterConfig(filter_odds, antialias=True)
    return DegradationConfig(
        first=PassConfig(NO_BLUR, ResizeConfig(KEEP), NO_NOISE, NO_JPEG),
        second=PassConfig(NO_BLUR, ResizeConfig(KEEP, filter=filter), NO_NOISE, NO_JPEG),
        final_blur=NO_BLUR,
    )


def _light_pass(sigma_px: float, resize: ResizeConfig) -> PassConfig:
    anisotropic = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    return PassConfig(
        BlurConfig(kernel_px=(7, 7), kinds=anisotropic, sigma_px=(0.1, sigma_px), sinc=0.0),
        resize,
        NoiseConfig(1.0, 0.0, 0.0, gaussian_levels=(0.0, 1.275)),
        NO_JPEG,
    )


MILD = DegradationConfig()
# train_realesrgan_x4plus.yml of the published code
REAL_ESRGAN = DegradationConfig(
    first=PassConfig(),
    second=PassConfig(
        blur=BlurConfig(probability=0.8, sigma_px=(0.2, 1.5)),
        resize=ResizeConfig(odds=(0.3, 0.4, 0.3), factors=(0.3, 1.2)),
        noise=NoiseConfig(gaussian_levels=(1.0, 25.0), poisson_scale=(0.05, 2.5)),
    ),
)
# two passes of a slight blur, a downscale by 2 with a random filter, and noise up to half a percent of the range
LIGHT = DegradationConfig(
    first=_light_pass(0.8, ResizeConfig(DOWN, (0.5, 0.5), FilterConfig(antialias=True))),
    second=_light_pass(0.5, ResizeConfig(KEEP, filter=FilterConfig(antialias=True))),
    final_blur=NO_BLUR,
)
BICUBIC = _one_reduction((0.0, 0.0, 1.0))
CLEAN = _one_reduction((1.0, 0.0, 0.0))  # the mean over 4 × 4 pixels

PRESETS = {'real_esrgan': REAL_ESRGAN, 'mild': MILD, 'light': LIGHT, 'bicubic': BICUBIC, 'clean': CLEAN}


def degrade(images, keys, config: DegradationConfig):
    """The low-resolution condition of each image.

    Args:
      images: float32 (batch, h, w, 3) in [-1, 1]; h and w multiples of `UPSCALE`.
      keys: (batch,) JAX keys, one per image, so that an image's degradation does not depend on its neighbours.
    Returns:
      float32 (batch, h / UPSCALE, w / UPSCALE, 3), clipped to [-1, 1]; not rounded to 8-bit levels.
    Raises:
      BadInput: h or w is not a multiple of `UPSCALE`.
    """
    height, width = images.shape[1:3]
    if height % UPSCALE or width % UPSCALE:
        raise BadInput(f'images of {width}×{height} px cannot be degraded by {UPSCALE}; crop or pad them to a multiple')
    quarter = height // UPSCALE, width // UPSCALE

    def one(image, key):
        k_dice, k_first, k_second = jax.random.split(key, 3)
        # all scalar random numbers of an image come from one call: separate calls would take most of the compile time
        dice = iter(jax.random.uniform(k_dice, (64,)))
        canvas = Canvas(rearrange((image + 1) * 127.5, 'h w c -> c h w'), (height, width))
        canvas = _blurred_resized_noisy(canvas, dice, k_first, config.first, (height, width))
        canvas = _compressed(canvas, dice, config.first.jpeg)
        canvas = _blurred_resized_noisy(canvas, dice, k_second, config.second, quarter)
        canvas = _finished(canvas, dice, config, quarter)
        return jnp.clip(rearrange(canvas.pixels, 'c h w -> h w c') / 127.5 - 1, -1, 1)

    return jax.vmap(one)(images, keys)


def _blurred_resized_noisy(canvas: Canvas, dice: Iterator, key, config: PassConfig, nominal: tuple[int, int]) -> Canvas:
    if config.blur.probability > 0:
        canvas = blur(canvas, random_kernel(dice, config.blur))
    size, shape = random_size(dice, config.resize, nominal)
    canvas = _resized(canvas, dice, config.resize.filter, size, shape)
    if config.noise.gaussian + config.noise.poisson > 0:
        noise = random_noise(dice, key, config.noise, canvas.pixels)
        canvas = Canvas(jnp.clip(canvas.pixels + noise, 0, 255), canvas.size)
    return canvas


def _finished(canvas: Canvas, dice: Iterator, config: DegradationConfig, quarter: tuple[int, int]) -> Canvas:
    """Resize with sinc filter, and JPEG, in either order. According to their authors, other orders twist lines."""
    jpeg_first = next(dice) < 0.5 if config.second.jpeg.probability > 0 else False
    quality_dice = [next(dice), next(dice)]
    compressed = lambda canvas: _compressed(canvas, iter(quality_dice), config.second.jpeg)
    canvas = _where(jpeg_first, compressed(canvas), canvas)
    canvas = _resized(canvas, dice, config.final_filter, quarter, quarter)
    if config.final_blur.probability > 0:
        canvas = blur(canvas, random_kernel(dice, config.final_blur))
    return _where(jpeg_first, canvas, compressed(canvas))


def _resized(canvas: Canvas, dice: Iterator, config: FilterConfig, size: tuple, shape: tuple[int, ...]) -> Canvas:
    return resize(canvas, size, shape, choose(next(dice), config.odds), config.antialias)


def _compressed(canvas: Canvas, dice: Iterator, config: JPEGConfig) -> Canvas:
    if config.probability == 0:
        return canvas
    applied, (least, most) = next(dice) < config.probability, config.quality
    quality = least + jnp.floor(next(dice) * (most - least + 1)).astype(jnp.int32)
    return _where(applied if config.probability < 1 else True, jpeg(canvas, quality), canvas)


def _where(condition, yes: Canvas, no: Canvas) -> Canvas:
    """One of two canvases of the same size; `condition` may be a bool."""
    if isinstance(condition, bool):
        return yes if condition else no
    return Canvas(jnp.where(condition, yes.pixels, no.pixels), no.size)


def random_kernel(dice: Iterator, config: BlurConfig) -> jax.Array:
    """A random kernel, float32 (k, k) with k the largest size of `config`. `dice` yields uniform numbers in [0, 1)."""
    least, most = config.kernel_px
    size_px = least + 2 * jnp.floor(next(dice) * ((most - least) // 2 + 1))
    if config.sinc <= 0:
        kernel = _gaussian_or_plateau(dice, config, size_px)
    elif config.sinc < 1:
        gaussian, sinc = _gaussian_or_plateau(dice, config, size_px), _sinc(dice, config, size_px)
        kernel = jnp.where(next(dice) < config.sinc, sinc, gaussian)
    else:
        kernel = _sinc(dice, config, size_px)
    if config.probability < 1:
        kernel = jnp.where(next(dice) < config.probability, kernel, kernels.delta(most))
    return kernel


def _gaussian_or_plateau(dice: Iterator, config: BlurConfig, size_px: jax.Array) -> jax.Array:
    kind = choose(next(dice), config.kinds)
    sigma_x, sigma_y = between(next(dice), config.sigma_px), between(next(dice), config.sigma_px)
    angle = between(next(dice), (0, math.pi))
    power = jnp.select(
        [kind < 2, kind < 4],
        [1.0, _about_one(next(dice), config.generalised_power)],
        _about_one(next(dice), config.plateau_power),
    )
    sigma_y = jnp.where(kind % 2 == 0, sigma_x, sigma_y)
    return kernels.gaussian_or_plateau(config.kernel_px[1], size_px, sigma_x, sigma_y, angle, power, plateau=kind >= 4)


def _sinc(dice: Iterator, config: BlurConfig, size_px: jax.Array) -> jax.Array:
    small, large = config.sinc_cutoff
    cutoff = between(next(dice), (jnp.where(size_px < 13, small, large), math.pi))
    return kernels.sinc(config.kernel_px[1], size_px, cutoff)


def random_size(dice: Iterator, config: ResizeConfig, nominal: tuple[int, int]) -> tuple[tuple, tuple[int, ...]]:
    """A random size relative to `nominal`, and the largest possible size. If only one size is possible, both are the
    same ints; otherwise the first is two int32 scalars."""
    least, most = config.factors
    ranges = (max(least, 1.0), most), (least, min(most, 1.0)), (1.0, 1.0)  # up, down, keep
    possible = [limits for limits, odd in zip(ranges, config.odds) if odd > 0]
    largest = tuple(max(1, int(n * max(high for _, high in possible))) for n in nominal)
    if len(possible) == 1 and possible[0][0] == possible[0][1]:
        return largest, largest
    factor = between(next(dice), jnp.array(ranges)[choose(next(dice), config.odds)])
    size = tuple(jnp.clip(jnp.floor(n * factor).astype(jnp.int32), 1, limit) for n, limit in zip(nominal, largest))
    return size, largest


def random_noise(dice: Iterator, key, config: NoiseConfig, pixels):
    """The noise to add to RGB pixels (3, h, w) in [0, 255]."""
    kind = choose(next(dice), (config.gaussian, config.poisson, max(0.0, 1 - config.gaussian - config.poisson)))
    grey = next(dice) < config.grey
    normal = jax.random.normal(key, pixels.shape)
    normal = jnp.where(grey, normal[:1], normal) if config.grey > 0 else normal
    noise = jnp.where(kind == 0, normal * between(next(dice), config.gaussian_levels), 0)
    if config.poisson > 0:
        levels = jnp.clip(jnp.round(pixels), 0, 255)
        luma = jnp.round(jnp.tensordot(LUMA.astype(np.float32), levels, 1, precision=PRECISION))
        photons = jnp.where(grey, luma, levels) * (PHOTONS / 255)
        shot = (poisson_quantile(photons, normal) - photons) * (255 / PHOTONS)
        noise = jnp.where(kind == 1, shot * between(next(dice), config.poisson_scale), noise)
    return noise


def poisson_quantile(mean, normal):
    """The Poisson count of mean `mean` at the quantile of the normal deviate `normal`, by the Cornish-Fisher expansion
    (Giles 2016, ACM TOMS 42, algorithm 955). Variances are accurate to 2 % from a mean of 2 upwards, to a tenth below.
    A rejection sampler takes 15 times as long on a CPU."""
    root = jnp.sqrt(mean)
    skew = 1 / 3 + normal**2 / 6 - (normal / 36 + normal**3 / 72) / jnp.maximum(root, 0.5)
    return jnp.where(mean > 0, jnp.maximum(jnp.floor(mean + root * normal + skew), 0), 0)


def choose(die, odds: tuple[float, ...]):
    """A random index with the given odds; an int if only one is possible."""
    possible = [index for index, odd in enumerate(odds) if odd > 0]
    if len(possible) == 1:
        return possible[0]
    return (die * sum(odds) >= jnp.cumsum(jnp.array(odds))[: possible[-1]]).sum()


def between(die, limits):
    """Maps `die`, uniform in [0, 1), to limits = (least, most)."""
    least, most = limits
    return least + die * (most - least)


def _about_one(die, limits):
    """Below 1 in half of all cases, above 1 in the other half; uniform on each side."""
    least, most = limits
    below, above = (least, min(1.0, most)), (max(1.0, least), most)
    return jnp.where(die < 0.5, between(2 * die, below), between(2 * die - 1, above))
