"""The downstream problem super-resolution: its training pairs, its cells, and its table."""

import dataclasses
import json

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.images import box_downscale
from rsdiff.downstream import augment, enlarging
from rsdiff.downstream.arms import Arm
from rsdiff.downstream.enlarging import Study, compare, summarise, table, write_report
from rsdiff.downstream.problems import super_resolution
from rsdiff.downstream.problems.super_resolution import KINDS, Enlarger, FullSize, SuperResolution
from rsdiff.downstream.task import load_task
from rsdiff.downstream.tuning import Recipe

SIZE_PX = 12  # the smallest image of `scene_folders` has 20 × 12
STUDY = Study(
    Enlarger(features=8, growth=4, blocks=1, crop_px=8),
    Recipe(steps=3, batch=4, learning_rates=(1e-3,)),
    'mild',
    KINDS,
    (1, 2),
    2,
    seeds=2,
)


@pytest.fixture
def task(scene_folders):
    return load_task(*scene_folders, FullSize(SIZE_PX))


@pytest.fixture(scope='module')
def problem():
    return SuperResolution(STUDY.enlarger, STUDY.recipe, STUDY.degradation)


def in_rows(images):
    return [image.tobytes() for image in images]


def test_arms_have_their_number_of_pairs_and_the_real_ones_first(task, problem):
    made = {arm.name: problem.pairs(task, arm, 2, 0) for arm in super_resolution.arms_of(KINDS, (1, 2))}
    counts = {name: (pairs.real, len(pairs.images)) for name, pairs in made.items()}
    assert counts == {
        'real': (6, 6),
        'synthetic': (0, 12),
        'real+synthetic 1:1': (6, 12),
        'real+synthetic 1:2': (6, 18),
        'degradations': (6, 18),
        'augmented': (6, 18),
        'cutblur': (6, 18),
    }
    for name, pairs in made.items():
        assert pairs.low.shape == (len(pairs.images), 3, 3, 3) and pairs.images.dtype == pairs.low.dtype == np.uint8
        if name != 'synthetic':
            np.testing.assert_array_equal(pairs.images[:6], made['real'].images)
            np.testing.assert_array_equal(pairs.low[:6], made['real'].low)
    np.testing.assert_array_equal(made['real+synthetic 1:2'].images[6:], made['synthetic'].images)


def test_every_low_resolution_depends_on_its_image_and_number_alone(task, problem):
    images, names = task.train.pixels, task.train.names
    low = problem.reduced(images, names)
    order = np.arange(len(images))[::-1][:5]
    np.testing.assert_array_equal(problem.reduced(images[order], tuple(names[i] for i in order)), low[order])
    assert np.mean(low != problem.reduced(images, names, 1)) > 0.3


def test_controls_change_what_they_say(task, problem):
    real = problem.pairs(task, Arm('real', 0), 2, 0)
    more = problem.pairs(task, Arm('degradations', 1), 2, 0)
    np.testing.assert_array_equal(more.images[6:], real.images)
    assert np.any(more.low[6:] != real.low)

    cut = problem.pairs(task, Arm('cutblur', 1), 2, 0)
    clean = np.stack([box_downscale(image, 4) for image in real.images])
    np.testing.assert_array_equal(cut.images[6:], real.images)
    is_clean, is_degraded = (np.all(cut.low[6:] == other, -1) for other in (clean, more.low[6:]))
    assert np.all(is_clean | is_degraded) and 0 < is_clean.mean() < 1

    viewed = problem.pairs(task, Arm('augmented', 1), 2, 0)
    assert not {*in_rows(viewed.images[6:])} & {*in_rows(real.images)}
    again = problem.pairs(task, Arm('augmented', 1), 2, 0)
    np.testing.assert_array_equal(viewed.low, again.low)


def test_an_image_is_turned_without_changing_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    eight = {np.rot90(side, k).tobytes() for side in (image, image[:, ::-1]) for k in range(4)}
    found = {augment.turned(image, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert found == eight


def test_a_network_learns_and_learns_the_same_again(task, problem):
    recipe = Recipe(steps=60, batch=8, learning_rates=(2e-3,))
    longer = SuperResolution(STUDY.enlarger, recipe, 'clean')
    pairs = longer.pairs(task, Arm('real', 0), None, 0)
    params, losses = longer.fit(pairs, 0)
    assert losses[-5:].mean() < 0.9 * losses[:5].mean()
    made = longer.enlarge(params, pairs.low)
    assert made.shape == pairs.images.shape and made.dtype == np.uint8
    again, _ = longer.fit(pairs, 0)
    np.testing.assert_array_equal(longer.enlarge(again, pairs.low[:3]), made[:3])


def test_images_are_cut_from_the_middle_and_small_ones_refused():
    image = np.arange(20 * 12 * 3, dtype=np.uint8).reshape(20, 12, 3)
    np.testing.assert_array_equal(FullSize(12).resize(image), image[4:16])
    with pytest.raises(BadInput, match='12×20 px, and the study cuts squares of 16'):
        FullSize(16).resize(image)
    with pytest.raises(BadInput, match='multiple of 4'):
        FullSize(10)


@pytest.fixture
def stand_ins(monkeypatch):
    """Measures and features that need no weights."""

    class Means:
        name, width, digest = 'means', 3, '0' * 64

        def __call__(self, images):
            return np.stack([image.mean((0, 1), dtype=np.float32) for image in images])

    error = lambda image, truth: np.abs(image.astype(float) - truth).mean((1, 2, 3))
    measure = lambda image, truth, low: {'psnr': -error(image, truth), 'lpips_alexnet': error(image, truth) / 255}
    monkeypatch.setattr(enlarging, 'paired_measures', lambda names: measure)
    monkeypatch.setattr(enlarging, 'efflite0', Means)


def test_a_study_is_continued_and_a_damaged_cell_is_run_again(task, stand_ins, tmp_path):
    out = tmp_path / 'out'
    study = dataclasses.replace(STUDY, kinds=('real', 'real+synthetic', 'cutblur'), seeds=1)
    cells = compare(task, study, out)
    assert [(cell['arm'], cell['seed']) for cell in cells] == [
        ('real', 0),
        ('real+synthetic 1:1', 0),
        ('real+synthetic 1:2', 0),
        ('cutblur', 0),
    ]
    assert all(len(cell['psnr']) == len(task.evaluation) for cell in cells)
    paths = sorted((out / 'cells').iterdir())
    before = {path: path.stat().st_mtime_ns for path in paths}
    row = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps(row | {'psnr': [99.0] * len(row['psnr'])}))
    again = compare(task, dataclasses.replace(study, seeds=2), out)
    assert again[:4] == [{**cell, 'seconds': new['seconds']} for cell, new in zip(cells, again)] and len(again) == 8
    assert [path for path in paths if path.stat().st_mtime_ns != before[path]] == paths[:1]

    summary = write_report(task, dataclasses.replace(study, seeds=2), again, out)
    assert {'table.md', 'table.csv', 'report.json', 'grid.png'} <= {path.name for path in out.iterdir()}
    assert 'cutblur' in table(summary) and summary['answer']['arm'].startswith('real+synthetic')
    smaller = load_task(task.train.folder, task.synthetic.folder, FullSize(8))
    with pytest.raises(BadInput, match='image_size_px 12 → 8'):
        compare(smaller, study, out)
    with pytest.raises(BadInput, match="degradation 'mild' → 'clean'"):
        compare(task, dataclasses.replace(study, degradation='clean'), out)


def cells_of(arm, lpips, fd, seeds=3, images=40):
    noise = np.random.default_rng(0).normal(0, 0.01, (seeds, images))
    same = {'arm': arm, 'ratio': 1, 'real_images': 5, 'extra_images': 5}
    return [
        {**same, 'seed': seed, 'fd_efflite0': fd + seed, 'psnr': [20.0] * images, 'lpips_alexnet': [*(lpips + row)]}
        for seed, row in enumerate(noise)
    ]


def test_the_answer_names_the_best_mixture_and_the_best_control():
    cells = [
        *cells_of('real', 0.5, 100.0),
        *cells_of('real+synthetic 1:1', 0.45, 90.0),
        *cells_of('synthetic', 0.4, 80.0),
        *cells_of('degradations', 0.48, 95.0),
        *cells_of('cutblur', 0.55, 105.0),
    ]
    summary = summarise(cells, 40)
    rows = {row['arm']: row for row in summary['rows']}
    assert rows['real+synthetic 1:1']['lpips_alexnet_change']['value'] == pytest.approx(-0.05)
    assert rows['real+synthetic 1:1']['fd_efflite0_change'] == {'value': -10.0, 'half': 0.0}
    assert rows['cutblur']['lpips_alexnet_change']['low'] > 0 and 'p_holm' not in rows['real']
    assert summary['answer']['verdict'] == 'evidence of a gain'
    assert 'without generated images, degradations' in summary['answer']['text']
    assert summarise(cells[:3], 40)['answer'] is None


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: Enlarger(crop_px=30), 'crop_px is 30; it must be a multiple of 4'),
        (lambda: Enlarger(blocks=0), 'blocks is 0'),
        (lambda: dataclasses.replace(STUDY, ratios=(0,)), 'nothing to compare'),
        (lambda: dataclasses.replace(STUDY, kinds=()), 'nothing to compare'),
        (lambda: dataclasses.replace(STUDY, ratios=(2, 2)), 'give each once'),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(BadInput, match=message):
        make()
