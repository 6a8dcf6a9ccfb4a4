"""The downstream comparison: scores, refused input, and resuming after an interruption."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.data.fingerprints import FILE, TrainedOn, fingerprint, write_fingerprints
from rsdiff.data.images import write_image
from rsdiff.downstream import arms, compare, scores, zero_shot
from rsdiff.downstream.arms import BOTH, REAL, SYNTHETIC
from rsdiff.downstream.compare import Study
from rsdiff.downstream.encoder import byte_tokenizer, load_encoder, tiny_encoder
from rsdiff.downstream.methods import METHODS
from rsdiff.downstream.problems import recall
from rsdiff.downstream.problems.classification import Classification
from rsdiff.downstream.problems.finetune import WholeTuner, contrastive_loss, turned
from rsdiff.downstream.problems.retrieval import Retrieval
from rsdiff.downstream.task import load_task
from rsdiff.downstream.tuning import Recipe
from rsdiff.pretrained import towers

TOOL = Path(__file__).parents[1] / 'tools' / 'downstream.py'
COLOURS = {'lake': (30, 60, 160), 'sandDune': (210, 190, 120), 'wood_land': (30, 110, 40)}
SIZE_PX = 16
RECIPE = Recipe(steps=40, batch=12, learning_rates=(3e-3,))
KINDS = REAL, SYNTHETIC, BOTH


@pytest.fixture(scope='module')
def encoder():
    return tiny_encoder(SIZE_PX, patch_px=8, width=32, layers=1)


@pytest.fixture
def folders(scene_folders):
    return scene_folders


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'metadata.jsonl').read_text().splitlines()]


def write_rows(folder, rows):
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')


# Scores.


def test_scores_are_those_computed_by_hand():
    #                            predicted: 0 1 2      correct of true class 0: 3 of 4, 1: 1 of 2, 2: 0 of 1
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 0, 1, 1, 0, 1])
    confusion = scores.confusion_matrix(labels, predictions, 3)
    np.testing.assert_array_equal(confusion, [[3, 1, 0], [1, 1, 0], [0, 1, 0]])
    assert scores.accuracy(confusion) == 4 / 7
    # F1 of class 0: P = R = 3/4; of class 1: P = 1/3, R = 1/2 → 2/5; of class 2: 0.
    assert scores.macro_f1(confusion) == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)


def test_interval_is_students():
    # Student's t table: 2.776 for 97.5 % and four degrees of freedom.
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
    assert contrastive_loss(logits, jnp.eye(5)) == pytest.approx(float(sum(both)) / 2, rel=1e-6)


def test_loss_knows_neither_order_nor_absent_classes_negatives():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 4)), np.array([0, 2, 2, 0, 0, 2])
    order = generator.permutation(6)
    labels = np.eye(4)[labels]
    loss = contrastive_loss(jnp.asarray(logits), labels)
    assert contrastive_loss(jnp.asarray(logits[order]), labels[order]) == pytest.approx(float(loss), rel=1e-6)
    # Text → image: with equal logits, each class present has a loss of log(images), whatever its share of the images.
    assert contrastive_loss(jnp.zeros((6, 4)), labels) == pytest.approx((np.log(4) + np.log(6)) / 2, rel=1e-6)


def test_turning_reaches_the_eight_orientations_and_no_more():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    found = {np.asarray(i).tobytes() for i in turned(jax.random.key(0), jnp.asarray(np.repeat(image[None], 200, 0)))}
    quarter_turns = [np.rot90(image, k) for k in range(4)]
    assert found == {np.ascontiguousarray(i).tobytes() for q in quarter_turns for i in (q, q[:, ::-1])}


# The task.


def test_the_task_is_what_the_folders_say(folders, encoder):
    task = load_task(*folders, encoder)
    assert task.classes == tuple(sorted(COLOURS)) and task.dropped == ()
    assert (len(task.train), len(task.synthetic), len(task.evaluation)) == (18, 36, 15)
    assert len(load_task(*folders, encoder, evaluate_on='val').evaluation) == 6
    for images in (task.train, task.synthetic, task.evaluation):
        assert [task.classes[i] for i in images.labels] == [name.split('/')[0] for name in images.names]


def copy_picture(real, original, copy, **change):
    with Image.open(real / original) as image:
        (image.rotate(90, expand=True) if change.get('turned') else image).save(real / copy, **change.get('save', {}))


def test_a_copy_of_a_held_out_image_stops_the_run_or_is_left_out_with_all_that_was_made_from_it(folders, encoder):
    real, synthetic = folders
    copy_picture(real, 'lake/test0.png', 'lake/train3.png', save={'compress_level': 1})  # another file, the same pixels
    copy_picture(real, 'lake/val1.png', 'lake/train4.png', turned=True)
    with pytest.raises(
        BadInput, match='lake/train3.png is the same picture as held-out lake/test0.png .and 1 more'
    ) as raised:
        load_task(*folders, encoder)
    assert '\n' not in str(raised.value) and '--drop_duplicates' in str(raised.value)
    task = load_task(*folders, encoder, drop_duplicates=True)
    assert task.dropped == (
        'lake/train3.png',
        'lake/train4.png',
        'lake/3_0.png',
        'lake/3_1.png',
        'lake/4_0.png',
        'lake/4_1.png',
    )
    assert not set(task.dropped) & {*task.train.names, *task.synthetic.names}
    assert (len(task.train), len(task.synthetic), len(task.evaluation)) == (16, 32, 15)


def test_what_the_generator_was_trained_on_may_not_be_scored(folders, encoder):
    real, synthetic = folders
    seen = [np.asarray(Image.open(real / name)) for name in ('lake/train0.png', 'lake/test2.png')]
    write_fingerprints(
        synthetic / FILE, TrainedOn(('a', 'chip 7'), np.stack([fingerprint(np.rot90(image)) for image in seen]))
    )
    with pytest.raises(BadInput, match='generator was trained on held-out lake/test2.png of .*, as chip 7;'):
        load_task(*folders, encoder)
    task = load_task(*folders, encoder, drop_duplicates=True)
    assert task.dropped == ('lake/test2.png',) and len(task.evaluation) == 14 and len(task.train) == 18
    write_fingerprints(synthetic / FILE, TrainedOn(('a',), fingerprint(seen[0])[None]))
    assert load_task(*folders, encoder).dropped == ()


def test_settings_are_not_chosen_by_a_picture_that_is_scored(folders, encoder):
    copy_picture(folders[0], 'lake/test0.png', 'lake/val0.png')
    with pytest.raises(
        BadInput, match='validation image lake/val0.png is the same picture as evaluated lake/test0.png'
    ):
        load_task(*folders, encoder)
    task = load_task(*folders, encoder, drop_duplicates=True)
    assert len(task.validation) == 5 and len(task.evaluation) == 15
    # scoring on val makes no use of test
    assert len(load_task(*folders, encoder, evaluate_on='val').evaluation) == 6


def test_a_class_that_duplicates_leave_empty_is_named(folders, encoder):
    for i in range(6):
        copy_picture(folders[0], 'lake/test0.png', f'lake/train{i}.png')
    with pytest.raises(BadInput, match="train split, without duplicates: no image of class 'lake'"):
        load_task(*folders, encoder, drop_duplicates=True)


def test_a_class_of_a_single_image_is_named(folders, encoder, caplog):
    keep(
        folders[0], lambda row: row['label'] != 'lake' or row['split'] != 'test' or row['file_name'] == 'lake/test0.png'
    )
    task = load_task(*folders, encoder)
    assert len(task.evaluation) == 11
    assert [record.getMessage().split(': ', 1)[1] for record in caplog.records] == [
        "test split has one image of class 'lake'; figures of such a class rest on that image alone"
    ]


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
    'copied test image': (
        lambda r, s: write_image(s / 'lake/0_0.png', np.asarray(Image.open(r / 'lake/test2.png'))),
        'lake/0_0.png is the same picture as held-out lake/test2.png',
    ),
    'copied val image': (
        lambda r, s: write_image(s / 'lake/0_0.png', np.asarray(Image.open(r / 'lake/val0.png'))),
        'lake/0_0.png is the same picture as held-out lake/val0.png',
    ),
    'no label': (lambda r, s: change_first(r, label=None), 'lake/train0.png has no label'),
    'no split': (lambda r, s: change_first(r, split=None), 'lake/train0.png has no split'),
    'no synthetic label': (lambda r, s: change_first(s, label=None), 'lake/0_0.png has no label'),
    'synthetic test split': (lambda r, s: change_first(s, split='test'), "has split 'test'"),
    'no test split': (lambda r, s: keep(r, lambda row: row['split'] != 'test'), "no image has split 'test'"),
    'class without test': (
        lambda r, s: keep(r, lambda row: 'lake/test' not in row['file_name']),
        "no image of class 'lake'",
    ),
    'class without train': (
        lambda r, s: keep(r, lambda row: 'lake/train' not in row['file_name']),
        "class 'lake' is not in the real training images",
    ),
    'class without synthetic': (lambda r, s: keep(s, lambda row: row['label'] != 'lake'), "no image of class 'lake'"),
    'one class': (lambda r, s: keep(r, lambda row: row['label'] == 'lake'), "has one class, 'lake'"),
    'spoilt fingerprints': (lambda r, s: (s / FILE).write_bytes(b'no'), 'not a file of fingerprints'),
    'class of its own': (lambda r, s: change_first(s, label='moon'), "class 'moon' is not in the real"),
}


@pytest.mark.parametrize('name', SPOILT)
def test_what_would_be_no_fair_comparison_is_refused_in_one_line(folders, encoder, name):
    spoil, message = SPOILT[name]
    spoil(*folders)
    with pytest.raises(BadInput) as raised:
        load_task(*folders, encoder)
    assert message in str(raised.value) and '\n' not in str(raised.value)


REFUSED = {
    'more real images than there are': (
        {'real_per_class': 7},
        "7 real images of each class are asked for; class 'lake' has only 6 to train on",
    ),
    'more shots than there are': (
        {'shots': (2, 8)},
        "8 real images of each class are asked for; class 'lake' has only 6",
    ),
    'more synthetic images than there are': (
        {'ratios': (1, 3)},
        "1:3 needs 6 synthetic images of class 'lake' for seed 0, there are 4 made from its real images",
    ),
    'a filter that knows nothing': ({'filter': 'cf'}, 'is not pretrained'),
    'ratio 0': ({'ratios': (0, 1)}, 'must be at least 1'),
    'no arm': ({'kinds': ()}, 'nothing to compare'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_run_is_refused_before_anything_is_written(folders, encoder, tmp_path, name):
    wrong, message = REFUSED[name]
    with pytest.raises(BadInput) as raised:
        study = Study(**({'recipes': {'clip': RECIPE}, 'kinds': KINDS, 'ratios': (1,), 'real_per_class': 2} | wrong))
        compare.compare(load_task(*folders, encoder), encoder, study, tmp_path / 'out')
    assert message in str(raised.value) and '\n' not in str(raised.value)
    assert not (tmp_path / 'out').exists()


def test_what_chooses_needs_a_validation_split(folders, encoder, tmp_path):
    keep(folders[0], lambda row: row['split'] != 'val')
    task = load_task(*folders, encoder)
    several = dataclasses.replace(RECIPE, learning_rates=(1e-3, 1e-2))
    with pytest.raises(BadInput, match="no image has split 'val', on which linear chooses between 2 settings"):
        compare.compare(task, encoder, Study({'linear': several}, KINDS, (1,), 2), tmp_path / 'out')
    _, cells = compare.compare(task, encoder, Study({'linear': RECIPE}, KINDS, (1,), 2, seeds=1), tmp_path / 'out')
    assert {cell.get('validation_score') for cell in cells} == {None}


def test_captions_are_needed_where_they_are_trained_on_and_retrieval_is_measured(folders, encoder, tmp_path):
    captioned = Study(
        {'captions': dataclasses.replace(RECIPE, learning_rates=(3e-3, 1e-2))}, (REAL, BOTH), (1,), None, seeds=1
    )
    cells = compare.compare(load_task(*folders, encoder), encoder, captioned, tmp_path / 'out')[1][1:]
    for cell in cells:
        hits = {direction: np.array(found) for direction, found in cell['hits'].items()}
        assert {found.shape for found in hits.values()} == {(3, 15)} and hits.keys() == {*recall.DIRECTIONS}
        # ten of the fifteen captions are of other classes; the chance level at k = 10 is two in three
        assert all((np.diff(found, axis=0) >= 0).all() and found[2].mean() > 0.85 for found in hits.values())
    change_first(folders[1], captions=[' '])
    with pytest.raises(BadInput, match='lake/0_0.png: no captions in the manifest; retrieval needs'):
        compare.compare(load_task(*folders, encoder), encoder, captioned, tmp_path / 'none')
    keep(folders[0], lambda row: row['split'] != 'val')
    with pytest.raises(BadInput, match="no image has split 'val', on which captions chooses"):
        compare.compare(
            load_task(*folders, encoder),
            encoder,
            dataclasses.replace(captioned, recipes={'captions': RECIPE}),
            tmp_path / 'none',
        )


# The encoder.


def test_the_byte_tokenizer_has_514_tokens_and_loses_nothing():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 514
    ids = tokenizer('Étang no. 7')['input_ids']
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(' ', '') == 'étangno.7'
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


def test_class_names_become_words():
    assert list(map(zero_shot.readable, ['AnnualCrop', 'tennis_court', 'sea-ice', ' Lake '])) == [
        'annual crop',
        'tennis court',
        'sea ice',
        'lake',
    ]


def test_class_embeddings_are_the_mean_of_unit_vectors_over_templates(encoder):
    several = dataclasses.replace(encoder, templates=('{}', 'a {} from above', 'much {}'))
    params = encoder.initial_params(0)
    tokens = zero_shot.prompt_tokens(several, ['lake', 'woodLand'])
    found = jax.jit(lambda params: zero_shot.class_embeddings(several, params, *tokens))(params)
    texts = ['lake', 'a lake from above', 'much lake', 'wood land', 'a wood land from above', 'much wood land']
    each = jax.jit(towers.encode_texts, static_argnums=0)(encoder.config, params, *encoder.tokenize(texts))
    for embedding, mean in zip(found, (each[:3].mean(0), each[3:].mean(0)), strict=True):
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_study_asks_by_the_prompts_it_is_given(folders, encoder, tmp_path):
    task, params = load_task(*folders, encoder), encoder.initial_params(0)
    study = Study({'linear': RECIPE}, (REAL,), (1,), 2, seeds=1, prompts=zero_shot.ENHANCED)
    cells = compare.compare(task, encoder, study, tmp_path / 'out')[1]
    tokens = zero_shot.prompt_tokens(encoder, task.classes, zero_shot.ENHANCED)
    texts = jax.jit(lambda params: zero_shot.class_embeddings(encoder, params, *tokens))(params)
    images = encoder.encode_images(params, task.evaluation.pixels)
    assert (
        cells[0]['method'] == 'zero_shot' and cells[0]['predictions'] == np.asarray(images @ texts.T).argmax(1).tolist()
    )
    with pytest.raises(BadInput, match='prompts .enhanced. → .names.'):
        compare.compare(task, encoder, dataclasses.replace(study, prompts=zero_shot.NAMES), tmp_path / 'out')


def test_names_that_read_alike_are_told(encoder):
    assert zero_shot.read_alike(encoder, ['sea', 'SeaIce', 'sea_ice', 'lake']) == ['SeaIce', 'sea_ice']


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


@pytest.mark.parametrize('method', METHODS[1:])
def test_a_separable_task_is_learned_and_random_labels_are_not(folders, encoder, tmp_path, method):
    rate = 3e-3 if method in ('clip', 'cross_entropy', 'captions') else 3e-2
    study = Study({method: dataclasses.replace(RECIPE, learning_rates=(rate,))}, (REAL, SYNTHETIC), (2,), None, seeds=1)
    task = load_task(*folders, encoder)
    real, made = compare.compare(task, encoder, study, tmp_path / 'out')[1][1:]
    assert real['accuracy'] > 0.9 and made['accuracy'] > 0.9

    # Every colour has every label equally often: nothing can be learned, and chance is 1/3.
    task.synthetic.labels[:] = np.tile([0, 1, 2], 12)
    captions = tuple((f'there is a {zero_shot.readable(name)}',) for name in task.classes) * 12
    task = dataclasses.replace(task, synthetic=dataclasses.replace(task.synthetic, captions=captions))
    study = dataclasses.replace(study, kinds=(SYNTHETIC,), seeds=3)
    assert (
        np.mean([cell['accuracy'] for cell in compare.compare(task, encoder, study, tmp_path / 'random')[1][3:]]) < 0.7
    )


def test_predictions_do_not_depend_on_what_else_is_in_the_batch(folders, encoder):
    task = load_task(*folders, encoder)
    tuner = WholeTuner(encoder, task.classes, RECIPE, by_prompts=True)
    logits = tuner._classifier(encoder.initial_params(0))
    whole, alone = logits(task.evaluation.pixels), logits(task.evaluation.pixels[9:10])
    assert whole.shape == (15, 3)
    np.testing.assert_allclose(alone, whole[9:10], atol=1e-5)


SHORT = Recipe(steps=3, batch=6, learning_rates=(1e-3, 1e-2))
SMALL = Study(
    {'clip': dataclasses.replace(SHORT, learning_rates=(1e-3,)), 'classifier': SHORT}, KINDS, (1, 2), 2, seeds=2
)
TIMES = 'seconds', 'training_seconds'


def timeless(cell):
    return {key: value for key, value in cell.items() if key not in (*TIMES, 'content_sha256')}


def test_finished_cells_are_not_run_again_and_settings_may_not_change(folders, encoder, tmp_path, monkeypatch):
    task = load_task(*folders, encoder)
    runs, run = [], compare._Laboratory.run

    def counted(self, cell):
        runs.append(cell.name)
        if len(runs) == 4:
            raise KeyboardInterrupt
        run(self, cell)

    monkeypatch.setattr(compare._Laboratory, 'run', counted)
    once = dataclasses.replace(SMALL, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(task, encoder, once, tmp_path / 'out')
    settings, cells = compare.compare(task, encoder, SMALL, tmp_path / 'out')
    every = [cell.name for cell in SMALL.cells()]
    assert len(every) == len(set(every)) == 2 * (1 + 2 * 4)
    assert sorted(runs) == sorted([*every, runs[3]])  # only the interrupted one ran twice
    assert [(tmp_path / 'out' / 'cells' / f'{name}.json').exists() for name in every] == [True] * len(every)
    assert {sum(map(sum, cell['confusion'])) for cell in cells} == {15}
    for cell in cells:
        hits = np.equal(cell['predictions'], task.evaluation.labels)
        assert hits.mean() == cell['accuracy'] and cell['steps'] == (0 if cell['method'] == 'zero_shot' else 3)
    assert settings['steps_per_second'].keys() == {'clip', 'classifier'} and settings['counts']['validation'] == 6
    assert sum(settings['chosen']['classifier']['learning_rate'].values()) == 8

    assert compare.compare(task, encoder, SMALL, tmp_path / 'out')[1] == cells
    _, fresh = compare.compare(task, encoder, once, tmp_path / 'elsewhere')
    assert list(map(timeless, fresh)) == [timeless(cell) for cell in cells if cell['seed'] == 0]

    # more arms, methods, shots and seeds may go into the same folder; settings that change a cell may not
    more = dataclasses.replace(SMALL, kinds=(*KINDS, arms.CUTMIX), shots=(1, 3), seeds=3)
    assert len(compare.compare(task, encoder, more, tmp_path / 'out')[1]) == 3 * (1 + 2 * (4 + 1 + 2 * 2))
    with pytest.raises(BadInput, match='evaluate_on .test. → .val.'):
        compare.compare(task, encoder, dataclasses.replace(SMALL, evaluate_on='val'), tmp_path / 'out')
    with pytest.raises(BadInput, match='extra_per_real 2 → 1'):
        compare.compare(task, encoder, dataclasses.replace(SMALL, ratios=(1,)), tmp_path / 'out')
    longer = dataclasses.replace(SMALL, recipes={'classifier': dataclasses.replace(SHORT, steps=4)})
    with pytest.raises(BadInput, match='real_k2_seed0.json: belongs to a comparison with other settings'):
        compare.compare(task, encoder, longer, tmp_path / 'out')
    write_image(folders[1] / 'lake/0_0.png', np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8))
    with pytest.raises(BadInput, match=r'other settings .synthetic_images.'):
        compare.compare(load_task(*folders, encoder), encoder, SMALL, tmp_path / 'out')


def edited(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_digest(path):
    row = json.loads(path.read_text())
    del row['content_sha256']
    path.write_text(json.dumps(row))


def test_a_cell_that_is_not_as_it_was_written_is_made_again(folders, encoder, tmp_path, monkeypatch):
    task, study, runs = load_task(*folders, encoder), Study({'linear': SHORT}, (REAL,), (1,), 2, seeds=1), []
    _, cells = compare.compare(task, encoder, study, tmp_path / 'out')
    path, run = tmp_path / 'out/cells/linear/real_k2_seed0.json', compare._Laboratory.run
    monkeypatch.setattr(
        compare._Laboratory, 'run', lambda laboratory, cell: (runs.append(cell.name), run(laboratory, cell))
    )
    spoilers = [
        lambda: edited(path, accuracy=1.25),
        lambda: edited(path, final_loss=0),
        lambda: path.write_bytes(path.read_bytes()[:99]),
        lambda: path.write_text('[]'),
        lambda: path.write_bytes(b'\xff'),
        lambda: path.write_text(''),
        lambda: (edited(path, accuracy=1.25), without_digest(path)),
    ]
    for number, spoil in enumerate(spoilers, 1):
        spoil()
        again = compare.compare(task, encoder, study, tmp_path / 'out')[1]
        assert list(map(timeless, again)) == list(map(timeless, cells)) and len(runs) == number
    without_digest(path)  # as older cells were; the scores match the predictions
    compare.compare(task, encoder, study, tmp_path / 'out')
    assert len(runs) == len(spoilers)


@pytest.mark.parametrize('method', METHODS[1:])
def test_the_images_that_are_scored_are_not_read_before_a_model_is_chosen(
    folders, encoder, tmp_path, monkeypatch, method
):
    """Until the fit returns, they are replaced by an object that raises when read."""
    task, reads = load_task(*folders, encoder), []

    class Sealed:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getattr__(self, name):
            return getattr(self.images, name)

        @property
        def pixels(self):
            assert fits and not fits[-1], 'read while choosing'
            reads.append(1)
            return self.images.pixels

    fits = []
    problem = {'captions': Retrieval}.get(method, Classification)
    fit = problem.fit

    def watched(self, examples, validation, seed):
        assert validation is task.validation
        fits.append(True)
        result = fit(self, examples, validation, seed)
        fits[-1] = False
        return result

    monkeypatch.setattr(problem, 'fit', watched)
    monkeypatch.setattr(compare.Study, 'cells', lambda self: [compare.Cell(method, arms.Arm(REAL, 0), 2, 0)])
    sealed = dataclasses.replace(task, evaluation=Sealed(task.evaluation))
    compare.compare(sealed, encoder, Study({method: SHORT}, (REAL,), (1,), 2), tmp_path / 'out')
    assert reads == [1] and fits == [False]


def test_the_program_writes_the_table_the_charts_and_one_json_line(folders, tmp_path):
    command = [
        sys.executable,
        TOOL,
        f'--real={folders[0]}',
        f'--synthetic={folders[1]}',
        '--encoder=tiny',
        '--image_size_px=16',
        '--seeds=2',
        '--steps=3',
        '--batch=4',
        '--real_per_class=2',
        '--arms=real,synthetic,real+synthetic,mixup',
    ]
    done = subprocess.run([*command, f'--out={tmp_path}/out'], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    out = tmp_path / 'out'
    assert summary == json.loads((out / 'summary.json').read_text())
    rows = {row['arm']: row for row in summary['rows']}
    assert [(arm, row['real_images'], row['extra_images'], row['steps']) for arm, row in rows.items()] == [
        (compare.UNTRAINED, 0, 0, 0),
        ('real', 6, 0, 3),
        ('synthetic', 0, 12, 3),
        ('real+synthetic 1:1', 6, 6, 3),
        ('real+synthetic 1:2', 6, 12, 3),
        ('mixup', 6, 12, 3),
    ]
    with open(out / 'table.csv', newline='') as file:
        table = {row['arm']: float(row['accuracy']) for row in csv.DictReader(file)}
    assert table == {arm: row['accuracy'] for arm, row in rows.items()}
    assert (out / 'table.md').read_text() in done.stdout
    for name in ('accuracy.png', 'confusion.png'):
        with Image.open(out / name) as image:
            assert min(image.size) > 200 and len(image.convert('RGB').getcolors(1 << 24)) > 20

    # two processes make the same cells, and a wrong flag is named
    subprocess.run([*command, f'--out={tmp_path}/two', '--jobs=2'], capture_output=True, text=True, check=True)
    one, two = (
        {path.relative_to(folder): timeless(json.loads(path.read_text())) for path in folder.rglob('*_seed*.json')}
        for folder in (out, tmp_path / 'two')
    )
    assert one == two and len(one) == 12
    wrong = subprocess.run([*command, f'--out={tmp_path}/x', '--methods=svm'], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--methods: 'svm' is none of linear" in wrong.stderr
