"""The downstream comparison: what it measures, what it refuses, and that it goes on where it stopped."""

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rsdiff.data.images import write_image
from rsdiff.downstream import compare, report, scores, zero_shot
from rsdiff.downstream.encoder import byte_tokenizer, load_encoder, tiny_encoder
from rsdiff.downstream.finetune import Recipe, Trainer, batches, contrastive_loss, turned
from rsdiff.downstream.task import ARMS, BOTH, REAL, SYNTHETIC, load_task, training_images
from rsdiff.errors import BadInput
from rsdiff.models import towers

TOOL = Path(__file__).parents[1] / 'tools' / 'downstream.py'
COLOURS = {'lake': (30, 60, 160), 'sandDune': (210, 190, 120), 'wood_land': (30, 110, 40)}
SIZE_PX = 16
RECIPE = Recipe(steps=40, batch=12, learning_rate=3e-3, weight_decay=0.1, real_fraction=0.5)


@pytest.fixture(scope='module')
def encoder():
    return tiny_encoder(SIZE_PX, patch_px=8, width=32, layers=1)


@pytest.fixture
def folders(tmp_path):
    """Three classes of differently coloured noise: 6 train, 2 val and 5 test images each, 2 made from each train."""
    return make_folders(tmp_path, np.random.default_rng(0))


def make_folders(where, generator):
    def picture(label, size=(SIZE_PX, SIZE_PX)):
        return np.clip(np.asarray(COLOURS[label]) + generator.normal(0, 25, (*size, 3)), 0, 255).astype(np.uint8)

    real, synthetic = [], []
    for label in COLOURS:
        for split, count in (('train', 6), ('val', 2), ('test', 5)):
            for i in range(count):
                name = f'{label}/{split}{i}.png'
                write_image(where / 'real' / name, picture(label, (20, 12) if i == 1 else (SIZE_PX, SIZE_PX)))
                real.append({'file_name': name, 'label': label, 'split': split})
                for variant in range(2 * (split == 'train')):
                    made = f'{label}/{i}_{variant}.png'
                    write_image(where / 'synthetic' / made, picture(label))
                    synthetic.append({'file_name': made, 'label': label, 'source': name, 'variant': variant})
    write_rows(where / 'real', real)
    write_rows(where / 'synthetic', synthetic)
    return where / 'real', where / 'synthetic'


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'metadata.jsonl').read_text().splitlines()]


def write_rows(folder, rows):
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')


# Scores.


def test_scores_are_those_computed_by_hand():
    #                            predicted: 0 1 2      true 0: 3 right of 4, true 1: 1 of 2, true 2: 0 of 1
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 0, 1, 1, 0, 1])
    confusion = scores.confusion_matrix(labels, predictions, 3)
    np.testing.assert_array_equal(confusion, [[3, 1, 0], [1, 1, 0], [0, 1, 0]])
    assert scores.accuracy(confusion) == 4 / 7
    # F1 of class 0: P = R = 3/4; of class 1: P = 1/3, R = 1/2 → 2/5; of class 2: 0.
    assert scores.macro_f1(confusion) == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)


def test_interval_is_students():
    # Table of Student's t: 2.776 for 97.5 % and four degrees of freedom.
    values = [0.5, 0.6, 0.55, 0.65, 0.7]
    mean, half = scores.mean_interval(values)
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(2.776 * np.sqrt(0.025 / 4) / np.sqrt(5), rel=1e-3)
    assert scores.mean_interval([0.4]) == (0.4, None)


def test_interval_covers_the_mean_19_times_in_20():
    generator = np.random.default_rng(0)
    intervals = [scores.mean_interval(sample) for sample in generator.normal(1.0, 3.0, (2000, 4))]
    covered = np.mean([abs(mean - 1.0) <= half for mean, half in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 draws


# The loss and the batches.


def test_loss_is_clips_where_every_class_is_there_once():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    both = [-jnp.diag(jax.nn.log_softmax(logits, axis)).mean() for axis in (0, 1)]
    assert contrastive_loss(logits, jnp.arange(5)) == pytest.approx(float(sum(both)) / 2, rel=1e-6)


def test_loss_knows_neither_order_nor_absent_classes_negatives():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 4)), np.array([0, 2, 2, 0, 0, 2])
    order = generator.permutation(6)
    loss = contrastive_loss(jnp.asarray(logits), labels)
    assert contrastive_loss(jnp.asarray(logits[order]), labels[order]) == pytest.approx(float(loss), rel=1e-6)
    # Text → image: with all logits equal, each class present pays log(images), whatever its share of them.
    assert contrastive_loss(jnp.zeros((6, 4)), labels) == pytest.approx((np.log(4) + np.log(6)) / 2, rel=1e-6)


def test_turning_reaches_the_eight_orientations_and_no_more():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    found = {np.asarray(i).tobytes() for i in turned(jax.random.key(0), jnp.asarray(np.repeat(image[None], 200, 0)))}
    quarter_turns = [np.rot90(image, k) for k in range(4)]
    assert found == {np.ascontiguousarray(i).tobytes() for q in quarter_turns for i in (q, q[:, ::-1])}


@pytest.mark.parametrize('arm', ARMS)
def test_every_arm_has_the_same_steps_and_shapes_and_shows_all_its_images(folders, encoder, arm):
    real, synthetic = training_images(load_task(*folders, encoder), arm, None, seed=0)
    drawn = list(batches(real, synthetic, RECIPE, seed=0))
    assert len(drawn) == RECIPE.steps
    assert {(pixels.shape, labels.shape) for pixels, labels in drawn} == {((12, SIZE_PX, SIZE_PX, 3), (12,))}
    used = {image.tobytes() for images in (real, synthetic) for image in images.pixels}
    assert {image.tobytes() for pixels, _ in drawn for image in pixels} == used
    share = {REAL: 12, SYNTHETIC: 0, BOTH: 6}[arm]
    reals = {image.tobytes() for image in real.pixels}
    assert {sum(image.tobytes() in reals for image in pixels) for pixels, _ in drawn} == {share}


# The task.


def test_the_task_is_what_the_folders_say(folders, encoder):
    task = load_task(*folders, encoder)
    assert task.classes == tuple(sorted(COLOURS)) and task.dropped == ()
    assert (len(task.train), len(task.synthetic), len(task.evaluation)) == (18, 36, 15)
    assert len(load_task(*folders, encoder, evaluate_on='val').evaluation) == 6
    for images in (task.train, task.synthetic, task.evaluation):
        assert [task.classes[i] for i in images.labels] == [name.split('/')[0] for name in images.names]


def test_real_per_class_draws_by_seed_and_takes_what_was_made_from_the_draw(folders, encoder):
    task = load_task(*folders, encoder)
    drawn = []
    for seed in range(6):
        real, synthetic = training_images(task, BOTH, 2, seed)
        assert np.bincount(real.labels).tolist() == [2, 2, 2] and np.bincount(synthetic.labels).tolist() == [4, 4, 4]
        assert set(synthetic.sources) == set(real.names)
        assert training_images(task, REAL, 2, seed)[0].names == real.names
        assert training_images(task, SYNTHETIC, 2, seed)[1].names == synthetic.names
        drawn.append(real.names)
    assert len(set(drawn)) > 1


def test_a_training_copy_of_a_held_out_image_is_left_out_with_all_that_was_made_from_it(folders, encoder):
    real, _ = folders
    for held_out, copy in (('lake/test0.png', 'lake/train3.png'), ('lake/val1.png', 'lake/train4.png')):
        with Image.open(real / held_out) as image:
            image.save(real / copy, compress_level=1)  # another file with the same pixels
    task = load_task(*folders, encoder)
    assert set(task.dropped) == {'lake/train3.png', 'lake/train4.png', 'lake/3_0.png', 'lake/3_1.png', 'lake/4_0.png',
                                 'lake/4_1.png'}
    assert not set(task.dropped) & {*task.train.names, *task.synthetic.names}
    assert (len(task.train), len(task.synthetic)) == (16, 32)


def change_first(folder, **fields):
    rows = rows_of(folder)
    rows[0] = {key: value for key, value in (rows[0] | fields).items() if value is not None}
    write_rows(folder, rows)


def keep(folder, condition):
    write_rows(folder, [row for row in rows_of(folder) if condition(row)])


SPOILT = {
    'leak from test': (lambda r, s: change_first(s, source='lake/test0.png'), 'made from lake/test0.png, a test image'),
    'leak from val': (lambda r, s: change_first(s, source='lake/val0.png'), 'a val image'),
    'unknown source': (lambda r, s: change_first(s, source='lake/none.png'), 'which the real folder does not have'),
    'source that is no name': (lambda r, s: change_first(s, source=['a']), "has source ['a']"),
    'wrong class': (lambda r, s: change_first(s, source='wood_land/train0.png'), "labelled 'lake' but was made from"),
    'copied test image': (lambda r, s: write_image(s / 'lake/0_0.png', np.asarray(Image.open(r / 'lake/test2.png'))),
                          'lake/0_0.png is pixel for pixel the held-out image lake/test2.png'),
    'copied val image': (lambda r, s: write_image(s / 'lake/0_0.png', np.asarray(Image.open(r / 'lake/val0.png'))),
                         'lake/0_0.png is pixel for pixel the held-out image lake/val0.png'),
    'no label': (lambda r, s: change_first(r, label=None), 'lake/train0.png has no label'),
    'no split': (lambda r, s: change_first(r, split=None), 'lake/train0.png has no split'),
    'no synthetic label': (lambda r, s: change_first(s, label=None), 'lake/0_0.png has no label'),
    'synthetic test split': (lambda r, s: change_first(s, split='test'), "has split 'test'"),
    'no test split': (lambda r, s: keep(r, lambda row: row['split'] != 'test'), "no image has split 'test'"),
    'class without test': (lambda r, s: keep(r, lambda row: 'lake/test' not in row['file_name']),
                           "no image of class 'lake'"),
    'class without train': (lambda r, s: keep(r, lambda row: 'lake/train' not in row['file_name']),
                            "class 'lake' is not in the real training images"),
    'class without synthetic': (lambda r, s: keep(s, lambda row: row['label'] != 'lake'), "no image of class 'lake'"),
    'class of its own': (lambda r, s: change_first(s, label='moon'), "class 'moon' is not in the real"),
}


@pytest.mark.parametrize('name', SPOILT)
def test_what_would_be_no_fair_comparison_is_refused_in_one_line(folders, encoder, name):
    spoil, message = SPOILT[name]
    spoil(*folders)
    with pytest.raises(BadInput) as raised:
        load_task(*folders, encoder)
    assert message in str(raised.value) and '\n' not in str(raised.value)


def test_more_real_images_than_there_are_is_refused_before_anything_is_written(folders, encoder, tmp_path):
    with pytest.raises(BadInput, match="real_per_class is 7; class 'lake' has only 6"):
        compare.compare(load_task(*folders, encoder), encoder, RECIPE, 1, 7, tmp_path / 'out', 'test')
    assert not (tmp_path / 'out').exists()


def test_real_per_class_needs_sources(folders, encoder):
    change_first(folders[1], source=None)
    task = load_task(*folders, encoder)
    assert len(training_images(task, SYNTHETIC, None, seed=0)[1]) == 36
    with pytest.raises(BadInput, match='lake/0_0.png has no "source"'):
        training_images(task, SYNTHETIC, 2, seed=0)


# The encoder.


def test_the_byte_tokenizer_has_514_tokens_and_loses_nothing():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 514
    ids = tokenizer('Étang no. 7')['input_ids']
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(' ', '') == 'étangno.7'
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


def test_class_names_become_words():
    assert list(map(zero_shot.readable, ['AnnualCrop', 'tennis_court', 'sea-ice', ' Lake '])) == [
        'annual crop', 'tennis court', 'sea ice', 'lake']


def test_class_embeddings_are_the_mean_of_unit_vectors_over_templates(encoder):
    several = dataclasses.replace(encoder, templates=('{}', 'a {} from above', 'much {}'))
    params = encoder.initial_params(0)
    tokens = zero_shot.prompt_tokens(several, ['lake', 'woodLand'])
    found = jax.jit(lambda params: zero_shot.class_embeddings(several, params, *tokens))(params)
    texts = ['lake', 'a lake from above', 'much lake', 'wood land', 'a wood land from above', 'much wood land']
    each = jax.jit(towers.encode_texts, static_argnums=0)(encoder.config, params, *encoder.tokenize(texts))
    for embedding, mean in zip(found, (each[:3].mean(0), each[3:].mean(0)), strict=True):
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize('files', ['tokenizer.json', 'vocab.json and merges.txt'])
def test_a_folder_gives_back_the_same_encoder(tmp_path, encoder, files):
    params = encoder.initial_params(0)
    towers.save(tmp_path, encoder.config, params)
    if files == 'tokenizer.json':
        encoder.tokenizer.save_pretrained(tmp_path)
    else:
        (tmp_path / 'vocab.json').write_text(json.dumps(encoder.tokenizer.get_vocab()))
        (tmp_path / 'merges.txt').write_text('#version: 0.2\n')
    (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.25]}')
    loaded = load_encoder(tmp_path)
    np.testing.assert_array_equal(loaded.tokenize(['wood land', 'b'])[0], encoder.tokenize(['wood land', 'b'])[0])
    assert loaded.image_std == (0.5, 0.5, 0.25)
    jax.tree.map(np.testing.assert_array_equal, loaded.initial_params(3), params)
    (tmp_path / 'preprocessor_config.json').unlink()
    assert load_encoder(tmp_path).digest != loaded.digest


def test_a_folder_without_tokenizer_or_with_too_many_tokens_is_bad_input(tmp_path, encoder):
    towers.save(tmp_path, encoder.config, encoder.initial_params(0))
    with pytest.raises(BadInput, match='no tokenizer'):
        load_encoder(tmp_path)
    vocabulary = encoder.tokenizer.get_vocab() | {'ab': 514}
    (tmp_path / 'vocab.json').write_text(json.dumps(vocabulary))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\na b\n')
    with pytest.raises(BadInput, match='515 tokens'):
        load_encoder(tmp_path)


# The comparison.


def test_a_separable_task_is_learned_and_random_labels_are_not(folders, encoder):
    task = load_task(*folders, encoder)
    trainer, classifier = Trainer(encoder, task.classes, RECIPE), zero_shot.ZeroShot(encoder, task.classes)
    real, nothing = training_images(task, REAL, None, seed=0)
    params, losses = trainer.train(real, nothing, seed=0)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert (classifier.predict(params, task.evaluation.pixels) == task.evaluation.labels).mean() > 0.9

    # Each colour carries each label twice: there is nothing to learn, and chance is 1/3.
    real.labels[:] = np.tile([0, 1, 2], 6)
    hits = []
    for seed in range(3):
        params, _ = trainer.train(real, nothing, seed)
        hits.append(classifier.predict(params, task.evaluation.pixels) == task.evaluation.labels)
    assert np.mean(hits) < 0.7


def test_predictions_do_not_depend_on_what_else_is_in_the_batch(folders, encoder):
    task = load_task(*folders, encoder)
    params = encoder.initial_params(0)
    whole = zero_shot.ZeroShot(encoder, task.classes, batch=4).predict(params, task.evaluation.pixels)
    assert whole.shape == (15,)
    alone = zero_shot.ZeroShot(encoder, task.classes, batch=7).predict(params, task.evaluation.pixels[9:10])
    assert alone == whole[9:10]


def test_finished_cells_are_not_run_again_and_settings_may_not_change(folders, encoder, tmp_path, monkeypatch):
    task = load_task(*folders, encoder)
    short = Recipe(steps=3, batch=6, learning_rate=1e-3, weight_decay=0.1, real_fraction=0.5)
    runs = []
    run_cell = compare._run_cell

    def counted(*arguments):
        runs.append(arguments[4:6])
        if len(runs) == 3:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    monkeypatch.setattr(compare, '_run_cell', counted)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(task, encoder, short, 1, 2, tmp_path / 'out', 'test')
    _, cells = compare.compare(task, encoder, short, 2, 2, tmp_path / 'out', 'test')
    every = list(itertools.product((compare.UNTRAINED, *ARMS), range(2)))
    assert sorted((cell['arm'], cell['seed']) for cell in cells) == sorted(every)
    assert sorted(runs) == sorted([*every, runs[2]])  # the interrupted one ran twice, nothing else did
    assert {cell['arm']: cell['steps'] for cell in cells} == {compare.UNTRAINED: 0} | dict.fromkeys(ARMS, 3)
    assert {sum(map(sum, cell['confusion'])) for cell in cells} == {15}

    again = compare.compare(task, encoder, short, 2, 2, tmp_path / 'out', 'test')[1]
    assert again == cells
    _, fresh = compare.compare(task, encoder, short, 1, 2, tmp_path / 'elsewhere', 'test')
    strip = ('seconds',)
    assert [{k: v for k, v in c.items() if k not in strip} for c in fresh] == [
        {k: v for k, v in c.items() if k not in strip} for c in cells[:4]]

    with pytest.raises(BadInput, match='real_per_class 2 → 3'):
        compare.compare(task, encoder, short, 2, 3, tmp_path / 'out', 'test')
    write_image(folders[1] / 'lake/0_0.png', np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8))
    with pytest.raises(BadInput, match=r'other settings .synthetic_images.'):
        compare.compare(load_task(*folders, encoder), encoder, short, 2, 2, tmp_path / 'out', 'test')


def test_the_gain_is_paired_by_seed(folders, encoder):
    task = load_task(*folders, encoder)
    # The seeds differ widely, the arms always by 0.1 or 0.12: paired, the gain is certain; unpaired, it would not be.
    accuracy = {REAL: (0.2, 0.8, 0.5), BOTH: (0.3, 0.92, 0.6), SYNTHETIC: (0.5, 0.5, 0.5),
                compare.UNTRAINED: (0.3,) * 3}
    cells = [{'arm': arm, 'seed': seed, 'steps': 1, 'real_images': 1, 'synthetic_images': 1, 'accuracy': value,
              'macro_f1': value, 'confusion': np.eye(3, dtype=int).tolist()}
             for arm, values in accuracy.items() for seed, value in enumerate(values)]
    settings = {'evaluate_on': 'test', 'encoder': 'made up', 'real_per_class': None}
    rows = {row['arm']: row for row in report.summarise(task, settings, cells)['rows']}
    assert rows[BOTH]['gain'] == pytest.approx(0.32 / 3)
    assert rows[BOTH]['gain_ci95'] == pytest.approx(4.303 * np.std([0.1, 0.12, 0.1], ddof=1) / np.sqrt(3), rel=1e-3)
    assert rows[BOTH]['significant'] and not rows[SYNTHETIC]['significant']
    assert rows[REAL]['gain'] is None and rows[compare.UNTRAINED]['gain'] is None


def test_the_program_writes_the_table_the_charts_and_one_json_line(folders, tmp_path):
    command = [sys.executable, TOOL, f'--real={folders[0]}', f'--synthetic={folders[1]}', f'--out={tmp_path}/out',
               '--encoder=tiny', '--image_size_px=16', '--seeds=2', '--steps=3', '--batch=4', '--real_per_class=2']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    out = tmp_path / 'out'
    assert summary == json.loads((out / 'summary.json').read_text())
    rows = {row['arm']: row for row in summary['rows']}
    assert set(rows) == {compare.UNTRAINED, *ARMS} and summary['chance'] == 1 / 3
    assert [(rows[arm]['real_images'], rows[arm]['synthetic_images'], rows[arm]['steps']) for arm in ARMS] == [
        (6, 0, 3), (0, 12, 3), (6, 12, 3)]
    with open(out / 'table.csv', newline='') as file:
        table = {row['arm']: float(row['accuracy']) for row in csv.DictReader(file)}
    assert table == {arm: row['accuracy'] for arm, row in rows.items()}
    assert (out / 'table.md').read_text() in done.stdout
    full = json.loads((out / 'report.json').read_text())
    for arm in ARMS:
        assert table[arm] == pytest.approx(np.mean([cell['accuracy'] for cell in full['cells'] if cell['arm'] == arm]))
    for name in ('accuracy.png', 'confusion.png'):
        with Image.open(out / name) as image:
            assert min(image.size) > 200 and len(image.convert('RGB').getcolors(1 << 24)) > 20
