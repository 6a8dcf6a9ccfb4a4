"""What any method's predictions become: images, clipped, held to what is known, and whole samples."""

from typing import Any, Callable

import jax.numpy as jnp

from rsdiff.diffusion import constraints, solvers
from rsdiff.diffusion.constraints import Projection, projected
from rsdiff.diffusion.schedule import like
from rsdiff.diffusion.solvers import Denoise
from rsdiff.methods.base import Method, Parameters
from rsdiff.models.conditioning import Condition

# (predict, the window's own condition) → predict, of images: see `diffusion.constraints`
Constraint = Callable[[Denoise, Condition], Denoise]


def predictor(
    method: Method,
    params: Parameters,
    condition: Condition,
    projection: Projection | None = None,
    margin: int = 0,
    constrain: Constraint = lambda predict, condition: predict,
    frozen: Any = None,
) -> Denoise:
    """`predict(zt, t)` → the z_0 predicted from it, as an image clipped and projected onto the condition.

    A window is a crop: the network and the codec see its own pixels of the condition alone, so that near its edge what the
    codec makes of them is not what it makes of the whole. What windows exchange has to mean the same to all of them. So z is
    here with respect to the whole's condition, which comes with a margin, and each window translates: with d, what z_0 is
    for the window where it is 0 for the whole,

        z_0' = z_0 + d,  z_t' = z_t + α_t d                              (1)

    Args:
      condition: as the method's network takes it, but for `lr`, (b, h + 2m, w + 2m, c) with m = `margin`; with m = 0 the
        window is all there is.
      projection: of each predicted image onto `lr`; None leaves it.
      constrain: what else is done to each predicted image.
    """
    inner = condition | {'lr': constraints.inside(condition['lr'], margin)}
    predict = method.predict(params, frozen, inner)
    batch, height, width, _ = inner['lr'].shape
    nothing = jnp.zeros((batch, height * method.upscale, width * method.upscale, method.channels))
    d = method.codec.encode(method.codec.decode(nothing, condition, margin), inner)

    def image(zt, t):
        zt = zt + like(method.schedule.alpha(t), zt) * d
        return jnp.clip(method.codec.decode(predict(zt, t), inner)['image'], -1.0, 1.0)

    held = constrain(projected(image, inner['lr'], projection) if projection else image, inner)
    return lambda zt, t: method.codec.encode({'image': held(zt, t)}, condition, margin)


def first_timestep(method: Method, strength: float) -> int:
    """The timestep that a sample of `strength` (see `sample`) starts from, at least 1."""
    return max(1, round(strength * method.schedule.timesteps))


def sample(
    method: Method,
    params: Parameters,
    condition: Condition,
    noise,
    steps: int,
    projection: Projection | None = Projection(),
    solver: solvers.Solver = 'ddim',
    guide: Any = None,
    strength: float = 1.0,
    frozen: Any = None,
):
    """One stage in one piece: from noise, or from a real image noised part of the way (SDEdit, Meng et al. 2022,
    arXiv 2108.01073; He et al. 2023 call it real guidance), which the result then resembles.

    Args:
      condition: as the method's network takes it, with `lr` (b, h, w, c).
      noise: standard normal, (b, H, W, c) of the result.
      steps: network evaluations, at most `first_timestep(method, strength)`.
      projection: of each predicted image onto `lr` (`diffusion.constraints`); None leaves it.
      guide: float32 (b, H, W, c), the real image; needed if strength < 1.
      strength: share of the timesteps to run; 1 starts from noise alone.
    Returns:
      float32 (b, H, W, c), in [-1, 1].
    """
    predict = predictor(method, params, condition, projection, frozen=frozen)
    schedule, start = method.schedule, first_timestep(method, strength)
    if strength < 1:
        z = schedule.alpha(start) * method.codec.encode({'image': guide}, condition) + schedule.sigma(start) * noise
    else:
        z = schedule.first_scale * noise
    z0 = solvers.sample(predict, schedule, 'x0', z, steps, solver=solver, start=start)
    return jnp.clip(method.codec.decode(z0, condition)['image'], -1.0, 1.0)
