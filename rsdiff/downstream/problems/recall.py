"""Image-caption retrieval in both directions: recall at k, where scores may tie.

A query is a hit at k if any of its relevant items is among the k with the highest scores. Captions repeat verbatim
across images ('There is a piece of farmland'), and equal captions score equally, so that the top k are not determined.
A hit is then a probability: tied items are in random order. Let `above` items score higher than the best relevant one,
and `tied` items equally high, of which `right` are relevant. Then k − above places are drawn from `tied` without
replacement:

    P(hit at k) = 1 − C(tied − right, k − above) / C(tied, k − above),   0 if above ≥ k                   (1)

Constant scores have no advantage: for them, (1) is exactly chance.

Relevance has two definitions, and both are measured:

    'own'     the captions written for an image are relevant to it, as in the literature. Images with the same captions
              cannot be distinguished, so the best possible recall is below 1
    'words'   any caption with the text of one of the image's captions is relevant, whichever image it was written for

Intervals are 95 %, from resampling the images, each with all its queries; the searched items are not resampled.
"""

import dataclasses
from typing import Any, Iterator, Sequence, cast

import numpy as np
import scipy.stats

from rsdiff.base.errors import BadInput
from rsdiff.base.files import AnyPath
from rsdiff.data.folder import Entry
from rsdiff.evaluation.interval import Interval

KS = 1, 5, 10
RESAMPLES = 1000
DIRECTIONS = IMAGE_TO_TEXT, TEXT_TO_IMAGE = 'image to text', 'text to image'
RULES = OWN, WORDS = 'own', 'words'


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall at `k` by the relevance rule `rule`, and the recall of constant scores (chance)."""

    direction: str
    rule: str
    k: int
    recall: Interval
    chance: float

    def to_json(self) -> dict[str, Any]:
        return {
            'direction': self.direction,
            'rule': self.rule,
            'k': self.k,
            **self.recall.to_json(),
            'chance': self.chance,
        }


def captions_of(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The captions of each image.

    Raises:
      BadInput: an image has none; the message names the first.
    """
    for entry in entries:
        require_captions(entry.path, entry.captions)
    return [entry.captions for entry in entries]


def require_captions(path: AnyPath, captions: Sequence[str]) -> None:
    """Raises BadInput with the image's name if it has no captions."""
    if not any(caption.strip() for caption in captions):
        raise BadInput(f'{path}: no captions in the manifest; retrieval needs at least one for each image')


def recalls(images: np.ndarray, texts: np.ndarray, captions: Sequence[Sequence[str]], seed: int = 0) -> list[Recall]:
    """Recall for every direction, rule and k.

    Args:
      images: unit vectors (n, dim).
      texts: unit vectors (all captions, dim), image by image. Equal rows tie.
      captions: those of each of the n images, at least one.
      seed: for the resampling of the intervals.
    """
    return [
        Recall(direction, rule, k, _interval(values, asks, seed), float(expected))
        for rule, direction, scores, right, asks in _questions(images, texts, captions)
        for k, values, expected in zip(KS, hits(scores, right), hits(np.zeros_like(scores), right).mean(1))
    ]


def hits_of_images(images: np.ndarray, texts: np.ndarray, captions: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Each direction, by the rule 'own' → (len(KS), n): the mean hit of the queries that belong to each image.
    Arguments as in `recalls`, whose values are the means of these if all images have the same number of captions."""
    return {
        direction: np.stack([np.bincount(asks, values) / np.bincount(asks) for values in hits(scores, right)])
        for rule, direction, scores, right, asks in _questions(images, texts, captions)
        if rule == OWN
    }


def _questions(
    images: np.ndarray, texts: np.ndarray, captions: Sequence[Sequence[str]]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]]:
    """For every rule and direction: scores and relevance (queries, items), and the image that each query belongs to."""
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    number = {words: index for index, words in enumerate(dict.fromkeys(words for own in captions for words in own))}
    of_text = np.array([number[words] for own in captions for words in own])
    own = owner == np.arange(len(captions))[:, None]
    reads = np.zeros((len(captions), len(number)), bool)
    reads[owner, of_text] = True
    relevant = {OWN: own, WORDS: reads[:, of_text]}

    # A matrix product may give equal columns different last bits; copies of a distinct column are exactly equal.
    distinct, back = np.unique(texts, axis=0, return_inverse=True)
    scores = (images @ distinct.T)[:, back.ravel()]
    for rule, right in relevant.items():
        yield rule, IMAGE_TO_TEXT, scores, right, np.arange(len(captions))
        yield rule, TEXT_TO_IMAGE, scores.T, right.T, owner


def hits(scores: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = KS) -> np.ndarray:
    """(1) for every query.

    Args:
      scores: (queries, items), higher is better.
      relevant: bool, the same shape; every query has at least one relevant item.
    Returns:
      (len(ks), queries), probabilities.
    """
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    above, tied = (scores > best).sum(1), (scores == best).sum(1)
    right = (relevant & (scores == best)).sum(1)
    return np.stack([scipy.stats.hypergeom.sf(0, tied, right, np.clip(k - above, 0, tied)) for k in ks])


def mean_recall(found: Sequence[Recall], rule: str = OWN) -> float:
    """The mean over directions and k, 'mR' in the literature."""
    return float(np.mean([recall.recall.value for recall in found if recall.rule == rule]))


def markdown(found: Sequence[Recall]) -> str:
    """A table with one line per direction and rule: percentages with intervals, each followed by chance."""
    lines = [
        f'| query | relevant | {" | ".join(f"R@{k}, % | chance" for k in KS)} |',
        '|---|---|' + '---:|' * (2 * len(KS)),
    ]
    for rule in RULES:
        for direction in DIRECTIONS:
            cells = [_cell(recall) for recall in found if (recall.rule, recall.direction) == (rule, direction)]
            lines.append(f'| {direction} | {rule} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _cell(found: Recall) -> str:
    # results of `recalls` always have an interval
    value, low, high = (100 * cast(float, x) for x in (found.recall.value, found.recall.low, found.recall.high))
    return f'{value:.1f} ({low:.1f} to {high:.1f}) | {100 * found.chance:.2f}'


def _interval(values: np.ndarray, asks: np.ndarray, seed: int) -> Interval:
    """The mean of `values` (queries,) with its interval; `asks` is the image that each query belongs to."""
    total, count = np.bincount(asks, values), np.bincount(asks)
    drawn = np.random.default_rng(seed).integers(0, len(count), (RESAMPLES, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    return Interval(float(values.mean()), *map(float, np.percentile(means, (2.5, 97.5))))
