"""Frozen embeddings equal the encoder's own; the cache is keyed by pixels, parameters and encoder."""

import dataclasses

import jax
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.downstream.encoder import tiny_encoder
from rsdiff.downstream.frozen import FrozenTower
from rsdiff.evaluation import features


@pytest.fixture(scope='module')
def encoder():
    return tiny_encoder(16, patch_px=8, width=32, layers=1)


@pytest.fixture
def pixels(smooth_image):
    return np.stack([smooth_image(16, 16, seed) for seed in range(5)])


def test_they_are_what_the_encoder_makes_of_each_image(encoder, pixels, tmp_path):
    params = encoder.initial_params(0)
    found = FrozenTower(encoder, params, tmp_path)(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, jax.jit(encoder.encode_images)(params, pixels), atol=1e-5)
    features = FrozenTower(encoder, params, tmp_path).features(pixels)
    np.testing.assert_allclose(features, jax.jit(encoder.image_features)(params, pixels), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert FrozenTower(encoder, params, tmp_path)(pixels[:0]).shape == (0, 32)


def test_they_are_computed_once_for_pixels_parameters_and_encoder(encoder, pixels, tmp_path, monkeypatch):
    computed = []
    run = features.Network.__call__
    monkeypatch.setattr(
        features.Network, '__call__', lambda self, images: computed.append(len(images)) or run(self, images)
    )
    params = encoder.initial_params(0)
    first = FrozenTower(encoder, params, tmp_path)(pixels)
    np.testing.assert_array_equal(FrozenTower(encoder, params, tmp_path)(pixels[::-1]), first[::-1])
    assert computed == [5]
    other = FrozenTower(encoder, encoder.initial_params(1), tmp_path)(pixels)
    assert np.abs(other - first).max() > 0.01 and computed == [5, 5]
    FrozenTower(dataclasses.replace(encoder, digest='another'), params, tmp_path)(pixels)
    assert computed == [5, 5, 5]


def test_without_a_folder_they_are_kept_in_the_users_cache(encoder, pixels, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    FrozenTower(encoder, encoder.initial_params(0))(pixels)
    (path,) = (tmp_path / 'rsdiff').rglob('*.safetensors')
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadInput, match='remove it'):
        FrozenTower(encoder, encoder.initial_params(0))(pixels)


def test_pixels_of_another_size_are_refused(encoder, smooth_image):
    with pytest.raises(ValueError, match=r'takes uint8 16²'):
        FrozenTower(encoder, encoder.initial_params(0))(smooth_image(24, 24)[None])
