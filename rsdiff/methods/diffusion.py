"""Diffusion: a U-Net that learns to denoise and is evaluated at many timesteps."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rsdiff.base.errors import BadInput
from rsdiff.base.ranges import check_range
from rsdiff.diffusion import objective
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.diffusion.schedule import ResShiftConfig, Schedule, ScheduleConfig, add_noise, like, make_schedule, to_x0
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import (
    DISCRIMINATOR,
    Drop,
    Frozen,
    Parameters,
    Prepared,
    SamplerConfig,
    prepared_batch,
)
from rsdiff.methods.codec import CodecConfig, IdentityConfig, ResidualConfig
from rsdiff.methods.image_loss import ImageLossConfig
from rsdiff.methods.one_network import OneNetwork, OneNetworkConfig
from rsdiff.models.conditioning import Condition
from rsdiff.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class NoisyImageLossConfig(ImageLossConfig):
    """Losses of the images x̂_0 predicted from noisy ones, where SNR_t is at least `least_snr`. With less, x̂_0 should be the
    mean of many possible images, which looks like none of them."""

    least_snr: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 0, 1e9, 'least_snr')


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(OneNetworkConfig):
    """Settings needed to interpret a checkpoint's parameters. `time`: how the network is told the noise level, by t or by
    1000 α_t, as in SR3 (Saharia et al. 2021, arXiv 2104.07636, §2.4). `drops`: fields to drop in training; they must be
    droppable. `sampler`: how to sample unless asked otherwise. `image_loss` is added to the objective."""

    kind: Literal['diffusion'] = 'diffusion'
    model: UNetConfig = UNetConfig()
    schedule: ScheduleConfig | ResShiftConfig = ScheduleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    codec: CodecConfig = IdentityConfig()
    time: Literal['t', 'alpha'] = 't'
    drops: tuple[Drop, ...] = ()
    sampler: SamplerConfig = SamplerConfig()
    image_loss: NoisyImageLossConfig = NoisyImageLossConfig()

    def __post_init__(self):
        self.image_loss.check_channels(self.model.channels)
        zero = isinstance(self.schedule, ScheduleConfig) and self.schedule.zero_terminal_snr
        if zero and self.objective.prediction == 'eps':
            raise BadInput("objective.prediction 'eps' cannot be used with schedule.zero_terminal_snr; use 'v' or 'x0'")
        if zero and self.objective.p2_gamma > 0 and not self.objective.p2_k > 0:
            raise BadInput(
                f'objective.p2_k is {self.objective.p2_k}; schedule.zero_terminal_snr needs it to be positive'
            )
        check_drops(self.drops, self.fields)
        if isinstance(self.codec, ResidualConfig) and any('lr' in drop.fields for drop in self.drops):
            raise BadInput("drops has 'lr', but codec residual computes its target from it; use codec identity")
        if isinstance(self.schedule, ResShiftConfig) and not isinstance(self.codec, ResidualConfig):
            raise BadInput('schedule resshift noises the residual over the enlarged lr; use codec residual')

    @property
    def timesteps(self) -> int:
        """T."""
        return self.schedule.timesteps

    @property
    def generator(self) -> dict[str, Any]:
        """The settings that give the generator's parameters their meaning: methods in which they are equal can exchange
        parameters."""
        names = 'model', 'schedule', 'codec', 'time'
        return {name: getattr(self, name) for name in names} | {'prediction': self.objective.prediction}


def check_drops(drops: tuple[Drop, ...], fields: dict) -> None:
    """Raises BadInput if `drops` names a field that the network does not have or that is not droppable."""
    for name in (name for drop in drops for name in drop.fields):
        if name not in fields:
            raise BadInput(f'drops has {name!r}; the network takes {", ".join(fields)}')
        if not fields[name].droppable:
            raise BadInput(f'drops has {name!r}, which is not droppable; set droppable of this field in model')
    if sum(drop.probability for drop in drops) > 1:
        raise BadInput('drops: the probabilities sum to more than 1, but at most one drop is applied to each example')


class Noisy(NamedTuple):
    """z_0, ε, t, int (b,), and z_t."""

    z0: jax.Array
    eps: jax.Array
    t: jax.Array
    zt: jax.Array


@dataclasses.dataclass(frozen=True)
class Diffusion(OneNetwork):
    """See `methods.base.Method`."""

    config: DiffusionConfig
    make_network = UNet

    @functools.cached_property
    def schedule(self) -> Schedule:
        return make_schedule(self.config.schedule)

    @property
    def image_loss_config(self) -> ImageLossConfig:
        return self.config.image_loss

    def prepare(self, batch, key, drop: bool = True) -> Prepared:
        return prepared_batch(self.fields, self.degradation, self.config.drops if drop else (), batch, key)

    def denoiser(self, params: Parameters, condition: Condition) -> Denoise:
        """The function (z_t, t) → network output (ε, x_0 or v, as the objective sets). Encodes the condition once, here.

        A network's input has unit variance, if z_0 has: z_t is divided by √(α_t² + σ_t²) unless that is 1.
        """
        model, schedule = self.network(params), self.schedule
        encoded = model.encode(condition)
        scaled = lambda zt, t: zt if schedule.preserves_variance else zt / like(jnp.sqrt(schedule.power(t)), zt)
        return lambda zt, t: model(scaled(zt, t), self.time(t), encoded)

    def time(self, t):
        """What the network is told of the noise level at t."""
        return 1000.0 * self.schedule.alpha(t) if self.config.time == 'alpha' else t

    def loss(self, part, params, buffers, frozen, prepared, key):
        condition, real = prepared['condition'], prepared['targets']['image']
        key_t, key_eps = jax.random.split(key)
        t = objective.stratified_timesteps(key_t, len(real), self.schedule.timesteps)
        noisy = self.noised(prepared, key_eps, t)
        prediction = self.denoiser(params, condition)(noisy.zt, t)
        z0 = to_x0(self.schedule, self.config.objective.prediction, prediction, noisy.zt, t)
        made, low_noise = (
            self.codec.decode(z0, condition)['image'],
            self.schedule.snr(t) >= self.config.image_loss.least_snr,
        )
        if part == DISCRIMINATOR:
            return self.image_loss.discriminator_loss(params, buffers, condition, made, real, low_noise)
        value = jnp.mean(self.errors(frozen, condition, noisy, prediction))
        more, terms = self.image_loss.generator_loss(params, buffers, frozen, condition, made, real, low_noise)
        return value + more, (terms and terms | {'error': value}, buffers[part])

    def terms(self, params, frozen, prepared, key, t):
        noisy = self.noised(prepared, key, t)
        prediction = self.denoiser(params, prepared['condition'])(noisy.zt, t)
        return Diffusion.errors(self, frozen, prepared['condition'], noisy, prediction)

    def noised(self, prepared: Prepared, key, t) -> Noisy:
        """The batch's z_0, noised."""
        z0 = self.codec.encode(prepared['targets'], prepared['condition'])
        eps = jax.random.normal(key, z0.shape, z0.dtype)
        return Noisy(z0, eps, t, add_noise(self.schedule, z0, eps, t))

    def errors(self, frozen: Frozen, condition: Condition, noisy: Noisy, prediction):
        """What the network learns to make small, for each example: its weighted error."""
        return objective.loss_terms(prediction, self.schedule, self.config.objective, noisy.z0, noisy.eps, noisy.t)

    def predict(self, params, frozen, condition) -> Denoise:
        denoise, kind = self.denoiser(params, condition), self.config.objective.prediction
        return lambda zt, t: to_x0(self.schedule, kind, denoise(zt, t), zt, t)
