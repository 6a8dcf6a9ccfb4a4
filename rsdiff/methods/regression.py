"""Regression: a single-step network trained with the mean absolute error, treated as diffusion with one step."""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp

from rsdiff.diffusion.schedule import Schedule, one_step
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import Prepared, SamplerConfig, prepared_batch
from rsdiff.methods.codec import CodecConfig, IdentityConfig
from rsdiff.methods.one_network import OneNetwork, OneNetworkConfig
from rsdiff.models.rrdbnet import RRDBNetConfig
from rsdiff.models.super_resolution import NetworkConfig, make_network


@dataclasses.dataclass(frozen=True)
class RegressionConfig(OneNetworkConfig):
    """A network with an L1 loss, as in ESRGAN's pre-training of an RRDBNet (Wang et al. 2018, arXiv 1809.00219, §4.1)."""

    kind: Literal['regression'] = 'regression'
    model: NetworkConfig = RRDBNetConfig()
    codec: CodecConfig = IdentityConfig()

    @property
    def timesteps(self) -> int:
        """T."""
        return 1

    @property
    def sampler(self) -> SamplerConfig:
        """One evaluation."""
        return SamplerConfig(steps=1)


@dataclasses.dataclass(frozen=True)
class Regression(OneNetwork):
    """See `methods.base.Method`."""

    config: RegressionConfig
    make_network = staticmethod(make_network)

    @functools.cached_property
    def schedule(self) -> Schedule:
        return one_step()

    def prepare(self, batch, key, drop: bool = True) -> Prepared:
        return prepared_batch(self.fields, self.degradation, (), batch, key)

    def loss(self, part, params, buffers, frozen, prepared, key):
        return jnp.mean(self.terms(params, frozen, prepared, key, None)), ({}, buffers[part])

    def terms(self, params, frozen, prepared, key, t):
        condition = prepared['condition']
        z0 = self.codec.encode(prepared['targets'], condition)
        return jnp.mean(jnp.abs(self._answer(params, condition) - z0), axis=range(1, z0.ndim))

    def predict(self, params, frozen, condition) -> Denoise:
        made = self._answer(params, condition)
        return lambda zt, t: made

    def _answer(self, params, condition):
        return self.network(params)(condition)
