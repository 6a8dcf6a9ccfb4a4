"""A windowed stage: equal to the untiled one where possible, and the same pixels whichever region is read."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.images import to_float, to_uint8
from rsdiff.diffusion import noise
from rsdiff.diffusion.constraints import smooth_up, smooth_up_inside
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import integrate, sample, solver_steps
from rsdiff.sampling.mosaic.field import CachedField, Field, Read, WindowSampler
from rsdiff.sampling.mosaic.plan import PlanName, make_plan
from rsdiff.sampling.mosaic.plane import Plane

SCHEDULE = make_schedule(ScheduleConfig())
KEY = noise.name_key(0, 1)
WINDOW = 32
PLANS = typing.get_args(PlanName)


def repeated(lr):
    return jnp.repeat(jnp.repeat(lr, 4, 1), 4, 2)


def pointwise(lr):
    """Each pixel's x_0 depends only on that pixel and on the condition's pixel at its place."""
    return lambda x, t: 0.5 * repeated(lr) + 0.3 * jnp.tanh(x)


def windowed(lr):
    """x_0 depends on the entire window, as a network's does."""
    centre = lambda x: x - x.mean((1, 2), keepdims=True)
    blur = lambda x: (x + jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2)) / 3
    return lambda x, t: 0.6 * repeated(lr) + 0.3 * jnp.tanh(centre(blur(x)))


def sampler(plan, denoiser, batch=4):
    advance = jax.jit(lambda condition, x, x0, steps, *_: integrate(denoiser(condition['lr']), steps, x, x0))
    return WindowSampler(advance, lambda condition, x: x, solver_steps(plan.solver, SCHEDULE, plan.steps), batch)


def field(image, name='fast', denoiser=windowed, batch=4, wrap_x=False, kind='anchored', **numbers):
    own = {'fast': {'phases': 3}, 'infinite': {'phases': 3}, 'few': {'steps': 3, 'timesteps': 3}}.get(name, {})
    plan = make_plan(name, WINDOW, **{'steps': 6} | numbers | own)
    return Field(sampler(plan, denoiser, batch), plan, {'lr': Plane(image, wrap_x)}, KEY, kind)


def everything(field):
    return Box(0, 0, *field.shape[:2])


@pytest.fixture(scope='module')
def image(smooth_image):
    return smooth_image(19, 26)


@pytest.mark.parametrize('name', PLANS)
@pytest.mark.parametrize('wrap_x', [False, True])
def test_pointwise_windows_make_the_untiled_image(image, name, wrap_x):
    """Holds also for solvers that need the previous prediction: it is carried from phase to phase."""
    made = field(image, name, pointwise, wrap_x=wrap_x)
    eps = noise.crop(KEY, 0, 0, 76, 104)[None]
    solver = made.plan.solver
    untiled = to_uint8(sample(pointwise(to_float(image)[None]), SCHEDULE, 'x0', eps, made.plan.steps, solver=solver)[0])
    got = made.region(everything(made))
    assert np.abs(got.astype(int) - untiled).max() <= 1 and (got != untiled).mean() < 1e-3


@pytest.mark.bytes
@pytest.mark.parametrize('name', PLANS)
@pytest.mark.parametrize('kind', typing.get_args(noise.Kind))
def test_a_region_is_the_same_rectangle_of_the_whole(image, name, kind):
    if name != 'fast' and kind in ('shared', 'periodic'):
        return
    made = field(image, name, kind=kind, steps=4)
    whole = made.region(everything(made))
    for box in (Box(0, 0, 1, 1), Box(5, 11, 42, 60), Box(70, 99, 76, 104)):
        np.testing.assert_array_equal(made.region(box), box.crop(whole))
    beyond = made.region(Box(-40, -30, 90, 120))
    np.testing.assert_array_equal(beyond[40:116, 30:134], whole)


@pytest.mark.bytes
@pytest.mark.parametrize('name', PLANS)
@pytest.mark.parametrize('kind', ['anchored', 'independent', 'periodic'])
def test_around_a_cylinder_there_is_no_seam(image, name, kind):
    """The circumference of 104 px is no multiple of a stride. Lattice, noise and condition continue across x = 0."""
    if name != 'fast' and kind != 'anchored':
        return
    made = field(image, name, wrap_x=True, kind=kind, steps=4)
    whole = made.region(everything(made))
    for turns in (-1, 1, 7):
        across = made.region(Box(10, 104 * turns - 20, 50, 104 * turns + 30))
        np.testing.assert_array_equal(across, np.concatenate([whole[10:50, -20:], whole[10:50, :30]], 1))


@pytest.mark.bytes
def test_other_batches_make_the_same(image):
    one = field(image, batch=1)
    whole = one.region(everything(one))
    for batch in (3, 16):
        other = field(image, batch=batch)
        np.testing.assert_array_equal(other.region(everything(other)), whole)


@pytest.mark.parametrize('name', PLANS)
def test_evaluations_are_as_many_as_the_plan_says(image, name):
    for wrap_x in (False, True):
        made, counted = field(image, name, wrap_x=wrap_x), []
        made.region(Box(8, 20, 70, 80), counted.append)
        assert sum(counted) * WINDOW**2 == made.plan.evaluations([(8, 70)], [(20, 80)], made.around_px)


def test_every_call_has_one_shape(image):
    made, shapes = field(image, batch=5), set()
    counting = dataclasses.replace(
        made.sampler,
        advance=lambda condition, x, x0, steps, *place: (
            shapes.add((condition['lr'].shape, x.shape, x0.shape, len(steps)))
            or made.sampler.advance(condition, x, x0, steps, *place)
        ),
    )
    dataclasses.replace(made, sampler=counting).region(Box(0, 0, 40, 50))
    assert shapes == {((5, 8, 8, 3), (5, 32, 32, 3), (5, 32, 32, 3), 2)}


def test_the_margin_makes_all_windows_see_one_enlargement(image):
    """Windows that enlarge the condition themselves, with a margin of 2 (8 px), leave no trace of a window."""
    plan = make_plan('fast', WINDOW, steps=4)
    bare = sampler(plan, lambda lr: lambda x, t: x)
    enlarging = dataclasses.replace(
        bare,
        reads={'lr': Read(4, 2)},
        image=jax.jit(lambda condition, x: smooth_up_inside(condition['lr'], 4, 2)),
        advance=lambda condition, x, x0, steps, *_: (x, x0),
    )
    made = Field(enlarging, plan, {'lr': Plane(image)}, KEY)
    whole = to_uint8(smooth_up(np.pad(to_float(image), ((4, 4), (4, 4), (0, 0)), 'reflect'), 4)[16:-16, 16:-16])
    assert np.abs(made.region(everything(made)).astype(int) - whole).max() <= 1


@pytest.mark.bytes
def test_planes_of_other_scales_and_any_number_of_channels(smooth_image):
    """Planes at 1, 2 and 4 times the pixel size cover the same ground; x need not have the channels of an image."""
    fine = smooth_image(64, 96)
    scales, channels = {'same': 1, 'half': 2, 'lr': 4}, 5
    images = {name: fine.reshape(64 // s, s, 96 // s, s, 3).mean((1, 3)).astype(np.uint8) for name, s in scales.items()}

    def advance(condition, x, x0, steps, *_):
        assert x.shape[-1] == x0.shape[-1] == channels
        return x, x0

    def image(condition, x):
        enlarged = [jnp.repeat(jnp.repeat(condition[name], s, 1), s, 2) for name, s in scales.items()]
        return sum(enlarged) / 3 + 0.01 * x[..., :3]

    plan = make_plan('fast', WINDOW, steps=3)
    steps = solver_steps(plan.solver, SCHEDULE, plan.steps)
    reads = {name: Read(scale) for name, scale in scales.items()}
    several = WindowSampler(advance, jax.jit(image), steps, 4, reads, channels=channels)
    made = Field(several, plan, {name: Plane(array) for name, array in images.items()}, KEY)
    assert made.shape == (64, 96, 3)
    enlarged = [np.kron(to_float(images[name]), np.ones((s, s, 1))) for name, s in scales.items()]
    eps = noise.crop(KEY, 0, 0, 64, 96, channels)[..., :3]
    expected = to_uint8(np.clip(sum(enlarged) / 3 + 0.01 * eps, -1, 1))
    got = made.region(everything(made))
    assert np.abs(got.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(made.region(Box(8, 20, 40, 70)), got[8:40, 20:70])
    with pytest.raises(BadInput, match='lacks half'):
        Field(several, plan, {name: Plane(images[name]) for name in ('lr', 'same')}, KEY)
    with pytest.raises(BadInput, match='same makes a canvas of 96×64 px, and half one of 192×128 px'):
        Field(several, plan, {name: Plane(images['same' if name == 'half' else name]) for name in scales}, KEY)


def test_kinds_of_noise_repeat_as_they_say():
    corners = np.array([[-8, -8], [-8, 24], [8, 8], [-8, -8 + 96]], np.int32)
    shared, independent, periodic, anchored = (
        noise.windows(kind, KEY, corners, 32) for kind in ('shared', 'independent', 'periodic', 'anchored')
    )
    np.testing.assert_array_equal(shared[0], shared[2])
    np.testing.assert_array_equal(periodic[0], periodic[1])
    np.testing.assert_array_equal(periodic[0][16:, 16:], periodic[2][:16, :16])
    np.testing.assert_array_equal(anchored[0][16:, 16:], anchored[2][:16, :16])
    for made in (independent, anchored):
        assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(independent[0][16:, 16:], independent[2][:16, :16])
    for kind in ('independent', 'periodic', 'anchored'):
        around = noise.windows(kind, KEY, corners, 32, 96)
        np.testing.assert_array_equal(around[0], around[3])


@pytest.mark.bytes
def test_a_cached_field_reads_like_its_canvas(image):
    made = field(image)
    whole, cached = made.region(everything(made)), CachedField(made, tile_px=40, tiles=4)
    assert cached.shape == whole.shape
    for key in ((slice(0, 76), slice(0, 104)), (slice(30, 50), slice(70, 90)), (slice(3, 3), slice(0, 5))):
        np.testing.assert_array_equal(cached[key], whole[key])


@pytest.mark.bytes
def test_the_next_stage_stands_on_a_cached_one_as_on_a_stored_one(image):
    first = field(image[:8, :9])
    stored = first.region(everything(first))
    box = Box(70, 60, 100, 120)
    second = [field(source).region(box) for source in (stored, CachedField(first, 16))]
    np.testing.assert_array_equal(*second)
