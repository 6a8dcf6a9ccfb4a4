"""Distances between sets against closed forms and reference code, and the coverage of their intervals."""

import functools
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import scipy.linalg
from absl import logging as absl_logging

from rsdiff.base.errors import BadInput
from rsdiff.evaluation import distribution
from rsdiff.evaluation.distribution import cmmd, frechet_distance, kernel_distance, neighbours


def normal(count, width, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return (rng.normal(size=(count, width)) @ mixing * scale + shift).astype('f')


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def as_shares(real, generated, **options):
    return {name: estimate.value for name, estimate in neighbours(real, generated, **options).items()}


METRICS = {
    'fd': frechet_distance,
    'kid': kernel_distance,
    'cmmd': lambda x, y, **options: cmmd(unit(x), unit(y), **options),
    **{
        name: lambda x, y, name=name, **options: neighbours(x, y, **options)[name]
        for name in ('precision', 'recall', 'density', 'coverage')
    },
}


@pytest.fixture
def torchmetrics(monkeypatch):
    """(name) → that module of torchmetrics.image. These import torch_fidelity, whose __init__ imports torchvision,
    which is not needed here."""
    pytest.importorskip('torchmetrics', reason='the reference; pip install rsdiff-jax[parity]')
    spec = importlib.util.find_spec('torch_fidelity')
    if spec and not importlib.util.find_spec('torchvision'):
        package = types.ModuleType('torch_fidelity')
        package.__path__, package.__spec__ = spec.submodule_search_locations, spec
        monkeypatch.setitem(sys.modules, 'torch_fidelity', package)
    return lambda name: importlib.import_module(f'torchmetrics.image.{name}')


# Fréchet distance.


def test_the_frechet_distance_is_that_of_the_square_root_of_scipy():
    x, y = normal(300, 12), normal(200, 12, 1, 1.3, 0.2)
    sigma, omega = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma @ omega).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sigma + omega - 2 * root)
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_a_line_is_exact():
    x, y = (np.random.default_rng(n).normal(size=(50, 1)) for n in (0, 1))
    y = 3 * y + 2
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-12)


def test_many_draws_of_two_gaussians_have_the_distance_of_the_gaussians():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, [1, 2, 3], (100_000, 3)), rng.normal([1, 0, 0], [2, 2, 1], (100_000, 3))
    assert frechet_distance(x, y, groups=0).value == pytest.approx(1 + 1 + 0 + 4, rel=0.02)


@pytest.mark.parametrize('count, width', [(300, 12), (10, 40), (2, 5)])
def test_a_set_has_no_distance_from_itself_whatever_its_rank(count, width):
    x = normal(count, width).astype('d')
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-6 * x.var(0).sum())
    shuffled = np.random.default_rng(0).permutation(x)
    assert frechet_distance(x, shuffled, groups=0).value == pytest.approx(0, abs=1e-6 * x.var(0).sum())


def test_singular_covariances_have_the_distance_of_the_space_they_span():
    x, y = normal(60, 4), normal(50, 4, 1, 2.0)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    embed = lambda z: np.pad(z, ((0, 0), (0, 16))) @ rotation
    assert frechet_distance(embed(x), embed(y)).value == pytest.approx(frechet_distance(x, y).value, rel=1e-6)
    flat = np.ones((30, 4))
    assert frechet_distance(flat, 2 * flat).value == pytest.approx(4)
    assert frechet_distance(flat, y).value == pytest.approx(frechet_distance(y, flat).value)


def test_fewer_images_than_features_are_warned_of(caplog):
    absl_logging.use_absl_handler()
    few, many = normal(9, 12), normal(30, 12)
    with caplog.at_level('WARNING', logger='absl'):
        assert frechet_distance(many, many).warning is None and not caplog.records
        assert '9 images for 12 features' in frechet_distance(few, many).warning
    assert '9 images for 12 features' in caplog.text


def test_the_frechet_distance_is_that_of_torchmetrics(torchmetrics):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    x, y = normal(300, 12), normal(200, 12, 1, 1.3, 0.2)
    moments = [
        torch.from_numpy(np.asarray(m)) for z in (x.astype('d'), y.astype('d')) for m in (z.mean(0), np.cov(z.T))
    ]
    assert frechet_distance(x, y).value == pytest.approx(float(torchmetrics('fid')._compute_fid(*moments)), rel=1e-6)


# Kernels.


def test_kid_is_the_mean_over_pairs_of_different_images():
    x, y = normal(23, 5).astype('d'), normal(31, 5, 1, 1.2).astype('d')
    k = lambda a, b: (a @ b / 5 + 1) ** 3
    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y).value == pytest.approx(xx + yy - 2 * xy)


def test_kid_is_that_of_torchmetrics(torchmetrics):
    torch = pytest.importorskip('torch', reason='the reference is torch; pip install rsdiff-jax[parity]')
    x, y = normal(40, 7).astype('d'), normal(40, 7, 1, 1.2).astype('d')
    expected = torchmetrics('kid').poly_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert kernel_distance(x, y).value == pytest.approx(float(expected))


def test_kid_has_no_bias():
    values = [kernel_distance(normal(20, 4, seed), normal(30, 4, 1000 + seed), groups=0).value for seed in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20 and min(values) < 0


def test_cmmd_is_a_thousand_times_the_biased_discrepancy():
    x, y = unit(normal(23, 5).astype('d')), unit(normal(31, 5, 1, 1.2, 0.3).astype('d'))
    mean = lambda a, b: np.mean([np.exp(-np.sum((p - q) ** 2) / 200) for p in a for q in b])
    assert cmmd(x, y).value == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))
    assert cmmd(x, x).value == pytest.approx(0, abs=1e-9)
    with pytest.raises(BadInput, match='CMMD takes the embeddings of a CLIP'):
        cmmd(x, 2 * y)


# Nearest neighbours.


@pytest.mark.parametrize('scale, shift', [(1.0, 0.0), (0.6, 0.2), (1.5, -0.3)])
def test_neighbours_are_those_of_prdc(scale, shift, monkeypatch):
    prdc = pytest.importorskip('prdc', reason='the reference; pip install rsdiff-jax[parity]')
    x, y = normal(120, 6), normal(90, 6, 1, scale, shift)
    near, far = (prdc.compute_prdc(x, y, nearest_k=k) for k in (3, 5))
    expected = {
        'precision': near['precision'],
        'recall': near['recall'],
        'density': far['density'],
        'coverage': far['coverage'],
    }
    assert as_shares(x, y) == pytest.approx(expected)


def test_neighbours_by_hand():
    # In one dimension, real samples at 0 … 6: the third neighbour is 2 (inside) or 3 (at the ends) away.
    x, y = np.arange(7.0)[:, None], np.array([[-2.9], [-3.1], [3.4], [9.2], [50], [51], [52]])
    assert as_shares(x, y)['precision'] == pytest.approx(2 / 7)


def test_a_set_holds_itself_and_none_of_a_set_far_away():
    x = normal(60, 8)
    assert as_shares(x, x) == {'precision': 1, 'recall': 1, 'density': pytest.approx(1.2), 'coverage': 1}
    assert as_shares(x, x + 100) == {'precision': 0, 'recall': 0, 'density': 0, 'coverage': 0}


def test_a_generator_that_repeats_itself_has_precision_and_no_recall():
    x = normal(100, 8)
    shares = as_shares(x, np.repeat(x[:1], 100, axis=0))
    assert shares['precision'] == 1 and shares['recall'] <= 0.01 and shares['coverage'] < 0.3


# All metrics.


@pytest.mark.parametrize('name', METRICS)
def test_neither_blocks_nor_order_nor_groups_change_a_number(name, monkeypatch):
    x, y = normal(70, 5), normal(50, 5, 1, 1.1, 0.2)
    whole = METRICS[name](x, y)
    monkeypatch.setattr(distribution, 'BLOCK', 3)
    shuffled = METRICS[name](x[::-1], y[::-1], groups=7, seed=3)
    assert shuffled.value == pytest.approx(whole.value) and METRICS[name](x, y, groups=0).low is None
    assert whole.low <= whole.value <= whole.high and (whole.n_real, whole.n_generated) == (70, 50)


@pytest.mark.parametrize('name', METRICS)
def test_what_is_left_out_is_left_out(name, monkeypatch):
    # The leave-one-out values in (4) equal those recomputed on the sets without one group.
    x, y, seen = normal(44, 5), normal(63, 5, 1, 1.1, 0.2), []
    estimate = distribution._estimate
    monkeypatch.setattr(
        distribution,
        '_estimate',
        lambda values, sets, *rest, **options: (seen.append((values, sets)), estimate(values, sets, *rest, **options))[
            1
        ],
    )
    found = METRICS[name](x, y, groups=4)
    monkeypatch.undo()
    values, sets = next(v for v in seen if v[0][0] == found.value)
    for group in range(4):
        rest = [np.delete(sample.x, np.r_[sample.groups[group]], axis=0) for sample in sets]
        assert len(rest[0]) == 33 and 47 <= len(rest[1]) <= 48
        assert METRICS[name](*rest, groups=0).value == pytest.approx(values[1 + group])


@functools.cache
def repeated():
    """Name → (80, 3): value, low and high of 80 estimates from the same two distributions."""
    found = {name: [] for name in METRICS}
    for seed in range(80):
        x, y = normal(60, 8, seed), normal(60, 8, 1000 + seed, 1.1, 0.3)
        estimates = {name: METRICS[name](x, y, groups=10) for name in ('fd', 'kid', 'cmmd')}
        for name, estimate in (estimates | neighbours(x, y, groups=10)).items():
            found[name].append((estimate.value, estimate.low, estimate.high))
    return {name: np.array(rows) for name, rows in found.items()}


@pytest.mark.parametrize('name', METRICS)
def test_intervals_cover_the_mean_of_estimates(name):
    value, low, high = repeated()[name].T
    covered = np.mean((low <= value.mean()) & (value.mean() <= high))
    assert covered >= 0.88  # 95 % up to skewness and chance (standard error 2.4 % with 80 estimates)
    assert np.mean(high - low) < 2 * 2 * 1.96 * value.std(), 'twice as wide as need be'


def test_intervals_of_kid_cover_the_truth():
    # In one dimension E (x y + 1)³ = Σ_j binomial(3, j) E x^j E y^j; a standard normal has the moments 1, 0, 1, 0.
    def truth(shift):
        moments = [1, shift, 1 + shift**2, 3 * shift + shift**3]
        pairs = lambda a, b: sum(c * p * q for c, p, q in zip((1, 3, 3, 1), a, b))
        origin = [1, 0, 1, 0]
        return pairs(origin, origin) + pairs(moments, moments) - 2 * pairs(origin, moments)

    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        estimate = kernel_distance(rng.normal(size=(80, 1)), rng.normal(0.7, 1, (80, 1)))
        hits += estimate.low <= truth(0.7) <= estimate.high
    assert 0.9 <= hits / 200 <= 0.99


def test_images_made_from_real_ones_have_a_narrower_interval():
    x = normal(100, 4)
    widths = [
        estimate.high - estimate.low
        for estimate in (
            frechet_distance(x, x + 0.3, groups=10),
            frechet_distance(x, normal(100, 4, 1) + 0.3, groups=10),
        )
    ]
    assert widths[0] < 0.1 * widths[1]


def test_where_all_images_agree_a_share_has_the_interval_of_as_many_draws():
    estimate = neighbours(normal(40, 4), normal(40, 4, 1) + 100)['precision']
    assert (estimate.low, estimate.value) == (0, 0) and estimate.high == pytest.approx(0.0876, abs=1e-3)  # Wilson


@pytest.mark.parametrize('name', METRICS)
@pytest.mark.parametrize(
    'x, y, message',
    [
        (np.zeros((1, 3)), np.zeros((9, 3)), r'real: features \(1, 3\); a distribution needs two'),
        (np.zeros((9, 3)), np.zeros((0, 3)), 'generated: features'),
        (np.zeros((9, 3)), np.zeros(9), 'generated: features'),
        (np.zeros((9, 3)), np.zeros((9, 4)), 'real features are 3 wide, generated ones 4'),
        (np.zeros((9, 3)), np.full((9, 3), np.inf), 'generated: not all features are finite'),
        (np.full((9, 3), np.nan), np.zeros((9, 3)), 'real: not all features are finite'),
    ],
)
def test_what_is_no_pair_of_sets_is_bad_input(name, x, y, message):
    metric = cmmd if name == 'cmmd' else METRICS[name]
    with pytest.raises(BadInput, match=message):
        metric(x, y)


def test_too_few_images_have_no_interval_or_no_neighbours():
    x, y = normal(8, 3), normal(50, 3)
    for name in METRICS:
        estimate = METRICS[name](x, y)
        assert estimate.low is None and estimate.high is None and np.isfinite(estimate.value)
    with pytest.raises(BadInput, match='5 real images are too few for 5 nearest neighbours'):
        neighbours(x[:5], y)
