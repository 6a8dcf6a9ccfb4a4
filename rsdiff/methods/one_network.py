"""What methods that predict with a single network have in common."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.keys import Keys
from rsdiff.data.degradation import DegradationConfig
from rsdiff.methods.base import GENERATOR, Buffers, Frozen, Parameters, SamplerConfig, Teacher
from rsdiff.methods.codec import CodecConfig
from rsdiff.methods.image_loss import ImageLoss, ImageLossConfig
from rsdiff.models.conditioning import Number, Spatial, Tokens


class OneNetworkConfig:
    """The properties of a method's config that follow from those of its network, the field `model`."""

    model: Any

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]:
        """The fields of the condition, by name."""
        return self.model.fields

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.model.channels

    @property
    def upscale(self) -> int:
        """Resolution of the image relative to the field `lr`."""
        return self.model.upscale

    @property
    def stride(self) -> int:
        """The sides of a window must be multiples of this number of pixels."""
        return self.model.stride


@dataclasses.dataclass(frozen=True)
class OneNetwork:
    """A method that predicts with the network `make_network(config.model, rngs=…)`, which may be trained against a
    discriminator. See `methods.base.Method`."""

    config: Any
    degradation: DegradationConfig = DegradationConfig()
    make_network: ClassVar[Any]

    @property
    def image_loss_config(self) -> ImageLossConfig:
        """The losses of generated images, by default none."""
        return ImageLossConfig()

    @functools.cached_property
    def image_loss(self) -> ImageLoss:
        return ImageLoss(self.image_loss_config, self.fields, self.channels, self.upscale, self.dtype)

    @property
    def parts(self) -> tuple[str, ...]:
        return GENERATOR, *self.image_loss.parts

    @property
    def codec(self) -> CodecConfig:
        return self.config.codec

    @property
    def fields(self) -> dict[str, Spatial | Number | Tokens]:
        return self.config.fields

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def upscale(self) -> int:
        return self.config.upscale

    @property
    def sampler(self) -> SamplerConfig:
        sampler = self.config.sampler
        return dataclasses.replace(sampler, steps=min(sampler.steps, self.config.timesteps))

    @property
    def dtype(self):
        return jnp.dtype(self.config.model.dtype)

    @functools.cached_property
    def graphdef(self):
        """The network's structure, built without allocating parameters."""
        return nnx.split(nnx.eval_shape(lambda: self.make_network(self.config.model, rngs=Keys(0))))[0]

    def init(self, key) -> Parameters:
        network = self.make_network(self.config.model, rngs=Keys(key))
        return {GENERATOR: nnx.to_pure_dict(nnx.state(network))} | self.image_loss.init(jax.random.fold_in(key, 1))

    def init_buffers(self, key) -> Buffers:
        return {GENERATOR: {}} | self.image_loss.init_buffers(key)

    @property
    def teacher(self) -> Teacher | None:
        return None

    def load_frozen(self, training: bool = False) -> Frozen:
        return self.image_loss.load_frozen() if training else {}

    def network(self, params: Parameters) -> Any:
        """The network with the parameters `params`."""
        return nnx.merge(self.graphdef, nnx.State(params[GENERATOR]))
