"""The smallest U-Net that tests train and sample, and a method that compiles faster still."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rsdiff.models.conditioning import Spatial
from rsdiff.models.unet import UNetConfig
from rsdiff.training.config import to_dict

UNET = UNetConfig(
    width=16,
    multipliers=(1,),
    blocks=1,
    attention_levels=(),
    head_width=16,
    patch=4,
    spatial={'lr': Spatial(features=8, growth=4, blocks=0)},
)
MODEL = to_dict(UNET)
# for what does not depend on the method: a training step compiles in less than half the time of the U-Net's
REGRESSION = {'kind': 'regression', 'model': {'kind': 'srcnn', 'features': 16, 'frames': 1, 'blocks': 0}}


def drawn(method, seed=0):
    """Random parameters of a method, none of them zero, so that every path of its networks has an effect. From NumPy: there is
    nothing to compile."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        width = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if path[-1].key == 'kernel' else 0.05
        centre = 1.0 if path[-1].key == 'scale' else 0.0
        return jnp.asarray(centre + width * generator.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(method.init, jax.random.key(0)))
