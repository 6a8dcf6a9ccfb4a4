"""tools/seam_report.py finds the seams that windows left in a mosaic, and none where there are none."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scripts import run_script

from rsdiff.data.images import bicubic, write_image
from rsdiff.diffusion.schedule import ScheduleConfig, make_schedule
from rsdiff.diffusion.solvers import solver_steps
from rsdiff.sampling.mosaic.cascade import MosaicSettings, sample_mosaic
from rsdiff.sampling.mosaic.field import WindowSampler
from rsdiff.sampling.mosaic.plan import make_plan

ROOT = Path(__file__).parents[2]
PLAN = make_plan('fast', 64, steps=2, phases=2, overlap_px=8)


def mosaic(out, condition, tint):
    """A mosaic whose windows add noise to the enlarged condition, plus `tint` times the mean noise of the window."""

    def image(condition, x):
        enlarged = jnp.repeat(jnp.repeat(condition['lr'], 4, 1), 4, 2)
        return 0.5 * enlarged + 0.1 * x + tint * x.mean((1, 2), keepdims=True)

    steps = solver_steps(PLAN.solver, make_schedule(ScheduleConfig()), PLAN.steps)
    sampler = WindowSampler(lambda condition, x, x0, steps, *_: (x, x0), image, steps, batch=16)
    settings = MosaicSettings(gsd_m=40.0, stages=1, plan=PLAN, supertile_px=128)
    sample_mosaic(lambda gsd_m: sampler, condition, out, settings, {}, show=False)


def run(*arguments):
    return run_script('tools/seam_report.py', *arguments, env={'XLA_FLAGS': ''})


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp('seams')
    condition = np.full((96, 96, 3), 120, np.uint8)
    mosaic(base / 'good', condition, 0)
    mosaic(base / 'bad', condition, 6)
    noise = np.random.default_rng(0).normal(0, 12, (384, 384, 3))
    write_image(base / 'real.png', np.clip(bicubic(condition, 384, 384) + noise, 0, 255).astype(np.uint8))
    return base


def test_the_bad_control_is_caught_on_the_grid_that_made_it_and_the_others_pass(folders):
    done = run(
        folders / 'good',
        '--control',
        f'tinted={folders / "bad"}',
        '--control',
        f'real={folders / "real.png"}',
        '--block_px',
        128,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((folders / 'good' / 'seams.json').read_text())
    seams = result['seams']
    assert list(seams) == ['good', 'tinted', 'real', 'good / real']
    assert list(seams['good']) == ['windows of phase 1', 'windows of phase 2', 'supertiles']
    last = {name: table['windows of phase 2'] for name, table in seams.items()}
    for name in ('good', 'real'):
        for grid in seams[name].values():
            assert grid['step all']['value'] == pytest.approx(1, abs=0.03)
            assert grid['band all']['low'] < 1.1
    over = seams['good / real']['windows of phase 1']['step all']
    assert over['low'] < 1.01 and over['high'] > 0.99
    assert over['value'] == pytest.approx(
        seams['good']['windows of phase 1']['step all']['value']
        / seams['real']['windows of phase 1']['step all']['value']
    )
    assert last['tinted']['band all']['low'] > 1.5
    assert last['tinted']['band all']['low'] > last['good']['band all']['high']
    assert 'overlap' in last['good'] and 'overlap' not in seams['good']['supertiles']
    assert '| tinted |' in (folders / 'good' / 'seams.md').read_text()


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'the first argument must be the folder of a mosaic'),
        (['.'], 'holds no mosaic'),
        (['GOOD', '--control', 'SMALL'], 'say NAME=IMAGE'),
        (['GOOD', '--control', 'real=SMALL'], '40×30 px'),
        (['GOOD', '--stage', '7'], '--stage is 7; '),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folders, tmp_path, arguments, message):
    write_image(tmp_path / 'small.png', np.zeros((30, 40, 3), np.uint8))
    names = {'GOOD': folders / 'good', 'SMALL': tmp_path / 'small.png'}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'supertile_px': 0}, 'settings.json'),
        ({'window_px': '64'}, "settings.json: 'window_px' is str"),
        (
            {'phases': [{'steps': 1, 'stride_px': 0, 'offset': [0, 0], 'crop_px': 0, 'ramp_px': 0}]},
            'can not be laid out',
        ),
    ],
)
def test_settings_that_no_mosaic_has_are_named(folders, changes, message):
    path = folders / 'good' / 'settings.json'
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    done = run(folders / 'good')
    path.write_text(before)
    assert done.returncode == 2 and message in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]
