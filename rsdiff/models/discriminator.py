"""The U-Net discriminator of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833), which judges every pixel.

    x_0 = f(conv0 x),  x_i = f(conv_i x_{i-1}) for i = 1, 2, 3, each at half the size          (1)
    y_3 = x_3,  y_i = f(conv_{6-i} up(y_{i+1})) + x_i for i = 2, 1, 0                            (2)
    logits = conv9 f(conv8 f(conv7 y_0))                                                         (3)

f is LeakyReLU with slope 0.2, up doubles the size bilinearly, and the sum in (2) is the skip connection. Parameters are
named and initialised as in the published code.

The kernels of conv1 … conv8 are divided by their largest singular value (spectral norm, Miyato et al. 2018, arXiv
1802.05957). With W the kernel as a matrix of output channels × all else, one step of power iteration is

    v = Wᵀu / |Wᵀu|,  u' = W v / |W v|,  σ = u'ᵀ W v,  W̄ = W / σ                                 (4)

No gradient flows into u' and v. The vectors u are no parameters: they are passed in, and u' is returned, to be used at
the next training step. As W changes slowly, one step of (4) per training step is enough; PyTorch takes one at every pass, three.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from rsdiff.base.ranges import check_range
from rsdiff.models.rrdbnet import lrelu

Vectors = dict[str, jax.Array]  # u of (4) by the name of the convolution, (output channels,) each


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a `Discriminator`. `skip`: whether it has skip connections. `low_res`: whether it also sees the
    low-resolution images, enlarged, as in satlas-super-resolution (arXiv 2311.18082). The defaults are Real-ESRGAN's:
    4,376,897 parameters."""

    features: int = 64
    skip: bool = True
    low_res: bool = False

    def __post_init__(self):
        check_range(self, 1, 1024, 'features')


def as_in_torch(key, shape, dtype=jnp.float32):
    """PyTorch's initial kernels: uniform, with the bound 1 / √(number of inputs)."""
    return nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')(key, shape, dtype)


class SpectralConv(nnx.Module):
    """A convolution without bias, whose kernel is normalised by (4)."""

    def __init__(
        self, features_in: int, features_out: int, kernel_px: int = 3, stride: int = 1, *, dtype, rngs: nnx.Rngs
    ):
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(as_in_torch(rngs.params(), (kernel_px, kernel_px, features_in, features_out)))

    def __call__(self, x, u) -> tuple[jax.Array, jax.Array]:
        """(b, h, w, features_in), u → (b, h / stride, w / stride, features_out), u'."""
        kernel, u = spectrally_normalised(self.kernel[...], u)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        return y, u


class Discriminator(nnx.Module):
    """Equations (1) to (4).

    Args:
      channels: of the input, those of the low-resolution images included.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        width, self.skip = config.features, config.skip
        options: Any = dict(dtype=dtype, rngs=rngs)
        self.conv0 = nnx.Conv(channels, width, (3, 3), kernel_init=as_in_torch, **options)
        self.conv1 = SpectralConv(width, 2 * width, kernel_px=4, stride=2, **options)
        self.conv2 = SpectralConv(2 * width, 4 * width, kernel_px=4, stride=2, **options)
        self.conv3 = SpectralConv(4 * width, 8 * width, kernel_px=4, stride=2, **options)
        self.conv4 = SpectralConv(8 * width, 4 * width, **options)
        self.conv5 = SpectralConv(4 * width, 2 * width, **options)
        self.conv6 = SpectralConv(2 * width, width, **options)
        self.conv7 = SpectralConv(width, width, **options)
        self.conv8 = SpectralConv(width, width, **options)
        self.conv9 = nnx.Conv(width, 1, (3, 3), kernel_init=as_in_torch, **options)

    def __call__(self, x, vectors: Vectors) -> tuple[jax.Array, Vectors]:
        """Judges images.

        Args:
          x: float32 (b, h, w, channels) in [0, 1]; h and w multiples of 8.
          vectors: u of every normalised convolution, by its name.
        Returns:
          logits, float32 (b, h, w, 1), positive for real; and u' of every normalised convolution.
        """
        new: Vectors = {}

        def normalised(name: str, x):
            y, new[name] = getattr(self, name)(x, vectors[name])
            return lrelu(y)

        x0 = lrelu(self.conv0(x))
        x1 = normalised('conv1', x0)
        x2 = normalised('conv2', x1)
        x3 = normalised('conv3', x2)
        y = normalised('conv4', bilinear_up(x3))
        y = normalised('conv5', bilinear_up(y + x2 if self.skip else y))
        y = normalised('conv6', bilinear_up(y + x1 if self.skip else y))
        y = normalised('conv7', y + x0 if self.skip else y)
        return self.conv9(normalised('conv8', y)).astype(jnp.float32), new


def first_vectors(config: DiscriminatorConfig, key) -> Vectors:
    """Random unit vectors u, from which the power iteration starts."""
    widths = dict(conv1=2, conv2=4, conv3=8, conv4=4, conv5=2, conv6=1, conv7=1, conv8=1)
    keys = jax.random.split(key, len(widths))
    return {
        name: unit(jax.random.normal(key, (factor * config.features,)))
        for key, (name, factor) in zip(keys, widths.items())
    }


def spectrally_normalised(kernel, u) -> tuple[jax.Array, jax.Array]:
    """Equation (4): a kernel (h, w, inputs, outputs) and u (outputs,) → the normalised kernel, float32, and u'."""
    product = functools.partial(jnp.matmul, precision='highest')
    transposed = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])  # Wᵀ
    v = lax.stop_gradient(unit(product(transposed, u)))
    u = lax.stop_gradient(unit(product(v, transposed)))
    return kernel / product(product(v, transposed), u), u


def unit(vector):
    """The vector, scaled to length 1."""
    return vector / (jnp.linalg.norm(vector) + 1e-12)


def bilinear_up(x):
    """Doubles the size: (b, h, w, c) → (b, 2h, 2w, c). An output is 3/4 of the nearest input and 1/4 of the next."""
    for axis in (1, 2):
        last = x.shape[axis] - 1
        before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, last, axis=axis)], axis)
        after = jnp.concatenate(
            [lax.slice_in_dim(x, 1, last + 1, axis=axis), lax.slice_in_dim(x, last, last + 1, axis=axis)], axis
        )
        pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x
