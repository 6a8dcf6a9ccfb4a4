"""Eight fake devices, one compile cache for the whole run, and small things that several tests build."""

import os
from pathlib import Path

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parents[1] / '.cache' / 'xla'))

import jax
import numpy as np
import pytest

from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image

jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def pytest_addoption(parser):
    parser.addoption('--kills', type=int, default=5, help='How often what is killed is killed, in each test that kills.')


@pytest.fixture
def kills(request):
    """How often to kill."""
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


@pytest.fixture
def image_folder(tmp_path, smooth_image):
    """A folder of twelve labelled 32 px images with a manifest: classes a and b, splits train and test."""
    folder, entries = tmp_path / 'images', []
    for number in range(12):
        label, split = 'ab'[number % 2], 'test' if number >= 8 else 'train'
        name = f'{label}/{label}{number}.png'
        write_image(folder / name, smooth_image(32, 32, number))
        entries.append(Entry(folder / name, name, split, label, (f'a picture of {label}',), 10.0))
    write_manifest(folder, entries)
    return folder
