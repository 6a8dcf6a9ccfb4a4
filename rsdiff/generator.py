"""The generator: the network bound to the mathematics.

`Generator` holds no arrays. Parameters are a nested dict that comes in with every call, so that `jit`, `grad` and
sharding see plain pytrees.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rsdiff.diffusion import consistency, objective, solvers
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.diffusion.schedule import Schedule, ScheduleConfig, make_schedule, target
from rsdiff.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Everything that a checkpoint's parameters mean nothing without.

    `residual`: the network predicts its target less what the enlarged condition contributes to it (no part of ε, all
    of x_0's mean, -σ_t times that of v). It starts, then, at the enlarged condition.
    """

    model: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    residual: bool = False


@dataclasses.dataclass(frozen=True)
class Generator:
    """Pure functions of (params, …) for one `GeneratorConfig`."""

    config: GeneratorConfig

    @functools.cached_property
    def graphdef(self):
        """The network's structure, made without allocating a parameter."""
        return nnx.split(nnx.eval_shape(lambda: UNet(self.config.model, rngs=nnx.Rngs(0))))[0]

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return make_schedule(self.config.schedule)

    def init(self, key) -> dict:
        """Fresh float32 parameters. Call it inside `jit` or `eval_shape`."""
        return nnx.to_pure_dict(nnx.state(UNet(self.config.model, rngs=nnx.Rngs(key))))

    def parameter_shapes(self) -> dict:
        """The parameters' shapes and dtypes, without making them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def denoiser(self, params, lr, gsd_m) -> solvers.Denoise:
        """`denoise(xt, t)` with the condition bound. lr: (b, h/4, w/4, 3) in [-1, 1]; gsd_m: (b,), of the output."""
        model = nnx.merge(self.graphdef, nnx.State(params))
        if not self.config.residual:
            return lambda xt, t: model(xt, t, lr, gsd_m)
        mean = consistency.smooth_up(lr, self.config.model.upscale)
        known = lambda t: target(self.schedule, self.config.objective.prediction, mean, jnp.zeros_like(mean), t)
        return lambda xt, t: known(t) + model(xt, t, lr, gsd_m)

    def loss(self, params, x0, lr, gsd_m, key):
        """The training loss, a float32 scalar."""
        return objective.loss(self.denoiser(params, lr, gsd_m), self.schedule, self.config.objective, x0, key)

    def sample(self, params, lr, gsd_m, noise, steps: int, consistent: bool = True):
        """One 4× stage by DDIM, η = 0.

        Args:
          lr: float32 (b, h, w, 3) in [-1, 1].
          gsd_m: float32 (b,), metres a pixel of the result.
          noise: standard normal (b, 4h, 4w, 3).
          steps: network evaluations.
          consistent: project each predicted x_0 onto the condition (`diffusion.consistency`).
        Returns:
          float32 (b, 4h, 4w, 3), in [-1, 1].
        """

        def refine(x0):
            x0 = jnp.clip(x0, -1.0, 1.0)
            return consistency.project(x0, lr) if consistent else x0

        denoise = self.denoiser(params, lr, gsd_m)
        x0 = solvers.sample(denoise, self.schedule, self.config.objective.prediction, noise, steps, refine=refine)
        return jnp.clip(x0, -1.0, 1.0)
