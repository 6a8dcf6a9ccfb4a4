"""Windows have no tint of their own: on flat ground, the mean of each equals that of its condition."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.boxes import Box
from rsdiff.diffusion.constraints import Projection
from rsdiff.diffusion.noise import name_key
from rsdiff.methods.diffusion import Diffusion
from rsdiff.sampling.binding import bind_windows
from rsdiff.sampling.mosaic.field import Field
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.training.checkpoint import load_generator
from rsdiff.training.mesh import make_mesh

WEIGHTS = Path(__file__).parents[1] / 'weights' / 'earth'
WATER, DESERT, SNOW = (7, 21, 51), (186, 153, 111), (251, 253, 254)  # of Blue Marble
PLAN = make_plan('fast', 64, steps=5)
BOUND = 0.3  # grey levels


@pytest.fixture(scope='module')
def trained():
    return load_generator(WEIGHTS)


def window_errors(trained, colour, projection=Projection()):
    """Mean of the sample minus that of the condition, per window (four, in the last phase) and band."""
    sampler_at = bind_windows(trained.method, trained.params, PLAN, make_mesh(devices=jax.devices()[:1]), projection)
    condition = np.full((30, 30, 3), colour, np.uint8)
    made = Field(sampler_at(7413.0), PLAN, {'lr': Plane(condition)}, name_key(0, 1)).region(Box(0, 0, 120, 120))
    assert made.std() > 0
    return np.array([made[y : y + 64, x : x + 64].mean((0, 1)) - colour for y in (0, 56) for x in (0, 56)])


@pytest.mark.parametrize('colour', [WATER, DESERT, SNOW])
def test_the_weights_of_the_project_give_flat_ground_no_tint(trained, colour):
    errors = window_errors(trained, colour)
    assert np.abs(errors).max() < BOUND and errors.std(0).max() < BOUND / 3


def test_the_projection_takes_the_tint_from_a_network_that_has_one(trained, monkeypatch):
    """Each window is tinted by its own noise: the measure detects it, and the projection removes it."""
    denoiser = Diffusion.denoiser

    def tinting(*arguments):
        denoise = denoiser(*arguments)
        return lambda zt, t: denoise(zt, t) + 20 * zt.mean((1, 2), keepdims=True) + jnp.array([0.5, 0, -0.5])

    monkeypatch.setattr(Diffusion, 'denoiser', tinting)
    tinted, projected = (window_errors(trained, DESERT, projection) for projection in (None, Projection()))
    assert np.abs(tinted).max() > 10 * BOUND and tinted.std(0).max() > BOUND
    assert np.abs(projected).max() < BOUND and projected.std(0).max() < BOUND / 3
