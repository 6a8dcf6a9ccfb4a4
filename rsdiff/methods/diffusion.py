"""The generator: the network bound to the mathematics.

`Generator` holds no arrays. Parameters are a nested dict that comes in with every call, so that `jit`, `grad` and
sharding see plain pytrees.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.base.errors import BadInput
from rsdiff.base.keys import Keys
from rsdiff.base.ranges import check_range
from rsdiff.diffusion import constraints, objective, solvers
from rsdiff.diffusion.constraints import Projection
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.diffusion.schedule import Schedule, ScheduleConfig, like, make_schedule, to_x0
from rsdiff.models.conditioning import Condition
from rsdiff.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Everything that a checkpoint's parameters mean nothing without.

    `residual_scale`: if positive, what is diffused is not the image but what it has beyond its condition,

        z_0 = (x_0 - up(lr)) / residual_scale                            (1)

    The schedule is made for data of unit variance. Fine texture has a twentieth of that in an image of [-1, 1], less than
    the noise of the schedule's first step, and would be lost; as z_0 it has its place, and the colours, which (1) takes
    out, need not be learned.
    """

    model: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    residual_scale: float = 0.0

    def __post_init__(self):
        check_range(self, 0, 100, 'residual_scale')
        if 0 < self.residual_scale < 1e-4:
            raise BadInput(f'residual_scale is {self.residual_scale}; it must be 0, or from 0.0001')


@dataclasses.dataclass(frozen=True)
class Generator:
    """Pure functions of (params, …) for one `GeneratorConfig`."""

    config: GeneratorConfig

    @property
    def upscale(self) -> int:
        """How many times finer the result is than `lr`."""
        return self.config.model.spatial['lr'].scale

    @functools.cached_property
    def graphdef(self):
        """The network's structure, made without allocating a parameter."""
        return nnx.split(nnx.eval_shape(lambda: UNet(self.config.model, rngs=Keys(0))))[0]

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return make_schedule(self.config.schedule)

    def init(self, key) -> dict:
        """Fresh float32 parameters. Call it inside `jit` or `eval_shape`."""
        return nnx.to_pure_dict(nnx.state(UNet(self.config.model, rngs=Keys(key))))

    def parameter_shapes(self) -> dict:
        """The parameters' shapes and dtypes, without making them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def to_diffused(self, x0, lr, margin: int = 0):
        """Image → what is diffused, by (1). x0: (b, h, w, 3), lr: (b, h/4 + 2 margin, w/4 + 2 margin, 3), in [-1, 1]."""
        scale = self.config.residual_scale
        return (x0 - constraints.smooth_up_inside(lr, self.upscale, margin)) / scale if scale else x0

    def to_image(self, z0, lr, margin: int = 0):
        """The inverse of `to_diffused`."""
        scale = self.config.residual_scale
        return constraints.smooth_up_inside(lr, self.upscale, margin) + scale * z0 if scale else z0

    def denoiser(self, params, condition: Condition) -> solvers.Denoise:
        """`denoise(zt, t)` with the condition bound, which is encoded here, once. For the condition see `UNet.encode`."""
        model = nnx.merge(self.graphdef, nnx.State(params))
        encoded = model.encode(condition)
        return lambda zt, t: model(zt, t, encoded)

    def loss(self, params, x0, condition: Condition, key):
        """The training loss, a float32 scalar."""
        denoise, z0 = self.denoiser(params, condition), self.to_diffused(x0, condition['lr'])
        return objective.loss(denoise, self.schedule, self.config.objective, z0, key)

    def predictor(
        self, params, condition: Condition, projection: Projection | None = None, margin: int = 0
    ) -> solvers.Denoise:
        """`predict(zt, t)` → the z_0 predicted from it, as an image clipped and projected onto the condition.

        A window is a crop: the network and `up` of (1) see its own pixels of the condition alone, so that near its edge
        up(lr) of the window is not up(lr) of the whole. What windows exchange has to mean the same to all of them. So z
        is here with respect to up(lr) of the whole, for which the condition comes with a margin, and each window
        translates: with d = (up(lr) - up(lr of the window)) / residual_scale,

            z_0' = z_0 + d,  z_t' = z_t + α_t d                          (2)

        Args:
          condition: as `UNet.encode` takes it, but for `lr`, (b, h + 2m, w + 2m, 3) with m = `margin`; with m = 0 the
            window is all there is.
          projection: of each predicted x_0 onto the condition; None leaves it.
        """
        lr, kind = condition['lr'], self.config.objective.prediction
        inner = constraints.inside(lr, margin)
        denoise, (batch, height, width, bands) = self.denoiser(params, condition | {'lr': inner}), inner.shape
        nothing = jnp.zeros((batch, height * self.upscale, width * self.upscale, bands))
        d = self.to_diffused(self.to_image(nothing, lr, margin), inner)

        def predict(zt, t):
            zt = zt + like(self.schedule.alpha(t), zt) * d
            z0 = to_x0(self.schedule, kind, denoise(zt, t), zt, t)
            x0 = jnp.clip(self.to_image(z0, inner), -1.0, 1.0)
            if projection:
                on = like(t > projection.end, x0) * projection.strength
                x0 = constraints.project(x0, inner, projection.factor, on)
            return self.to_diffused(x0, lr, margin)

        return predict

    def first_timestep(self, strength: float) -> int:
        """The timestep that a sample of `strength` (see `sample`) starts from, at least 1."""
        return max(1, round(strength * self.schedule.timesteps))

    def sample(
        self,
        params,
        condition: Condition,
        noise,
        steps: int,
        projection: Projection | None = Projection(),
        solver: solvers.Solver = 'ddim',
        guide=None,
        strength: float = 1.0,
    ):
        """One 4× stage in one piece: from noise, or from a real image noised part of the way (SDEdit, Meng et al. 2022,
        arXiv 2108.01073; He et al. 2023 call it real guidance), which the result then resembles.

        Args:
          condition: as `UNet.encode` takes it, with `lr` (b, h, w, 3).
          noise: standard normal (b, 4h, 4w, 3).
          steps: network evaluations, at most `first_timestep(strength)`.
          projection: of each predicted x_0 onto the condition (`diffusion.constraints`); None leaves it.
          guide: float32 (b, 4h, 4w, 3), the real image; needed if strength < 1.
          strength: share of the timesteps to run; 1 starts from noise alone.
        Returns:
          float32 (b, 4h, 4w, 3), in [-1, 1].
        """
        predict, start = self.predictor(params, condition, projection), self.first_timestep(strength)
        lr = condition['lr']
        if strength < 1:
            z = self.schedule.alpha(start) * self.to_diffused(guide, lr) + self.schedule.sigma(start) * noise
        else:
            z = self.schedule.first_scale * noise
        z0 = solvers.sample(predict, self.schedule, 'x0', z, steps, solver=solver, start=start)
        return jnp.clip(self.to_image(z0, lr), -1.0, 1.0)
