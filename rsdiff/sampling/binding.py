"""Binds a trained generator to the samplers of windows and of complete images."""

from typing import Any, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rsdiff.base.errors import BadInput
from rsdiff.diffusion import noise, solvers
from rsdiff.diffusion.constraints import UP_REACH_PX, Projection, Wavelet
from rsdiff.diffusion.solvers import Solver
from rsdiff.methods.base import Method, Parameters, fields_to_read
from rsdiff.methods.sampling import Combine, Constrain, alone, first_timestep, predictor, sample, unconstrained
from rsdiff.models.conditioning import Condition, Spatial
from rsdiff.sampling.images import ImageSampler
from rsdiff.sampling.mosaic.cascade import SamplerAt
from rsdiff.sampling.mosaic.field import Read, WindowSampler, windows_a_call
from rsdiff.sampling.mosaic.plan import UNIT_PX, Plan


def bind_windows(
    method: Method,
    params: Parameters,
    plan: Plan,
    mesh: Mesh,
    projection: Projection | Wavelet | None = Projection(),
    batch_size: int = 16,
    constants: Condition | None = None,
    images: dict[str, Any] | None = None,
    combine: Combine = alone,
    constrain: Constrain = unconstrained,
) -> SamplerAt:
    """gsd_m of the result → a `WindowSampler`. Each device of `mesh` processes its part of every batch independently, so the
    number of devices does not affect rounding.

    Args:
      constants: the fields that are the same everywhere, by name, for one example: (1, …).
      images: the spatial fields that windows read besides `lr`, by name.
      combine, constrain: see `methods.sampling.predictor`.
    Raises:
      BadInput: as `check_condition`; or the scale of a spatial field does not divide `UNIT_PX`.
    """
    constants, images = constants or {}, images or {}
    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    batch = windows_a_call(plan.window_px, batch_size, mesh.size)
    networks = jax.device_put((params, method.load_frozen()), NamedSharding(mesh, whole))
    check_condition(method, ['lr', 'gsd_m', *images, *constants])
    reads = {name: _read(method, name) for name in ('lr', *images)}
    margin = reads['lr'].margin

    def on_devices(function, *specs):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))

    def advance(networks, condition, x, x0, steps, corners, place):
        params, frozen = networks
        predict = predictor(method, params, condition, projection, margin, frozen, combine, constrain)
        key, around = place
        step_noise = lambda t: noise.at_step(key, t, corners, *x.shape[1:], around=around)
        return solvers.integrate(predict, steps, x, x0, step_noise if solvers.is_stochastic(plan.solver) else None)

    advance = on_devices(advance, whole, split, split, split, whole, split, whole)
    decode = lambda condition, z: jnp.clip(method.codec.decode(z, condition, margin)['image'], -1.0, 1.0)
    image = on_devices(decode, split, split)
    steps = solvers.solver_steps(plan.solver, method.schedule, plan.steps)
    same = {name: np.repeat(value, batch, 0) for name, value in constants.items()}

    def at(gsd_m: float) -> WindowSampler:
        known = same | _known(method, gsd_m=np.full(batch, gsd_m, np.float32))
        return WindowSampler(
            lambda condition, *rest: advance(networks, condition | known, *rest),
            image,
            steps,
            batch,
            reads,
            images,
            method.channels,
            method.schedule.first_scale,
        )

    return at


def check_condition(method: Method, given: Iterable[str]) -> None:
    """Raises BadInput if a required field is missing, or a given field is not one the method takes. `gsd_m` is always given,
    and may go unused."""
    given = {*given}
    for name in sorted(given - {*method.fields} - {'gsd_m'}):
        raise BadInput(
            f'the condition has {name}, which this checkpoint does not take; it takes {", ".join(method.fields)}'
        )
    for name, field in method.fields.items():
        if name not in given and not field.droppable:
            raise BadInput(f'the condition lacks {name}, which this checkpoint needs; give it with --field')


def _read(method: Method, name: str) -> Read:
    field = method.fields[name]
    if not isinstance(field, Spatial):
        raise BadInput(f'{name} is given as an image; this checkpoint takes it as a {type(field).__name__.lower()}')
    if UNIT_PX % field.scale:
        raise BadInput(f'{name} is {field.scale} times coarser than the result; windows support factors of 1, 2 and 4')
    return Read(field.scale, UP_REACH_PX if name == 'lr' else 0)


def _known(method: Method, **values) -> Condition:
    """The values of the fields that the method takes."""
    return {name: value for name, value in values.items() if name in method.fields}


def bind_images(
    method: Method,
    params: Parameters,
    steps: int,
    mesh: Mesh,
    projection: Projection | Wavelet | None = Projection(),
    strength: float = 1.0,
    solver: Solver = 'ddim',
    combine: Combine = alone,
    constrain: Constrain = unconstrained,
) -> ImageSampler:
    """The sampler for `images.sample_folder`: batches of complete images, split over the devices of `mesh`. Fields besides
    `lr` and `gsd_m` are read from the images' rows.

    Args:
      combine, constrain: see `methods.sampling.predictor`.
    Raises:
      BadInput: as `check_condition`.
    """
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(mesh.axis_names)))
    networks = jax.device_put((params, method.load_frozen()), whole)
    fields = fields_to_read(method.fields)
    check_condition(method, ['lr', 'gsd_m', *(field.name for field in fields)])

    def run(networks, condition, first, keys, guide):
        params, frozen = networks
        step_noise = jax.vmap(lambda key, t: noise.crop(jax.random.fold_in(key, t), 0, 0, *first.shape[1:]), (0, None))
        own = (lambda t: step_noise(keys, t)) if solvers.is_stochastic(solver) else None
        return sample(
            method,
            params,
            condition,
            first,
            steps,
            projection,
            solver,
            own,
            guide,
            strength,
            frozen,
            combine,
            constrain,
        )

    run = jax.jit(run, in_shardings=(whole, split, split, split, split), out_shardings=split)

    def made(condition, first, keys=None, guide=None):
        return run(networks, _known(method, **condition), first, keys, guide)

    return ImageSampler(made, method.upscale, method.channels, fields)


def steps_of(method: Method, steps: int, strength: float) -> int:
    """The number of `steps` to run with `strength`: below 1 at most the timesteps that remain, and at least one.

    Raises:
      BadInput: `strength` is not in (0, 1].
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
    """The projection for the steps before `end_step` of `steps`, or for all.

    Args:
      start: the timestep at which sampling starts; T by default.
    Raises:
      BadInput: there are fewer timesteps than steps.
    """
    start = method.schedule.timesteps if start is None else start
    if steps > start:
        raise BadInput(f'steps is {steps}; the generator has {start} timesteps')
    end_step = steps if end_step is None else min(end_step, steps)
    return Projection(factor, strength, int(solvers.timestep_grid(start, steps)[end_step]))


def make_wavelet(method: Method, steps: int, start: int | None = None) -> Wavelet:
    """The wavelet colour correction of the last of `steps`; `start` as in `make_projection`."""
    return Wavelet(start=int(solvers.timestep_grid(start or method.schedule.timesteps, steps)[-2]))
