"""Image encoders for a loss: resizing against torch, embeddings against the modules that they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.pretrained import efficientnet, towers
from rsdiff.pretrained.clip import CLIPConfig, TextConfig, VisionConfig
from rsdiff.pretrained.image_encoder import image_encoder, nearest


def images(size_px=16):
    return np.random.default_rng(0).uniform(-1, 1, (2, size_px, size_px, 3)).astype(np.float32)


@pytest.mark.parametrize('size_px', [8, 16, 24, 37, 224])
def test_resizing_is_the_nearest_of_torch(size_px):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    x = np.random.default_rng(0).normal(size=(2, 16, 20, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), (size_px, size_px))
    np.testing.assert_array_equal(nearest(x, size_px), theirs.permute(0, 2, 3, 1))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A CLIP with random parameters."""
    config = CLIPConfig(
        VisionConfig(8, 8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16),
        TextConfig(8, 8, 1, 2, vocab_size=514, pad_token_id=513, bos_token_id=512, eos_token_id=513),
        projection_dim=8,
    )
    path = tmp_path_factory.mktemp('clip')
    towers.save(path, config, towers.init_params(config, jax.random.key(0)))
    return path


def test_a_clip_embeds_as_its_tower_does_without_unit_length(folder):
    encoder = image_encoder(str(folder))
    params, x, embed = encoder.load(), images(), jax.jit(encoder.embed)
    found = embed(params, x)
    config, _ = towers.load(folder)
    inputs = towers.normalise_images(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), config.image_mean, config.image_std)
    unit = jax.jit(towers.encode_images, static_argnums=0)(config, params, inputs)
    lengths = np.linalg.norm(found, axis=-1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.01
    np.testing.assert_allclose(found / lengths, unit, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.abs(embed(params, x)).sum())(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_efflite0_embeds_its_pooled_features(monkeypatch):
    monkeypatch.setattr(efficientnet, 'forward', lambda params, inputs: (inputs.mean((1, 2)), None))
    x = images()
    found = image_encoder('efflite0').embed({}, x)
    np.testing.assert_allclose(found, nearest((x + 1) * 127.5 - 127, 224).mean((1, 2)) / 128, atol=1e-5)


@pytest.mark.parametrize('name', ['', 'efflite', '/nowhere'])
def test_what_is_no_encoder_is_named(name):
    with pytest.raises(BadInput, match=f'{name!r}: neither efflite0 nor the folder'):
        image_encoder(name)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(BadInput, match='config.json'):
        image_encoder(str(tmp_path))
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match='bert'):
        image_encoder(str(tmp_path))
