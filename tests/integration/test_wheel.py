"""The wheel in a fresh environment, away from the checkout: the five commands, weights and configs by name."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from scripts import error_line, last_line

from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image, write_image

ROOT = Path(__file__).parents[2]
COMMANDS = 'train', 'sample', 'evaluate', 'downstream', 'prepare'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """(command, arguments, where) → the ended process, in a fresh environment with the wheel and our dependencies."""
    pytest.importorskip('setuptools', minversion='77', reason='builds the wheel: pip install "setuptools>=77"')
    pytest.importorskip('pip', reason='builds and installs the wheel')
    base = tmp_path_factory.mktemp('wheel')
    # built from a copy: setuptools leaves a folder behind that would end up in the next wheel
    source = base / 'source'
    for name in ('rsdiff', 'configs', 'weights'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source / name)
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    environment['XLA_FLAGS'] = ''

    def done(*command, where=base):
        command = [*map(str, command)]
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)

    def pip(*arguments):
        ended = done(sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]

    pip('wheel', '--no-index', '--no-build-isolation', '--no-deps', '--wheel-dir', base, source)
    shutil.rmtree(source)
    fresh = base / 'fresh'
    venv.create(fresh, symlinks=True)
    python = fresh / 'bin' / 'python'
    (wheel,) = base.glob('*.whl')
    pip('--python', python, 'install', '--no-index', '--no-deps', wheel)
    # .pth files in a folder added by a .pth file are ignored, so an editable rsdiff there is not found
    (site,) = fresh.glob('lib/python*/site-packages')
    paths = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    (site / 'dependencies.pth').write_text('\n'.join(paths))
    assert {path.name for path in site.iterdir()} >= {'rsdiff'} and not (site / 'configs').exists()
    return lambda command, *arguments, where: done(fresh / 'bin' / f'rsdiff-{command}', *arguments, where=where)


@pytest.fixture
def image(tmp_path):
    """A small image in a folder of its own."""
    write_image(tmp_path / 'lr.png', np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return tmp_path / 'lr.png'


def test_samples_with_released_weights_by_name(installed, image, tmp_path):
    flags = '--condition', image, '--gsd_m', 2, '--steps', 1, '--out', tmp_path / 'out'
    made = last_line(installed('sample', '--checkpoint', 'aerial', *flags, where=tmp_path))
    (entry,) = read_folder(tmp_path / 'out')
    assert read_image(entry.path).shape == (64, 64, 3) and made['checkpoint_images_seen'] > 0
    assert (tmp_path / 'out' / 'training_fingerprints.npz').exists()  # these came with the weights


def test_starts_its_workers_and_other_programs(installed, image, tmp_path):
    flags = '--checkpoint', 'earth', '--gsd_m', 118000, '--steps', 2, '--supertile', 64, '--tiles'
    mosaic = '--condition', image, *flags, '--workers', 2, '--out', tmp_path / 'mosaic'
    ended = installed('sample', *mosaic, where=tmp_path)
    assert last_line(ended)['pixels'] == 64 * 64
    assert 'exit code' not in ended.stderr  # no worker failed
    write_image(tmp_path / 'real' / 'real.png', read_image(tmp_path / 'mosaic' / 'stage_1.png'))
    pairs = '--checkpoint', 'earth', '--pairs', tmp_path / 'real', '--features', '', '--metrics', 'psnr', '--steps', 1
    judged = last_line(installed('evaluate', *pairs, '--gsd_m', 29000, '--out', tmp_path / 'judged', where=tmp_path))
    assert judged['images'] == 1 and len([*(tmp_path / 'judged' / 'samples' / 'earth').glob('*.png')]) == 1


def test_configs_by_name(installed, tmp_path):
    # aerial imports earth, which imports demo; the missing data is noticed after the config has been read
    assert 'data/aerial' in error_line(installed('train', '--config', 'aerial', '--workdir', 'run', where=tmp_path))


@pytest.mark.parametrize('command', COMMANDS)
def test_help_shows_the_commands_own_text_and_flags(installed, tmp_path, command):
    text = installed(command, '--help', where=tmp_path).stdout
    assert f'rsdiff-{command} --' in text and 'python ' not in text
    assert {'train': '--workdir', 'prepare': '--source', 'downstream': '--encoder'}.get(command, '--checkpoint') in text
