"""Regression: a single-step network trained with the mean absolute error, treated as diffusion with one step."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.data.degradation import DegradationConfig
from rsdiff.diffusion.schedule import Schedule, one_step
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import GENERATOR, Parameters, Prepared, prepared_batch
from rsdiff.methods.codec import CodecConfig, IdentityConfig
from rsdiff.models.rrdbnet import RRDBNet, RRDBNetConfig


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    """An RRDBNet with an L1 loss, as in ESRGAN's pre-training (Wang et al. 2018, arXiv 1809.00219, §4.1)."""

    kind: Literal['regression'] = 'regression'
    model: RRDBNetConfig = RRDBNetConfig()
    codec: CodecConfig = IdentityConfig()

    @property
    def timesteps(self) -> int:
        """T."""
        return 1


@dataclasses.dataclass(frozen=True)
class Regression:
    """See `methods.base.Method`."""

    config: RegressionConfig
    degradation: DegradationConfig = DegradationConfig()
    parts: ClassVar[tuple[str, ...]] = (GENERATOR,)

    @property
    def codec(self) -> CodecConfig:
        return self.config.codec

    @functools.cached_property
    def schedule(self) -> Schedule:
        return one_step()

    @property
    def fields(self):
        return self.config.model.fields

    @property
    def channels(self) -> int:
        return self.config.model.channels

    @property
    def upscale(self) -> int:
        return self.config.model.upscale

    @property
    def dtype(self):
        return jnp.dtype(self.config.model.dtype)

    @functools.cached_property
    def graphdef(self):
        """The network's structure, built without allocating parameters."""
        return nnx.split(nnx.eval_shape(lambda: RRDBNet(self.config.model, rngs=Keys(0))))[0]

    def init(self, key) -> Parameters:
        return {GENERATOR: nnx.to_pure_dict(nnx.state(RRDBNet(self.config.model, rngs=Keys(key))))}

    def prepare(self, batch, key, drop: bool = True) -> Prepared:
        return prepared_batch(self.fields, self.degradation, (), batch, key)

    def loss(self, part, params, buffers, frozen, prepared, key):
        return jnp.mean(self.terms(params, frozen, prepared, key, None)), ({}, buffers)

    def terms(self, params, frozen, prepared, key, t):
        condition = prepared['condition']
        z0 = self.codec.encode(prepared['targets'], condition)
        return jnp.mean(jnp.abs(self._answer(params, condition) - z0), axis=range(1, z0.ndim))

    def predict(self, params, frozen, condition) -> Denoise:
        made = self._answer(params, condition)
        return lambda zt, t: made

    def _answer(self, params, condition):
        return nnx.merge(self.graphdef, nnx.State(params[GENERATOR]))(condition['lr'])
