"""The training set of each arm: counts, labels, sources of images, filters and tuning."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from rsdiff.base.errors import BadInput
from rsdiff.downstream import arms, augment, filters, zero_shot
from rsdiff.downstream.arms import Arm, examples
from rsdiff.downstream.encoder import tiny_encoder
from rsdiff.downstream.filters import Screen
from rsdiff.downstream.frozen import FrozenTower
from rsdiff.downstream.problems.base import Fitted
from rsdiff.downstream.problems.classification import Classification, cross_entropy
from rsdiff.downstream.problems.heads import HeadTuner, Towers
from rsdiff.downstream.task import load_task
from rsdiff.downstream.tuning import Recipe, batches, optimizer

SIZE_PX = 16
ALL = arms.arms_of(arms.KINDS, (1, 2))
RECIPE = Recipe(steps=40, batch=12, learning_rates=(3e-3,))


@pytest.fixture(scope='module')
def encoder():
    return tiny_encoder(SIZE_PX, patch_px=8, width=32, layers=1)


@pytest.fixture
def task(scene_folders, encoder):
    return load_task(*scene_folders, encoder)


def set_sources(folder, source_of):
    path = folder / 'metadata.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop('source', None)
        row.update(source_of(row))
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')


def in_rows(images):
    return [image.tobytes() for image in images]


# Arms.


def test_the_arms_are_every_control_and_every_ratio():
    names = [arm.name for arm in arms.arms_of(arms.KINDS, (1, 2, 4))]
    assert names == [
        'real',
        'synthetic',
        'real+synthetic 1:1',
        'real+synthetic 1:2',
        'real+synthetic 1:4',
        'real repeated',
        'augmented',
        'mixup',
        'cutout',
        'cutmix',
        'bicubic',
        'random labels',
    ]
    slugs = [arm.slug for arm in ALL]
    assert len(set(slugs)) == len(slugs) and not set(''.join(slugs)) & set(' :/')


@pytest.mark.parametrize('arm', ALL, ids=lambda arm: arm.slug)
def test_every_arm_has_its_counts_and_labels_that_sum_to_one(task, arm):
    found = examples(task, arm, 3, seed=1)
    real = 0 if arm.kind == arms.SYNTHETIC else 9
    assert (found.real, len(found) - found.real) == (real, 9 * arm.ratio)
    assert found.pixels.dtype == np.uint8 and found.pixels.shape == (len(found), SIZE_PX, SIZE_PX, 3)
    assert found.labels.shape == (len(found), 3) and found.labels.dtype == np.float32
    np.testing.assert_allclose(found.labels.sum(1), 1, atol=1e-6)
    # captions describe the image; only random labels contradict them
    assert len(found.captions) == len(found)
    for own, label in zip(found.captions, found.labels):
        assert {zero_shot.readable(task.classes[i]) for i in np.flatnonzero(label)} == {
            words.removeprefix('there is a ') for words in own if words.startswith('there')
        }
    # every arm of a seed has the same real images, and the same share of every class
    drawn = arms.draw(task, 3, seed=1)
    if real:
        assert in_rows(found.pixels[:9]) == in_rows(drawn.pixels)
        assert found.labels[:9].sum(0).tolist() == [3, 3, 3]
    again, other = examples(task, arm, 3, seed=1), examples(task, arm, 3, seed=2)
    np.testing.assert_array_equal(again.pixels, found.pixels)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert in_rows(other.pixels) != in_rows(found.pixels)


def test_synthetic_images_are_those_of_the_drawn_real_ones_the_first_variant_of_each_first(task):
    drawn = []
    for seed in range(6):
        real = arms.draw(task, 2, seed)
        one, two = (arms.made_from(task, real, ratio, 2, seed) for ratio in (1, 2))
        assert sorted(one.sources) == sorted(real.names) and all(name.endswith('_0.png') for name in one.names)
        assert set(one.names) < set(two.names) and len(two) == 12
        drawn.append(real.names)
    assert len(set(drawn)) > 1


def test_repeats_are_repeats_and_bicubic_is_the_coarse_image_enlarged(task):
    repeated = examples(task, Arm(arms.REPEATED, 2), 2, seed=0)
    assert sorted(in_rows(repeated.pixels[6:])) == sorted(2 * in_rows(repeated.pixels[:6]))
    coarse = examples(task, Arm(arms.BICUBIC, 1), None, seed=0)
    image = Image.open(task.train.folder / task.train.names[0])
    small = image.resize((4, 4), Image.Resampling.BOX)
    expected = np.asarray(small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), int)
    assert np.abs(coarse.pixels[18].astype(int) - expected).max() <= 2  # the two round halves differently
    np.testing.assert_array_equal(coarse.labels[18:], coarse.labels[:18])


def test_random_labels_know_nothing_of_the_truth_but_keep_its_counts(task):
    truth = examples(task, Arm(arms.BOTH, 2), None, seed=0)
    agreement = []
    for seed in range(40):
        found = examples(task, Arm(arms.RANDOM_LABELS, 2), None, seed)
        assert found.labels[18:].sum(0).tolist() == [12, 12, 12]
        np.testing.assert_array_equal(found.labels[:18], truth.labels[:18])
        agreement.append((found.labels[18:] * truth.labels[18:]).sum(1).mean())
    # 1440 draws of chance 1/3: three standard errors
    assert np.mean(agreement) == pytest.approx(1 / 3, abs=0.04)


def test_a_number_of_shots_needs_sources_and_null_is_one(scene_folders, encoder):
    set_sources(scene_folders[1], lambda row: {})
    task = load_task(*scene_folders, encoder)
    assert len(examples(task, Arm(arms.SYNTHETIC, 2), None, seed=0)) == 36
    with pytest.raises(BadInput, match='lake/0_0.png has no "source"'):
        examples(task, Arm(arms.SYNTHETIC, 1), 2, seed=0)
    set_sources(scene_folders[1], lambda row: {'source': None})
    task = load_task(*scene_folders, encoder)
    found = [arms.made_from(task, arms.draw(task, 2, seed), 2, 2, seed) for seed in (0, 0, 1)]
    assert np.bincount(found[0].labels).tolist() == [4, 4, 4]
    assert found[0].names == found[1].names != found[2].names


def test_fewer_images_than_the_ratio_asks_are_refused(task):
    assert arms.largest_ratio(task) == 2
    with pytest.raises(BadInput, match="1:3 needs 6 synthetic images of class 'lake' for seed 0, there are 4"):
        arms.check(task, Arm(arms.BOTH, 3), 2, seed=0)


# Views.


def test_mixes_have_the_shares_of_their_labels():
    generator = np.random.default_rng(0)
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    shares = {mix: [] for mix in (augment.mixup, augment.cutmix)}
    for mix, seen in shares.items():
        for _ in range(200):
            image, share = mix(white, black, generator)
            assert image.mean() / 255 == pytest.approx(share, abs=0.002)
            seen.append(share)
        assert min(seen) < 0.3 and max(seen) > 0.9
    values = {tuple(np.unique(augment.cutmix(white, black, generator)[0])) for _ in range(50)}
    assert values <= {(0,), (255,), (0, 255)}
    # λ of mixup is uniform; cutmix keeps more of the image because its windows are cut off at the border
    assert np.mean(shares[augment.mixup]) == pytest.approx(0.5, abs=0.07) and np.mean(shares[augment.cutmix]) > 0.55


def test_cutout_takes_at_most_a_quarter_and_leaves_the_rest():
    generator, image = np.random.default_rng(0), np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shares = []
    for _ in range(100):
        cut = augment.cutout(image, generator)
        changed = (cut != image).any(-1)
        assert len(np.unique(cut[changed], axis=0)) <= 1
        shares.append(changed.mean())
    assert max(shares) <= 0.25 + 1e-9 and max(shares) > 0.2 and min(shares) < 0.2


def test_views_differ_in_place_and_colour_and_keep_their_size(smooth_image):
    image, generator = smooth_image(24, 24), np.random.default_rng(0)
    views = [augment.view(image, generator) for _ in range(20)]
    assert {view.shape for view in views} == {(24, 24, 3)} and len({view.tobytes() for view in views}) == 20
    means = [view.mean() for view in views]
    assert max(means) / min(means) > 1.2
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert all(augment.view(flat, generator).std() < 1 for _ in range(5))


# Filters.


@pytest.fixture
def judge(encoder, tmp_path):
    """An encoder with (random) pretrained parameters, and its features."""
    known = dataclasses.replace(encoder, pretrained=encoder.initial_params(0), digest='judge')
    return known, FrozenTower(known, known.pretrained, tmp_path / 'features')


def test_the_clip_filter_keeps_exactly_what_its_prompts_believe(task, judge):
    encoder, features = judge
    texts = encoder.encode_texts(encoder.pretrained, *encoder.tokenize(list(map(zero_shot.readable, task.classes))))
    logits = encoder.logits(encoder.pretrained, encoder.encode_images(encoder.pretrained, task.synthetic.pixels), texts)
    p = np.asarray(jax.nn.softmax(logits))
    believed = p[np.arange(36), task.synthetic.labels] > 1 / 3
    assert 0 < believed.sum() < 36
    screen = Screen(encoder, task.classes, features, 'cf', False)
    assert screen.keep(task.synthetic, task.train).names == task.synthetic.take(np.flatnonzero(believed)).names
    # an untrained encoder may reject every image of a class
    if len(set(task.synthetic.labels[believed])) < 3:
        with pytest.raises(BadInput, match='passes the filter'):
            examples(task, Arm(arms.BOTH, 2), None, 0, screen)


def test_the_real_filter_throws_out_what_is_more_like_another_class(task, judge):
    screen = Screen(judge[0], task.classes, judge[1], 'rf', False)
    wrong = dataclasses.replace(task.synthetic, labels=task.synthetic.labels.copy())
    own = screen.keep(task.synthetic, task.train)
    assert len(own) > 30  # colour separates these classes
    wrong.labels[:] = (wrong.labels + 1) % 3
    assert len(screen.keep(wrong, task.train)) < 6


def test_soft_targets_are_half_the_label_and_half_the_teacher(task, judge):
    encoder, features = judge
    plain, screen = (Screen(encoder, task.classes, features, filters.NONE, soft) for soft in (False, True))
    one_hot = np.eye(3, dtype=np.float32)[task.synthetic.labels]
    np.testing.assert_array_equal(plain.soften(task.synthetic, one_hot), one_hot)
    soft = screen.soften(task.synthetic, one_hot)
    teacher = np.asarray(jax.nn.softmax(screen.teacher(task.synthetic.pixels) / 2))
    student = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)
    by_he = (optax.softmax_cross_entropy(student, teacher) + optax.softmax_cross_entropy(student, one_hot)).mean() / 2
    assert cross_entropy(student, soft) == pytest.approx(float(by_he), rel=1e-5)
    found = examples(task, Arm(arms.BOTH, 1), 2, 0, screen)
    assert (found.labels[:6].max(1) == 1).all() and (found.labels[6:].max(1) < 1).all()
    assert (examples(task, Arm(arms.RANDOM_LABELS, 1), 2, 0, screen).labels.max(1) == 1).all()


# Tuning.


@pytest.mark.parametrize('real, extra', [(9, 0), (0, 18), (9, 18), (9, 5)])
def test_every_arm_has_the_same_steps_and_shapes_and_shows_all_its_images(real, extra):
    index = batches(real, extra, RECIPE, seed=0)
    assert index.shape == (40, 12) and set(index.ravel().tolist()) == set(range(real + extra))
    share = 12 if not extra else 0 if not real else 6
    assert ((index < real).sum(1) == share).all()
    counts = np.bincount(index.ravel(), minlength=real + extra)
    assert np.ptp(counts[:real] if real else 0) <= 1 and np.ptp(counts[real:] if extra else 0) <= 1


def test_the_same_real_images_are_shown_whatever_is_extra():
    np.testing.assert_array_equal(batches(9, 18, RECIPE, 3)[:, :6], batches(9, 36, RECIPE, 3)[:, :6])


def test_the_best_on_validation_is_chosen_and_the_likelier_of_equals(task):
    labels = np.eye(3)[task.validation.labels]
    made = lambda name, logits: Fitted(name, 0.1, lambda pixels: logits, np.zeros(1), 1.0)
    wrong, right, sure = made(1, -labels), made(2, labels), made(3, 2 * labels)
    broken = made(4, np.full_like(labels, np.nan))

    def fitted(candidates, validation=task.validation):
        return Classification(task.classes, lambda examples, seed: candidates).fit(None, validation, 0)

    assert fitted([wrong, right, sure, broken]) == (sure, 1.0, 4.0)
    assert fitted([broken, wrong])[0] == wrong
    assert fitted([right], None) == (right, None, 1.0)


@pytest.mark.parametrize('from_text', [False, True])
def test_a_head_takes_the_steps_that_adamw_takes(task, judge, tmp_path, from_text):
    """All candidates in one batch, against one at a time, step by step."""
    encoder, tower = judge
    features = tower if from_text else tower.features
    recipe = Recipe(5, 6, (1e-2, 1e-1), (0.0, 1.0))
    found = examples(task, Arm(arms.MIXUP, 2), 2, seed=0)
    tuner = HeadTuner(encoder, task.classes, recipe, Towers(encoder, tmp_path), from_text)
    fitted = tuner.candidates(found, 0)
    x = np.asarray(features(found.pixels))
    head = zero_shot.text_classifier(encoder, task.classes)(encoder.pretrained)
    mean, deviation = (0, 1) if from_text else (x.mean(0), x.std(0).mean())
    if not from_text:
        head = {'weight': np.zeros((x.shape[1], 3), np.float32), 'bias': np.zeros(3, np.float32)}
    z = (x - mean) / deviation
    for candidate, one in zip(recipe.candidates, fitted, strict=True):
        own, rule = head, optimizer(recipe, *candidate)
        moments = rule.init(own)
        for chosen in batches(found.real, len(found) - found.real, recipe, 0):
            loss = lambda own: cross_entropy(z[chosen] @ own['weight'] + own['bias'], found.labels[chosen])
            updates, moments = rule.update(jax.grad(loss)(own), moments, own)
            own = optax.apply_updates(own, updates)
        expected = (features(task.validation.pixels) - mean) / deviation @ np.asarray(own['weight']) + np.asarray(
            own['bias']
        )
        np.testing.assert_allclose(one.model(task.validation.pixels), expected, rtol=1e-3, atol=1e-3)
        assert (one.learning_rate, one.weight_decay) == candidate and one.losses.shape == (5,)


def test_before_its_first_step_the_classifier_is_the_prompts(task, judge):
    encoder, features = judge
    head = zero_shot.text_classifier(encoder, task.classes)(encoder.pretrained)
    texts = encoder.encode_texts(encoder.pretrained, *encoder.tokenize(list(map(zero_shot.readable, task.classes))))
    scale = np.exp(encoder.pretrained['logit_scale'])
    np.testing.assert_allclose(head['weight'], scale * texts.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head['bias'], 0, atol=1e-5)


@pytest.mark.parametrize('wrong', [{'learning_rates': ()}, {'learning_rates': (0.0,)}, {'weight_decays': (-1.0,)}])
def test_a_grid_needs_numbers(wrong):
    with pytest.raises(BadInput, match='learning rates'):
        Recipe(**({'steps': 1, 'batch': 2, 'learning_rates': (1e-3,)} | wrong))
