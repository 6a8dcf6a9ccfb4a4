"""The smallest U-Net that tests train and sample."""

import jax

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
    spatial={'lr': Spatial(features=8, growth=4, blocks=1)},
)
MODEL = to_dict(UNET)


def shaken(params, by=0.05):
    """Parameters perturbed from their zero initialisation, so that every path of the network has an effect."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([p + by * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys)])
