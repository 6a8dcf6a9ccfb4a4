"""Eight fake devices, one compile cache for the whole run, and fixtures shared by several test files."""

import json
import os
import shutil
from pathlib import Path

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
# Tests spend more time compiling than running; child processes inherit the setting.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parents[1] / '.cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image
from rsdiff.pretrained import towers

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def pytest_addoption(parser):
    parser.addoption(
        '--kills', type=int, default=3, help='How often what is killed is killed, in each test that kills.'
    )


def pytest_configure(config):
    """With RSDIFF_SKIPPED_TO=FILE, writes the skipped tests to that file as arguments of a later run: `pytest @FILE`.
    .ci/run uses it to find the tests that need an extra, and runs no test twice."""
    if 'RSDIFF_SKIPPED_TO' in os.environ and not hasattr(config, 'workerinput'):
        config.pluginmanager.register(SkippedTo(Path(os.environ['RSDIFF_SKIPPED_TO'])))


class SkippedTo:
    def __init__(self, path):
        self.path, self.skipped = path.absolute(), set()

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.skipped.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.skipped.add(report.nodeid)

    def pytest_sessionfinish(self):
        # sorted by name: tests of one file stay together, and tests/integration comes first
        self.path.write_text(''.join(f'{name}\n' for name in sorted(self.skipped)))


@pytest.fixture
def kills(request):
    """Number of kills."""
    return request.config.getoption('--kills')


@pytest.fixture(scope='session')
def smooth_image():
    """(height, width, seed) → a uint8 image with structure at several scales."""

    def make(height, width, seed=0):
        rng = np.random.default_rng(seed)
        image = np.zeros((height, width, 3))
        for cell in (4, 16):
            noise = rng.normal(size=(-(-height // cell), -(-width // cell), 3))
            image += cell * np.kron(noise, np.ones((cell, cell, 1)))[:height, :width]
        return np.clip(128 + 4 * image, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope='session')
def lively():
    """(config of towers) → random, non-constant parameters, so that a forgotten bias, scale or position changes the
    output."""

    def make(config, seed=0):
        generator = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: jnp.asarray(0.3 * generator.standard_normal(leaf.shape), jnp.float32),
            towers.abstract_params(config),
        )

    return make


@pytest.fixture(scope='session')
def write_image_folder(smooth_image):
    """(parent) → a folder of twelve labelled 32 px images with a manifest: classes a and b, splits train and test."""

    def make(parent):
        folder, entries = parent / 'images', []
        for number in range(12):
            label, split = 'ab'[number % 2], 'test' if number >= 8 else 'train'
            name = f'{label}/{label}{number}.png'
            write_image(folder / name, smooth_image(32, 32, number))
            entries.append(Entry(folder / name, name, split, label, (f'a picture of {label}',), 10.0))
        write_manifest(folder, entries)
        return folder

    return make


@pytest.fixture
def image_folder(tmp_path, write_image_folder):
    return write_image_folder(tmp_path)


@pytest.fixture
def scene_folders(tmp_path):
    """Three classes of differently coloured noise: 6 train, 2 val and 5 test images each, 2 made per train image."""
    size_px, colours = 16, {'lake': (30, 60, 160), 'sandDune': (210, 190, 120), 'wood_land': (30, 110, 40)}
    generator, where = np.random.default_rng(0), tmp_path

    def picture(label, size=(size_px, size_px)):
        return np.clip(np.asarray(colours[label]) + generator.normal(0, 25, (*size, 3)), 0, 255).astype(np.uint8)

    real, synthetic = [], []
    for label in colours:
        for split, count in (('train', 6), ('val', 2), ('test', 5)):
            for i in range(count):
                name = f'{label}/{split}{i}.png'
                write_image(where / 'real' / name, picture(label, (20, 12) if i == 1 else (size_px, size_px)))
                words = {'sandDune': 'sand dune', 'wood_land': 'wood land'}.get(label, label)
                captions = [f'there is a {words}', f'{words} number {i}']
                real.append({'file_name': name, 'label': label, 'split': split, 'captions': captions})
                for variant in range(2 * (split == 'train')):
                    made = f'{label}/{i}_{variant}.png'
                    write_image(where / 'synthetic' / made, picture(label))
                    synthetic.append(
                        {'file_name': made, 'label': label, 'source': name, 'variant': variant, 'captions': captions}
                    )
    for folder, rows in ((where / 'real', real), (where / 'synthetic', synthetic)):
        (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return where / 'real', where / 'synthetic'


@pytest.fixture(scope='module')
def browser():
    """A headless Chromium."""
    api = pytest.importorskip('playwright.sync_api', reason='drives the browser; the `parity` extra brings it')
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine: apt-get install chromium')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--force-color-profile=srgb'])
        yield browser
        browser.close()
