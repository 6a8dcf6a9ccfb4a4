"""Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567) as used by the Fréchet Inception Distance: Google's frozen graph
of 2015-12-05, from whose features every published FID is computed.

It differs from torchvision's Inception-v3 in its weights and in three respects: mean pooling does not count the
padding, the last block uses max pooling, and there are 1008 classes.

The user provides the weights file, with PyTorch's names: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or the
same tensors as safetensors. Modules are named as in this file. Each convolution has a batch norm, folded into it
(`rsdiff.pretrained.weights`, equation 1), and a ReLU.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.pretrained import weights
from rsdiff.pretrained.foreign_pickle import read_torch

INPUT_PX, FEATURES, CLASSES = 299, 2048, 1008
BATCH_NORM_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution, its batch norm and its ReLU. At stride 1 it keeps the image size, unless `pads` is false."""

    name: str
    width: int
    kernel_px: tuple[int, int] = (1, 1)
    stride: int = 1
    pads: bool = True

    @property
    def padding(self) -> str:
        return 'SAME' if self.pads and self.stride == 1 else 'VALID'


# Convolutions in sequence; those in a tuple run in parallel, and their outputs are concatenated.
Chain = tuple[Conv | tuple[Conv, ...], ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Parallel chains and a 3×3 pooling with `pool_width` output channels (0: as many as the input, at stride 2); their
    outputs are concatenated."""

    name: str
    chains: tuple[Chain, ...]
    pool_width: int = 0
    pools_by_maximum: bool = False


def _convs(link: Conv | tuple[Conv, ...]) -> tuple[Conv, ...]:
    return link if isinstance(link, tuple) else (link,)


# The blocks that occur more than once, with the letters that their authors use.


def _a(name: str, pool_width: int) -> Block:
    return Block(
        name,
        (
            (Conv('branch1x1', 64),),
            (Conv('branch5x5_1', 48), Conv('branch5x5_2', 64, (5, 5))),
            (Conv('branch3x3dbl_1', 64), Conv('branch3x3dbl_2', 96, (3, 3)), Conv('branch3x3dbl_3', 96, (3, 3))),
        ),
        pool_width,
    )


def _c(name: str, width: int) -> Block:
    return Block(
        name,
        (
            (Conv('branch1x1', 192),),
            (Conv('branch7x7_1', width), Conv('branch7x7_2', width, (1, 7)), Conv('branch7x7_3', 192, (7, 1))),
            (
                Conv('branch7x7dbl_1', width),
                Conv('branch7x7dbl_2', width, (7, 1)),
                Conv('branch7x7dbl_3', width, (1, 7)),
                Conv('branch7x7dbl_4', width, (7, 1)),
                Conv('branch7x7dbl_5', 192, (1, 7)),
            ),
        ),
        192,
    )


def _e(name: str, pools_by_maximum: bool) -> Block:
    return Block(
        name,
        (
            (Conv('branch1x1', 320),),
            (Conv('branch3x3_1', 384), (Conv('branch3x3_2a', 384, (1, 3)), Conv('branch3x3_2b', 384, (3, 1)))),
            (
                Conv('branch3x3dbl_1', 448),
                Conv('branch3x3dbl_2', 384, (3, 3)),
                (Conv('branch3x3dbl_3a', 384, (1, 3)), Conv('branch3x3dbl_3b', 384, (3, 1))),
            ),
        ),
        192,
        pools_by_maximum,
    )


STEM = (
    (
        Conv('Conv2d_1a_3x3', 32, (3, 3), 2),
        Conv('Conv2d_2a_3x3', 32, (3, 3), pads=False),
        Conv('Conv2d_2b_3x3', 64, (3, 3)),
    ),
    (Conv('Conv2d_3b_1x1', 80), Conv('Conv2d_4a_3x3', 192, (3, 3), pads=False)),
)  # max pooling follows each part
BLOCKS = (
    _a('Mixed_5b', 32),
    _a('Mixed_5c', 64),
    _a('Mixed_5d', 64),
    Block(
        'Mixed_6a',
        (
            (Conv('branch3x3', 384, (3, 3), 2),),
            (Conv('branch3x3dbl_1', 64), Conv('branch3x3dbl_2', 96, (3, 3)), Conv('branch3x3dbl_3', 96, (3, 3), 2)),
        ),
    ),
    _c('Mixed_6b', 128),
    _c('Mixed_6c', 160),
    _c('Mixed_6d', 160),
    _c('Mixed_6e', 192),
    Block(
        'Mixed_7a',
        (
            (Conv('branch3x3_1', 192), Conv('branch3x3_2', 320, (3, 3), 2)),
            (
                Conv('branch7x7x3_1', 192),
                Conv('branch7x7x3_2', 192, (1, 7)),
                Conv('branch7x7x3_3', 192, (7, 1)),
                Conv('branch7x7x3_4', 192, (3, 3), 2),
            ),
        ),
    ),
    _e('Mixed_7b', False),
    _e('Mixed_7c', True),
)


class BasicConv(nnx.Module):
    """`Conv`: (n, h, w, width_in) → (n, h', w', width)."""

    def __init__(self, width_in: int, conv: Conv, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            width_in, conv.width, conv.kernel_px, conv.stride, padding=conv.padding, precision='highest', rngs=rngs
        )

    def __call__(self, x):
        return nnx.relu(self.conv(x))


class Mixed(nnx.Module):
    """`Block`: (n, h, w, width_in) → (n, h', w', width)."""

    def __init__(self, width_in: int, block: Block, rngs: nnx.Rngs):
        self.block, self.width = block, block.pool_width or width_in
        for chain in block.chains:
            width = width_in
            for link in chain:
                for conv in _convs(link):
                    setattr(self, conv.name, BasicConv(width, conv, rngs))
                width = sum(conv.width for conv in _convs(link))
            self.width += width
        if block.pool_width:
            self.branch_pool = BasicConv(width_in, Conv('branch_pool', block.pool_width), rngs)

    def __call__(self, x):
        return jnp.concatenate([self._run(chain, x) for chain in self.block.chains] + [self._pool(x)], axis=-1)

    def _run(self, chain: Chain, x):
        for link in chain:
            x = jnp.concatenate([getattr(self, conv.name)(x) for conv in _convs(link)], axis=-1)
        return x

    def _pool(self, x):
        if not self.block.pool_width:
            return nnx.max_pool(x, (3, 3), (2, 2))
        if self.block.pools_by_maximum:
            return self.branch_pool(nnx.max_pool(x, (3, 3), (1, 1), 'SAME'))
        return self.branch_pool(nnx.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False))


class Inception(nnx.Module):
    """The network; its modules are named as in the weights file."""

    def __init__(self, *, rngs: nnx.Rngs):
        width = 3
        for conv in (conv for part in STEM for conv in part):
            setattr(self, conv.name, BasicConv(width, conv, rngs))
            width = conv.width
        for block in BLOCKS:
            setattr(self, block.name, Mixed(width, block, rngs))
            width = getattr(self, block.name).width
        self.fc = nnx.Linear(width, CLASSES, precision='highest', rngs=rngs)

    def __call__(self, x):
        for part in STEM:
            for conv in part:
                x = getattr(self, conv.name)(x)
            x = nnx.max_pool(x, (3, 3), (2, 2))
        for block in BLOCKS:
            x = getattr(self, block.name)(x)
        features = x.mean((1, 2))
        return features, self.fc(features)


def forward(params: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The features (n, 2048) and the logits (n, 1008) of normalised images (n, h, w, 3) of at least 75 px per side;
    trained at 299 px."""
    return nnx.merge(_recipe()[0], nnx.State(params))(images)


def normalise(pixels: jax.Array) -> jax.Array:
    """Pixels in [0, 255] → network inputs, (x − 128) / 128, as in the graph of 2015."""
    return (pixels - 128) / 128


def parameter_shapes() -> dict[str, Any]:
    """Shapes and dtypes of the parameters, a nested dict."""
    return nnx.to_pure_dict(_recipe()[1])


def load_params(path: Path | str) -> dict[str, Any]:
    """The weights in the user's file, in the format of safetensors or `torch.save`.

    Raises:
      BadInput: it is missing or broken, contains code, or has another network's weights; the message lists tensors
        that do not fit.
    """
    read = weights.read_safetensors if Path(path).suffix == '.safetensors' else read_torch
    return fold(read(path), str(path))


def fold(tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """Converts the tensors of the PyTorch network (`Mixed_5b.branch1x1.conv.weight` and so on) to our parameters.

    Raises:
      BadInput: they are another network's, or not finite; the message names their source, `where`.
    """
    params = weights.from_torch_folded(
        weights.flatten(tensors), parameter_shapes(), _batch_norm, BATCH_NORM_EPSILON, where
    )
    return weights.checked(params, parameter_shapes(), 'Inception-v3', where)


def _batch_norm(layer: str) -> str | None:
    """Mixed_5b.branch1x1.conv → Mixed_5b.branch1x1.bn."""
    return f'{layer.removesuffix("conv")}bn' if layer.endswith('.conv') else None


@functools.cache
def _recipe() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Inception(rngs=Keys(0))))
