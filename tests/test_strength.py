"""The number of sampling steps for a given strength, and the step at which the projection ends."""

import pytest

from rsdiff.base.errors import BadInput
from rsdiff.diffusion.schedule import ScheduleConfig
from rsdiff.diffusion.solvers import timestep_grid
from rsdiff.methods.diffusion import Diffusion, DiffusionConfig
from rsdiff.methods.sampling import first_timestep
from rsdiff.sampling.binding import make_projection, steps_of

GENERATOR = Diffusion(DiffusionConfig(schedule=ScheduleConfig(timesteps=1000)))


@pytest.mark.parametrize(
    'strength, start, steps', [(1.0, 1000, 20), (0.5, 500, 20), (0.01, 10, 10), (0.0005, 1, 1), (1e-9, 1, 1)]
)
def test_every_strength_runs_a_step_and_none_more_than_there_are(strength, start, steps):
    assert first_timestep(GENERATOR, strength) == start and steps_of(GENERATOR, 20, strength) == steps
    assert len(timestep_grid(start, steps)) == steps + 1


@pytest.mark.parametrize('strength', [0.0, -1.0, 1.5, float('nan')])
def test_what_is_no_strength_is_refused(strength):
    with pytest.raises(BadInput, match='strength is'):
        steps_of(GENERATOR, 20, strength)


@pytest.mark.parametrize('start, steps, end', [(None, 20, 5), (500, 20, 5), (10, 10, 3), (10, 10, 40), (1, 1, None)])
def test_the_projection_ends_at_a_step_of_the_grid_that_is_run(start, steps, end):
    projection = make_projection(GENERATOR, steps, end_step=end, start=start)
    grid = timestep_grid(start or 1000, steps)
    assert (grid[:-1] > projection.end).sum() == min(end or steps, steps)
