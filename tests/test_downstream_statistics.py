"""Gains with intervals: against SciPy with a single source of variation, and by their coverage."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from rsdiff.downstream.statistics import PairedBootstrap, holm


def predicted(right, labels, classes=2):
    """Predicts the true class where `right`, the next one elsewhere."""
    return np.where(right, labels, (labels + 1) % classes)


def test_with_one_seed_it_is_the_paired_bootstrap_of_the_images():
    rng = np.random.default_rng(0)
    labels = np.zeros(150, int)
    before, after = rng.random((1, 150)) < 0.6, rng.random((1, 150)) < 0.7
    change = (
        PairedBootstrap(labels, 2, draws=20_000).change(predicted(before, labels), predicted(after, labels)).accuracy
    )
    difference = after[0].astype(float) - before[0]
    reference = stats.bootstrap((difference,), np.mean, n_resamples=20_000, method='percentile', rng=1)
    assert change.value == pytest.approx(difference.mean())
    assert (change.low, change.high) == pytest.approx(tuple(reference.confidence_interval), abs=1 / 150)
    below, above = (reference.bootstrap_distribution <= 0).mean(), (reference.bootstrap_distribution >= 0).mean()
    assert 0.01 < change.p < 0.9 and change.p == pytest.approx(2 * min(below, above), abs=0.02)


def test_where_images_do_not_matter_it_is_the_paired_t_test():
    gains = np.array([0.0, 1, 1, 0, 1, 1])  # each seed is wrong on all images or correct on all
    labels = np.repeat([0, 1], 20)
    change = (
        PairedBootstrap(labels, 2, draws=50_000)
        .change(predicted(np.zeros((6, 40), bool), labels), predicted(np.tile(gains[:, None] > 0, 40), labels))
        .accuracy
    )
    reference = stats.ttest_1samp(gains, 0)
    interval = reference.confidence_interval()
    assert change.value == pytest.approx(gains.mean())
    assert (change.low, change.high) == pytest.approx((interval.low, interval.high), abs=0.01)
    assert change.p == pytest.approx(reference.pvalue, rel=0.1)


def test_the_same_predictions_change_nothing_and_exchanged_arms_change_the_sign():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    one, other = rng.integers(0, 3, (2, 4, 90))
    bootstrap = PairedBootstrap(labels, 3, draws=4000)
    same = bootstrap.change(one, one)
    for change in (same.accuracy, same.macro_f1, *same.recall, *same.f1):
        assert (change.value, change.low, change.high, change.p) == (0, 0, 0, 1)
    forth, back = bootstrap.change(one, other), bootstrap.change(other, one)
    for a, b in zip((forth.accuracy, forth.macro_f1, *forth.f1), (back.accuracy, back.macro_f1, *back.f1)):
        assert a.value == pytest.approx(-b.value)
        assert (a.low, a.high) == pytest.approx((-b.high, -b.low), abs=0.02) and a.p == pytest.approx(b.p, abs=0.05)


def test_a_mean_over_images_changes_as_the_accuracy_does_that_it_is():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    before, after = generator.integers(0, 3, (2, 4, 60))
    bootstrap = PairedBootstrap(labels, 3, draws=500)
    hits = [
        np.stack([predictions == labels, predictions != labels], 2).astype(float) for predictions in (before, after)
    ]
    gained, lost = bootstrap.change_of_means(*hits)
    expected = bootstrap.change(before, after).accuracy
    assert dataclasses.astuple(gained) == pytest.approx(dataclasses.astuple(expected))
    assert lost.value == pytest.approx(-gained.value)


def test_scores_are_scikit_learns():
    metrics = pytest.importorskip('sklearn.metrics', reason='the `parity` extra brings scikit-learn')
    rng = np.random.default_rng(0)
    labels = np.r_[np.repeat([0, 1, 2, 3], [10, 20, 5, 15])]
    one, other = rng.integers(0, 4, (2, 3, 50))
    found = PairedBootstrap(labels, 4, draws=10).change(one, other)
    for score, changes in ((metrics.recall_score, found.recall), (metrics.f1_score, found.f1)):
        expected = np.mean(
            [score(labels, b, average=None) - score(labels, a, average=None) for a, b in zip(one, other)], 0
        )
        assert [change.value for change in changes] == pytest.approx(expected)
    assert found.macro_f1.value == pytest.approx(np.mean([change.value for change in found.f1]))
    assert found.accuracy.value == pytest.approx((other == labels).mean() - (one == labels).mean())


def test_the_interval_leaves_out_0_where_p_is_below_5_per_cent():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 25)
    bootstrap = PairedBootstrap(labels, 2, draws=1000)
    changes = [
        bootstrap.change(*(predicted(rng.random((3, 50)) < rate, labels) for rate in (0.5, 0.62))).accuracy
        for _ in range(40)
    ]
    sure = [change.low > 0 or change.high < 0 for change in changes]
    assert 0 < sum(sure) < 40
    assert all(outside == (change.p < 0.05) for outside, change in zip(sure, changes) if abs(change.p - 0.05) > 0.003)


def test_every_draw_has_as_many_images_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [3, 10, 30]))
    counts = PairedBootstrap(labels, 3, draws=1500).counts
    for label, number in enumerate((3, 10, 30)):
        assert (counts[labels == label].sum(0) == number).all()
    np.testing.assert_allclose(counts.mean(1), 1, atol=0.15)


def test_intervals_cover_a_gain_that_depends_on_the_seed_and_resampled_seeds_do_not():
    """Seeds change the accuracies of both arms; the true gain is 0. Three standard errors of 300 runs are 0.04."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    bootstrap = PairedBootstrap(labels, 2, draws=400)
    hits = {'ours': [], 'rows and columns resampled': [], 'images resampled': []}
    for _ in range(300):
        right = [rng.random((5, 80)) < rng.normal(0.5, 0.15, (5, 1)) for _ in range(2)]
        change = bootstrap.change(*(predicted(r, labels) for r in right)).accuracy
        difference = right[1].astype(float) - right[0]
        seeds, images = rng.integers(0, 5, (400, 5)), rng.integers(0, 80, (400, 80))
        by_image = np.stack([difference[:, chosen].mean(1) for chosen in images])
        both = np.take_along_axis(by_image, seeds, 1).mean(1)
        hits['ours'].append(change.low <= 0 <= change.high)
        for name, drawn in (('rows and columns resampled', both), ('images resampled', by_image.mean(1))):
            low, high = np.percentile(drawn, (2.5, 97.5))
            hits[name].append(low <= 0 <= high)
    covered = {name: np.mean(hit) for name, hit in hits.items()}
    assert 0.93 <= covered['ours'] <= 0.99
    assert covered['rows and columns resampled'] < 0.93 and covered['images resampled'] < 0.8


def test_holm_is_bonferroni_of_every_family_that_a_hypothesis_is_in():
    """The closed test of Marcus, Peritz & Gabriel 1976; Holm's procedure is its shortcut."""
    rng = np.random.default_rng(0)
    for p in (*rng.random((20, 5)) ** 2, np.array([0.01, 0.01, 0.04, 0.03, 0.2]), np.array([0.3])):
        families = [family for size in range(1, len(p) + 1) for family in itertools.combinations(range(len(p)), size)]
        expected = [
            max(min(1, len(family) * min(p[i] for i in family)) for family in families if k in family)
            for k in range(len(p))
        ]
        assert holm(p) == pytest.approx(expected)
