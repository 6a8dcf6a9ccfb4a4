"""Distances between two sets of images, real X and generated Y, as sets of features (`rsdiff.evaluation.features`).

Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) between the Gaussians with the sets' means and covariances:

    FD = |μ − ν|² + tr Σ + tr Ω − 2 tr (Σ Ω)^½                                                       (1)

With any factor of Σ = FᵀF, the last trace is that of (F Ω Fᵀ)^½, a symmetric matrix without negative eigenvalues, so
that singular covariances need no special treatment.

Maximum mean discrepancy (Gretton et al. 2012) with a kernel k:

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y)                                               (2)

KID (Bińkowski et al. 2018, arXiv 1801.01401) has k = (x·y / d + 1)³ and leaves out the pairs of an image with itself,
which makes it unbiased and sometimes negative. CMMD (Jayasumana et al. 2024, arXiv 2401.09603) has
k = exp(−|x − y|² / 2σ²), σ = 10, on CLIP's unit vectors, keeps these pairs, and is 1000 times (2).

Nearest neighbours. B_k(x) is the ball around x whose radius is the distance to its k-th nearest neighbour in its set.

    precision   share of Y in any B_3(x)             (Kynkäänniemi et al. 2019, arXiv 1904.06991)       (3)
    recall      share of X in any B_3(y)
    density     mean over Y of the number of B_5(x) that contain it, over 5   (Naeem et al. 2020, arXiv 2002.09797)
    coverage    share of X whose B_5(x) contains any of Y

Intervals. The bootstrap draws some images twice, which biases all of these numbers: it lowers the rank of covariances
and puts neighbours at distance zero. So images are left out instead: a jackknife over G random groups (Shao & Wu 1989).
With θ from all images and θ_g from all but those of group g of both sets,

    s² = (G − 1)/G · Σ_g (θ_g − mean θ_g)²,   θ ± t_{0.975, G−1} · s                                    (4)

For FD and CMMD, θ is the square root, which is a distance and less skewed. If θ is not nearly linear in the images, s²
is too large (Efron & Stein 1981), for the neighbour measures by about half. The interval of a share always contains
Wilson's interval for the same number of independent draws, because (4) has width 0 if all images agree.

The interval contains, about 95 times in 100, the mean of the estimate over sets of this size, if the images of a set
were drawn independently; less often if a few images in heavy tails dominate, as they may with KID. It does not include
bias: all but KID depend on the number of images, so compare only equal numbers. The estimates are computed from sums
over groups or pairs of groups, so that G + 1 estimates cost little more than one. Rows n of two sets of equal size are
in the same group, so that generated images may be paired with the real ones they were generated from.
"""

import dataclasses
from typing import Callable

import numpy as np
import scipy.linalg
import scipy.stats
from absl import logging

from rsdiff.base.errors import BadInput

GROUPS = 20
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
# Number of rows of a pairwise matrix in memory at once.
BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate and its interval (4).

    Attributes:
      value: the estimate from all images.
      low, high: None if a set has fewer images than groups, or no groups were requested.
      n_real, n_generated: numbers of images.
      warning: to be reported with the value, or None.
    """

    value: float
    low: float | None
    high: float | None
    n_real: int
    n_generated: int
    warning: str | None = None


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Features (n, d), sorted by group, and the slice of each group."""

    x: np.ndarray
    groups: tuple[slice, ...]

    def counts(self) -> np.ndarray:
        """Number of rows: of all, without group 0, without group 1, …"""
        return _without(np.array([group.stop - group.start for group in self.groups]))

    def blocks(self):
        """Yields (group, slice of rows) until all rows are covered."""
        for number, group in enumerate(self.groups):
            for start in range(group.start, group.stop, BLOCK):
                yield number, slice(start, min(start + BLOCK, group.stop))


def frechet_distance(real: np.ndarray, generated: np.ndarray, groups: int = GROUPS, seed: int = 0) -> Estimate:
    """(1). It decreases with the number of images; below the feature width, it depends mainly on that number.

    Args:
      real, generated: features (n, d) and (m, d).
      groups: G of (4); 0 or 1 for no interval.
      seed: for drawing the groups.
    Raises:
      BadInput: a set has fewer than two images, widths differ, or a feature is not finite. All metrics raise it.
    """
    sets = _samples(real, generated, groups, seed)
    centre = sets[0].x.mean(0)
    moments = [_moments(sample, centre) for sample in sets]
    values = np.array([_gaussian_distance(*x, *y) for x, y in zip(*moments)])
    width, least = sets[0].x.shape[1], min(len(sample.x) for sample in sets)
    warning = None
    if least < width:
        warning = f'{least} images for {width} features; the distance is larger than that of many images'
        logging.warning('Fréchet distance: %s', warning)
    return _estimate(values, sets, is_square=True, warning=warning)


def kernel_distance(real: np.ndarray, generated: np.ndarray, groups: int = GROUPS, seed: int = 0) -> Estimate:
    """KID, (2) without the pairs of an image with itself, over all pairs of images instead of random subsets; not
    scaled. Arguments and errors as for `frechet_distance`."""
    sets = _samples(real, generated, groups, seed)
    width = sets[0].x.shape[1]
    kernel = lambda x, y: (x @ y.T / width + 1) ** 3
    own = [
        np.array([np.sum((np.sum(sample.x[group] ** 2, 1) / width + 1) ** 3) for group in sample.groups])
        for sample in sets
    ]
    return _estimate(_discrepancy(sets, kernel, [_without(sums) for sums in own]), sets)


def cmmd(real: np.ndarray, generated: np.ndarray, groups: int = GROUPS, seed: int = 0) -> Estimate:
    """CMMD, 1000 times (2). Arguments as for `frechet_distance`.

    Raises:
      BadInput: as `frechet_distance`, or the features are not of unit length, as CLIP's embeddings are.
    """
    sets = _samples(real, generated, groups, seed)
    if any(abs(np.linalg.norm(sample.x, axis=1) - 1).max() > 1e-3 for sample in sets):
        raise BadInput('CMMD takes the embeddings of a CLIP model, of unit length; these features are not')
    kernel = lambda x, y: np.exp(-_square_distances(x, y) / (2 * CMMD_SIGMA**2))
    return _estimate(CMMD_SCALE * _discrepancy(sets, kernel), sets, is_square=True)


def neighbours(real: np.ndarray, generated: np.ndarray, groups: int = GROUPS, seed: int = 0) -> dict[str, Estimate]:
    """Precision, recall, density and coverage, (3). Arguments as for `frechet_distance`.

    Raises:
      BadInput: as `frechet_distance`, or a set has too few images for five neighbours when a group is left out.
    """
    sets = _samples(real, generated, groups, seed)
    for name, sample in zip(('real', 'generated'), sets):
        if sample.counts().min() <= DENSITY_NEIGHBOURS:
            raise BadInput(f'{len(sample.x)} {name} images are too few for {DENSITY_NEIGHBOURS} nearest neighbours')
    x, y = sets
    (x_near, x_far), (y_near, _) = _radii(x), _radii(y)
    # for all images, and without each group
    cases = 1 + len(x.groups) if len(x.groups) > 1 else 1
    precise, recalled = np.zeros((cases, len(y.x)), bool), np.zeros((cases, len(x.x)), bool)
    covered, held = np.zeros((cases, len(x.x)), bool), np.zeros(cases)
    for x_group, rows in x.blocks():
        for y_group, columns in enumerate(y.groups):
            squares = _square_distances(x.x[rows], y.x[columns])
            for case in {*range(cases)} - {x_group + 1, y_group + 1}:
                precise[case, columns] |= (squares <= x_near[case, rows, None]).any(0)
                recalled[case, rows] |= (squares <= y_near[case, columns]).any(1)
                inside = squares <= x_far[case, rows, None]
                covered[case, rows] |= inside.any(1)
                held[case] += inside.sum()
    share = {'precision': (precise, y), 'recall': (recalled, x), 'coverage': (covered, x)}
    found = {
        name: _estimate(hits.sum(1) / sample.counts(), sets, bounds=(0, 1), draws=len(sample.x))
        for name, (hits, sample) in share.items()
    }
    return found | {'density': _estimate(held / DENSITY_NEIGHBOURS / y.counts(), sets, bounds=(0, np.inf))}


def _samples(real: np.ndarray, generated: np.ndarray, groups: int, seed: int) -> tuple[_Sample, _Sample]:
    """Both sets, checked and divided into random groups; one group if there are too few images for `groups`."""
    sets = {'real': np.asarray(real, np.float64), 'generated': np.asarray(generated, np.float64)}
    for name, x in sets.items():
        if x.ndim != 2 or len(x) < 2:
            raise BadInput(f'{name}: features {x.shape}; a distribution needs two or more images')
        if not np.isfinite(x).all():
            raise BadInput(f'{name}: not all features are finite')
    x, y = sets.values()
    if x.shape[1] != y.shape[1]:
        raise BadInput(f'real features are {x.shape[1]} wide, generated ones {y.shape[1]}; use one extractor for both')
    groups = max(1, groups) if min(len(x), len(y)) >= max(groups, 3) else 1
    return _grouped(x, groups, seed), _grouped(y, groups, seed)


def _grouped(x: np.ndarray, groups: int, seed: int) -> _Sample:
    stops = np.cumsum([len(part) for part in np.array_split(np.arange(len(x)), groups)]).tolist()
    return _Sample(x[np.random.default_rng(seed).permutation(len(x))], tuple(map(slice, [0, *stops], stops)))


def _without(sums: np.ndarray) -> np.ndarray:
    """Sums over groups (G, …) → (1 + G, …): of all, without group 0, without group 1, …; (1, …) for a single group."""
    total = sums.sum(0)
    return np.stack([total, *(total - sums if len(sums) > 1 else [])])


def _without_pairs(sums: np.ndarray) -> np.ndarray:
    """`_without` for sums over pairs of groups, (G, G) → (1 + G,): without all pairs that contain the group."""
    total = sums.sum()
    return np.array([total, *(total - sums.sum(0) - sums.sum(1) + np.diag(sums) if len(sums) > 1 else [])])


def _estimate(
    values: np.ndarray,
    sets: tuple[_Sample, _Sample],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    is_square: bool = False,
    draws: int | None = None,
    warning: str | None = None,
) -> Estimate:
    """The estimate with its interval (4), from `values`: of all images, and without each group.

    Args:
      bounds: the range of the value.
      is_square: whether it is the square of a distance.
      draws: the number of images, if the value is a share of them.
    """
    thetas = np.sqrt(values.clip(0)) if is_square else values.clip(*bounds)
    low = high = None
    if count := len(thetas) - 1:
        reach = scipy.stats.t.ppf(0.975, count - 1) * np.sqrt((count - 1) * thetas[1:].var())
        interval = np.array([thetas[0] - reach, thetas[0] + reach])
        interval = interval.clip(0) ** 2 if is_square else interval.clip(*bounds)
        if draws:
            wilson = scipy.stats.binomtest(round(thetas[0] * draws), draws).proportion_ci(method='wilson')
            interval = min(interval[0], wilson.low), max(interval[1], wilson.high)
        low, high = map(float, interval)
    value = max(values[0], 0.0) if is_square else thetas[0]
    return Estimate(float(value), low, high, len(sets[0].x), len(sets[1].x), warning)


def _moments(sample: _Sample, centre: np.ndarray):
    """Yields (mean, covariance) of all rows, and without each group. Subtracting `centre` avoids cancellation."""
    parts = [sample.x[group] - centre for group in sample.groups]
    means = _without(np.array([part.sum(0) for part in parts])) / sample.counts()[:, None]
    total = sum(part.T @ part for part in parts)
    for count, mean, part in zip(sample.counts(), means, [None, *parts]):
        squares = total if part is None else total - part.T @ part
        yield mean, (squares - count * np.outer(mean, mean)) / (count - 1)


def _gaussian_distance(mu: np.ndarray, sigma: np.ndarray, nu: np.ndarray, omega: np.ndarray) -> float:
    """(1), with the pivoted Cholesky factor, which exists for covariances of any rank."""
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma)  # pyright: ignore[reportAttributeAccessIssue]
    factor = np.zeros((rank, len(sigma)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    squares = np.linalg.eigvalsh(factor @ omega @ factor.T)
    return np.sum((mu - nu) ** 2) + np.trace(sigma) + np.trace(omega) - 2 * np.sqrt(squares.clip(0)).sum()


def _discrepancy(
    sets: tuple[_Sample, _Sample],
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    own: list[np.ndarray] | None = None,
) -> np.ndarray:
    """(2) from all images, and without each group. If `own`, the sums of k(x, x) and k(y, y), is given, the pairs of an
    image with itself are left out."""
    x, y = sets
    sums = []
    for first, second in (x, x), (y, y), (x, y):
        pairs = np.zeros((len(x.groups),) * 2)
        for number, rows in first.blocks():
            for other, columns in enumerate(second.groups):
                pairs[number, other] += kernel(first.x[rows], second.x[columns]).sum()
        sums.append(_without_pairs(pairs))
    n, m = x.counts(), y.counts()
    if own is None:
        return sums[0] / n**2 + sums[1] / m**2 - 2 * sums[2] / (n * m)
    return (sums[0] - own[0]) / (n * (n - 1)) + (sums[1] - own[1]) / (m * (m - 1)) - 2 * sums[2] / (n * m)


def _radii(sample: _Sample) -> np.ndarray:
    """Squared radii of B_3 and B_5, (2, 1 + G, n): among all images, and without each group."""
    count = len(sample.groups)
    nearest = np.full((len(sample.x), count, DENSITY_NEIGHBOURS), np.inf)
    for number, rows in sample.blocks():
        for other, columns in enumerate(sample.groups):
            squares = _square_distances(sample.x[rows], sample.x[columns])
            if other == number:
                itself = np.arange(rows.start, rows.stop)
                squares[itself - rows.start, itself - columns.start] = np.inf
            kept = min(DENSITY_NEIGHBOURS, squares.shape[1])
            nearest[rows, other, :kept] = np.partition(squares, kept - 1, axis=1)[:, :kept]
    radii = []
    for case in range(1 + count if count > 1 else 1):
        others = np.delete(nearest, case - 1, axis=1) if case else nearest
        ordered = np.sort(others.reshape(len(others), -1), axis=1)
        radii.append([ordered[:, PRECISION_NEIGHBOURS - 1], ordered[:, DENSITY_NEIGHBOURS - 1]])
    return np.swapaxes(radii, 0, 1)


def _square_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, d) and (m, d) → (n, m). Rounding errors between equal rows are set to 0."""
    lengths = np.sum(x**2, 1)[:, None] + np.sum(y**2, 1)
    squares = lengths - 2 * x @ y.T
    return np.where(squares > 1e-12 * lengths, squares, 0)
