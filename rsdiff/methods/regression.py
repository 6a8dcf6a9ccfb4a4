"""Regression: a single-step network trained with the mean absolute error."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from rsdiff.methods.codec import CodecConfig, IdentityConfig
from rsdiff.methods.one_pass import OnePass, OnePassConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.models.super_resolution import NetworkConfig


@dataclasses.dataclass(frozen=True)
class RegressionConfig(OnePassConfig):
    """A network with an L1 loss, as in ESRGAN's pre-training of an RRDBNet (Wang et al. 2018, arXiv 1809.00219, §4.1)."""

    kind: Literal['regression'] = 'regression'
    model: NetworkConfig = RRDBNetConfig()
    codec: CodecConfig = IdentityConfig()
    usm: bool = False


@dataclasses.dataclass(frozen=True)
class Regression(OnePass):
    """See `methods.base.Method`."""

    config: RegressionConfig

    def loss(self, part, params, buffers, frozen, prepared, key):
        return jnp.mean(self.terms(params, frozen, self.aimed(prepared), key, None)), ({}, buffers[part])
