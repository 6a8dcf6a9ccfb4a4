"""Image features: independent of the other images in the batch, and never computed twice."""

import jax
import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.images import read_image, write_image
from rsdiff.evaluation import features
from rsdiff.evaluation.features import features_of
from rsdiff.pretrained import clip, efficientnet, inception, towers, weights


class Means:
    """An extractor without a network: means of the two halves of an image. Records the batch sizes."""

    name, width, digest = 'means', 6, 'f' * 64

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append(len(images))
        halves = [np.concatenate([half.mean((0, 1)) for half in np.array_split(image, 2)]) for image in images]
        return np.float32(halves)


@pytest.fixture
def mixed(tmp_path, smooth_image):
    """Eleven image files of several sizes."""
    paths = [tmp_path / 'images' / f'{n}.png' for n in range(11)]
    for n, path in enumerate(paths):
        write_image(path, smooth_image(24 + 8 * (n % 3), 32, n))
    return paths


def expected(paths):
    return Means()([read_image(path) for path in paths])


@pytest.mark.parametrize('batch_size', [1, 4, 11, 50])
def test_features_are_those_of_each_image_in_order(mixed, batch_size):
    means = Means()
    np.testing.assert_array_equal(features_of(means, mixed, batch_size=batch_size, show=False), expected(mixed))
    assert set(means.calls) == {min(batch_size, 11)}, 'more than one shape to compile'


def test_paths_arrays_and_loaders_are_alike(mixed):
    kinds = [str(mixed[0]), mixed[1], read_image(mixed[2]), lambda: read_image(mixed[3])]
    np.testing.assert_array_equal(features_of(Means(), kinds, show=False), expected(mixed[:4]))
    assert features_of(Means(), [], show=False).shape == (0, 6)


def test_an_image_that_occurs_twice_is_computed_once(mixed):
    means = Means()
    found = features_of(means, mixed[:2] * 3, batch_size=2, show=False)
    np.testing.assert_array_equal(found, np.tile(expected(mixed[:2]), (3, 1)))
    assert means.calls == [2]


def test_the_cache_goes_by_content_and_by_extractor(mixed, tmp_path):
    cache, means = tmp_path / 'cache', Means()
    features_of(means, mixed[:6], cache, show=False)
    mixed[0].rename(mixed[0].with_name('renamed.png'))
    again = [mixed[0].with_name('renamed.png'), *mixed[1:]]
    np.testing.assert_array_equal(features_of(means, again, cache, batch_size=5, show=False), expected(again))
    assert means.calls == [6, 5]
    mixed[1].write_bytes(mixed[2].read_bytes())
    np.testing.assert_array_equal(features_of(means, again, cache, show=False), expected(again))
    assert means.calls == [6, 5]
    other = Means()
    other.digest = 'e' * 64
    features_of(other, again, cache, batch_size=5, show=False)
    assert other.calls == [5, 5]  # two of the eleven are now identical


def test_an_interrupted_run_goes_on_where_it_was(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(features, 'SHARD', 4)

    class Interrupted(Means):
        def __call__(self, images):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        features_of(Interrupted(), mixed, tmp_path / 'cache', batch_size=2, show=False)
    assert len(list((tmp_path / 'cache').glob('means-*/*.safetensors'))) == 2  # a shard of four images and one of two
    means = Means()
    found = features_of(means, mixed, tmp_path / 'cache', batch_size=2, show=False)
    np.testing.assert_array_equal(found, expected(mixed))
    assert sum(means.calls) == 6  # five images, and one to fill the batch


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: weights.write_safetensors(path, {'features': np.zeros((2, 6), 'f')}),
        lambda path: weights.write_safetensors(
            path, {'keys': np.zeros((2, 32), 'B'), 'features': np.zeros((2, 5), 'f')}
        ),
        lambda path: weights.write_safetensors(
            path, {'keys': np.zeros((1, 32), 'B'), 'features': np.full((1, 6), np.inf)}
        ),
    ],
)
def test_a_spoilt_cache_is_named(mixed, tmp_path, spoil):
    features_of(Means(), mixed, tmp_path / 'cache', show=False)
    (path,) = (tmp_path / 'cache').glob('*/*.safetensors')
    spoil(path)
    with pytest.raises(BadInput, match=f'{path.name}: .*; remove it'):
        features_of(Means(), mixed, tmp_path / 'cache', show=False)


def test_an_unreadable_image_is_named_and_what_was_done_is_kept(mixed, tmp_path):
    mixed[5].write_bytes(mixed[5].read_bytes()[:60])
    with pytest.raises(BadInput, match='5.png: not a readable image'):
        features_of(Means(), mixed, tmp_path / 'cache', batch_size=2, show=False)
    assert list((tmp_path / 'cache').glob('*/*.safetensors'))
    for bad in tmp_path / 'missing.png', tmp_path:
        with pytest.raises(BadInput, match=f'{bad.name}: not a readable image') as raised:
            features_of(Means(), [bad], show=False)
        assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'image', [np.zeros((4, 4, 3)), np.zeros((4, 4), 'B'), np.zeros((4, 4, 4), 'B'), np.zeros((0, 4, 3), 'B')]
)
def test_an_array_that_is_no_image_is_bad_input(image):
    with pytest.raises(BadInput, match=r'image 1: .*; an image is uint8'):
        features_of(Means(), [np.zeros((4, 4, 3), 'B'), image], show=False)


def test_features_that_are_no_numbers_stop_the_run(mixed, tmp_path):
    means = Means()
    means.__class__ = type('Broken', (Means,), {'__call__': lambda self, images: np.full((len(images), 6), np.nan)})
    with pytest.raises(FloatingPointError, match='means made features that are not finite'):
        features_of(means, mixed, tmp_path / 'cache', show=False)
    assert not (tmp_path / 'cache').exists()


# The networks.


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP with an image tower of 32 px, and a preprocessor of its own."""
    config = clip.CLIPConfig(
        clip.VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        clip.TextConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
        projection_dim=12,
    )
    folder = tmp_path / 'a_clip'
    folder.mkdir()
    towers.save(folder, config, towers.init_params(config, jax.random.key(0)))
    (folder / 'preprocessor_config.json').write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}')
    return folder


def test_a_clip_tower_sees_what_transformers_would(clip_folder, smooth_image):
    pytest.importorskip('torch', reason="the reference is transformers' PyTorch model; pip install rsdiff-jax[parity]")
    from transformers import CLIPImageProcessorPil, CLIPModel

    tower = features.clip_tower(clip_folder)
    assert (tower.name, tower.width) == ('a_clip', 12)
    images = [smooth_image(48, 48, 0), smooth_image(32, 32, 1), smooth_image(20, 20, 2)]
    # square images, because the processor crops others
    process = CLIPImageProcessorPil(
        image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25], size={'shortest_edge': 32}, crop_size=32
    )
    pixels = process(images, return_tensors='pt')['pixel_values']
    found = CLIPModel.from_pretrained(clip_folder).eval().get_image_features(pixels)
    found = getattr(found, 'pooler_output', found).detach().numpy()
    np.testing.assert_allclose(
        features_of(tower, images, show=False), found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-5
    )


def test_a_digest_changes_with_weights_and_with_preprocessing(clip_folder):
    digests = [features.clip_tower(clip_folder).digest]
    (clip_folder / 'preprocessor_config.json').unlink()
    digests += [features.clip_tower(clip_folder).digest]
    tensors = weights.read_safetensors(clip_folder / 'model.safetensors')
    tensors['vision_model.post_layernorm.bias'] += 1
    weights.write_safetensors(clip_folder / 'model.safetensors', tensors, {'format': 'pt'})
    digests += [features.clip_tower(clip_folder).digest]
    assert len({*digests}) == 3


@pytest.fixture(scope='module')
def lite0():
    """efflite0 with random weights, so that tests do not need the published ones."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(0, (2 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5, leaf.shape)),
        efficientnet.parameter_shapes(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, 'load_params', lambda: params)
        return features.efflite0()


def test_lite0_squeezes_images_of_any_size_to_its_input(lite0, smooth_image):
    assert (lite0.name, lite0.width) == ('efflite0', 1280)
    wide, small = smooth_image(100, 300), smooth_image(16, 16)
    found, forward = features_of(lite0, [wide, small], show=False), jax.jit(efficientnet.forward)
    for row, image in zip(found, (wide, small)):
        planes = [Image.fromarray(image[..., c].astype('f')).resize((224, 224), Image.BICUBIC) for c in range(3)]
        alone = forward(lite0.params, (np.stack(planes, -1)[None] - 127) / 128)[0][0]
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())


def test_inception_takes_the_users_file(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match='nowhere.pth: no such file'):
        features.inception(tmp_path / 'nowhere.pth')
    monkeypatch.setattr(inception, 'load_params', lambda path: {'path': np.frombuffer(path.encode(), np.uint8)})
    first, second = features.inception('a'), features.inception('b')
    assert (first.name, first.width) == ('inception', 2048) and first.digest != second.digest
