"""What methods that make an image in one pass of a network have in common.

Such a network is a diffusion of one step: its prediction ignores the noise and the time.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from rsdiff.data.sharpening import sharpened
from rsdiff.diffusion.schedule import Schedule, one_step
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import Parameters, Prepared, SamplerConfig, prepared_batch
from rsdiff.methods.codec import CodecConfig
from rsdiff.methods.one_network import OneNetwork, OneNetworkConfig
from rsdiff.models.conditioning import Condition
from rsdiff.models.super_resolution import make_network


class OnePassConfig(OneNetworkConfig):
    """The properties of the config of a one-pass method, whose fields include `model`, and:

    Attributes:
      codec: how images become z.
      usm: whether the training losses see a sharpened target (`data.sharpening`).
    """

    codec: CodecConfig
    usm: bool

    @property
    def timesteps(self) -> int:
        """T."""
        return 1

    @property
    def sampler(self) -> SamplerConfig:
        """One evaluation."""
        return SamplerConfig(steps=1)

    @property
    def generator(self) -> dict[str, Any]:
        """The network and the codec: the losses only decide how it is trained."""
        return {'model': self.model, 'codec': self.codec}


@dataclasses.dataclass(frozen=True)
class OnePass(OneNetwork):
    """A method that predicts z_0 in one pass of its network. See `methods.base.Method`."""

    make_network = staticmethod(make_network)

    @functools.cached_property
    def schedule(self) -> Schedule:
        return one_step()

    def prepare(self, batch, key, drop: bool = True) -> Prepared:
        return prepared_batch(self.fields, self.degradation, (), batch, key)

    def terms(self, params, frozen, prepared, key, t):
        """The mean absolute error of z_0."""
        condition = prepared['condition']
        z0 = self.codec.encode(prepared['targets'], condition)
        return jnp.mean(jnp.abs(self.answer(params, condition) - z0), axis=range(1, z0.ndim))

    def aimed(self, prepared: Prepared) -> Prepared:
        """The batch as the training losses see it, with sharpened targets if the config says so."""
        if not self.config.usm:
            return prepared
        targets = prepared['targets']
        return {**prepared, 'targets': targets | {'image': sharpened(targets['image'])}}

    def predict(self, params, frozen, condition) -> Denoise:
        made = self.answer(params, condition)
        return lambda zt, t: made

    def answer(self, params: Parameters, condition: Condition):
        """ẑ_0, float32 (b, h, w, c)."""
        return self.network(params)(condition)
