"""Sampling with any method: predicted images, clipped and constrained, and complete samples."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from rsdiff.diffusion import constraints, solvers
from rsdiff.diffusion.constraints import Projection, Wavelet, consistent
from rsdiff.diffusion.schedule import like
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import NO_FROZEN, Frozen, Method, Parameters
from rsdiff.models.conditioning import Condition

# (condition → predict, the window's own condition) → predict; all predict z_0. It may combine predictions for several
# conditions, as `diffusion.guidance.guided` does
Combine = Callable[[Callable[[Condition], Denoise], Condition], Denoise]
# (predict, the window's own condition) → predict; both predict images, see `diffusion.constraints`. The result calls predict
# once, with its own arguments
Constrain = Callable[[Denoise, Condition], Denoise]


def alone(predict_for: Callable[[Condition], Denoise], condition: Condition) -> Denoise:
    """The prediction for the condition itself."""
    return predict_for(condition)


def unconstrained(predict: Denoise, condition: Condition) -> Denoise:
    """The prediction as it is."""
    return predict


def predictor(
    method: Method,
    params: Parameters,
    condition: Condition,
    projection: Projection | Wavelet | None = None,
    margin: int = 0,
    frozen: Frozen = NO_FROZEN,
    combine: Combine = alone,
    constrain: Constrain = unconstrained,
) -> Denoise:
    """`predict(zt, t)` → the predicted z_0, clipped and projected onto the condition as an image.

    A window is a crop: the network and the codec see only its own pixels of the condition. Near the window's edge, the codec
    therefore encodes them differently than it would in the full image. But z, which windows exchange, must mean the same to
    all of them. So here z is encoded with respect to the full image's condition, which comes with a margin, and each window
    converts it. With d the window's encoding of the image that the full condition encodes as 0,

        z_0' = z_0 + d,  z_t' = z_t + α_t d                              (1)

    Args:
      condition: as the method's network takes it, except for `lr`, (b, h + 2m, w + 2m, c) with m = `margin`; m = 0 if the
        window is the full image.
      projection: how predicted images are made consistent with `lr`; None to skip this.
      combine: makes the prediction from those for one or more conditions.
      constrain: a further constraint on each predicted image.
    """
    inner = condition | {'lr': constraints.inside(condition['lr'], margin)}
    predict = combine(lambda condition: method.predict(params, frozen, condition), inner)
    batch, height, width, _ = inner['lr'].shape
    nothing = jnp.zeros((batch, height * method.upscale, width * method.upscale, method.channels))
    d = method.codec.encode(method.codec.decode(nothing, condition, margin), inner)

    def predicted(zt, t):
        zt_inner = zt + like(method.schedule.alpha(t), zt) * d
        targets = method.codec.decode(predict(zt_inner, t), inner)
        image = lambda zt, t: jnp.clip(targets['image'], -1.0, 1.0)
        held = constrain(consistent(image, inner['lr'], projection) if projection else image, inner)
        return method.codec.encode(targets | {'image': held(zt, t)}, condition, margin)

    return predicted


def first_timestep(method: Method, strength: float) -> int:
    """The timestep at which sampling with `strength` (see `sample`) starts, at least 1."""
    return max(1, round(strength * method.schedule.timesteps))


def sample(
    method: Method,
    params: Parameters,
    condition: Condition,
    noise,
    steps: int,
    projection: Projection | Wavelet | None = Projection(),
    solver: solvers.Solver = 'ddim',
    step_noise: Callable[[jax.Array], jax.Array] | None = None,
    guide: Any = None,
    strength: float = 1.0,
    frozen: Frozen = NO_FROZEN,
    combine: Combine = alone,
    constrain: Constrain = unconstrained,
):
    """Samples one stage without windows: from noise, or from a partly noised real image, which the result then resembles
    (SDEdit, Meng et al. 2022, arXiv 2108.01073; called real guidance by He et al. 2023).

    Args:
      condition: as the method's network takes it, with `lr` (b, h, w, c).
      noise: standard normal, (b, H, W, c), the shape of the result.
      steps: number of network evaluations, at most `first_timestep(method, strength)`.
      projection: how predicted images are made consistent with `lr` (`diffusion.constraints`); None to skip this.
      step_noise: t → standard normal of the shape of `noise`, for a solver that is stochastic.
      guide: float32 (b, H, W, c), the real image; needed if strength < 1.
      strength: fraction of the timesteps to run; 1 starts from pure noise.
      combine, constrain: see `predictor`.
    Returns:
      float32 (b, H, W, c), in [-1, 1].
    """
    predict = predictor(method, params, condition, projection, 0, frozen, combine, constrain)
    schedule, start = method.schedule, first_timestep(method, strength)
    if strength < 1:
        z = schedule.alpha(start) * method.codec.encode({'image': guide}, condition) + schedule.sigma(start) * noise
    else:
        z = schedule.first_scale * noise
    z0 = solvers.sample(predict, schedule, 'x0', z, steps, solver=solver, step_noise=step_noise, start=start)
    return jnp.clip(method.codec.decode(z0, condition)['image'], -1.0, 1.0)
