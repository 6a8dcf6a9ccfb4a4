"""Binding a network to windows and images, with a tiny U-Net."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import UNET, drawn

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.data.images import to_float
from rsdiff.diffusion import noise
from rsdiff.diffusion.constraints import Projection, Wavelet, keep_known, smooth_up, wavelet_low
from rsdiff.diffusion.guidance import guided
from rsdiff.diffusion.objective import ObjectiveConfig
from rsdiff.methods.codec import ResidualConfig
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig
from rsdiff.methods.sampling import predictor
from rsdiff.models.conditioning import Number, Spatial
from rsdiff.sampling.binding import bind_images, bind_windows, make_projection, make_wavelet
from rsdiff.sampling.mosaic.cascade import MosaicSettings
from rsdiff.sampling.mosaic.field import Field
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.training.mesh import make_mesh

GENERATOR = Diffusion(
    DiffusionConfig(model=UNET, objective=ObjectiveConfig(prediction='v'), codec=ResidualConfig(scale=0.1))
)
PLAN = make_plan('fast', 32, steps=3)
KEY = noise.name_key(0, 1)


@pytest.fixture(scope='module')
def params():
    return drawn(GENERATOR)


def field(params, image, devices=1, plan=PLAN, wrap_x=False, **options):
    sampler_at = bind_windows(GENERATOR, params, plan, make_mesh(devices=jax.devices()[:devices]), **options)
    return Field(sampler_at(10.0), plan, {'lr': Plane(image, wrap_x)}, KEY)


def test_a_window_translates_what_it_is_given_and_what_it_says(params):
    """By hand: shift z from the enlargement of the entire image to that of the window, predict, and shift back."""
    whole = np.asarray(jax.random.uniform(KEY, (1, 12, 12, 3), minval=-0.5, maxval=0.5))
    padded = np.pad(whole, ((0, 0), (4, 4), (4, 4), (0, 0)), 'reflect')
    lr, gsd_m, t = whole[:, 2:-2, 2:-2], jnp.array([10.0]), jnp.array([300])
    zt = jax.random.normal(KEY, (1, 32, 32, 3))
    d = (smooth_up(padded, 4)[:, 24:56, 24:56] - smooth_up(lr, 4)) / 0.1
    own = predictor(GENERATOR, params, {'lr': lr, 'gsd_m': gsd_m}, Projection())
    expected = own(zt + float(GENERATOR.schedule.alpha(300)) * d, t) - d
    np.testing.assert_allclose(
        predictor(GENERATOR, params, {'lr': whole, 'gsd_m': gsd_m}, Projection(), margin=2)(zt, t), expected, atol=1e-4
    )
    assert float(jnp.abs(d).max()) > 0.1 and float(jnp.abs(d[:, 8:-8, 8:-8]).max()) < 1e-4


def test_the_projection_ends_where_it_is_told_to(params, smooth_image):
    lr, gsd_m = to_float(smooth_image(8, 8))[None], jnp.array([10.0])
    zt = jax.random.normal(KEY, (1, 32, 32, 3))
    on, ended, off = (
        predictor(GENERATOR, params, {'lr': lr, 'gsd_m': gsd_m}, p) for p in (Projection(), Projection(end=300), None)
    )
    for t, same in ((301, on), (300, off)):
        np.testing.assert_array_equal(ended(zt, jnp.array([t])), same(zt, jnp.array([t])))
    assert make_projection(GENERATOR, 10, end_step=10) == make_projection(GENERATOR, 10) == Projection(end=0)
    assert make_projection(GENERATOR, 10, 8, 0.5, end_step=5) == Projection(8, 0.5, 250)
    with pytest.raises(BadInput, match='steps is 1001'):
        make_projection(GENERATOR, 1001)


@pytest.mark.bytes
def test_place_in_the_batch_batch_size_and_devices_do_not_enter(params, smooth_image):
    image = smooth_image(15, 20)
    whole = field(params, image).region(Box(0, 0, 60, 80))
    np.testing.assert_array_equal(field(params, image, batch_size=3).region(Box(20, 8, 50, 73)), whole[20:50, 8:73])
    np.testing.assert_array_equal(field(params, image, devices=8).region(Box(0, 0, 60, 80)), whole)


@pytest.mark.bytes
@pytest.mark.parametrize('wrap_x', [False, True])
def test_noise_of_stochastic_steps_belongs_to_its_place(params, smooth_image, wrap_x):
    image, ancestral = smooth_image(15, 20), make_plan('fast', 32, steps=3, solver='ancestral')
    several = field(params, image, plan=ancestral, wrap_x=wrap_x)
    whole = several.region(Box(0, 0, 60, 80))
    np.testing.assert_array_equal(several.region(Box(20, 8, 50, 73)), whole[20:50, 8:73])
    np.testing.assert_array_equal(field(params, image, 8, ancestral, wrap_x).region(Box(0, 0, 60, 80)), whole)
    if wrap_x:
        np.testing.assert_array_equal(several.region(Box(0, 60, 60, 100)), np.hstack([whole[:, 60:], whole[:, :20]]))
    assert np.abs(field(params, image, wrap_x=wrap_x).region(Box(0, 0, 60, 80)).astype(int) - whole).max() > 8


def test_the_mosaic_agrees_with_its_condition(params, smooth_image):
    image = smooth_image(15, 20)
    error = lambda made: np.abs(made.reshape(15, 4, 20, 4, 3).mean((1, 3)) - image).mean()
    on, off = (field(params, image, projection=p).region(Box(0, 0, 60, 80)) for p in (Projection(), None))
    assert error(on) < 0.3 * error(off)


def test_whole_images_take_either_solver(params):
    """The two solvers agree in the first step, which has no previous prediction."""
    lr, gsd_m = to_float(np.full((8, 8, 8, 3), 90, np.uint8)), jnp.full(8, 10.0)
    eps = jax.random.normal(KEY, (8, 32, 32, 3))
    made = {
        (solver, steps): np.asarray(
            bind_images(GENERATOR, params, steps, make_mesh(), solver=solver).sample({'lr': lr, 'gsd_m': gsd_m}, eps)
        )
        for solver in ('ddim', 'dpm++2m')
        for steps in (1, 3)
    }
    np.testing.assert_allclose(made['ddim', 1], made['dpm++2m', 1], atol=1e-5)
    assert np.abs(made['ddim', 3] - made['dpm++2m', 3]).max() > 1e-3


def test_an_image_of_a_stochastic_solver_depends_on_its_own_key_alone(params):
    lr, gsd_m = to_float(np.full((8, 8, 8, 3), 90, np.uint8)), jnp.full(8, 10.0)
    eps, keys = jax.random.normal(KEY, (8, 32, 32, 3)), jax.random.split(KEY, 8)
    bound = bind_images(GENERATOR, params, 3, make_mesh(), solver='ancestral')
    made = np.asarray(bound.sample({'lr': lr, 'gsd_m': gsd_m}, eps, keys))
    turned = np.asarray(bound.sample({'lr': lr, 'gsd_m': gsd_m}, eps[::-1], keys[::-1]))
    np.testing.assert_array_equal(turned[::-1], made)
    other = np.asarray(bound.sample({'lr': lr, 'gsd_m': gsd_m}, eps, keys.at[0].set(keys[1])))
    np.testing.assert_array_equal(other[1:], made[1:])
    assert np.abs(other[0] - made[0]).max() > 1e-3


def test_the_colour_correction_happens_in_the_last_step(params, smooth_image):
    assert make_wavelet(GENERATOR, 10) == Wavelet(start=10)
    image = smooth_image(8, 8) // 4 + 96  # far from black and white, where samples are clipped
    bound = lambda by: bind_images(GENERATOR, params, 3, make_mesh(devices=jax.devices()[:1]), by)
    condition = {'lr': to_float(image)[None], 'gsd_m': jnp.array([10.0])}
    free, held = (
        np.asarray(bound(by).sample(condition, jax.random.normal(KEY, (1, 32, 32, 3))))
        for by in (None, make_wavelet(GENERATOR, 3))
    )
    coarse = wavelet_low(smooth_up(condition['lr'], 4), 5)
    away = lambda made: np.abs(wavelet_low(made, 5) - coarse).mean()
    assert away(held) < 0.2 * away(free)


def test_both_samplers_take_guidance_and_constraints(params, smooth_image):
    """Guidance of weight 0 is the less conditioned prediction, here of another resolution; known pixels stay."""
    coarser = lambda c: c | {'gsd_m': 8 * c['gsd_m']}
    unguided = lambda predict_for, c: guided([predict_for(coarser(c)), predict_for(c)], [0.0])
    grey = lambda predict, c: keep_known(predict, 0.0, jnp.array([True] * 16 + [False] * 16)[:, None, None])
    lr, eps = to_float(smooth_image(8, 8))[None], jax.random.normal(KEY, (1, 32, 32, 3))
    mesh = make_mesh(devices=jax.devices()[:1])

    def images(**options):
        bound = bind_images(GENERATOR, params, 2, mesh, **options)
        return lambda gsd_m: np.asarray(bound.sample({'lr': lr, 'gsd_m': jnp.array([gsd_m])}, eps))

    def windows(**options):
        at = bind_windows(GENERATOR, params, PLAN, mesh, **options)
        whole = Box(0, 0, 32, 32)
        return lambda gsd_m: Field(at(gsd_m), PLAN, {'lr': Plane(smooth_image(8, 8))}, KEY).region(whole) / 127.5 - 1

    for make in (images, windows):
        plain = make()
        assert np.abs(plain(10.0) - plain(80.0)).max() > 0.02
        np.testing.assert_allclose(make(combine=unguided)(10.0), plain(80.0), atol=0.01)
    kept = images(constrain=grey)(10.0)
    np.testing.assert_allclose(kept[:, :16], 0, atol=1e-5)
    assert np.abs(kept[:, 16:]).max() > 0.02


def test_more_fields_are_read_as_planes_and_constants(smooth_image):
    """A network with an image at the scale of the output, a number, and a field that may be missing."""
    model = dataclasses.replace(
        UNET,
        spatial=UNET.spatial | {'before': Spatial(3, 1, 8, 4, 0)},
        numbers=UNET.numbers | {'day': Number('cyclic', 0, 365), 'cloud': Number(droppable=True)},
    )
    method = Diffusion(DiffusionConfig(model=model))
    params = drawn(method)
    lr, before = smooth_image(10, 12), smooth_image(40, 48, 1)
    mesh = make_mesh(devices=jax.devices()[:1])

    def made(images, **constants):
        constants = {name: np.float32([value]) for name, value in constants.items()}
        sampler = bind_windows(method, params, PLAN, mesh, constants=constants, images=images)(10.0)
        return MosaicSettings(40.0, 1, PLAN, 32).field(sampler, lr, 1).region(Box(0, 0, 40, 48))

    first = made({'before': before}, day=10)
    assert first.shape == (40, 48, 3)
    for other in (made({'before': before}, day=200), made({'before': before[::-1]}, day=10)):
        assert (first != other).mean() > 0.1
    assert (first != made({'before': before}, day=10, cloud=0.5)).any()
    with pytest.raises(BadInput, match='lacks day, which this checkpoint needs'):
        made({'before': before})
    with pytest.raises(BadInput, match='has cover, which this checkpoint does not take; it takes before, lr'):
        made({'before': before}, day=1, cover=1)
    with pytest.raises(BadInput, match='day is given as an image; this checkpoint takes it as a number'):
        made({'before': before, 'day': before})
    with pytest.raises(BadInput, match='lr makes a canvas of 48×40 px, and before one of 12×10 px'):
        made({'before': lr}, day=10)
