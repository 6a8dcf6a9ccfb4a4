"""High resolution to low, on the device, inside `jit`: what turns an image into the condition it is trained from.

Two passes, as MetaEarth and Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833, §3.2) have them; each blurs with a random
anisotropic Gaussian, halves the size by a random filter, and adds Gaussian noise. Two halvings make the 4×. Shapes are
fixed and every random choice is made per image.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import reduce


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
    """Ranges of each pass, first and second. All zero is the mean over 4 × 4 pixels."""

    sigma_px: tuple[float, float] = (0.8, 0.5)
    noise: tuple[float, float] = (0.02, 0.02)
    random_filter: bool = True

    KERNEL_PX = 7


CLEAN = DegradationConfig(sigma_px=(0.0, 0.0), noise=(0.0, 0.0), random_filter=False)


def gaussian_kernel(sigma_x, sigma_y, angle, size_px: int):
    """A normalised anisotropic Gaussian, float32 (size_px, size_px); σ in pixels, `angle` in radians."""
    axis = jnp.arange(size_px) - (size_px - 1) / 2
    y, x = jnp.meshgrid(axis, axis, indexing='ij')
    u = jnp.cos(angle) * x + jnp.sin(angle) * y
    v = -jnp.sin(angle) * x + jnp.cos(angle) * y
    kernel = jnp.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return kernel / kernel.sum()


def blur(image, kernel):
    """Correlates (h, w, c) with (k, k), the border reflected. A sum of shifts: XLA fuses it into one loop."""
    size = kernel.shape[0]
    half = size // 2
    padded = jnp.pad(image, ((half, half), (half, half), (0, 0)), mode='reflect')
    height, width, _ = image.shape
    return sum(kernel[i, j] * padded[i : i + height, j : j + width] for i in range(size) for j in range(size))


def halve(image, choice):
    """Half the size by one of three filters: mean, antialiased linear or bicubic. `choice`: int32 in [0, 3)."""
    height, width, channels = image.shape
    shape = (height // 2, width // 2, channels)
    return jax.lax.switch(choice, [
        lambda x: reduce(x, '(h a) (w b) c -> h w c', 'mean', a=2, b=2),
        lambda x: jax.image.resize(x, shape, 'linear'),
        lambda x: jax.image.resize(x, shape, 'bicubic'),
    ], image)


def degrade(images, keys, config: DegradationConfig):
    """The low-resolution condition of each image.

    Args:
      images: float32 (batch, h, w, c) in [-1, 1]; h and w multiples of 4, at least 4 · KERNEL_PX / 2.
      keys: (batch,) JAX keys, one an image, so that an image's degradation does not depend on its neighbours.
    Returns:
      float32 (batch, h / 4, w / 4, c), clipped to [-1, 1].
    """

    def one(image, key):
        for number, (sigma_max, noise_max) in enumerate(zip(config.sigma_px, config.noise)):
            k_sigma, k_angle, k_filter, k_level, k_noise = jax.random.split(jax.random.fold_in(key, number), 5)
            if sigma_max > 0:
                sigma_x, sigma_y = jax.random.uniform(k_sigma, (2,), minval=0.1, maxval=sigma_max)
                angle = jax.random.uniform(k_angle, maxval=jnp.pi)
                image = blur(image, gaussian_kernel(sigma_x, sigma_y, angle, config.KERNEL_PX))
            choice = jax.random.randint(k_filter, (), 0, 3) if config.random_filter else 0
            image = halve(image, choice)
            # noise is given on the [0, 1] scale of an image; ours spans 2
            level = 2 * jax.random.uniform(k_level, maxval=noise_max) if noise_max > 0 else 0.0
            image = image + level * jax.random.normal(k_noise, image.shape)
        return jnp.clip(image, -1.0, 1.0)

    return jax.vmap(one)(images, keys)
