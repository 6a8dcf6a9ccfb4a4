"""Is an arm better than `real`, or is the difference due to the choice of seeds and test images?

Both arms classify the same N test images with the same S seeds; a seed fixes the initial parameters and the drawn real
images. The gain is a difference of scores, such as accuracy or the F1 of a class, averaged over seeds:

    gain = 1/S Σ_s g_s,      g_s = score(treatment, seed s) − score(baseline, seed s)                                (1)

The gain varies with the seeds and with the test images; reporting only one of these sources of variance overstates the
certainty (Bouthillier et al. 2021, arXiv 2103.03098). Each bootstrap draw r resamples both:

    gain*_r = 1/S Σ_s g_s(images of draw r) + t_r · sd(g_1 … g_S) / √S                                               (2)

* Images are resampled with replacement, identically for both arms and all seeds: the paired bootstrap of Koehn 2004
  (ACL W04-3250). The number of images per class stays fixed, as in the test split, so that no draw lacks a class.
* Seeds are resampled parametrically: t_r is drawn from Student's t with S − 1 degrees of freedom. Resampling five seeds
  with replacement is too narrow by √(4/5) and has no heavy tails (Hesterberg 2015, arXiv 1411.5279); Student's t has
  the right width for so few seeds.

With one seed, (2) is Koehn's bootstrap. If images have no effect, it is the paired t-test. Seed-image interactions
enter through both terms, which makes the interval conservative, but less so than resampling rows and columns would
(Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1).

The null hypothesis is a gain of 0. The interval contains the middle 95 % of the draws, and

    p = min(1, 2 (1 + min(#{gain*_r ≤ 0}, #{gain*_r ≥ 0})) / (draws + 1))                                            (3)

inverts it: p < 0.05 where the interval excludes 0, up to one draw (Efron & Tibshirani 1993, §12 and §15.4; the added
ones keep p above 0, Davison & Hinkley 1997, §4.2). `holm` corrects all comparisons with the same baseline together.
"""

import dataclasses
from typing import NamedTuple, Sequence, cast

import numpy as np
from scipy import sparse, stats

from rsdiff.evaluation.interval import Interval

DRAWS = 10_000
DRAWS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Change(Interval):
    """A gain with its 95 % interval and the two-sided p of no gain."""

    p: float = 1.0


class Changes(NamedTuple):
    """The changes due to an arm, overall and for each class."""

    accuracy: Change
    macro_f1: Change
    recall: tuple[Change, ...]
    f1: tuple[Change, ...]


class PairedBootstrap:
    """Bootstrap draws of test images, shared by all comparisons on them.

    Args:
      labels: int (images,), the true classes.
      classes: number of classes.
    """

    def __init__(self, labels: np.ndarray, classes: int, draws: int = DRAWS, seed: int = 0):
        self.labels, self.classes, self.draws = np.asarray(labels), classes, draws
        generator = np.random.default_rng([0, seed])
        # how often each draw contains each image
        self.counts = np.empty((len(self.labels), draws), np.uint16)
        for first in range(0, draws, DRAWS_AT_ONCE):
            some = slice(first, min(first + DRAWS_AT_ONCE, draws))
            for members in (np.flatnonzero(self.labels == label) for label in np.unique(self.labels)):
                self.counts[members, some] = _resample(generator, len(members), some.stop - some.start).T
        self.generator_seed = [1, seed]

    def change(self, baseline: np.ndarray, treatment: np.ndarray) -> Changes:
        """Equations 1 to 3.

        Args:
          baseline, treatment: int (seeds, images), predicted classes; row s of both has the same seed.
        """
        found = _scores(self.labels, treatment, self.classes) - _scores(self.labels, baseline, self.classes)
        drawn = np.empty((self.draws, found.shape[1]))
        for first in range(0, self.draws, DRAWS_AT_ONCE):
            some = slice(first, first + DRAWS_AT_ONCE)
            counts = self.counts[:, some].astype(np.float32)
            drawn[some] = (
                (
                    _scores(self.labels, treatment, self.classes, counts)
                    - _scores(self.labels, baseline, self.classes, counts)
                )
                .mean(0)
                .T
            )
        changes = self._changes(found, drawn)
        return Changes(changes[0], changes[1], tuple(changes[2 : 2 + self.classes]), tuple(changes[2 + self.classes :]))

    def change_of_means(self, baseline: np.ndarray, treatment: np.ndarray) -> list[Change]:
        """Equations 1 to 3 for scores that are means over images.

        Args:
          baseline, treatment: (seeds, images, scores), the scores of each image; row s of both has the same seed.
        """
        gained = treatment - baseline
        return self._changes(gained.mean(1), self.counts.T @ gained.mean(0) / len(self.labels))

    def _changes(self, found: np.ndarray, drawn: np.ndarray) -> list[Change]:
        """(2) and (3), from gains (seeds, scores) and their means in each draw of images (draws, scores)."""
        seeds = len(found)
        if seeds > 1:
            generator = np.random.default_rng(self.generator_seed)
            student = cast(np.ndarray, stats.t.rvs(seeds - 1, size=self.draws, random_state=generator))
            drawn = drawn + student[:, None] * found.std(0, ddof=1) / np.sqrt(seeds)
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        # a tolerance, so that rounding errors do not move a 0 to one side
        beyond = np.minimum((drawn <= 1e-12).sum(0), (drawn >= -1e-12).sum(0))
        p = np.minimum(1.0, 2 * (1 + beyond) / (self.draws + 1))
        return [Change(*map(float, numbers)) for numbers in zip(found.mean(0), low, high, p)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of hypotheses that are tested together: the probability of any false rejection stays below the level
    that they are compared with (Holm 1979). The k-th smallest of m is multiplied by m − k + 1; results never decrease
    with k."""
    order = np.argsort(p_values, kind='stable')
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    return adjusted.tolist()


def _resample(generator: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """(draws, n): how often each of n items occurs in n draws with replacement."""
    chosen = generator.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n)


def _scores(labels: np.ndarray, predictions: np.ndarray, classes: int, counts: np.ndarray | None = None) -> np.ndarray:
    """(seeds, 2 + 2 classes[, draws]): accuracy, macro-F1, recall and F1 of each class. Each image counts `counts`
    times, (images, draws), or once."""
    seeds, images = predictions.shape
    once = counts is None
    counts = np.ones((images, 1), np.float32) if once else counts
    cell = (np.arange(seeds)[:, None] * classes + predictions).ravel()
    image = np.tile(np.arange(images), seeds)

    def summed(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(seeds, classes, draws): the counts of the chosen images, by seed and predicted class."""
        select = sparse.csr_array(
            (np.ones(chosen.sum(), np.float32), (rows[chosen], image[chosen])), shape=(seeds * classes, images)
        )
        return (select @ counts).reshape(seeds, classes, -1).astype(np.float64)  # integers up to here

    right = summed(cell, (predictions == labels).ravel())
    predicted = summed(cell, np.ones(len(cell), bool))
    true = np.stack([counts[labels == label].sum(0, dtype=np.float64) for label in range(classes)])[None]
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + predicted, 1)
    accuracy = right.sum(1, keepdims=True) / true.sum(1, keepdims=True)
    found = np.concatenate([accuracy, f1.mean(1, keepdims=True), recall, f1], axis=1)
    return found[..., 0] if once else found
