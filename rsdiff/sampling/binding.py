"""A trained generator as what samples windows, and whole images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rsdiff.base.errors import BadInput
from rsdiff.diffusion import solvers
from rsdiff.diffusion.constraints import UP_REACH_PX, Projection
from rsdiff.diffusion.solvers import Solver
from rsdiff.methods.base import Method
from rsdiff.methods.sampling import first_timestep, predictor, sample
from rsdiff.models.conditioning import Condition
from rsdiff.sampling.images import SampleImages
from rsdiff.sampling.mosaic.cascade import SamplerAt
from rsdiff.sampling.mosaic.field import WindowSampler, windows_a_call
from rsdiff.sampling.mosaic.plan import Plan


def bind_windows(
    method: Method,
    params: dict,
    plan: Plan,
    mesh: Mesh,
    projection: Projection | None = Projection(),
    batch_size: int = 16,
) -> SamplerAt:
    """gsd_m of the result → a `WindowSampler`. Each device of `mesh` takes a part of every batch, as if it were alone, so
    that more of them change no rounding."""
    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    batch, margin = windows_a_call(plan.window_px, batch_size, mesh.size), UP_REACH_PX
    params = jax.device_put(params, NamedSharding(mesh, whole))
    condition = functools.partial(_condition, method)

    def on_devices(function, *specs):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))

    def advance(params, lr, gsd_m, x, x0, steps):
        return solvers.integrate(predictor(method, params, condition(lr, gsd_m), projection, margin), steps, x, x0)

    advance = on_devices(advance, whole, split, split, split, split, whole)
    image = on_devices(
        lambda lr, z: jnp.clip(method.codec.decode(z, {'lr': lr}, margin)['image'], -1.0, 1.0), split, split
    )
    steps = solvers.solver_steps(plan.solver, method.schedule, plan.steps)

    def at(gsd_m: float) -> WindowSampler:
        each = np.full(batch, gsd_m, np.float32)
        return WindowSampler(
            lambda lr, x, x0, steps: advance(params, lr, each, x, x0, steps),
            image,
            steps,
            batch,
            margin,
            method.schedule.first_scale,
        )

    return at


def _condition(method: Method, lr, gsd_m) -> Condition:
    """Of what a stage knows, the fields that the method takes."""
    return {name: value for name, value in {'lr': lr, 'gsd_m': gsd_m}.items() if name in method.fields}


def bind_images(
    method: Method,
    params: dict,
    steps: int,
    mesh: Mesh,
    projection: Projection | None = Projection(),
    strength: float = 1.0,
    solver: Solver = 'ddim',
) -> SampleImages:
    """What `whole.sample_folder` takes: batches of whole images, split over the devices of `mesh`."""
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(mesh.axis_names)))
    params = jax.device_put(params, whole)
    condition = functools.partial(_condition, method)

    def run(params, lr, noise, gsd_m, guide):
        return sample(method, params, condition(lr, gsd_m), noise, steps, projection, solver, guide, strength)

    run = jax.jit(run, in_shardings=(whole, split, split, split, split), out_shardings=split)
    return lambda lr, noise, gsd_m, guide=None: run(params, lr, noise, gsd_m, guide)


def steps_of(method: Method, steps: int, strength: float) -> int:
    """How many of `steps` a sample of `strength` runs: below 1 no more than the timesteps that it passes, and at least one.

    Raises:
      BadInput: `strength` is not above 0, and 1 at most.
    """
    if not 0 < strength <= 1:
        raise BadInput(f'strength is {strength}; it must be above 0, and 1 at most')
    return min(steps, first_timestep(method, strength)) if strength < 1 else steps


def make_projection(
    method: Method,
    steps: int,
    factor: int = 4,
    strength: float = 1.0,
    end_step: int | None = None,
    start: int | None = None,
) -> Projection:
    """The projection of every step before `end_step` of `steps`, or of all.

    Args:
      start: the timestep that the steps lead down from; by default the last that there is.
    Raises:
      BadInput: there are fewer timesteps than steps.
    """
    start = method.schedule.timesteps if start is None else start
    if steps > start:
        raise BadInput(f'steps is {steps}; the generator has {start} timesteps')
    end_step = steps if end_step is None else min(end_step, steps)
    return Projection(factor, strength, int(solvers.timestep_grid(start, steps)[end_step]))
