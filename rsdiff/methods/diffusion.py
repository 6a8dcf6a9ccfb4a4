"""Diffusion: a U-Net that learns to denoise and is evaluated at many timesteps."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from rsdiff.base.errors import BadInput
from rsdiff.diffusion import objective
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.diffusion.schedule import ResShiftConfig, Schedule, ScheduleConfig, like, make_schedule, to_x0
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import Drop, Parameters, Prepared, SamplerConfig, prepared_batch
from rsdiff.methods.codec import CodecConfig, IdentityConfig, ResidualConfig
from rsdiff.methods.one_network import OneNetwork, OneNetworkConfig
from rsdiff.models.conditioning import Condition
from rsdiff.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(OneNetworkConfig):
    """Settings needed to interpret a checkpoint's parameters. `time`: how the network is told the noise level, by t or by
    1000 α_t, as in SR3 (Saharia et al. 2021, arXiv 2104.07636, §2.4). `drops`: fields to drop in training; they must be
    droppable. `sampler`: how to sample unless asked otherwise."""

    kind: Literal['diffusion'] = 'diffusion'
    model: UNetConfig = UNetConfig()
    schedule: ScheduleConfig | ResShiftConfig = ScheduleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    codec: CodecConfig = IdentityConfig()
    time: Literal['t', 'alpha'] = 't'
    drops: tuple[Drop, ...] = ()
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self):
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


def check_drops(drops: tuple[Drop, ...], fields: dict) -> None:
    """Raises BadInput if `drops` names a field that the network does not have or that is not droppable."""
    for name in (name for drop in drops for name in drop.fields):
        if name not in fields:
            raise BadInput(f'drops has {name!r}; the network takes {", ".join(fields)}')
        if not fields[name].droppable:
            raise BadInput(f'drops has {name!r}, which is not droppable; set droppable of this field in model')
    if sum(drop.probability for drop in drops) > 1:
        raise BadInput('drops: the probabilities sum to more than 1, but at most one drop is applied to each example')


@dataclasses.dataclass(frozen=True)
class Diffusion(OneNetwork):
    """See `methods.base.Method`."""

    config: DiffusionConfig
    make_network = UNet

    @functools.cached_property
    def schedule(self) -> Schedule:
        return make_schedule(self.config.schedule)

    def prepare(self, batch, key, drop: bool = True) -> Prepared:
        return prepared_batch(self.fields, self.degradation, self.config.drops if drop else (), batch, key)

    def denoiser(self, params: Parameters, condition: Condition) -> Denoise:
        """The function (z_t, t) → network output (ε, x_0 or v, as the objective sets). Encodes the condition once, here.

        A network's input has unit variance, if z_0 has: z_t is divided by √(α_t² + σ_t²) unless that is 1.
        """
        model, schedule = self.network(params), self.schedule
        encoded = model.encode(condition)
        scaled = lambda zt, t: zt if schedule.preserves_variance else zt / like(jnp.sqrt(schedule.power(t)), zt)
        time = lambda t: 1000.0 * schedule.alpha(t) if self.config.time == 'alpha' else t
        return lambda zt, t: model(scaled(zt, t), time(t), encoded)

    def loss(self, part, params, buffers, frozen, prepared, key):
        key_t, key_eps = jax.random.split(key)
        t = objective.stratified_timesteps(key_t, len(prepared['targets']['image']), self.schedule.timesteps)
        return jnp.mean(self.terms(params, frozen, prepared, key_eps, t)), ({}, buffers[part])

    def terms(self, params, frozen, prepared, key, t):
        condition = prepared['condition']
        denoise, z0 = self.denoiser(params, condition), self.codec.encode(prepared['targets'], condition)
        eps = jax.random.normal(key, z0.shape, z0.dtype)
        return objective.loss_terms(denoise, self.schedule, self.config.objective, z0, eps, t)

    def predict(self, params, frozen, condition) -> Denoise:
        denoise, kind = self.denoiser(params, condition), self.config.objective.prediction
        return lambda zt, t: to_x0(self.schedule, kind, denoise(zt, t), zt, t)
